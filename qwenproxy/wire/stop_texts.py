"""`stop` for upstreams that do not have it: the answer's text ends before the first stop text.

The first is the one that a writer would complete first, however the text is cut into pieces; no more
is held back than what could be the beginning of one. Only text is looked at: never reasoning, nor the
arguments of calls.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwenproxy.wire.events import Event, Finished, TextDelta, ToolCallDelta, UsageReport
from qwenproxy.wire.json import JSONValue

MAX_TEXTS = 16
MAX_CHARS = 1000


def read_stop(stop: JSONValue) -> list[str]:
    """The texts of a request's `stop`: a text, a list of texts, or null.

    Raises:
        ValueError: it is something else, or more than an imitation can look for.
    """
    if stop is None:
        return []
    listed = [stop] if isinstance(stop, str) else stop
    if not isinstance(listed, list):
        raise ValueError("stop must be a text or a list of texts")
    texts = [text for text in listed if isinstance(text, str)]
    if len(texts) != len(listed):
        raise ValueError("stop must be a text or a list of texts")
    if len(texts) > MAX_TEXTS or any(len(text) > MAX_CHARS for text in texts):
        raise ValueError(
            f"stop takes up to {MAX_TEXTS} texts of up to {MAX_CHARS:,} characters here"
        )
    return [text for text in texts if text]


class StopReader:
    """Cuts one answer's events; after `is_done` nothing more of the answer is wanted."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.is_done = False
        self._texts = texts
        self._held = ""
        self._has_calls = False

    def read(self, events: Sequence[Event], *, is_last: bool) -> list[Event]:
        """Replace what was read by what may be handed on; `is_last` where no more comes."""
        read: list[Event] = []
        for event in events:
            match event:
                case TextDelta(text):
                    self._feed(text, read)
                    if self.is_done:
                        return read
                case ToolCallDelta():
                    self._has_calls = True
                    self._flush(read)
                    read.append(event)
                case UsageReport() | Finished():
                    self._flush(read)
                    read.append(event)
                case _:
                    read.append(event)
        if is_last:
            self._flush(read)
        return read

    def _feed(self, text: str, read: list[Event]) -> None:
        data = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._texts if (at := data.find(stop)) >= 0]
        if found:
            _, cut, stop = min(found)
            self._held = data[:cut]
            self._flush(read)
            reason = "tool_calls" if self._has_calls else "stop"
            read.append(Finished(reason, is_cut=True, stop_text=stop))
            self.is_done = True
            return
        keep = max(_beginning(data, stop) for stop in self._texts)
        self._held = data[: len(data) - keep]
        self._flush(read)
        self._held = data[len(data) - keep :]

    def _flush(self, read: list[Event]) -> None:
        if self._held:
            read.append(TextDelta(self._held))
            self._held = ""


def _beginning(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` may begin with."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0

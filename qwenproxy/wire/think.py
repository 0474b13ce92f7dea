"""Thinking that leaked into an answer's text as `<think>...</think>`.

A server without a reasoning parser sends the model's markers as text. `<think>` counts at the very
start of an answer only, so that an answer about the markers stays whole. Where the chat template opens
the thinking itself only `</think>` shows up; text before it is thinking if the caller knows that the
template does so (`is_open`). Without that knowledge the text has been handed on when the marker comes:
a `</think>` on a line of its own is dropped, all text stays text, and `opens_thinking` says what the
caller can know of the next answer. Where the knowledge was wrong the whole answer was taken for thinking:
it comes once more as text, so that there is an answer.

No more is held back than what could be the beginning of a marker.
"""

from __future__ import annotations

from typing import Literal

from qwenproxy.wire.events import ReasoningDelta, TextDelta

_OPEN = "<think>"
_CLOSE = "</think>"
# White space before `<think>` is held back up to this length.
_MAX_LEADING = 64


class ThinkSplitter:
    """Splits answer text into thinking and text.

    Of the line ends that templates put around the markers, those after a marker are dropped.
    """

    def __init__(self, *, is_open: bool = False) -> None:
        self._state: Literal["start", "thinking", "text", "plain"] = (
            "thinking" if is_open else "start"
        )
        self._held = ""
        self._at_line_start = True
        # Line ends that follow a marker are still to be dropped.
        self._trims = is_open
        self._is_assumed = is_open
        self._thought: list[str] = []
        # Whether the template opens the thinking, as far as this answer shows it; null: it does not.
        self.opens_thinking: bool | None = None

    def reasoning_seen(self) -> None:
        """Note that the server separates thinking itself: `is_open` did not hold."""
        if self._is_assumed and self._trims:
            self._state = "start"
            self._trims = False
        self._is_assumed = False

    def feed(self, text: str) -> list[TextDelta | ReasoningDelta]:
        if not text:
            return []
        if self._state == "plain" and not self._trims:
            return [TextDelta(text)]
        if self._state == "text" and not self._held and "<" not in text:
            self._at_line_start = text[-1] == "\n"
            return [TextDelta(text)]
        data = self._held + text
        self._held = ""
        events: list[TextDelta | ReasoningDelta] = []
        if self._state == "start":
            data = self._open(data)
        if self._state == "thinking":
            data = self._think(data, events)
        if self._state == "text":
            data = self._watch(data)
        if self._state in ("text", "plain") and data:
            self._add_text(data, events)
        return events

    def finish(self) -> list[TextDelta | ReasoningDelta]:
        """Return what was held back and turned out to be no marker."""
        held, self._held = self._held, ""
        if self._state == "thinking" and self._is_assumed:
            self.opens_thinking = False
            answer = "".join([*self._thought, held])
            return [TextDelta(answer)] if answer else []
        if not held:
            return []
        if self._state == "thinking":
            return [ReasoningDelta(held)]
        if held == _CLOSE:
            self.opens_thinking = True
            return []
        return [TextDelta(held)]

    def _open(self, data: str) -> str:
        lead = data.lstrip()
        if len(data) - len(lead) > _MAX_LEADING:
            self._state = "text"
            return data
        if lead.startswith(_OPEN):
            self._state = "thinking"
            self._trims = True
            return lead[len(_OPEN) :]
        if _OPEN.startswith(lead):
            self._held = data
            return ""
        self._state = "text"
        return data

    def _think(self, data: str, events: list[TextDelta | ReasoningDelta]) -> str:
        if self._trims:
            data = data.lstrip("\r\n")
            if not data:
                return ""
            # With `is_open`, a server may send the opening marker all the same.
            if _OPEN.startswith(data):
                self._held = data
                return ""
            data = data.removeprefix(_OPEN).lstrip("\r\n")
            self._trims = False
        thinking, marker, rest = data.partition(_CLOSE)
        if marker:
            self.opens_thinking = True if self._is_assumed else None
            self._state = "plain"
            self._trims = True
        else:
            keep = _partial_suffix(thinking)
            self._held = thinking[len(thinking) - keep :]
            thinking = thinking[: len(thinking) - keep]
        if thinking:
            events.append(ReasoningDelta(thinking))
            if self._is_assumed:
                self._thought.append(thinking)
        return rest

    def _watch(self, data: str) -> str:
        """Drop the first `</think>` that has a line for itself; hold back what may become it."""
        position = data.find(_CLOSE)
        while position >= 0:
            after = data[position + len(_CLOSE) :]
            if self._is_line_start(data, position):
                if not after:
                    self._held = data[position:]
                    return data[:position]
                if after[0] in "\r\n":
                    self.opens_thinking = True
                    self._state = "plain"
                    return data[:position] + after
            position = data.find(_CLOSE, position + 1)
        keep = _partial_suffix(data)
        if keep and self._is_line_start(data, len(data) - keep):
            self._held = data[len(data) - keep :]
            return data[: len(data) - keep]
        return data

    def _is_line_start(self, data: str, position: int) -> bool:
        return data[position - 1] == "\n" if position else self._at_line_start

    def _add_text(self, data: str, events: list[TextDelta | ReasoningDelta]) -> None:
        if self._trims:
            data = data.lstrip("\r\n")
            if not data:
                return
            self._trims = False
        self._at_line_start = data[-1] == "\n"
        events.append(TextDelta(data))


def _partial_suffix(text: str) -> int:
    """Length of the longest end of `text` that a `</think>` may begin with."""
    position = text.rfind("<", max(0, len(text) - len(_CLOSE) + 1))
    return len(text) - position if position >= 0 and _CLOSE.startswith(text[position:]) else 0

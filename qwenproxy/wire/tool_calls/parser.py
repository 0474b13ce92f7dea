"""Reads tool calls from a model's answer text while it arrives.

Text flows at once, and so do a call's arguments; only the longest end that could still become a marker
is held back. Calls are those of tools that the client has. The last bracket of arguments leaves when the
call has ended: of a call that was cut, what was delivered is no JSON, and nobody runs it. After the first
call text is dropped, and everything from an invented `<tool_response>` on: the model made the rest up.
Tool calls inside reasoning are not looked for: reasoning never gets here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from qwenproxy.wire.events import Event, TextDelta, ToolCallDelta
from qwenproxy.wire.tool_calls.blocks import Call, HermesBlock, Marker, bare_call, encode
from qwenproxy.wire.tool_calls.coder_block import CoderBlock
from qwenproxy.wire.tool_calls.specs import ToolIndex, ToolSpec

_MARKER = re.compile(
    r"</?tool_call>|<tool_response>|</function>|</parameter>|<(function|parameter)=([^<>\n]{1,128})>"
)
_TEXT_MARKERS = ("<tool_call>", "</tool_call>", "<tool_response>", "<function=")
_BLOCK_MARKERS = (*_TEXT_MARKERS, "</function>", "</parameter>", "<parameter=")
_PARTIAL_NAMED = re.compile(r"<(?:function|parameter)=[^<>\n]{0,128}")
_CUT_OPENING = re.compile(r"<(?:tool_call|function=.*)\Z", re.DOTALL)

# A code fence that may turn out to stand around a call.
_FENCE_END = re.compile(r"(?:`{1,2}|```[\w+-]{0,16}[ \t]{0,16}(?:\r?\n\s{0,64})?)\Z")
_FENCE_OPENING = re.compile(r"\s*(?:```[\w+-]*\s*)?")
_OPENED_LIMIT = 256

_BARE = re.compile(r'\s*(?:```[\w+-]*\s*)?\{\s*"name"\s*:\s*"([^"\\]{1,128})"')
_BARE_BEGINNING = re.compile(
    r"\s*(?:`{0,2}|```[\w+-]{0,16}\s*)"
    r'(?:\{\s*(?:"(?:n(?:a(?:m(?:e(?:"\s*(?::\s*(?:"[^"\\]{0,128})?)?)?)?)?)?)?)?)?\Z'
)
_BARE_LIMIT = 512

# What the web back end puts in place of a call to a tool that it takes for one of its own.
_INTERCEPTED = re.compile(r"^\s*Tool [\w.:-]+ does not exists?\b", re.MULTILINE)
_INTERCEPTED_LIMIT = 300
_INTERCEPTED_NAME = re.compile(r"Tool [\w.:-]{0,64}")
_INTERCEPTED_REST = " does not exist"


class ToolCallParser:
    """Turns answer text into text and calls; one parser reads one answer.

    Args:
        new_id: makes the id of the next call.
        single: the answer ends after its first call (`parallel_tool_calls: false`).
    """

    def __init__(
        self, tools: Sequence[ToolSpec], *, new_id: Callable[[], str], single: bool = False
    ) -> None:
        # Names of calls to tools that the client does not have; such a call is delivered as text.
        self.unknown: list[str] = []
        # The answer was cut inside a call, and whether some of that call had been delivered.
        self.truncated = False
        self.is_half = False
        # The upstream put a sentence of its own in place of a call; known after `finish`.
        self.intercepted = False
        self._tools = ToolIndex(tools)
        self._new_id = new_id
        self._single = single
        self._call_count = 0
        self._events: list[Event] = []
        self._text: list[str] = []
        # The beginning of the delivered text, for recognising an intercepted call.
        self._beginning = ""
        self._last_character = "\n"
        # The end of what was fed that may be part of a marker.
        self._held = ""
        # The beginning of the answer, until it is known whether it may be a bare JSON call.
        self._start: str | None = ""
        self._bare: list[str] | None = None
        self._fence = ""
        # White space or fence after `<tool_call>`, before the call itself.
        self._opened: str | None = None
        self._block: HermesBlock | CoderBlock | None = None
        # The block's first call is being delivered.
        self._is_live = False
        # Everything since the block began, to be delivered as text if it is no call.
        self._raw: list[str] = []
        self._is_cut = False

    @property
    def has_calls(self) -> bool:
        return self._call_count > 0

    def feed(self, text: str) -> list[Event]:
        """Take the next piece of the answer, of any size; returns what is certain now."""
        block = self._block
        if block is not None and self._is_live and not self._held and "<" not in text:
            # Nearly every piece of a call; its text is never wanted again.
            taken = block.feed(text)
            self._pass_on(block)
            if block.is_over:
                self._close_block(block)
                self._literal(text[taken:])
        else:
            self._read(text)
        return self._take_events()

    def finish(self) -> list[Event]:
        """Take the end of the answer; returns what was held back."""
        held, self._held = self._held, ""
        if self._block is not None:
            # Half of a marker at the very end says nothing that the block's state does not.
            self._raw.append(held)
        elif _CUT_OPENING.match(held) and self._bare is None:
            self.truncated = True
        else:
            self._literal(held)
        if self._bare is not None:
            self._finish_bare("".join(self._bare))
        if self._block is not None:
            self._finish_block(self._block)
        if self._start is not None:
            self._emit(self._start)
        if self._opened is not None:
            # Some models close a block with a second opening tag: nothing is missing then.
            self.truncated = self.truncated or not self.has_calls
        self._emit(self._fence)
        self._start, self._opened, self._fence = None, None, ""
        self.intercepted = (
            not self.has_calls
            and len(self._beginning) <= _INTERCEPTED_LIMIT
            and _INTERCEPTED.search(self._beginning) is not None
        )
        return self._take_events()

    def _read(self, text: str) -> None:
        if self._held:
            text = self._held + text
            self._held = ""
        if "<" not in text:
            self._literal(text)
            return
        position = 0
        for found in _MARKER.finditer(text):
            if position < found.start():
                self._literal(text[position : found.start()])
            self._mark(Marker(found[1] or found[0], found[0], found[2] or ""))
            position = found.end()
        rest = text[position:] if position else text
        certain = self._certain_length(rest)
        if certain < len(rest):
            self._held = rest[certain:]
            rest = rest[:certain]
        if rest:
            self._literal(rest)

    def _certain_length(self, text: str) -> int:
        at = text.rfind("<")
        if at < 0:
            return len(text)
        end = text[at:]
        markers = _TEXT_MARKERS if self._block is None else _BLOCK_MARKERS
        if any(marker.startswith(end) for marker in markers):
            return at
        is_named = end.startswith(("<function=", "<parameter=")) and _PARTIAL_NAMED.fullmatch(end)
        return at if is_named else len(text)

    def _literal(self, text: str) -> None:
        while text and not self._is_cut:
            if self._block is not None:
                taken = self._block.feed(text)
                self._raw.append(text[:taken])
                self._pass_on(self._block)
                text = text[taken:]
                if self._block.is_over:
                    self._close_block(self._block)
            elif self._opened is not None:
                text = self._literal_after_opening(text)
            elif self._bare is not None:
                self._bare.append(text)
                return
            elif self._start is not None:
                text = self._literal_at_start(text)
            else:
                self._literal_outside(text)
                return

    def _literal_outside(self, text: str) -> None:
        if self._fence:
            text = self._fence + text
            self._fence = ""
        if "`" in text:
            found = _FENCE_END.search(text)
            if found is not None:
                self._fence = found[0]
                text = text[: found.start()]
        self._emit(text)

    def _literal_at_start(self, text: str) -> str:
        start = (self._start or "") + text
        found = _BARE.match(start)
        if found is not None and self._tools.find(found[1]) is not None:
            self._start, self._bare = None, [start]
            return ""
        # A long piece cannot be the beginning alone, and is not matched against it.
        if found is None and len(start) <= _BARE_LIMIT and _BARE_BEGINNING.match(start):
            self._start = start
            return ""
        self._start = None
        return start

    def _literal_after_opening(self, text: str) -> str:
        """Decide, after `<tool_call>`, whether a JSON call begins; returns the text left to read."""
        opened = (self._opened or "") + text
        found = _FENCE_OPENING.match(opened)
        begin = found.end() if found else 0
        if begin < len(opened) and opened[begin] in "{[":
            self._raw.append(opened[:begin])
            self._opened = None
            self._block = HermesBlock(self._tools)
            return opened[begin:]
        if len(opened) <= _OPENED_LIMIT and opened[begin:] in ("", "`", "``"):
            self._opened = opened
            return ""
        self._opened = None
        self._release()
        return opened

    def _mark(self, marker: Marker) -> None:
        while self._block is not None:
            if self._block.take(marker):
                self._raw.append(marker.raw)
                self._pass_on(self._block)
                if self._block.is_over:
                    self._close_block(self._block)
                return
            self._close_block(self._block)
        if self._is_cut:
            return
        if self._bare is not None:
            self._bare.append(marker.raw)
            return
        if self._start is not None:
            start, self._start = self._start, None
            if _opens(marker) and _FENCE_OPENING.fullmatch(start):
                # White space before a first call is no answer.
                self._fence = start
            else:
                self._literal(start)
        if self._opened is not None:
            self._raw.append(self._opened)
            self._opened = None
            if marker.kind == "function":
                self._open_function(marker)
                return
            if marker.kind == "<tool_call>":
                self._raw.append(marker.raw)
                self._opened = ""
                return
            self._release()
        self._mark_outside(marker)

    def _mark_outside(self, marker: Marker) -> None:
        if _opens(marker):
            self._raw = [self._fence]
            self._fence = ""
            if marker.kind == "function":
                # The opening `<tool_call>` is missing.
                self._open_function(marker)
            else:
                self._raw.append(marker.raw)
                self._opened = ""
        elif marker.kind == "<tool_response>" and self.has_calls:
            self._is_cut = True
        elif marker.kind != "</tool_call>" or self._fence or self._last_character != "\n":
            # A closing tag alone at a line's start is a stray one and says nothing.
            self._literal(marker.raw)

    def _open_function(self, marker: Marker) -> None:
        self._raw.append(marker.raw)
        self._block = CoderBlock(self._tools, marker.name)

    def _pass_on(self, block: HermesBlock | CoderBlock) -> None:
        """Deliver what has become certain of the block's first call."""
        arguments = block.take_arguments()
        if not arguments:
            return
        if not self._is_live:
            tool = self._tools.find(block.name or "")
            if tool is None:
                return
            self._is_live = True
            self._begin_call(tool.name, arguments)
        else:
            self._events.append(ToolCallDelta(self._call_count - 1, arguments=arguments))

    def _begin_call(self, name: str, arguments: str) -> None:
        self._flush_text()
        call_id = self._new_id()
        self._events.append(
            ToolCallDelta(self._call_count, call_id, name=name, arguments=arguments)
        )
        self._call_count += 1

    def _close_block(self, block: HermesBlock | CoderBlock) -> None:
        self._block = None
        calls = block.decode() if block.is_call else None
        if self._is_live:
            self._end_live(block, calls)
        else:
            self._deliver(calls)

    def _end_live(self, block: HermesBlock | CoderBlock, calls: list[Call] | None) -> None:
        self._is_live = False
        self._raw = []
        if rest := block.rest(calls):
            self._events.append(ToolCallDelta(self._call_count - 1, arguments=rest))
        self._is_cut = self._is_cut or self._single
        if calls and calls[1:]:
            self._deliver(calls[1:])

    def _deliver(self, calls: list[Call] | None) -> None:
        """Deliver a block's calls, or its text if it holds none that the client can run."""
        if self._is_cut:
            return
        known: list[tuple[str, str]] = []
        for name, arguments in calls or ():
            tool = self._tools.find(name)
            written = encode(arguments)
            if tool is None:
                self.unknown.append(name)
            elif written is not None:
                known.append((tool.name, written))
        if not known:
            self._release()
            return
        self._raw = []
        for name, written in known[:1] if self._single else known:
            self._begin_call(name, written)
        self._is_cut = self._single

    def _finish_block(self, block: HermesBlock | CoderBlock) -> None:
        self._block = None
        calls = block.finish() if block.is_call else None
        if self._is_live and (calls or block.has_whole_arguments or not block.is_half):
            self._end_live(block, calls)
        elif self._is_live:
            self._is_live = False
            self.truncated = self.is_half = True
            self._raw = []
        elif calls is not None:
            self._deliver(calls)
        elif block.name is not None and self._tools.find(block.name) is None:
            self.unknown.append(block.name)
            self._release()
        elif block.is_half:
            self.truncated = True
            self._raw = []
        else:
            self._release()

    def _finish_bare(self, text: str) -> None:
        self._bare = None
        opening = _FENCE_OPENING.match(text)
        begin = opening.end() if opening else 0
        call = bare_call(text[begin:].rstrip().removesuffix("```").rstrip())
        if call is not None:
            self._raw = [text]
            self._deliver([call])
            return
        self._read(text)
        held, self._held = self._held, ""
        self._literal(held)

    def _release(self) -> None:
        raw, self._raw = self._raw, []
        for text in raw:
            self._emit(text)

    def _emit(self, text: str) -> None:
        if not text or self.has_calls:
            return
        self._text.append(text)
        self._last_character = text[-1]
        if len(self._beginning) <= _INTERCEPTED_LIMIT:
            self._beginning += text[: _INTERCEPTED_LIMIT + 1]

    def _flush_text(self) -> None:
        if self._text:
            self._events.append(TextDelta("".join(self._text)))
            self._text = []

    def _take_events(self) -> list[Event]:
        if self._text:
            self._flush_text()
        events, self._events = self._events, []
        return events if len(events) < 2 else _merged(events)


def may_be_intercepted(beginning: str) -> bool:
    """Whether an answer that begins so may be what the web back end puts in place of a call."""
    if len(beginning) > _INTERCEPTED_LIMIT:
        return False
    lead = beginning.lstrip()
    if len(lead) <= len("Tool "):
        return "Tool ".startswith(lead)
    found = _INTERCEPTED_NAME.match(lead)
    rest = lead[found.end() :] if found else "-"
    return _INTERCEPTED_REST.startswith(rest) or rest.startswith(_INTERCEPTED_REST)


def _opens(marker: Marker) -> bool:
    return marker.kind in ("<tool_call>", "function")


def _merged(events: list[Event]) -> list[Event]:
    """Make one delta of those of one call: a call that came at once leaves as one."""
    merged: list[Event] = []
    run: list[ToolCallDelta] = []
    for event in [*events, None]:
        if isinstance(event, ToolCallDelta) and run and event.index == run[0].index:
            run.append(event)
            continue
        if run:
            first, arguments = run[0], "".join(delta.arguments for delta in run)
            merged.append(ToolCallDelta(first.index, first.id, first.name, arguments))
        run = [event] if isinstance(event, ToolCallDelta) else []
        if event is not None and not run:
            merged.append(event)
    return merged

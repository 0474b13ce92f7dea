"""The client's tools for an upstream that has none of its own: told in the prompt, read from the text.

A chat is told about its tools once, with its first turn; what only one turn is told (a forced choice)
goes with that turn. Calls are read from answer text alone, never from reasoning.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from qwenproxy.errors import InvalidRequest
from qwenproxy.upstream.profiles import profile_for
from qwenproxy.upstream.protocol import UpstreamCall
from qwenproxy.wire.events import Event, Finished, RawText, TextDelta, UsageReport
from qwenproxy.wire.json import JSONValue
from qwenproxy.wire.tool_calls import ToolCallParser, ToolSpec, parse_tools, tool_prompt

_NO_CALL = "Call no function in this answer."


class TextTools:
    """The tools of one call.

    Raises:
        InvalidRequest: `tools` or `tool_choice` cannot be understood.
    """

    def __init__(self, call: UpstreamCall) -> None:
        try:
            self._specs = parse_tools(call.tools)
            choice = _tool_choice(call.parameters.get("tool_choice"))
            self._is_parallel = call.parameters.get("parallel_tool_calls") is not False
            form = profile_for(call.model).tool_form
            described = tool_prompt(self._specs, form=form, parallel=self._is_parallel)
            chosen = tool_prompt(self._specs, form=form, choice=choice, parallel=self._is_parallel)
        except ValueError as exc:
            param = "tool_choice" if "tool_choice" in str(exc) else "tools"
            raise InvalidRequest(str(exc), param=param) from exc
        # A call must come: of any tool, or of the one that is named.
        self.is_forced = bool(self._specs) and choice not in ("auto", "none")
        self._callable = [
            spec
            for spec in self._specs
            if choice in ("auto", "required") or spec.name == choice != "none"
        ]
        # For a chat that knows the tools already.
        self.choice_text = chosen.removeprefix(described).strip()
        if self._specs and choice == "none":
            # The tools are told all the same: later turns of the chat may call them.
            self.choice_text = _NO_CALL
        self.text = "\n".join(text for text in (described, self.choice_text) if text)

    def new_reader(self) -> CallReader:
        return CallReader(self._callable, single=not self._is_parallel)

    @staticmethod
    def new_call_id() -> str:
        return f"call_{uuid.uuid4().hex[:24]}"


class CallReader:
    """Reads one answer's calls; without tools events pass as they are."""

    def __init__(self, tools: Sequence[ToolSpec], *, single: bool = False) -> None:
        # The upstream put a sentence of its own in place of a call; `Finished` is then left out.
        self.intercepted = False
        new_id = TextTools.new_call_id
        self._parser = ToolCallParser(tools, new_id=new_id, single=single) if tools else None
        self._is_flushed = False

    def read(self, events: list[Event], *, is_last: bool) -> list[Event]:
        """Replace text by what it holds; `is_last` where no more comes, even without `Finished`."""
        parser = self._parser
        if parser is None:
            return events
        read: list[Event] = []
        for event in events:
            match event:
                case TextDelta(text):
                    read += (RawText(text), *parser.feed(text))
                case UsageReport():
                    read += (*self._flush(parser), event)
                case Finished(reason):
                    read += self._flush(parser)
                    self.intercepted = parser.intercepted
                    if not self.intercepted:
                        read.append(Finished(_finish_reason(parser, reason)))
                case _:
                    read.append(event)
        if is_last:
            read += self._flush(parser)
        return read

    def _flush(self, parser: ToolCallParser) -> list[Event]:
        if self._is_flushed:
            return []
        self._is_flushed = True
        return parser.finish()


def _finish_reason(parser: ToolCallParser, reason: str) -> str:
    # A call that was begun and not ended: the model ran into its limit.
    if parser.is_half or (parser.truncated and not parser.has_calls):
        return "length"
    return "tool_calls" if parser.has_calls else reason


def _tool_choice(choice: JSONValue) -> str:
    if choice is None:
        return "auto"
    if isinstance(choice, str):
        if choice not in ("auto", "none", "required"):
            raise ValueError(f"tool_choice must be auto, none, required or a function: {choice}")
        return choice
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise ValueError("tool_choice must name a function")
    return name

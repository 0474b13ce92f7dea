"""The client's tools for an upstream that has none of its own: told in the prompt, read from the text;
and calls that a server with tools of its own left in the text.

A chat is told about its tools once, with its first turn; what only one turn is told (a forced choice)
goes with that turn. Calls are read from answer text alone, never from reasoning.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from qwenproxy.errors import InvalidRequest
from qwenproxy.upstream.profiles import profile_for
from qwenproxy.upstream.protocol import UpstreamCall
from qwenproxy.wire.events import (
    Event,
    Finished,
    RawText,
    TextDelta,
    ToolCallDelta,
    UsageReport,
)
from qwenproxy.wire.json import JSONValue
from qwenproxy.wire.tool_calls import (
    ToolCallParser,
    ToolSpec,
    may_be_intercepted,
    parse_tools,
    shorten_tools,
    tool_prompt,
)

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
            form = self.form = profile_for(call.model).tool_form
            described = self._describe(self._specs)
            chosen = tool_prompt(self._specs, form=form, choice=choice, parallel=self._is_parallel)
        except ValueError as exc:
            param = "tool_choice" if "tool_choice" in str(exc) else "tools"
            raise InvalidRequest(str(exc), param=param) from exc
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
        self.text = self._with_choice(described)

    @cached_property
    def short_text(self) -> str:
        """The same with a sentence of every description, for prompts that would be too long."""
        return self._with_choice(self._describe(shorten_tools(self._specs)))

    def _describe(self, specs: Sequence[ToolSpec]) -> str:
        return tool_prompt(specs, form=self.form, parallel=self._is_parallel)

    def _with_choice(self, described: str) -> str:
        return "\n".join(text for text in (described, self.choice_text) if text)

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
        # Text at the answer's beginning that may be that sentence: kept back, so that the turn can be
        # asked again; null once it cannot be.
        self._beginning: str | None = ""

    def read(self, events: list[Event], *, is_last: bool) -> list[Event]:
        """Replace text by what it holds; `is_last` where no more comes, even without `Finished`."""
        parser = self._parser
        if parser is None:
            return events
        read: list[Event] = []
        for event in events:
            match event:
                case TextDelta(text):
                    read += (RawText(text), *self._hold(parser.feed(text)))
                case UsageReport():
                    read += self._flush(parser)
                    read += () if parser.intercepted else self._release()
                    read.append(event)
                case Finished(reason):
                    read += self._flush(parser)
                    self.intercepted = parser.intercepted
                    if not self.intercepted:
                        read += self._release()
                        read.append(Finished(_finish_reason(parser, reason)))
                case _:
                    read.append(event)
        if is_last:
            read += (*self._flush(parser), *self._release())
        return read

    def _hold(self, events: list[Event]) -> list[Event]:
        if self._beginning is None or not events:
            return events
        first = events[0]
        if len(events) == 1 and isinstance(first, TextDelta):
            self._beginning += first.text
            return [] if may_be_intercepted(self._beginning) else self._release()
        return [*self._release(), *events]

    def _release(self) -> list[Event]:
        beginning, self._beginning = self._beginning, None
        return [TextDelta(beginning)] if beginning else []

    def _flush(self, parser: ToolCallParser) -> list[Event]:
        if self._is_flushed:
            return []
        self._is_flushed = True
        return self._hold(parser.finish())


def leaked_calls(call: UpstreamCall) -> LeakedCallReader | None:
    """A reader for a server that may have no parser for calls; null where none may come."""
    if call.parameters.get("tool_choice") == "none":
        return None
    try:
        specs = parse_tools(call.tools)
    except ValueError:
        # Its own form of tools; the server knows what it is.
        return None
    return LeakedCallReader(specs) if specs else None


class LeakedCallReader:
    """Reads calls that stand in the text of an answer, beside those that came as calls."""

    def __init__(self, tools: Sequence[ToolSpec]) -> None:
        self._parser = ToolCallParser(tools, new_id=TextTools.new_call_id)
        # Where each call stands in the answer, by what brought it and its index there.
        self._indexes: dict[tuple[str, int], int] = {}

    def read(self, events: list[Event], *, is_last: bool) -> list[Event]:
        """Replace text by what it holds; `is_last` where no more comes, even without `Finished`."""
        parser = self._parser
        read: list[Event] = []
        for event in events:
            match event:
                case TextDelta(text):
                    read += self._numbered("text", parser.feed(text))
                case ToolCallDelta():
                    read += self._numbered("call", [event])
                case UsageReport():
                    read += (*self._numbered("text", parser.finish()), event)
                case Finished(reason):
                    read += self._numbered("text", parser.finish())
                    is_plain = reason in ("stop", "tool_calls") and not parser.is_half
                    read.append(
                        event
                        if not parser.has_calls and not parser.truncated
                        else (Finished("tool_calls" if is_plain and parser.has_calls else "length"))
                    )
                case _:
                    read.append(event)
        if is_last:
            read += self._numbered("text", parser.finish())
        return read

    def _numbered(self, source: str, events: Sequence[Event]) -> list[Event]:
        numbered: list[Event] = []
        for event in events:
            if isinstance(event, ToolCallDelta):
                key = (source, event.index)
                index = self._indexes.setdefault(key, len(self._indexes))
                numbered.append(replace(event, index=index))
            else:
                numbered.append(event)
        return numbered


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

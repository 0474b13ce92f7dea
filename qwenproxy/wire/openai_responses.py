"""OpenAI's Responses API: events to a client's stream of typed events, or to a whole response object.

Output items are reasoning, messages and calls in the order in which they begin. A message or reasoning
closes when another item begins; calls close at the end of the answer, which is on record by then: clients
act on a call when its item is done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qwenproxy.wire import sse
from qwenproxy.wire.events import Event, ReasoningDelta, TextDelta, ToolCallDelta, UsageReport
from qwenproxy.wire.json import JSONObject, JSONValue
from qwenproxy.wire.responses_record import call_item
from qwenproxy.wire.responses_tools import ToolNames

PREFIX = "resp_"
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
# Codes of errors that OpenAI's own schema has, and that clients act on.
_CODES = {
    "rate_limit_exceeded": "rate_limit_exceeded",
    "upstream_rate_limited": "rate_limit_exceeded",
    "upstream_refused": "invalid_prompt",
    # Not in the schema, but what Codex looks for to compact a conversation.
    "context_length_exceeded": "context_length_exceeded",
}
_ECHOED = ("prompt_cache_key", "safety_identifier", "user")


@dataclass(frozen=True, slots=True)
class Echo:
    """What of a request its response repeats or depends on."""

    body: JSONObject
    names: ToolNames = field(default_factory=dict)

    @property
    def wants_summary(self) -> bool:
        """What the model thought goes into a summary where one is asked for, else into its content."""
        reasoning = self.body.get("reasoning")
        return isinstance(reasoning, dict) and bool(
            reasoning.get("summary") or reasoning.get("generate_summary")
        )


def response_object(
    echo: Echo,
    *,
    response_id: str,
    model: str,
    created: int,
    status: str,
    output: Sequence[JSONObject] = (),
    usage: UsageReport | None = None,
    completed_at: int | None = None,
    error: JSONObject | None = None,
    incomplete: JSONObject | None = None,
) -> JSONObject:
    """Build a response with all its members; times in seconds since 1970."""
    body = echo.body
    reasoning, text = body.get("reasoning"), body.get("text")
    reasoning = reasoning if isinstance(reasoning, dict) else {}
    text = text if isinstance(text, dict) else {}
    parallel = body.get("parallel_tool_calls")
    response: JSONObject = {
        "id": response_id,
        "object": "response",
        "created_at": created,
        "status": status,
        "background": bool(body.get("background")),
        "completed_at": completed_at,
        "error": error,
        "incomplete_details": incomplete,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "max_tool_calls": body.get("max_tool_calls"),
        "metadata": body.get("metadata") or {},
        "model": model,
        "output": list(output),
        "parallel_tool_calls": True if parallel is None else parallel,
        "previous_response_id": body.get("previous_response_id"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "service_tier": "default",
        "store": body.get("store") is not False,
        "temperature": body.get("temperature"),
        "text": {"format": {"type": "text"}, **{n: v for n, v in text.items() if v is not None}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": _served_tools(body.get("tools")),
        "top_logprobs": 0,
        "top_p": body.get("top_p"),
        "truncation": "disabled",
    }
    # In OpenAI's schema these are there or not, and never null.
    for name in _ECHOED:
        if body.get(name) is not None:
            response[name] = body[name]
    if usage is not None:
        response["usage"] = _usage_object(usage)
    return response


def _served_tools(tools: JSONValue) -> list[JSONValue]:
    served: list[JSONValue] = []
    for tool in tools if isinstance(tools, list) else []:
        kind = tool.get("type") if isinstance(tool, dict) else None
        if isinstance(tool, dict) and kind == "function":
            served.append({"description": None, "parameters": None, "strict": None, **tool})
        elif kind in ("custom", "namespace"):
            served.append(tool)
    return served


def _usage_object(usage: UsageReport) -> JSONObject:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens or 0,
            "cache_write_tokens": 0,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": usage.total_tokens,
    }


def ending(finish_reason: str) -> tuple[str, JSONObject | None]:
    """Status and `incomplete_details` of an answer that came to its end."""
    reason = _INCOMPLETE.get(finish_reason)
    return ("completed", None) if reason is None else ("incomplete", {"reason": reason})


def error_object(code: str | None, message: str) -> JSONObject:
    """The `error` of a failed response."""
    return {"code": _CODES.get(code or "", "server_error"), "message": message}


def output_items(
    echo: Echo, *, response_id: str, message: JSONObject, reasoning: str, status: str
) -> list[JSONObject]:
    """The items of an answer; `message` is `Accumulator.message()`. Ids follow from the response's."""
    last = "completed" if status == "completed" else "incomplete"
    name = response_id.removeprefix(PREFIX)
    items: list[JSONObject] = []
    if reasoning:
        items.append(_reasoning_item(f"rs_{name}", reasoning, echo, "completed"))
    text = message.get("content")
    calls = message.get("tool_calls")
    if (isinstance(text, str) and text.strip()) or (text and not calls):
        items.append(_message_item(f"msg_{name}", str(text), "completed"))
    if items and not calls:
        items[-1]["status"] = last
    for number, call in enumerate(calls if isinstance(calls, list) else []):
        items.append(_call_item(call, number, name, echo.names, last))
    return items


def _reasoning_item(item_id: str, text: str, echo: Echo, status: str) -> JSONObject:
    item: JSONObject = {"id": item_id, "type": "reasoning", "summary": [], "status": status}
    if echo.wants_summary:
        item["summary"] = [{"type": "summary_text", "text": text}]
    else:
        item["content"] = [{"type": "reasoning_text", "text": text}]
    return item


def _message_item(item_id: str, text: str, status: str) -> JSONObject:
    part: JSONObject = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {
        "id": item_id,
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [part],
    }


def _call_item(
    call: JSONValue, number: int, name: str, names: ToolNames, status: str
) -> JSONObject:
    item = call_item(call, names)
    prefix = "ctc" if item["type"] == "custom_tool_call" else "fc"
    return {"id": f"{prefix}_{name}_{number}", **item, "status": status}


@dataclass(slots=True)
class _Item:
    """An output item that is being written: `kind` is text, summary, thought or call."""

    kind: str
    index: int
    id: str
    pieces: list[str] = field(default_factory=list)
    # Of a call.
    call_id: str = ""
    tool: str = ""
    number: int = 0
    done: JSONObject | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class ResponseEncoder:
    """Writes one answer as OpenAI's stream of events.

    Args:
        clock: seconds since 1970, for the end of the response.
    """

    def __init__(
        self, echo: Echo, *, response_id: str, model: str, created: int, clock: Callable[[], int]
    ) -> None:
        self._echo = echo
        self._response = _Response(echo, response_id, model, created)
        self._name = response_id.removeprefix(PREFIX)
        self._clock = clock
        self._number = 0
        self._has_begun = False
        self._items: list[_Item] = []
        self._open: _Item | None = None
        self._calls: dict[int, _Item] = {}
        # White space after a call that may be followed by nothing.
        self._space = ""

    def encode(self, events: Sequence[Event]) -> bytes:
        out: list[bytes] = []
        for event in events:
            if isinstance(event, TextDelta | ReasoningDelta):
                self._add_text(event, out)
            elif isinstance(event, ToolCallDelta):
                self._add_call(event, out)
        return b"".join(out)

    def finish(self, reason: str, usage: UsageReport | None) -> bytes:
        """End the stream: what is open, then the whole response."""
        out: list[bytes] = []
        self._begin(out)
        status, incomplete = ending(reason)
        self._close_all(out, "completed" if status == "completed" else "incomplete")
        whole = self._response.build(
            status=status,
            output=self._done(),
            usage=usage or UsageReport(0, 0, 0),
            completed_at=self._clock() if status == "completed" else None,
            incomplete=incomplete,
        )
        out.append(self._event(f"response.{status}", {"response": whole}))
        return b"".join(out)

    def error(self, body: JSONObject) -> bytes:
        """End the stream with a failed response; `body` is OpenAI's error body."""
        out: list[bytes] = []
        self._begin(out)
        told = body["error"]
        assert isinstance(told, dict)
        code = told.get("code")
        error = error_object(code if isinstance(code, str) else None, str(told.get("message")))
        self._close_texts(out, "incomplete")
        whole = self._response.build(status="failed", output=self._done(), error=error)
        out.append(self._event("response.failed", {"response": whole}))
        return b"".join(out)

    def keep_alive(self) -> bytes:
        """What fills silence; a stream begins with its response all the same."""
        out: list[bytes] = []
        self._begin(out)
        return b"".join((*out, sse.KEEP_ALIVE))

    def _begin(self, out: list[bytes]) -> None:
        if self._has_begun:
            return
        self._has_begun = True
        beginning = self._response.build(status="in_progress")
        for name in ("created", "in_progress"):
            out.append(self._event(f"response.{name}", {"response": beginning}))

    def _event(self, kind: str, members: JSONObject) -> bytes:
        data: JSONObject = {"type": kind, "sequence_number": self._number, **members}
        self._number += 1
        return b"event: %s\n" % kind.encode() + sse.encode_data(data)

    def _item_event(self, kind: str, item: _Item, **members: JSONValue) -> bytes:
        place: JSONObject = {"item_id": item.id, "output_index": item.index}
        return self._event(f"response.{kind}", {**place, **members})

    def _add_text(self, event: TextDelta | ReasoningDelta, out: list[bytes]) -> None:
        text = event.text
        if isinstance(event, TextDelta):
            kind = "text"
            if self._calls and (self._open is None or self._open.kind != "text"):
                text = self._space + text
                self._space = text if not text.strip() else ""
                text = "" if self._space else text
        else:
            kind = "summary" if self._echo.wants_summary else "thought"
        if not text:
            return
        item = self._open
        if item is None or item.kind != kind:
            item = self._open_text(kind, out)
        item.pieces.append(text)
        name, place = _TEXTS[kind]
        members: JSONObject = {place: 0, "delta": text}
        if kind == "text":
            members["logprobs"] = []
        out.append(self._item_event(f"{name}.delta", item, **members))

    def _open_text(self, kind: str, out: list[bytes]) -> _Item:
        self._begin(out)
        self._close_texts(out)
        prefix = "msg" if kind == "text" else "rs"
        before = sum(item.id.startswith(f"{prefix}_") for item in self._items)
        item_id = f"{prefix}_{self._name}" + (f"_{before}" if before else "")
        item = self._open = _Item(kind, len(self._items), item_id)
        self._items.append(item)
        self._added(item, self._object(item, "in_progress", is_empty=True), out)
        begun: JSONObject = {_TEXTS[kind][1]: 0, "part": _part(kind, "")}
        out.append(self._item_event(f"{_part_name(kind)}.added", item, **begun))
        return item

    def _added(self, item: _Item, written: JSONObject, out: list[bytes]) -> None:
        members: JSONObject = {"output_index": item.index, "item": written}
        out.append(self._event("response.output_item.added", members))

    def _add_call(self, event: ToolCallDelta, out: list[bytes]) -> None:
        item = self._calls.get(event.index)
        if item is None:
            self._begin(out)
            self._close_texts(out)
            item = self._open_call(event, out)
        if not event.arguments:
            return
        item.pieces.append(event.arguments)
        if not self._is_custom(item):
            delta = event.arguments
            out.append(self._item_event("function_call_arguments.delta", item, delta=delta))

    def _open_call(self, event: ToolCallDelta, out: list[bytes]) -> _Item:
        number = len(self._calls)
        item = _Item("call", len(self._items), "", call_id=event.id or "", tool=event.name or "")
        item.number = number
        item.id = str(self._object(item, "in_progress")["id"])
        self._items.append(item)
        self._calls[event.index] = item
        self._added(item, self._object(item, "in_progress"), out)
        return item

    def _is_custom(self, item: _Item) -> bool:
        named = self._echo.names.get(item.tool)
        return named is not None and named.is_custom

    def _object(self, item: _Item, status: str, *, is_empty: bool = False) -> JSONObject:
        if item.kind == "call":
            function: JSONObject = {"name": item.tool, "arguments": item.text}
            call: JSONObject = {"id": item.call_id, "function": function}
            return _call_item(call, item.number, self._name, self._echo.names, status)
        if item.kind == "text":
            written = _message_item(item.id, item.text, status)
        else:
            written = _reasoning_item(item.id, item.text, self._echo, status)
        if is_empty:
            written["summary" if item.kind == "summary" else "content"] = []
        return written

    def _close_texts(self, out: list[bytes], status: str = "completed") -> None:
        item, self._open = self._open, None
        if item is None:
            return
        name, place = _TEXTS[item.kind]
        members: JSONObject = {place: 0, "text": item.text}
        if item.kind == "text":
            members["logprobs"] = []
        out.append(self._item_event(f"{name}.done", item, **members))
        ended: JSONObject = {place: 0, "part": _part(item.kind, item.text)}
        out.append(self._item_event(f"{_part_name(item.kind)}.done", item, **ended))
        self._end(item, status, out)

    def _close_all(self, out: list[bytes], status: str) -> None:
        self._close_texts(out, status)
        for item in self._calls.values():
            if self._is_custom(item):
                text = str(self._object(item, status)["input"])
                out.append(self._item_event("custom_tool_call_input.delta", item, delta=text))
                out.append(self._item_event("custom_tool_call_input.done", item, input=text))
            else:
                ended: JSONObject = {"arguments": item.text, "name": self._plain_name(item)}
                out.append(self._item_event("function_call_arguments.done", item, **ended))
            self._end(item, status, out)

    def _plain_name(self, item: _Item) -> str:
        named = self._echo.names.get(item.tool)
        return item.tool if named is None else named.name

    def _end(self, item: _Item, status: str, out: list[bytes]) -> None:
        item.done = self._object(item, status)
        members: JSONObject = {"output_index": item.index, "item": item.done}
        out.append(self._event("response.output_item.done", members))

    def _done(self) -> list[JSONObject]:
        return [item.done or self._object(item, "incomplete") for item in self._items]


@dataclass(frozen=True, slots=True)
class _Response:
    """The response of one stream, at its beginning and its end."""

    echo: Echo
    response_id: str
    model: str
    created: int

    def build(
        self,
        *,
        status: str,
        output: Sequence[JSONObject] = (),
        usage: UsageReport | None = None,
        completed_at: int | None = None,
        error: JSONObject | None = None,
        incomplete: JSONObject | None = None,
    ) -> JSONObject:
        return response_object(
            self.echo, response_id=self.response_id, model=self.model, created=self.created,
            status=status, output=output, usage=usage, completed_at=completed_at, error=error,
            incomplete=incomplete,
        )  # fmt: skip


# Kind of an open text -> the name of its events, and of the number of its part.
_TEXTS = {
    "text": ("output_text", "content_index"),
    "thought": ("reasoning_text", "content_index"),
    "summary": ("reasoning_summary_text", "summary_index"),
}


def _part_name(kind: str) -> str:
    return "reasoning_summary_part" if kind == "summary" else "content_part"


def _part(kind: str, text: str) -> JSONObject:
    if kind == "text":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "reasoning_text" if kind == "thought" else "summary_text", "text": text}

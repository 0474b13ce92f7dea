"""Anthropic's Messages API: events to a client's stream or to a whole message.

A stream is a row of blocks, one after the other, each closed before the next one begins; clients act on
a call when its block closes. Where an upstream mixes the pieces of several calls, what is not of the
open call waits until that one is whole. What the body of a request is, `wire.anthropic_bodies` says.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwenproxy.wire import json, sse
from qwenproxy.wire.anthropic_bodies import SIGNATURE, tool_use
from qwenproxy.wire.events import (
    Event,
    Finished,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    UsageReport,
)
from qwenproxy.wire.json import JSONObject, JSONValue

_STOP_REASONS = {
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
# Each look at a call reads all of it; what waits longer is let out at the answer's end.
_MAX_LOOKS = 20
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'


class MessageEncoder:
    """Writes one answer as Anthropic's stream.

    Args:
        input_tokens: an estimate for the beginning; the end carries what the upstream counted.
        thinking: the client asked for the model's thinking; else it is left out.
    """

    def __init__(self, *, response_id: str, model: str, input_tokens: int, thinking: bool) -> None:
        self._thinking = thinking
        self._beginning: JSONObject = {
            "id": response_id,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage_object(UsageReport(input_tokens, 0, input_tokens)),
        }
        self._has_begun = False
        # Of the open block, or of the one before.
        self._index = -1
        self._open = ""
        # The index of the open call, and its arguments so far.
        self._call = -1
        self._arguments: list[str] = []
        self._looks = 0
        self._closed_calls: set[int] = set()
        self._waiting: list[Event] = []
        self._stop_text: str | None = None

    def encode(self, events: Sequence[Event]) -> bytes:
        out: list[bytes] = []
        for event in events:
            self._feed(event, out)
        return b"".join(out)

    def finish(self, reason: str, usage: UsageReport | None) -> bytes:
        """End the stream: the last block, why it ended with the usage, the end mark."""
        out: list[bytes] = []
        self._begin(out)
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            # No more of the open call comes.
            self._close(out)
            for event in waiting:
                self._feed(event, out)
        self._close(out)
        delta: JSONObject = {"stop_reason": stop_reason(reason), "stop_sequence": None}
        if self._stop_text is not None:
            mark_stop(delta, self._stop_text)
        end: JSONObject = {"delta": delta}
        end["usage"] = _usage_object(usage or UsageReport(0, 0, 0))
        out += (_event("message_delta", end), _event("message_stop", {}))
        return b"".join(out)

    def error(self, body: JSONObject) -> bytes:
        """End the stream with an error; `body` is Anthropic's error body."""
        return b"event: error\n" + sse.encode_data(body)

    def keep_alive(self) -> bytes:
        """What fills silence; a stream begins with its message all the same."""
        out: list[bytes] = []
        self._begin(out)
        return b"".join((*out, _PING))

    def _feed(self, event: Event, out: list[bytes]) -> None:
        if isinstance(event, Finished):
            self._stop_text = event.stop_text
        if not isinstance(event, TextDelta | ReasoningDelta | ToolCallDelta):
            return
        if isinstance(event, ReasoningDelta) and not self._thinking:
            return
        if isinstance(event, ToolCallDelta) and event.index == self._call:
            self._add_arguments(event.arguments, out)
            is_end = event.arguments.rstrip().endswith("}")
            if self._waiting and is_end and self._is_call_whole():
                waiting, self._waiting = self._waiting, []
                for later in waiting:
                    self._feed(later, out)
        elif self._waiting or (self._call >= 0 and not self._is_call_whole()):
            self._waiting.append(event)
        elif isinstance(event, ToolCallDelta):
            self._open_call(event, out)
        elif event.text:
            self._add_text(event, out)

    def _add_text(self, event: TextDelta | ReasoningDelta, out: list[bytes]) -> None:
        kind = "text" if isinstance(event, TextDelta) else "thinking"
        if self._open != kind:
            block: JSONObject = {"type": kind, kind: ""}
            if kind == "thinking":
                block["signature"] = ""
            self._start(kind, block, out)
        self._delta({"type": f"{kind}_delta", kind: event.text}, out)

    def _open_call(self, event: ToolCallDelta, out: list[bytes]) -> None:
        if event.index in self._closed_calls:
            # Nothing but the empty object that stands for no arguments comes after a call's end.
            return
        block: JSONObject = {
            "type": "tool_use",
            "id": event.id,
            "name": event.name,
            "input": {},
        }
        self._start("tool_use", block, out)
        self._call = event.index
        self._add_arguments(event.arguments, out)

    def _add_arguments(self, arguments: str, out: list[bytes]) -> None:
        if arguments:
            self._arguments.append(arguments)
            self._delta({"type": "input_json_delta", "partial_json": arguments}, out)

    def _is_call_whole(self) -> bool:
        self._looks += 1
        if self._looks > _MAX_LOOKS:
            return False
        try:
            json.loads_text("".join(self._arguments))
        except json.JSONError:
            return False
        return True

    def _start(self, kind: str, block: JSONObject, out: list[bytes]) -> None:
        self._begin(out)
        self._close(out)
        self._index += 1
        self._open = kind
        out.append(_event("content_block_start", {"index": self._index, "content_block": block}))

    def _delta(self, delta: JSONObject, out: list[bytes]) -> None:
        out.append(_event("content_block_delta", {"index": self._index, "delta": delta}))

    def _close(self, out: list[bytes]) -> None:
        if not self._open:
            return
        if self._open == "thinking":
            self._delta({"type": "signature_delta", "signature": SIGNATURE}, out)
        if self._call >= 0:
            self._closed_calls.add(self._call)
            self._call, self._arguments, self._looks = -1, [], 0
        self._open = ""
        out.append(_event("content_block_stop", {"index": self._index}))

    def _begin(self, out: list[bytes]) -> None:
        if not self._has_begun:
            self._has_begun = True
            out.append(_event("message_start", {"message": self._beginning}))


def _event(name: str, members: JSONObject) -> bytes:
    return b"event: %s\n" % name.encode() + sse.encode_data({"type": name, **members})


def stop_reason(finish_reason: str) -> str:
    """Anthropic's word for OpenAI's `finish_reason`."""
    return _STOP_REASONS.get(finish_reason, "end_turn")


def mark_stop(answer: JSONObject, stop_text: str) -> None:
    """Name the stop text that ended an answer; one that calls a tool says that instead."""
    if answer["stop_reason"] == "end_turn":
        answer |= {"stop_reason": "stop_sequence", "stop_sequence": stop_text}


def _usage_object(usage: UsageReport) -> JSONObject:
    """Write counts in Anthropic's form, where cached tokens are not among the input."""
    cached = usage.cached_tokens or 0
    return {
        "input_tokens": max(0, usage.prompt_tokens - cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens,
    }


def whole_message(
    *,
    response_id: str,
    model: str,
    message: JSONObject,
    reasoning: str,
    finish_reason: str,
    usage: UsageReport | None,
) -> JSONObject:
    """Build a whole message; `message` is `Accumulator.message()`, an empty `reasoning` is left out."""
    content: list[JSONValue] = []
    if reasoning:
        content.append({"type": "thinking", "thinking": reasoning, "signature": SIGNATURE})
    if message.get("content"):
        content.append({"type": "text", "text": message["content"]})
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        # Of a call that was cut the arguments are no JSON; without them another call would be made.
        is_cut = finish_reason == "length" and not _is_json(calls[-1])
        content += [tool_use(call) for call in (calls[:-1] if is_cut else calls)]
    return {
        "id": response_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": stop_reason(finish_reason),
        "stop_sequence": None,
        "usage": _usage_object(usage or UsageReport(0, 0, 0)),
    }


def _is_json(call: JSONValue) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    try:
        json.loads_text(str(arguments or "{}"))
    except json.JSONError:
        return False
    return True

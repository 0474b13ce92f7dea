"""OpenAI's chat completions: an upstream's stream to events, events to a client's stream.

Decoding takes what vLLM, SGLang, llama.cpp, Ollama, LM Studio and DashScope send beside the standard.
It never raises on what an upstream sends: `error` is set, and events read before it are returned first.
Encoding writes one chunk per event around an envelope that is made once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import orjson

from qwenproxy.wire import json, sse
from qwenproxy.wire.events import (
    Event,
    Finished,
    LogProbs,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    UsageReport,
    add_logprobs,
    token_count,
)
from qwenproxy.wire.json import JSONObject, JSONValue
from qwenproxy.wire.text_chunks import TextChunks
from qwenproxy.wire.think import ThinkSplitter

_FINISH_REASONS = {
    "function_call": "tool_calls",
    "eos": "stop",
    "eos_token": "stop",
    "stop_sequence": "stop",
    "end_turn": "stop",
    "max_tokens": "length",
}
_TITLE = re.compile(r"<title>\s*(.*?)\s*</title>", re.IGNORECASE | re.DOTALL)
_MAX_MESSAGE_CHARS = 500


class StreamError(Exception):
    """What an upstream said instead of an answer, or instead of the rest of one.

    `code` is the upstream's own as text, or one of ours: `upstream_cut` (the stream ended within an
    answer), `upstream_empty` (it ended without one), `upstream_malformed` (not JSON).
    """

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        type: str | None = None,
        raw: JSONValue = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.type = type
        self.raw = raw


@dataclass(slots=True)
class _Call:
    """A tool call while it is read; `key` is how the upstream names it."""

    index: int
    key: JSONValue
    upstream_id: str
    # Pieces that came before the name did; null once the first piece was handed on.
    waiting: list[str] | None = field(default_factory=list)
    id: str = ""
    arguments: list[str] = field(default_factory=list)
    chars: int = 0

    def repeats(self, piece: str) -> bool:
        """Whether a piece says all that was said once more, as some servers' last chunk does."""
        if not self.chars or len(piece) < self.chars // 2 or piece.lstrip()[:1] != "{":
            return False
        try:
            return json.loads_text(piece) == json.loads_text("".join(self.arguments))
        except json.JSONError:
            return False


class ChatStreamDecoder:
    """Decodes the payloads of one answer to events.

    The caller looks at `error` after it has handled the events of each call, and stops reading when
    `is_done`. The last event of a whole answer is `Finished`, after the only `UsageReport`.

    Args:
        new_id: makes ids for tool calls that come without one.
        think_open: the chat template is known to open the model's thinking, see `wire.think`.
    """

    def __init__(self, *, new_id: Callable[[], str], think_open: bool = False) -> None:
        self.error: StreamError | None = None
        self.is_done = False
        self._new_id = new_id
        self._splitter = ThinkSplitter(is_open=think_open)
        self._text_chunks = TextChunks()
        self._is_started = False
        self._has_content = False
        self._calls: list[_Call] = []
        self._finish_reason: str | None = None
        self._stop_text: str | None = None
        self._usage: UsageReport | None = None

    @property
    def opens_thinking(self) -> bool | None:
        """Whether the chat template turned out to open the thinking itself; null: nobody can tell."""
        return self._splitter.opens_thinking

    @property
    def has_finish(self) -> bool:
        """The model has ended its answer; what may still come are counts and the end mark."""
        return self._finish_reason is not None

    def feed(self, payload: bytes) -> list[Event]:
        if self.is_done or not payload:
            return []
        text = self._text_chunks.read(payload)
        if text is not None:
            events: list[Event] = []
            if self._text_chunks.field == "content":
                self._read_text(text, events)
            else:
                self._read_reasoning(text, events)
            return events
        if payload == b"[DONE]":
            return self._end(is_whole=True)
        try:
            # `wire.json` keeps long integers, which matter in arguments alone, and looks at every
            # byte for them; chunks of text take the fast road.
            body = json.loads(payload) if b'"arguments"' in payload else _loads_fast(payload)
            json.refuse_deep(body, payload)
        except json.JSONError as exc:
            if self.has_finish:
                # A line that broke off with its connection: nothing of the answer is missing.
                return []
            text = payload.decode("utf-8", "replace")[:_MAX_MESSAGE_CHARS]
            return self._fail(
                StreamError(
                    f"The upstream sent a line that is not JSON: {exc}",
                    code="upstream_malformed",
                    raw=text,
                )
            )
        events = self._apply(body)
        # Log probabilities are of this chunk alone, also where its text is held back.
        is_plain = len(events) == 1 and type(events[0]) is not LogProbs
        if isinstance(body, dict) and is_plain and self.error is None:
            self._text_chunks.learn(payload, body)
        return events

    def finish(self) -> list[Event]:
        """End the answer at the end of the stream."""
        return [] if self.is_done else self._end(is_whole=False)

    def _apply(self, body: JSONValue) -> list[Event]:
        if not isinstance(body, dict):
            return []
        choices = body.get("choices")
        if body.get("error") or choices is None:
            error = read_error(body)
            if error is not None:
                return self._fail(error)
        events: list[Event] = []
        if not self._is_started and isinstance(choices, list):
            self._is_started = True
            events.append(Started(_text(body.get("id")), model=_text(body.get("model"))))
        if usage := body.get("usage"):
            self._usage = read_usage(usage) or self._usage
        if isinstance(choices, list):
            for choice in choices:
                # Other choices than the first have no place in the events.
                if isinstance(choice, dict) and choice.get("index") in (0, None):
                    self._read_choice(choice, events)
        return events

    def _read_choice(self, choice: JSONObject, events: list[Event]) -> None:
        delta = choice.get("delta")
        if delta is None and not self._has_content:
            delta = choice.get("message")
        if (logprobs := choice.get("logprobs")) and isinstance(logprobs, dict):
            events.append(LogProbs(logprobs))
        if isinstance(delta, dict):
            self._read_delta(delta, events)
        if text := choice.get("text"):
            self._read_text(text, events)
        if reason := choice.get("finish_reason"):
            self._finish_reason = str(reason)
            # vLLM's and SGLang's names for the stop text; numbers there are tokens.
            matched = choice.get("stop_reason") or choice.get("matched_stop")
            self._stop_text = matched if isinstance(matched, str) else None
        if error := choice.get("error"):
            events += self._fail(read_error({"error": error}) or StreamError(str(error)))

    def _read_delta(self, delta: JSONObject, events: list[Event]) -> None:
        # vLLM renamed `reasoning_content` to `reasoning`; some servers send both with one text.
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(reasoning, str):
            self._read_reasoning(reasoning, events)
        if content := delta.get("content"):
            self._read_text(content, events)
        if calls := delta.get("tool_calls"):
            for entry in calls if isinstance(calls, list) else [calls]:
                if isinstance(entry, dict):
                    self._read_call(entry, events)
        if isinstance(call := delta.get("function_call"), dict):
            self._read_call({"index": "function_call", "function": call}, events)

    def _read_reasoning(self, text: str, events: list[Event]) -> None:
        if text:
            self._splitter.reasoning_seen()
            self._has_content = True
            events.append(ReasoningDelta(text))

    def _read_text(self, content: JSONValue, events: list[Event]) -> None:
        text = content if isinstance(content, str) else _join_parts(content)
        if text:
            self._has_content = True
            events += self._splitter.feed(text)

    def _read_call(self, entry: JSONObject, events: list[Event]) -> None:
        function = entry.get("function")
        if not isinstance(function, dict):
            # Some servers leave the wrapper out.
            function = entry
        name = _text(function.get("name")) or ""
        arguments = function.get("arguments")
        if arguments is None:
            arguments = ""
        elif not isinstance(arguments, str):
            arguments = json.dumps_text(arguments)
        self._has_content = True
        call = self._find_call(entry, name)
        if call.repeats(arguments):
            return
        call.arguments.append(arguments)
        call.chars += len(arguments)
        if call.waiting is None:
            if arguments:
                events.append(ToolCallDelta(call.index, arguments=arguments))
            return
        call.waiting.append(arguments)
        if name:
            events.append(self._open_call(call, name))

    def _open_call(self, call: _Call, name: str) -> ToolCallDelta:
        arguments = "".join(call.waiting or ())
        call.waiting = None
        call.id = call.upstream_id or self._new_id()
        return ToolCallDelta(call.index, call.id, name, arguments)

    def _find_call(self, entry: JSONObject, name: str) -> _Call:
        """Find the call that a piece belongs to, or begin a new one.

        A new id together with a name begins a new call whatever the index says: SGLang has sent
        several calls with one index. A new id alone does not: some send one with every piece.
        """
        key = entry.get("index")
        upstream_id = _text(entry.get("id")) or ""
        for call in reversed(self._calls):
            if upstream_id and call.upstream_id == upstream_id:
                return call
            if name and call.waiting is None and (upstream_id or key is None):
                continue
            if key is None and upstream_id and call.upstream_id:
                continue
            if key is None or key == call.key:
                call.upstream_id = call.upstream_id or upstream_id
                return call
        call = _Call(len(self._calls), key, upstream_id)
        self._calls.append(call)
        return call

    def _end(self, *, is_whole: bool) -> list[Event]:
        """Close the answer; `is_whole` where the upstream marked its end."""
        if self._finish_reason is None and not (is_whole and self._has_content):
            if self._has_content:
                message, code = "The upstream's stream ended within the answer.", "upstream_cut"
            else:
                message, code = "The upstream's stream ended without an answer.", "upstream_empty"
            return self._fail(StreamError(message, code=code))
        events: list[Event] = [*self._splitter.finish()]
        reason = self._finish_reason or "stop"
        reason = _FINISH_REASONS.get(reason, reason)
        if self._calls and reason == "stop":
            reason = "tool_calls"
        elif not self._calls and reason == "tool_calls":
            reason = "stop"
        for call in self._calls:
            if call.waiting is not None:
                events.append(self._open_call(call, ""))
            # Clients parse the arguments; a call without any is a call with none.
            if not call.chars and reason == "tool_calls":
                events.append(ToolCallDelta(call.index, arguments="{}"))
        if self._usage is not None:
            events.append(self._usage)
        stop_text = self._stop_text if reason == "stop" else None
        events.append(Finished(reason, stop_text=stop_text))
        self.is_done = True
        return events

    def _fail(self, error: StreamError) -> list[Event]:
        self.error = error
        self.is_done = True
        events: list[Event] = [*self._splitter.finish()]
        if self._usage is not None:
            events.append(self._usage)
        return events


def decode_completion(
    body: bytes, *, new_id: Callable[[], str], think_open: bool = False
) -> tuple[list[Event], StreamError | None]:
    """Decode a whole JSON answer, from a server that does not stream or was not asked to."""
    decoder = ChatStreamDecoder(new_id=new_id, think_open=think_open)
    events = decoder.feed(body.strip())
    events += decoder.feed(b"[DONE]")
    return events, decoder.error


def parse_error(status: int, body: bytes) -> StreamError:
    """Read the body of an HTTP error, in any of the forms that OpenAI-compatible servers use."""
    try:
        parsed = json.refuse_deep(json.loads(body), body)
    except json.JSONError:
        parsed = body.decode("utf-8", "replace").strip()
    error = read_error(parsed) if isinstance(parsed, dict) else None
    if error is not None:
        return error
    text = parsed if isinstance(parsed, str) else ""
    if text.startswith("<"):
        title = _TITLE.search(text)
        text = title[1] if title else ""
    return StreamError(text[:_MAX_MESSAGE_CHARS] or f"HTTP {status}", raw=parsed)


def read_error(body: JSONObject) -> StreamError | None:
    """Read an error body; null where it is none."""
    inner = body.get("error")
    if isinstance(inner, str) and inner:
        # Some servers add `code` or `type` beside the text.
        detail: JSONObject = {**body, "message": inner}
    else:
        detail = inner if isinstance(inner, dict) and inner else body
    message = detail.get("message") or detail.get("detail") or detail.get("details")
    code = detail.get("code")
    if not message and not inner:
        return None
    type_ = detail.get("type")
    return StreamError(
        _message_text(message) or _text(code) or "The upstream reported an error.",
        code=_text(code),
        type=_text(type_),
        raw=body,
    )


def _message_text(message: JSONValue) -> str:
    if isinstance(message, str):
        return message
    if not isinstance(message, list):
        return json.dumps_text(message) if message else ""
    # FastAPI's validation errors.
    lines = []
    for item in message:
        if isinstance(item, dict) and isinstance(location := item.get("loc"), list):
            lines.append(f"{'.'.join(str(part) for part in location)}: {item.get('msg')}")
        else:
            lines.append(json.dumps_text(item))
    return "; ".join(lines)


def read_usage(usage: JSONValue) -> UsageReport | None:
    """Read OpenAI's usage object; null where it counts nothing."""
    if not isinstance(usage, dict):
        return None
    prompt_tokens = token_count(usage.get("prompt_tokens"))
    completion_tokens = token_count(usage.get("completion_tokens"))
    if prompt_tokens is None and completion_tokens is None:
        return None
    total_tokens = token_count(usage.get("total_tokens"))
    if total_tokens is None:
        total_tokens = (prompt_tokens or 0) + (completion_tokens or 0)
    return UsageReport(
        prompt_tokens or 0,
        completion_tokens or 0,
        total_tokens,
        _detail(usage, "completion_tokens_details", "reasoning_tokens"),
        _detail(usage, "prompt_tokens_details", "cached_tokens"),
        usage,
    )


def _detail(usage: JSONObject, group: str, name: str) -> int | None:
    details = usage.get(group)
    return token_count(details.get(name)) if isinstance(details, dict) else None


def _text(value: JSONValue) -> str | None:
    """Return an id, name or code as text; servers send numbers as well."""
    if isinstance(value, str):
        return value or None
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def _join_parts(content: JSONValue) -> str:
    if not isinstance(content, list):
        return ""
    texts = (part.get("text") if isinstance(part, dict) else part for part in content)
    return "".join(text for text in texts if isinstance(text, str))


def _loads_fast(payload: bytes) -> JSONValue:
    try:
        body: JSONValue = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return json.loads(payload)
    return body


class ChatChunkEncoder:
    """Writes one answer as `chat.completion.chunk` events, one per text, reasoning or call delta.

    The first chunk carries the role. With `include_usage` every chunk has `usage`, as OpenAI does it:
    null, and the counts in a last chunk without choices.
    """

    def __init__(
        self,
        *,
        response_id: str,
        model: str,
        created: int,
        include_usage: bool,
        reasoning_fields: Sequence[str] = ("reasoning_content",),
    ) -> None:
        self._include_usage = include_usage
        envelope = json.dumps(
            {
                "id": response_id,
                "object": "chat.completion.chunk",
                "created": created,
                "model": model,
            }
        )
        self._head = b"data: " + envelope[:-1] + b',"choices":['
        self._prefix = self._head + b'{"index":0,"delta":{'
        usage = b',"usage":null' if include_usage else b""
        self._suffix = b'},"logprobs":null,"finish_reason":null}]' + usage + b"}\n\n"
        self._text_prefix = self._prefix + b'"content":'
        self._reasoning_names = [json.dumps(name) + b":" for name in reasoning_fields]
        self._has_begun = False
        self._logprobs: JSONObject | None = None

    def encode(self, events: Sequence[Event]) -> bytes:
        chunks: list[bytes] = []
        suffix = self._suffix
        for event in events:
            value: object
            prefix = self._prefix
            if isinstance(event, TextDelta):
                prefix, value = self._text_prefix, event.text
            elif isinstance(event, ReasoningDelta):
                if not self._reasoning_names:
                    continue
                text = _dumps(event.text)
                for name in self._reasoning_names[:-1]:
                    prefix += name + text + b","
                prefix, value = prefix + self._reasoning_names[-1], event.text
            elif isinstance(event, ToolCallDelta):
                prefix, value = self._prefix + b'"tool_calls":', [_call_delta(event)]
            else:
                if isinstance(event, LogProbs):
                    self._logprobs = add_logprobs(self._logprobs or {}, event.value)
                continue
            if not self._has_begun:
                prefix = self._begin(prefix)
            chunks += (
                prefix,
                _dumps(value),
                suffix if self._logprobs is None else self._with_logprobs(suffix),
            )
        return sse.escape_line_ends(b"".join(chunks))

    def finish(self, reason: str, usage: UsageReport | None) -> bytes:
        """End the stream: the chunk with `finish_reason`, the usage if asked for, the end mark."""
        delta = b"" if self._has_begun else b'"role":"assistant","content":""'
        end = self._suffix.replace(
            b'"finish_reason":null', b'"finish_reason":' + json.dumps(reason)
        )
        end = end if self._logprobs is None else self._with_logprobs(end)
        chunks = [self._prefix, delta, end]
        if self._include_usage and usage is not None:
            chunks += (self._head, b'],"usage":', json.dumps(usage_object(usage)), b"}\n\n")
        chunks.append(sse.DONE)
        return b"".join(chunks)

    def error(self, body: JSONObject) -> bytes:
        """End the stream with an error; `body` is OpenAI's error body, no end mark follows."""
        return sse.encode_data(body)

    def keep_alive(self) -> bytes:
        return sse.KEEP_ALIVE

    def _with_logprobs(self, suffix: bytes) -> bytes:
        """The end of a chunk with the log probabilities of its text."""
        logprobs, self._logprobs = json.dumps(self._logprobs), None
        return suffix.replace(b'"logprobs":null', b'"logprobs":' + logprobs, 1)

    def _begin(self, prefix: bytes) -> bytes:
        self._has_begun = True
        role = b'"role":"assistant",'
        if prefix is not self._text_prefix:
            role += b'"content":null,'
        return self._prefix + role + prefix[len(self._prefix) :]


def _dumps(value: object) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value)


def _call_delta(delta: ToolCallDelta) -> JSONObject:
    if delta.id is None and delta.name is None:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    return {
        "index": delta.index,
        "id": delta.id,
        "type": "function",
        "function": {"name": delta.name, "arguments": delta.arguments},
    }


def usage_object(usage: UsageReport) -> JSONObject:
    """Write counts in OpenAI's form; details only where the upstream told them."""
    body: JSONObject = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    if usage.cached_tokens is not None:
        body["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    if usage.reasoning_tokens is not None:
        body["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return body


def completion(
    *,
    response_id: str,
    model: str,
    created: int,
    message: JSONObject,
    reasoning: str,
    finish_reason: str,
    usage: UsageReport | None,
    reasoning_fields: Sequence[str] = ("reasoning_content",),
) -> JSONObject:
    """Build a whole `chat.completion` body; `message` is `Accumulator.message()`."""
    answer: JSONObject = {**message, "refusal": None}
    if reasoning:
        answer |= dict.fromkeys(reasoning_fields, reasoning)
    body: JSONObject = {
        "id": response_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": answer,
                "logprobs": None,
                "finish_reason": finish_reason,
            }
        ],
    }
    if usage is not None:
        body["usage"] = usage_object(usage)
    return body

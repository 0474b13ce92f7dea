"""The chat.qwen.ai web API: request bodies, the answer stream, its model list.

The chat lives upstream, so a turn is one user text below a parent node; `wire.qwen_prompt` makes that
text. Nearly every failure comes with HTTP 200: `wire.qwen_failures` tells them apart; this module is
where callers find both. Nothing here raises on what the upstream sends, `models` apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import orjson

from qwenproxy.wire import json
from qwenproxy.wire.events import (
    Event,
    Finished,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    UsageReport,
    token_count,
)
from qwenproxy.wire.json import JSONObject, JSONValue
from qwenproxy.wire.openai_chat import StreamError
from qwenproxy.wire.qwen_failures import (
    EMPTY_MESSAGE,
    WebFailure,
    classify,
    read_error_text,
    read_failure,
)
from qwenproxy.wire.qwen_prompt import UnsupportedContent, render_prompt
from qwenproxy.wire.think import ThinkSplitter

__all__ = [
    "StreamDecoder",
    "UnsupportedContent",
    "WebFailure",
    "WebStreamError",
    "chat_new_body",
    "classify",
    "completion_body",
    "models",
    "render_prompt",
]


class WebStreamError(StreamError):
    """A failure inside a stream; `failure` says which."""

    def __init__(self, failure: WebFailure, *, raw: JSONValue = None) -> None:
        code = {"cut": "upstream_cut", "empty": "upstream_empty", "malformed": "upstream_malformed"}
        super().__init__(
            failure.message, code=code.get(failure.kind, failure.code), type=failure.kind, raw=raw
        )
        self.failure = failure


def chat_new_body(model: str, *, timestamp_ms: int, chat_mode: str = "normal") -> JSONObject:
    return {
        "title": "New Chat",
        "models": [model],
        "chat_mode": chat_mode,
        "chat_type": "t2t",
        "timestamp": timestamp_ms,
        "project_id": "",
    }


def completion_body(
    *,
    chat_id: str,
    model: str,
    parent_id: str | None,
    text: str,
    thinking: bool,
    thinking_budget: int | None,
    timestamp_s: int,
    chat_mode: str = "normal",
    fid: str,
    child_id: str,
    files: Sequence[JSONObject] = (),
) -> JSONObject:
    """Build the body of one turn: exactly one user message below `parent_id` (null: the root).

    `files` are entries of `qwen_files`; `fid` and `child_id` are fresh UUIDs; the server makes its own ids for both nodes. Search is off,
    and the model does not choose by itself whether to think.
    """
    features: JSONObject = {
        "thinking_enabled": thinking,
        "output_schema": "phase",
        "research_mode": "normal",
        "auto_thinking": False,
        "thinking_mode": "Thinking" if thinking else "Fast",
        "thinking_format": "summary",
        "auto_search": False,
    }
    if thinking and thinking_budget is not None:
        features["thinking_budget"] = thinking_budget
    return {
        "stream": True,
        "version": "2.1",
        "incremental_output": True,
        "chat_id": chat_id,
        "chat_mode": chat_mode,
        "model": model,
        "parent_id": parent_id,
        "messages": [
            {
                "id": None,
                "fid": fid,
                "parentId": parent_id,
                "childrenIds": [child_id],
                "role": "user",
                "content": text,
                "user_action": "chat",
                "files": list(files),
                "timestamp": timestamp_s,
                "models": [model],
                "model": "",
                "chat_type": "t2t",
                "feature_config": features,
                "extra": {"meta": {"subChatType": "t2t"}},
                "sub_chat_type": "t2t",
                "parent_id": parent_id,
            }
        ],
        "timestamp": timestamp_s,
    }


def models(body: bytes) -> list[JSONObject]:
    """Read the model list, in the wrapping of `/api/models` or of `/api/v2/models/`.

    Raises:
        ValueError: it is no model list.
    """
    listed = json.refuse_deep(json.loads(body), body)
    for _ in range(2):
        if isinstance(listed, dict):
            listed = listed.get("data")
    if not isinstance(listed, list):
        raise ValueError("the body holds no list of models")
    return [model for model in listed if isinstance(model, dict) and model.get("id")]


# Below this length a chunk that begins with all text so far is taken for chance.
_MIN_REPEATED_CHARS = 3
# The same once a chunk has come that only goes on: such streams do not turn cumulative.
_MIN_LATE_REPEATED_CHARS = 32
# No set: what an upstream sends need not be hashable.
_LAST_PHASES = ("answer", "image_gen", "local_tool")


class StreamDecoder:
    """Decodes the payloads of one answer to events.

    The caller looks at `error` after it has handled the events of each call, and stops reading when
    `is_done`. Every phase has its own `finished`; the answer ends with that of `answer`, `image_gen`
    or `local_tool`. Rounds of the product's built-in tools give no events.

    Args:
        new_id: makes ids for native tool calls, which have none.
    """

    def __init__(self, *, new_id: Callable[[], str]) -> None:
        self.error: WebStreamError | None = None
        self.is_done = False
        self._new_id = new_id
        self._started: Started | None = None
        # An answer needs text or calls; thinking alone is none, but can be cut.
        self._has_answer = False
        self._has_reasoning = False
        self._answer = _CumulativeGuard()
        self._splitter = ThinkSplitter()
        self._summary = _Summary()
        self._usage = _UsageSum()
        self._urls: set[str] = set()
        self._calls = 0
        self._last_calls: JSONValue = None

    def feed(self, payload: bytes) -> list[Event]:
        if self.is_done or payload == b"[DONE]":
            return []
        try:
            # `wire.json` keeps long integers, which matter in a call's parameters alone, and looks
            # at every byte for them; chunks of text take the fast road.
            body: JSONValue = (
                json.loads(payload) if b'"local_mcp"' in payload else orjson.loads(payload)
            )
            json.refuse_deep(body, payload)
        except (orjson.JSONDecodeError, json.JSONError):
            try:
                body = json.refuse_deep(json.loads(payload), payload)
            except json.JSONError as exc:
                message = f"The upstream sent a line that is not JSON: {exc}"
                raw = payload[:500].decode("utf-8", "replace")
                return self._fail(WebFailure("malformed", message), raw)
        return self._apply(body) if isinstance(body, dict) else []

    def finish(self) -> list[Event]:
        """End the answer at the end of the stream."""
        if self.is_done:
            return []
        if self._has_answer or self._has_reasoning:
            return self._fail(WebFailure("cut", "The upstream's stream ended within the answer."))
        return self._fail(WebFailure("empty", EMPTY_MESSAGE))

    def _apply(self, body: JSONObject) -> list[Event]:
        choices = body.get("choices")
        if not isinstance(choices, list):
            return self._apply_record(body)
        response_id = body.get("response_id")
        if self._started is None:
            # The stream did not begin with its record; the answer is good all the same.
            self._started = Started(_id(response_id))
            events: list[Event] = [self._started]
        elif response_id and self._started.response_id not in (None, response_id):
            return []
        else:
            events = []
        if usage := body.get("usage"):
            self._usage.add(usage)
        for choice in choices:
            delta = choice.get("delta") if isinstance(choice, dict) else None
            if isinstance(delta, dict) and not self.is_done:
                events += self._read_delta(delta)
        return events

    def _apply_record(self, body: JSONObject) -> list[Event]:
        created = body.get("response.created")
        if isinstance(created, dict):
            if self._started is not None:
                return []
            self._started = Started(
                _id(created.get("response_id")),
                _id(created.get("chat_id")),
                _id(created.get("parent_id")),
            )
            return [self._started]
        failure = read_failure(body)
        return self._fail(failure, body) if failure else []

    def _read_delta(self, delta: JSONObject) -> list[Event]:
        status = delta.get("status")
        phase = delta.get("phase") or "answer"
        if status == "error":
            said = delta.get("content")
            text = said if isinstance(said, str) and said else None
            return self._fail(read_error_text(text), delta)
        if delta.get("role") == "function" or "function_call" in delta:
            return []
        events = self._read_phase(phase, delta)
        if status == "finished":
            if phase == "thinking_summary":
                self._summary.restart()
            elif phase in _LAST_PHASES:
                events += self._end(is_call=phase == "local_tool")
        return events

    def _read_phase(self, phase: JSONValue, delta: JSONObject) -> list[Event]:
        content = delta.get("content")
        text = content if isinstance(content, str) else ""
        if phase == "answer":
            text = self._answer.new_part(text)
            self._has_answer = self._has_answer or bool(text)
            return [*self._splitter.feed(text)]
        if phase in ("think", "thinking_summary"):
            if phase == "thinking_summary":
                text = self._summary.new_part(delta.get("extra"))
            self._has_reasoning = self._has_reasoning or bool(text)
            return [ReasoningDelta(text)] if text else []
        if phase == "image_gen" and text and text not in self._urls:
            self._urls.add(text)
            self._has_answer = True
            return [TextDelta(f"![image]({text})\n")]
        if phase == "local_tool":
            return self._read_calls(delta.get("extra"))
        return []

    def _read_calls(self, extra: JSONValue) -> list[Event]:
        if extra == self._last_calls:
            return []
        self._last_calls = extra
        servers = extra.get("local_mcp") if isinstance(extra, dict) else None
        events: list[Event] = []
        for server, calls in servers.items() if isinstance(servers, dict) else ():
            for call in calls if isinstance(calls, list) else ():
                name = call.get("tool_name") if isinstance(call, dict) else None
                if not isinstance(call, dict) or not isinstance(name, str):
                    continue
                arguments = json.dumps_text(call.get("params") or {})
                name = name.removeprefix(f"{server}-")
                events.append(ToolCallDelta(self._calls, self._new_id(), name, arguments))
                self._calls += 1
        self._has_answer = self._has_answer or bool(events)
        return events

    def _end(self, *, is_call: bool) -> list[Event]:
        if not self._has_answer:
            # Seen where the upstream dropped a message it did not like, without an error.
            return self._fail(WebFailure("empty", EMPTY_MESSAGE))
        self.is_done = True
        reason = Finished("tool_calls" if is_call else "stop")
        return [*self._splitter.finish(), *self._usage.report(), reason]

    def _fail(self, failure: WebFailure, raw: JSONValue = None) -> list[Event]:
        self.error = WebStreamError(failure, raw=raw)
        self.is_done = True
        return [*self._splitter.finish(), *self._usage.report()]


def _id(value: JSONValue) -> str | None:
    """An id that addresses and headers can carry; null where it is none."""
    if isinstance(value, str) and value and value.isascii() and value.isprintable():
        return value
    return None


class _CumulativeGuard:
    """Takes answer text that repeats everything so far for what it is.

    The stream is asked for as increments; some answers repeat the whole text in every chunk, or once.
    """

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._chars = 0
        self._min_chars = _MIN_REPEATED_CHARS
        self._is_cumulative = False

    def new_part(self, text: str) -> str:
        if not text:
            return ""
        if self._is_cumulative or len(text) > self._chars >= self._min_chars:
            so_far = "".join(self._parts)
            self._parts = [so_far]
            if text.startswith(so_far):
                self._is_cumulative = True
                text = text[len(so_far) :]
            elif self._is_cumulative and so_far.startswith(text):
                return ""
        if self._chars and not self._is_cumulative:
            self._min_chars = _MIN_LATE_REPEATED_CHARS
        self._parts.append(text)
        self._chars += len(text)
        return text


class _Summary:
    """Thinking summaries: lists of titles and thoughts, repeated with every chunk while they grow."""

    def __init__(self) -> None:
        self._titles: list[str] = []
        self._thoughts: list[str] = []
        self._has_text = False

    def restart(self) -> None:
        """Begin new lists: the block has ended."""
        self._titles = []
        self._thoughts = []

    def new_part(self, extra: JSONValue) -> str:
        titles = _texts(extra, "summary_title")
        thoughts = _texts(extra, "summary_thought")
        if not titles and not thoughts:
            return ""
        if _is_new_list(self._titles, titles) or _is_new_list(self._thoughts, thoughts):
            self.restart()
        parts: list[str] = []
        for position in range(max(len(titles), len(thoughts))):
            title = _grown(self._titles, titles, position)
            if title:
                is_new = position >= len(self._titles)
                parts += ("\n\n" if is_new and (self._has_text or parts) else "", title)
            thought = _grown(self._thoughts, thoughts, position)
            if thought:
                is_new = position >= len(self._thoughts)
                parts += (self._separator(position, titles, parts) if is_new else "", thought)
        self._titles = titles or self._titles
        self._thoughts = thoughts or self._thoughts
        text = "".join(parts)
        self._has_text = self._has_text or bool(text)
        return text

    def _separator(self, position: int, titles: list[str], parts: list[str]) -> str:
        if position < len(titles) and titles[position]:
            return "\n"
        return "\n\n" if self._has_text or parts else ""


def _texts(extra: JSONValue, name: str) -> list[str]:
    holder = extra.get(name) if isinstance(extra, dict) else None
    content = holder.get("content") if isinstance(holder, dict) else None
    if not isinstance(content, list):
        return []
    return [item if isinstance(item, str) else "" for item in content]


def _is_new_list(seen: list[str], now: list[str]) -> bool:
    return bool(seen and now) and (len(now) < len(seen) or not now[0].startswith(seen[0]))


def _grown(seen: list[str], now: list[str], position: int) -> str:
    if position >= len(now):
        return ""
    text = now[position]
    if position >= len(seen):
        return text
    if text.startswith(seen[position]):
        return text[len(seen[position]) :]
    # A rewritten item comes again as a whole.
    return "\n" + text if text else ""


class _UsageSum:
    """Adds up usage: counts run within one round of the model and start again with the next."""

    def __init__(self) -> None:
        self._rounds: list[JSONObject] = []
        self._reasoning: list[int | None] = []

    def add(self, usage: JSONValue) -> None:
        if not isinstance(usage, dict) or "output_tokens" not in usage:
            return
        reasoning = _nested(usage, "output_tokens_details", "reasoning_tokens")
        if self._rounds and not self._is_restart(usage):
            self._rounds[-1] = usage
            # Chunks after the thinking leave the count of its tokens out.
            if reasoning is not None:
                self._reasoning[-1] = reasoning
            return
        self._rounds.append(usage)
        self._reasoning.append(reasoning)

    def _is_restart(self, usage: JSONObject) -> bool:
        last = self._rounds[-1]
        return _number(usage.get("output_tokens")) < _number(last.get("output_tokens")) or (
            _number(usage.get("input_tokens")) < _number(last.get("input_tokens"))
        )

    def report(self) -> list[UsageReport]:
        if not self._rounds:
            return []
        prompt_tokens = sum(_number(usage.get("input_tokens")) for usage in self._rounds)
        completion_tokens = sum(_number(usage.get("output_tokens")) for usage in self._rounds)
        raw: JSONValue = self._rounds[0] if len(self._rounds) == 1 else list(self._rounds)
        return [
            UsageReport(
                prompt_tokens,
                completion_tokens,
                prompt_tokens + completion_tokens,
                _sum_known(self._reasoning),
                _sum_known([_cached(usage) for usage in self._rounds]),
                raw,
            )
        ]


def _sum_known(counts: list[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _cached(usage: JSONObject) -> int | None:
    cached = token_count(usage.get("cached_tokens"))
    return _nested(usage, "prompt_tokens_details", "cached_tokens") if cached is None else cached


def _nested(usage: JSONObject, group: str, name: str) -> int | None:
    details = usage.get(group)
    return token_count(details.get(name)) if isinstance(details, dict) else None


def _number(value: JSONValue) -> int:
    return token_count(value) or 0

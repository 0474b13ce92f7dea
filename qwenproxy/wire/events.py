"""What a model emits, in one form for every upstream and every client protocol.

Each upstream decodes its bytes to these events; each client protocol encodes its bytes from them
(m + n codecs). `Accumulator` adds events up to the whole answer; `pack` and `unpack` are the compact
JSON form in which a running answer is kept until it is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, TypeAlias

from qwenproxy.wire import json
from qwenproxy.wire.json import JSONObject, JSONValue


@dataclass(frozen=True, slots=True)
class Sent:
    """What went upstream, for the record only: the body without its text, and the text."""

    # The upstream's body; where its text was, the value is null.
    request: JSONObject
    # The text sent: the prompt of a web turn, the compact JSON of messages and tools elsewhere.
    text: str
    # Messages of the history before this index were not sent: the upstream's chat has them.
    first_message: int = 0
    # SHA-256 of the text, where only that is known any more.
    digest: bytes | None = None

    @property
    def text_digest(self) -> bytes:
        return self.digest or sha256(self.text.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, slots=True)
class Asked:
    """Which account the gateway asks, and how; the gateway's own, for the record only."""

    account_id: int
    # What is done upstream: continued, new, whole, rebuilt:...
    upstream: str
    # The attempt as the record shows it.
    attempt: JSONObject


@dataclass(frozen=True, slots=True)
class Started:
    """The upstream accepted the turn and named it."""

    response_id: str | None = None
    # The ids below exist on the web upstream only.
    chat_id: str | None = None
    parent_id: str | None = None
    # The model as the upstream names it, where it does.
    model: str | None = None


@dataclass(frozen=True, slots=True)
class TextDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a call: `id` and `name` come once, with the first piece; `arguments` is JSON text."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class UsageReport:
    """Token counts as the upstream reports them; a later report replaces an earlier one."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None
    # The upstream's own object, for the record.
    raw: JSONValue = None


# More than any context holds; metrics, limits and the record count with it.
_MOST_TOKENS = 2**31 - 1


def token_count(value: JSONValue) -> int | None:
    """A count of tokens that an upstream reports; null for what is none, such as a negative number."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return None
    return min(value, _MOST_TOKENS)


def sum_usage(spent: UsageReport | None, usage: UsageReport) -> UsageReport:
    """What two answers used together; `raw` lists both."""
    if spent is None:
        return usage
    return UsageReport(
        spent.prompt_tokens + usage.prompt_tokens,
        spent.completion_tokens + usage.completion_tokens,
        spent.total_tokens + usage.total_tokens,
        _sum_known(spent.reasoning_tokens, usage.reasoning_tokens),
        _sum_known(spent.cached_tokens, usage.cached_tokens),
        [spent.raw, usage.raw],
    )


def _sum_known(first: int | None, second: int | None) -> int | None:
    known = [count for count in (first, second) if count is not None]
    return sum(known) if known else None


@dataclass(frozen=True, slots=True)
class RawText:
    """Answer text as the model wrote it where tool calls were read from it; for the record only."""

    text: str


@dataclass(frozen=True, slots=True)
class LogProbs:
    """Log probabilities of the text that comes next, in the upstream's own form."""

    value: JSONObject


@dataclass(frozen=True, slots=True)
class Again:
    """The upstream is asked a second time: what it said so far is no answer; for the record only."""

    # As an attempt's cause: "code: message".
    cause: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is whole: `reason` is OpenAI's `finish_reason`."""

    reason: str
    # The upstream wrote more than was handed on, so a chat that it keeps cannot go on from here.
    is_cut: bool = False
    # Which of the request's stop texts ended it, where that is known.
    stop_text: str | None = None


Event: TypeAlias = (
    Asked
    | Sent
    | Started
    | TextDelta
    | ReasoningDelta
    | ToolCallDelta
    | UsageReport
    | RawText
    | LogProbs
    | Again
    | Finished
)


@dataclass(slots=True)
class ToolCall:
    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Accumulator:
    """Adds events up to one answer; never fails on a valid event in any order."""

    asked: Asked | None = None
    sent: Sent | None = None
    started: Started = field(default_factory=Started)
    usage: UsageReport | None = None
    finish_reason: str | None = None
    is_cut: bool = False
    stop_text: str | None = None
    tool_calls: dict[int, ToolCall] = field(default_factory=dict)
    logprobs: JSONObject | None = None
    # Whole answers that were not handed on, as the model wrote them, and why.
    refused: list[JSONValue] = field(default_factory=list)
    _text: list[str] = field(default_factory=list)
    _reasoning: list[str] = field(default_factory=list)
    _raw: list[str] = field(default_factory=list)

    def add(self, event: Event) -> None:
        match event:
            case TextDelta(text):
                self._text.append(text)
            case ReasoningDelta(text):
                self._reasoning.append(text)
            case ToolCallDelta():
                self._add_tool_call(event)
            case UsageReport():
                self.usage = event
            case Started():
                self.started = event
            case Sent():
                self.sent = event
            case Asked():
                self.asked = event
            case RawText(text):
                self._raw.append(text)
            case LogProbs(value):
                self.logprobs = add_logprobs(self.logprobs or {}, value)
            case Again(cause):
                self.refused.append({"text": self.raw_text, "cause": cause})
                self._raw = []
            case Finished(reason, is_cut, stop_text):
                self.finish_reason = reason
                self.is_cut = is_cut
                self.stop_text = stop_text

    def _add_tool_call(self, delta: ToolCallDelta) -> None:
        call = self.tool_calls.get(delta.index)
        if call is None:
            self.tool_calls[delta.index] = ToolCall(
                delta.id or "", delta.name or "", delta.arguments
            )
            return
        call.id = call.id or delta.id or ""
        call.name = call.name or delta.name or ""
        call.arguments += delta.arguments

    @property
    def text(self) -> str:
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def raw_text(self) -> str:
        return "".join(self._raw)

    @property
    def has_content(self) -> bool:
        return any(self._text) or any(self._reasoning) or bool(self.tool_calls)

    def message(self) -> JSONObject:
        """The answer as a chat message without reasoning: `role`, `content`, `tool_calls`.

        `content` is null where there are only tool calls, as OpenAI has it.
        """
        text = self.text
        message: JSONObject = {"role": "assistant", "content": text}
        if self.tool_calls:
            message["content"] = text or None
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for _, call in sorted(self.tool_calls.items())
            ]
        return message


def add_logprobs(known: JSONObject, more: JSONObject) -> JSONObject:
    """Add a piece of log probabilities to those before it: lists grow, other values are replaced."""
    for name, value in more.items():
        old = known.get(name)
        if isinstance(old, list) and isinstance(value, list):
            old.extend(value)
        else:
            known[name] = list(value) if isinstance(value, list) else value
    return known


def pack(events: Iterable[Event]) -> str:
    """Write events as compact JSON text, runs of text joined: `[["t","Hello"],...]`."""
    packed: list[list[JSONValue]] = []
    run: list[str] = []
    for event in events:
        row = _row(event)
        kind = row[0]
        if packed and kind == packed[-1][0] and kind in _TEXTS:
            run.append(str(row[1]))
            continue
        _close_run(packed, run)
        if packed and kind == packed[-1][0] == "u":
            packed.pop()
        packed.append(row)
        run = [str(row[1])] if kind in _TEXTS else []
    _close_run(packed, run)
    return json.dumps_text(packed)


# Kinds whose neighbours are one text.
_TEXTS = ("t", "r", "w")


def _close_run(packed: list[list[JSONValue]], run: list[str]) -> None:
    # Joined once per run: adding to the text piece by piece took 40 s for 19 MB.
    if len(run) > 1:
        packed[-1][1] = "".join(run)


def _row(event: Event) -> list[JSONValue]:
    match event:
        case TextDelta(text):
            return ["t", text]
        case ReasoningDelta(text):
            return ["r", text]
        case RawText(text):
            return ["w", text]
        case ToolCallDelta():
            return ["c", event.index, event.id, event.name, event.arguments]
        case Started():
            return ["s", event.response_id, event.chat_id, event.parent_id, event.model]
        case UsageReport():
            return [
                "u",
                event.prompt_tokens,
                event.completion_tokens,
                event.total_tokens,
                event.reasoning_tokens,
                event.cached_tokens,
                event.raw,
            ]
        case LogProbs(value):
            return ["l", value]
        case Again(cause):
            return ["n", cause]
        case Finished(reason, is_cut):
            # Not the stop text: no recovered answer is encoded, and versions before could not read it.
            return ["f", reason, True] if is_cut else ["f", reason]
        case Asked():
            return ["a", event.account_id, event.upstream, event.attempt]
        case Sent():
            return ["q", event.request, event.first_message, event.text_digest.hex()]


def _sent(request: JSONObject, first_message: int, digest: str) -> Sent:
    return Sent(request, "", first_message, bytes.fromhex(digest))


_UNPACK: dict[str, Callable[..., Event]] = {
    "t": TextDelta,
    "r": ReasoningDelta,
    "w": RawText,
    "c": ToolCallDelta,
    "s": Started,
    "u": UsageReport,
    "l": LogProbs,
    "n": Again,
    "f": Finished,
    "a": Asked,
    "q": _sent,
}


def unpack(text: str) -> list[Event]:
    """Read what `pack` wrote; kinds of events that a later version had are passed over."""
    # Our own form, written by `pack`.
    rows: Any = json.loads_text(text)
    return [_UNPACK[row[0]](*row[1:]) for row in rows if row[0] in _UNPACK]

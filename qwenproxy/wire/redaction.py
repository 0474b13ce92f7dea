"""Replacing what must not be stored: patterns over texts, and over a text that is still arriving.

What a pattern matches becomes `[redacted]`. In JSON every string value is looked at, names and numbers
are not. Of a running text the end is held back, so that a match that is cut by a flush is not stored in
two halves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from qwenproxy.wire.events import (
    Again,
    Asked,
    Event,
    LogProbs,
    RawText,
    ReasoningDelta,
    Sent,
    Started,
    TextDelta,
    ToolCallDelta,
    UsageReport,
)
from qwenproxy.wire.json import JSONObject, JSONValue

PLACEHOLDER = "[redacted]"
# Of a running text so much is kept in memory; longer matches are found whole at its end only.
HELD_CHARS = 1024

# Rules that are asked for by name. None takes long for a text that is made to: they run where all turns
# are recorded. So no match begins inside a run that was looked through already, or its length is bounded.
NAMED = {
    "@email": r"(?<![\w.+-])(?:[\w.+-]++@[\w-]++(?:\.[\w-]++)+)+",
    # Keys of well-known services, ours too, bearer tokens, JSON web tokens, private keys.
    "@secrets": (
        r"\b(?:sk|pk|rk|qp|ghp|gho|ghs|github_pat|glpat|xox[abprs])[-_][A-Za-z0-9_-]{16,}"
        r"|\bAKIA[0-9A-Z]{16}\b"
        r"|(?i:\bbearer\s+)[A-Za-z0-9._~+/-]{16,}=*"
        # With a short name before it, joined by a dash.
        r"|(?<![\w-])(?:[\w-]{1,40}?-)?eyJ[\w-]{8,}+\.[\w-]{8,}+\.[\w-]*"
        r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    ),
    "@cards": r"\b(?:\d[ -]?){13,18}\d\b",
}


class Redaction:
    """A set of rules; without any it is false."""

    def __init__(self, patterns: Sequence[re.Pattern[str]]) -> None:
        self.patterns = patterns

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def text(self, text: str) -> str:
        for pattern in self.patterns:
            text = pattern.sub(PLACEHOLDER, text)
        return text

    def value(self, value: JSONValue) -> JSONValue:
        """The same JSON with every text in it redacted."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, dict):
            return self.object(value)
        return value

    def object(self, value: JSONObject) -> JSONObject:
        return {name: self.value(item) for name, item in value.items()}


def compile_rules(rules: Iterable[str]) -> Redaction:
    """Make rules of regular expressions and of the names in `NAMED`.

    Raises:
        ValueError: one is neither, or would match everywhere; the message names it.
    """
    patterns = []
    for rule in rules:
        if rule.startswith("@") and rule not in NAMED:
            raise ValueError(f"{rule} is no rule; those with names are {', '.join(NAMED)}")
        try:
            pattern = re.compile(NAMED.get(rule, rule))
        except re.error as exc:
            raise ValueError(f"{rule!r} is no regular expression: {exc}") from exc
        if pattern.search("") is not None:
            raise ValueError(f"{rule!r} matches the empty text, and so everywhere")
        patterns.append(pattern)
    return Redaction(patterns)


class _Tail:
    """A text that grows; gives out what no match can reach back into any more."""

    def __init__(self, redaction: Redaction) -> None:
        self._redaction = redaction
        self._held = ""

    def feed(self, text: str) -> str:
        held = self._held + text
        cut = len(held) - HELD_CHARS
        if cut <= 0:
            self._held = held
            return ""
        cut = self._before_matches(held, cut)
        self._held = held[cut:]
        return self._redaction.text(held[:cut])

    def _before_matches(self, text: str, cut: int) -> int:
        """The last place up to `cut` that no match of any rule spans."""
        moved = True
        while moved:
            moved = False
            for pattern in self._redaction.patterns:
                for match in pattern.finditer(text):
                    if match.start() < cut < match.end():
                        cut, moved = match.start(), True
                    if match.start() >= cut:
                        break
        return cut


class RedactedStream:
    """The events of a running answer as they may be stored before its end."""

    def __init__(self, redaction: Redaction) -> None:
        self._redaction = redaction
        self._tails: dict[object, _Tail] = {}

    def feed(self, events: Iterable[Event]) -> list[Event]:
        """Events to store now; the end of each text is held back, and never comes."""
        return [kept for event in events if (kept := self._keep(event)) is not None]

    def _keep(self, event: Event) -> Event | None:
        match event:
            case TextDelta(text) | ReasoningDelta(text) | RawText(text):
                text = self._feed(type(event), text)
                return type(event)(text) if text else None
            case ToolCallDelta(index, id, name, arguments):
                return ToolCallDelta(index, id, name, self._feed(index, arguments))
            case LogProbs():
                # Its texts are single tokens, in which no rule finds anything.
                return None
            case _:
                return redact_event(self._redaction, event)

    def _feed(self, of: object, text: str) -> str:
        tail = self._tails.get(of)
        if tail is None:
            tail = self._tails[of] = _Tail(self._redaction)
        return tail.feed(text)


def redact_event(redaction: Redaction, event: Event) -> Event:
    """The same event with what it quotes redacted; texts of the answer are `RedactedStream`'s."""
    match event:
        case Sent():
            return Sent(redaction.object(event.request), "", event.first_message, event.text_digest)
        case Asked():
            return Asked(event.account_id, event.upstream, redaction.object(event.attempt))
        case Again(cause):
            return Again(redaction.text(cause))
        case _:
            return event


def without_content(event: Event) -> Event | None:
    """What may be stored of an event where no content is: ids, counts, times; else null."""
    match event:
        case Started() | UsageReport():
            return event
        case Again(cause):
            return Again(cause.partition(":")[0])
        case Asked():
            attempt = {**event.attempt, "cause": code_of(event.attempt.get("cause"))}
            return Asked(event.account_id, event.upstream, attempt)
        case Sent():
            model = event.request.get("model")
            return Sent({"model": model}, "", event.first_message, event.text_digest)
        case _:
            return None


def code_of(cause: JSONValue) -> JSONValue:
    """The code of a cause `code: message`; messages of upstreams may quote what they were sent."""
    return cause.partition(":")[0] if isinstance(cause, str) else cause

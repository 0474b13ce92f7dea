"""What a key's limits let through, and how a refusal is told: decisions alone, no database, no clock.

A minute slides: no 60 seconds hold more than the limit. It is counted in slots of a quarter of a second, so
that a unit comes back 60 to 60.25 s after it was taken. A turn takes at its beginning what it may need at
most (its prompt, estimated, and the answer it asks for) and its end puts the true count in its place.
Counting itself, shared by all processes, is `requests_app.usage`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, Self

from qwenproxy.access.models import Limits
from qwenproxy.errors import RateLimited

Reason = Literal["requests", "tokens", "concurrency", "day", "month"]

_SLOTS_PER_S = 4
# The oldest slot is counted whole: a window is never shorter than a minute.
WINDOW_SLOTS = 60 * _SLOTS_PER_S + 1
# Nobody knows when a running answer ends.
_CONCURRENCY_RETRY_S = 1.0
# What is remembered of a refusal holds no longer: limits are lifted and clocks are set.
_REMEMBERED_S = 5.0
_MAX_REMEMBERED = 10_000
_SPANS: dict[Reason, str] = {"tokens": "a minute", "day": "a day", "month": "a month"}


@dataclass(frozen=True, slots=True)
class Moment:
    """A time, with the slots of `KeyUsage` that it lies in."""

    seconds: float
    minute: int
    day: int
    month: int

    @classmethod
    def at(cls, seconds: float) -> Self:
        date = datetime.fromtimestamp(seconds, UTC)
        return cls(
            seconds,
            math.floor(seconds * _SLOTS_PER_S),
            math.floor(seconds / 86400),
            date.year * 12 + date.month - 1,
        )

    @property
    def oldest(self) -> int:
        """The first slot of the minute that ends now."""
        return self.minute - WINDOW_SLOTS + 1

    def until_free_s(self, slot: int) -> float:
        """How long a slot of the minute still counts."""
        return max((slot + WINDOW_SLOTS) / _SLOTS_PER_S - self.seconds, 0.0)

    @property
    def until_next_day_s(self) -> float:
        return (self.day + 1) * 86400 - self.seconds

    @property
    def until_next_month_s(self) -> float:
        year, month = divmod(self.month + 1, 12)
        return datetime(year, month + 1, 1, tzinfo=UTC).timestamp() - self.seconds


@dataclass(slots=True)
class Used:
    """What a key has used as of a moment, with what its running turns have reserved."""

    # Of the last minute.
    requests: int = 0
    tokens: int = 0
    # The newest slot of it; null: nothing was used.
    newest: int | None = None
    day: int = 0
    month: int = 0
    running: int = 0
    # Of all these tokens, those that a running turn may still give back.
    reserved: int = 0

    def add(self, span: str, requests: int, tokens: int, newest: int | None) -> None:
        """Add counts of a span of `KeyUsage`."""
        match span:
            case "minute":
                self.requests, self.tokens, self.newest = requests, tokens, newest
            case "day":
                self.day = tokens
            case "month":
                self.month = tokens
            case "live":
                self.running += requests
                self.reserved += tokens

    def take(self, tokens: int, moment: Moment) -> None:
        self.requests += 1
        self.tokens += tokens
        self.newest = moment.minute
        self.day += tokens
        self.month += tokens
        self.running += 1
        self.reserved += tokens


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of a limit; `reset_s` until nothing of it is used any more."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(frozen=True, slots=True)
class Standing:
    """What OpenAI's and Anthropic's headers of limits say of a key; of its token limits, the nearest."""

    requests: Allowance | None = None
    tokens: Allowance | None = None

    def headers(self, elapsed_s: float = 0.0) -> dict[str, str]:
        """The headers as they are `elapsed_s` later, where nothing was used meanwhile."""
        headers = {}
        for name, allowance in (("requests", self.requests), ("tokens", self.tokens)):
            if allowance is not None:
                headers[f"x-ratelimit-limit-{name}"] = str(allowance.limit)
                headers[f"x-ratelimit-remaining-{name}"] = str(allowance.remaining)
                reset_s = max(allowance.reset_s - elapsed_s, 0.0)
                headers[f"x-ratelimit-reset-{name}"] = duration(reset_s)
                # Anthropic's clients read these, with the time itself (RFC 3339).
                anthropic = f"anthropic-ratelimit-{name}"
                headers[f"{anthropic}-limit"] = str(allowance.limit)
                headers[f"{anthropic}-remaining"] = str(allowance.remaining)
                headers[f"{anthropic}-reset"] = _moment(time.time() + reset_s)
        return headers


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a turn may not begin."""

    reason: Reason
    said: str
    # Null: it never passes while the limits are what they are.
    frees_in_s: float | None
    standing: Standing = field(default_factory=Standing)
    # Whether nothing but time can free it: no running turn has tokens to give back.
    is_certain: bool = False
    # Of a day or month: it is not used up, running turns may give back as much as is needed.
    is_held: bool = False
    # time.monotonic() of the decision.
    decided_s: float = field(default_factory=time.monotonic)

    def error(self) -> RateLimited:
        elapsed_s = time.monotonic() - self.decided_s
        headers = self.standing.headers(elapsed_s)
        left_s = None
        message = self.said
        if self.frees_in_s is None:
            headers["x-should-retry"] = "false"
        else:
            left_s = max(self.frees_in_s - elapsed_s, 0.001)
            if self.reason in ("requests", "tokens"):
                message = f"{message} Try again in {duration(left_s)}."
        is_used_up = self.reason in ("day", "month") and not self.is_held
        if is_used_up:
            # OpenAI's clients try a 429 again at once unless told.
            headers["x-should-retry"] = "false"
        return RateLimited(
            message,
            reason=self.reason,
            code="insufficient_quota" if is_used_up else _CODES.get(self.reason),
            retry_after_s=left_s,
            headers=headers,
        )


_CODES: dict[Reason, str] = {"concurrency": "concurrency_limit_exceeded"}


def counts_tokens(limits: Limits) -> bool:
    """Whether a turn has to say how many tokens it may need."""
    return any(limit is not None for limit in _token_limits(limits).values())


def _token_limits(limits: Limits) -> dict[Reason, int | None]:
    return {
        "month": limits.tokens_per_month,
        "day": limits.tokens_per_day,
        "tokens": limits.tokens_per_minute,
    }


def refuse_always(limits: Limits, tokens: int) -> Refusal | None:
    """The refusal of a turn that can never pass: a limit is 0, or the turn alone is over one."""
    if limits.requests_per_minute == 0 or limits.max_concurrent == 0:
        reason: Reason = "requests" if limits.requests_per_minute == 0 else "concurrency"
        named = "requests a minute" if reason == "requests" else "requests at the same time"
        return Refusal(reason, f"This API key may make 0 {named}: nothing passes.", None)
    for reason, limit in _token_limits(limits).items():
        if limit == 0:
            said = f"This API key may use 0 tokens {_SPANS[reason]}: nothing passes."
            return Refusal(reason, said, None)
        if limit is not None and tokens > limit:
            said = (
                f"This request may need {tokens:,} tokens, its prompt and the longest answer it asks for, "
                f"and this API key may use {limit:,} {_SPANS[reason]}: "
                "lower max_tokens or shorten the prompt."
            )
            return Refusal(reason, said, None)
    return None


def exceeded(limits: Limits, used: Used, tokens: int) -> Reason | None:
    """Which limit a turn would pass, the one that lasts longest first; null: it may begin."""
    # A turn that says it needs nothing does not pass a limit that is used up.
    needed = max(tokens, 1)
    checks: tuple[tuple[Reason, int | None, int], ...] = (
        ("month", limits.tokens_per_month, used.month + needed),
        ("day", limits.tokens_per_day, used.day + needed),
        ("requests", limits.requests_per_minute, used.requests + 1),
        ("tokens", limits.tokens_per_minute, used.tokens + needed),
        ("concurrency", limits.max_concurrent, used.running + 1),
    )
    return next((name for name, limit, sum in checks if limit is not None and sum > limit), None)


def standing(limits: Limits, used: Used, moment: Moment) -> Standing:
    requests = None
    reset_s = 0.0 if used.newest is None else moment.until_free_s(used.newest)
    if limits.requests_per_minute is not None:
        requests = _allowance(limits.requests_per_minute, used.requests, reset_s)
    tokens = [
        _allowance(limit, count, until_s)
        for limit, count, until_s in (
            (limits.tokens_per_minute, used.tokens, reset_s),
            (limits.tokens_per_day, used.day, moment.until_next_day_s),
            (limits.tokens_per_month, used.month, moment.until_next_month_s),
        )
        if limit is not None
    ]
    return Standing(requests, min(tokens, key=lambda a: a.remaining, default=None))


def _allowance(limit: int, used: int, reset_s: float) -> Allowance:
    return Allowance(limit, max(limit - used, 0), reset_s)


@dataclass(frozen=True, slots=True)
class Asked:
    """A turn that may not begin, and the limit that it would pass."""

    reason: Reason
    limits: Limits
    tokens: int
    # time.monotonic() of the decision.
    decided_s: float


def refuse(
    asked: Asked, used: Used, moment: Moment, minute: Iterable[tuple[int, int, int]]
) -> Refusal:
    """Say why and until when; `minute` are (slot, requests, tokens) of the last minute."""
    reason, limits, tokens = asked.reason, asked.limits, asked.tokens
    said, frees_in_s, is_held = "", _CONCURRENCY_RETRY_S, False
    if reason == "requests":
        limit = limits.requests_per_minute or 0
        said = f"This API key may make {limit:,} requests a minute and has made {used.requests:,}."
        excess = used.requests + 1 - limit
        frees_in_s = _frees_in_s(((slot, n) for slot, n, _ in minute), excess, moment)
    elif reason == "concurrency":
        said = (
            f"This API key may have {limits.max_concurrent:,} requests answered at the same time "
            f"and has {used.running:,}: try again when one has ended."
        )
    else:
        limit = _token_limits(limits)[reason] or 0
        count = {"tokens": used.tokens, "day": used.day, "month": used.month}[reason]
        held = f", {used.reserved:,} of them held for running answers" if used.reserved else ""
        said = (
            f"This API key may use {limit:,} tokens {_SPANS[reason]}: {count:,} are used{held}, "
            f"and this request may need {tokens:,}."
        )
        excess = count + max(tokens, 1) - limit
        is_held = reason != "tokens" and excess <= used.reserved
        if reason == "tokens":
            frees_in_s = _frees_in_s(((slot, n) for slot, _, n in minute), excess, moment)
        elif is_held:
            said = f"{said.removesuffix('.')}: try again when one of them has ended."
        else:
            frees_in_s = moment.until_next_day_s if reason == "day" else moment.until_next_month_s
            renewed = datetime.fromtimestamp(moment.seconds + frees_in_s, UTC)
            said += f" The count begins anew at {renewed:%Y-%m-%d %H:%M} UTC."
    is_certain = reason == "requests" or (reason != "concurrency" and used.reserved == 0)
    left = standing(limits, used, moment)
    return Refusal(reason, said, frees_in_s, left, is_certain, is_held, asked.decided_s)


def _frees_in_s(slots: Iterable[tuple[int, int]], excess: int, moment: Moment) -> float:
    newest = moment.minute
    for slot, count in sorted(slots):
        excess -= count
        newest = slot
        if excess <= 0:
            break
    return moment.until_free_s(newest)


class Refusals:
    """What this process remembers, so that a key that hammers on costs the database nothing.

    A memory never outlasts what the database would say: only limits that time alone frees are kept, for
    turns that need as much or more, and only while the key's limits are the same.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Limits, int, Refusal]] = {}

    def find(self, key_id: int, limits: Limits, tokens: int) -> Refusal | None:
        refusal = refuse_always(limits, tokens)
        if refusal is not None or key_id not in self._kept:
            return refusal
        kept_limits, kept_tokens, refusal = self._kept[key_id]
        if kept_limits != limits or time.monotonic() >= _remembered_until_s(refusal):
            del self._kept[key_id]
            return None
        return refusal if tokens >= kept_tokens or refusal.reason == "requests" else None

    def remember(self, key_id: int, limits: Limits, tokens: int, refusal: Refusal) -> None:
        if not refusal.is_certain:
            return
        self._kept[key_id] = (limits, tokens, refusal)
        while len(self._kept) > _MAX_REMEMBERED:
            del self._kept[next(iter(self._kept))]


def _remembered_until_s(refusal: Refusal) -> float:
    return refusal.decided_s + min(refusal.frees_in_s or 0.0, _REMEMBERED_S)


def _moment(timestamp_s: float) -> str:
    """The next whole second as RFC 3339 writes it: no client that waits for it is early."""
    moment = datetime.fromtimestamp(math.ceil(timestamp_s), UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def duration(seconds: float) -> str:
    """As OpenAI writes it: `250ms`, `1s`, `6m0s`, `23h59m1s`."""
    if seconds < 1:
        return f"{math.ceil(max(seconds, 0.0) * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"

"""Whether an account may be asked: a state that the outcome of each call moves.

A quota (`cooling`), a challenge and ended credentials keep an account out until their time; then one
call tries it, and its success makes it ready. Other failures, three in a row, are `cooling` as well, but
an account is then only avoided while another is ready: this never makes a single account less available
than it is. A call that began before the present state says nothing new about it.

Memory only, on the event loop; who stores a changed state is told by `on_change`. Times are seconds
since 1970, because processes share them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, TypeAlias

from qwenproxy.access.accounts import AccountState, StoredAccount
from qwenproxy.errors import (
    GatewayError,
    UpstreamAuthExpired,
    UpstreamChallenged,
    UpstreamChatBusy,
    UpstreamChatGone,
    UpstreamError,
    UpstreamRateLimited,
)

# open: asked; avoided: asked where no other is open; out: not asked.
Standing: TypeAlias = Literal["open", "avoided", "out"]
_Verdict: TypeAlias = Literal["failing", "limited", "challenged", "expired"]

# What an earlier call brought replaces a state only where it is worse.
_SEVERITY: dict[_Verdict, int] = {"failing": 0, "limited": 1, "challenged": 2, "expired": 3}
# First and longest pause of each; it doubles with each failure after the first.
_PAUSES_S: dict[_Verdict, tuple[float, float]] = {
    "failing": (10.0, 300.0),
    "limited": (15.0, 1800.0),
    "challenged": (900.0, 14400.0),
    # Until its credentials are replaced; a slow trial finds out what was mended elsewhere.
    "expired": (3600.0, 3600.0),
}
# Failures in a row before an account is avoided.
_FAILING_AFTER = 3
# A time named above it is taken for it.
_LONGEST_NAMED_S = 86400.0
# A trial that fails for another reason is followed by the next one after this time.
_TRIAL_AGAIN_S = 15.0
_OK_WRITTEN_EVERY_S = 60.0
# A reason that begins so makes `cooling` strict, in other processes too.
_LIMITED_CODE = str(UpstreamRateLimited.code)


@dataclass(slots=True, eq=False)
class AccountHealth:
    on_change: Callable[[], None]
    clock: Callable[[], float] = time.time
    state: str = "ready"
    # "code: message", as in a request's attempts.
    reason: str = ""
    # When this state, or this pause of it, began; 0: since ever.
    since: float = 0.0
    until: float = 0.0
    failures: int = 0
    # Which state it is in, counted: a call that began in an earlier one says nothing about this one.
    epoch: int = field(default=0, init=False)
    _ok_at: float = field(default=0.0, init=False)
    _error_at: float = field(default=0.0, init=False)
    _ok_written_at: float = field(default=0.0, init=False)

    @property
    def is_strict(self) -> bool:
        """It is kept out until its time, whoever else is ready."""
        return self.state != "ready" and (
            self.state != "cooling" or self.reason.startswith(_LIMITED_CODE)
        )

    @property
    def is_limited(self) -> bool:
        return self.state == "cooling" and self.is_strict

    def standing(self) -> Standing:
        if self.state == "ready" or self.until <= self.clock():
            return "open"
        return "out" if self.is_strict else "avoided"

    def wait_s(self) -> float:
        """How long it is kept out or avoided from now on."""
        return 0.0 if self.state == "ready" else max(0.0, self.until - self.clock())

    def succeeded(self, *, epoch: int) -> None:
        """A whole answer arrived for a call that began in `epoch`."""
        now = self._ok_at = self.clock()
        if self.state != "ready":
            if epoch == self.epoch:
                self._become_ready(now)
            return
        self.failures = 0
        if now - self._ok_written_at >= _OK_WRITTEN_EVERY_S:
            self._ok_written_at = now
            self.on_change()

    def answering(self, *, epoch: int) -> None:
        """The beginning of an answer arrived: no quota, challenge or sign-in is in the way."""
        if self.is_strict and epoch == self.epoch:
            now = self._ok_at = self.clock()
            self._become_ready(now)

    def failed(
        self, error: GatewayError, *, epoch: int, kind: str, cause: str | None = None
    ) -> None:
        """A call failed; errors that say nothing about the account change nothing.

        Args:
            cause: what may be stored of it, beginning with the error's code; null: its message.
        """
        if cause is None:
            cause = f"{error.error_code}: {error.message}"
        verdict = _verdict(error, kind)
        if verdict is None:
            return
        now = self._error_at = self.clock()
        if epoch != self.epoch:
            self._note_earlier(verdict, error, cause, now)
            return
        present = self._present()
        if verdict == "failing" and self.is_strict:
            # A trial without a verdict: the next one soon.
            self._enter(self.state, self.reason, now, now + _TRIAL_AGAIN_S)
            return
        self.failures = self.failures + 1 if verdict == present else 1
        if verdict != "failing" or self.failures >= _FAILING_AFTER:
            self._pause(verdict, error, cause, now)

    def adopt(self, stored: StoredAccount, *, anew: bool) -> None:
        """Take the stored state over where it is newer, or `anew`: with other credentials."""
        since = stored.state_since.timestamp() if stored.state_since else 0.0
        if not anew and since <= self.since:
            return
        until = stored.state_until.timestamp() if stored.state_until else 0.0
        self.state, self.reason, self.since = stored.state, stored.state_reason, since
        # Another machine's clock may be far ahead.
        self.until = min(until, self.clock() + _LONGEST_NAMED_S)
        self.failures = stored.failures
        self.epoch += 1

    def snapshot(self) -> AccountState:
        return AccountState(
            self.state,
            self.reason,
            _datetime(self.since),
            _datetime(self.until),
            self.failures,
            _datetime(self._ok_at),
            _datetime(self._error_at),
        )

    def _present(self) -> _Verdict:
        match self.state:
            case "challenged" | "expired" as state:
                return state
        return "limited" if self.is_limited else "failing"

    def _note_earlier(self, verdict: _Verdict, error: GatewayError, cause: str, now: float) -> None:
        """A call that began before this state: one event of many calls counts once."""
        if self.state == "ready":
            # With credentials that are replaced, or before a trial that succeeded.
            return
        present = self._present()
        if _SEVERITY[verdict] > _SEVERITY[present]:
            self.failures = 1
            self._pause(verdict, error, cause, now)
        elif verdict == present == "limited" and error.retry_after_s is not None:
            until = now + _named(error.retry_after_s)
            if until > self.until:
                self._enter(self.state, self.reason, now, until)

    def _pause(self, verdict: _Verdict, error: GatewayError, cause: str, now: float) -> None:
        first_s, longest_s = _PAUSES_S[verdict]
        doublings = self.failures - (_FAILING_AFTER if verdict == "failing" else 1)
        # Bounded before it is raised: failures are without bounds.
        pause_s = min(first_s * 2.0 ** min(doublings, 16), longest_s)
        if verdict == "limited" and error.retry_after_s is not None:
            pause_s = _named(error.retry_after_s)
        state = verdict if verdict in ("challenged", "expired") else "cooling"
        self._enter(state, cause, now, now + pause_s)

    def _become_ready(self, now: float) -> None:
        self.failures = 0
        self._ok_written_at = now
        self._enter("ready", "", now, 0.0)

    def _enter(self, state: str, reason: str, now: float, until: float) -> None:
        self.state, self.reason, self.until = state, reason, until
        # As exact as the database keeps it: what comes back from there is not newer. Always later than
        # the state before, whatever clocks do: the latest wins in all processes.
        self.since = round(max(now, self.since + 1e-6), 6)
        self.epoch += 1
        self.on_change()


def _verdict(error: GatewayError, kind: str) -> _Verdict | None:
    """What an error says about the account; null: nothing."""
    match error:
        case UpstreamRateLimited():
            return "limited"
        case UpstreamChallenged():
            return "challenged"
        case UpstreamAuthExpired(upstream_status=403) if kind != "qwen_web":
            # A key that may not use this model may well use others.
            return "failing"
        case UpstreamAuthExpired():
            return "expired"
        case UpstreamChatBusy() | UpstreamChatGone():
            return None
        case UpstreamError(retryable=True) if error.error_code != "upstream_tool_intercepted":
            return "failing"
    return None


def _named(retry_after_s: float) -> float:
    return min(max(retry_after_s, 0.0), _LONGEST_NAMED_S)


def _datetime(seconds: float) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None

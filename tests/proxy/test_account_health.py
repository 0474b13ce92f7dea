"""What the outcome of calls makes of an account's state."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from qwenproxy.access.accounts import StoredAccount
from qwenproxy.errors import (
    AnswerTooLong,
    ContextLengthExceeded,
    InvalidRequest,
    UpstreamAuthExpired,
    UpstreamChallenged,
    UpstreamChatBusy,
    UpstreamChatGone,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamTimeout,
)
from qwenproxy.proxy.account_health import AccountHealth

START = 1_800_000_000.0


class Account:
    """A health with a clock of its own; counts what it asks to be written."""

    def __init__(self):
        self.now = START
        self.changes = 0
        self.health = AccountHealth(self._count, lambda: self.now)

    def _count(self):
        self.changes += 1

    def fail(self, error, *, epoch=None, kind="openai_compatible"):
        epoch = self.health.epoch if epoch is None else epoch
        cause = f"{error.error_code}: {error.message}"
        self.health.failed(error, epoch=epoch, kind=kind, cause=cause)

    def succeed(self, *, epoch=None):
        self.health.succeeded(epoch=self.health.epoch if epoch is None else epoch)

    @property
    def pause_s(self):
        return self.health.until - self.now

    def wait(self):
        """Until its time has come."""
        self.now = self.health.until


@pytest.fixture
def account():
    return Account()


def limited(retry_after_s=None):
    return UpstreamRateLimited("slow down", retry_after_s=retry_after_s)


TAKEN_OUT = [
    pytest.param(limited(7.0), "cooling", 7.0, id="429-with-a-time"),
    pytest.param(limited(), "cooling", 15.0, id="429-without"),
    pytest.param(limited(19 * 3600.0), "cooling", 19 * 3600.0, id="quota-of-the-day"),
    pytest.param(limited(1e9), "cooling", 86400.0, id="429-with-an-endless-time"),
    pytest.param(UpstreamChallenged("check"), "challenged", 900.0, id="challenge"),
    pytest.param(UpstreamAuthExpired("over", upstream_status=401), "expired", 3600.0, id="401"),
]


@pytest.mark.parametrize(("error", "state", "pause_s"), TAKEN_OUT)
def test_an_account_is_out_until_its_time_then_open(account, error, state, pause_s):
    account.fail(error)
    health = account.health
    assert (health.state, account.pause_s, health.standing()) == (state, pause_s, "out")
    assert health.reason == f"{error.error_code}: {error.message}"
    assert account.changes == 1
    account.now += pause_s - 0.001
    assert health.standing() == "out"
    account.now += 0.001
    assert health.standing() == "open"


@pytest.mark.parametrize(("error", "state", "pause_s"), TAKEN_OUT)
@pytest.mark.parametrize("how", ["whole", "beginning"])
def test_a_success_makes_it_ready_at_once(account, error, state, pause_s, how):
    account.fail(error)
    account.wait()
    if how == "whole":
        account.succeed()
    else:
        account.health.answering(epoch=account.health.epoch)
    health = account.health
    assert (health.state, health.reason, health.failures) == ("ready", "", 0)
    assert health.snapshot().until is None
    assert health.snapshot().last_ok_at == datetime.fromtimestamp(account.now, UTC)


@pytest.mark.parametrize(
    ("make_error", "pauses_s"),
    [
        pytest.param(limited, [15, 30, 60, 120, 240, 480, 960, 1800, 1800], id="429"),
        pytest.param(
            lambda: UpstreamChallenged("check"), [900, 1800, 3600, 7200, 14400, 14400], id="check"
        ),
        pytest.param(lambda: UpstreamAuthExpired("over"), [3600, 3600, 3600], id="expired"),
    ],
)
def test_each_trial_that_fails_is_followed_by_a_longer_pause(account, make_error, pauses_s):
    seen = []
    for _ in pauses_s:
        account.fail(make_error())
        seen.append(account.pause_s)
        account.wait()
    assert seen == pauses_s
    # The next time begins with the first pause.
    account.succeed()
    account.fail(make_error())
    assert account.pause_s == pauses_s[0]


def test_it_goes_on_doubling_for_as_long_as_it_fails(account):
    for _ in range(2000):
        account.fail(limited())
        account.wait()
    account.fail(limited())
    assert account.pause_s == 1800


FAILURES = [
    pytest.param(UpstreamTimeout("silence"), id="timeout"),
    pytest.param(UpstreamError("500", upstream_status=500), id="5xx"),
    pytest.param(UpstreamError("connection refused"), id="refused-connection"),
    pytest.param(UpstreamProtocolError("html"), id="protocol"),
    # A key that may not use one model may use the others.
    pytest.param(UpstreamAuthExpired("no", upstream_status=403), id="403"),
]


@pytest.mark.parametrize("error", FAILURES)
def test_an_account_is_avoided_after_three_failures_in_a_row(account, error):
    account.fail(error)
    account.fail(error)
    assert (account.health.state, account.changes) == ("ready", 0)
    account.fail(error)
    assert (account.health.state, account.health.standing()) == ("cooling", "avoided")
    assert (account.pause_s, account.changes) == (10.0, 1)
    account.wait()
    assert account.health.standing() == "open"


def test_a_success_in_between_starts_the_count_anew(account):
    for _ in range(5):
        account.fail(UpstreamError("500"))
        account.fail(UpstreamError("500"))
        account.succeed()
    assert account.health.state == "ready"


def test_one_that_goes_on_failing_is_avoided_longer_and_longer(account):
    pauses_s = []
    for _ in range(9):
        account.fail(UpstreamTimeout("silence"))
        if account.health.state == "cooling":
            pauses_s.append(account.pause_s)
    assert pauses_s == [10, 20, 40, 80, 160, 300, 300]


def test_a_broken_answer_does_not_make_an_avoided_account_ready(account):
    for _ in range(3):
        account.fail(UpstreamError("broke off"))
    account.health.answering(epoch=account.health.epoch)
    assert account.health.state == "cooling"


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(UpstreamRefused("will not"), id="refused"),
        pytest.param(ContextLengthExceeded("too long"), id="too-long"),
        pytest.param(UpstreamChatBusy("runs"), id="chat-busy"),
        pytest.param(UpstreamChatGone("gone"), id="chat-gone"),
        pytest.param(AnswerTooLong("endless"), id="answer-too-long"),
        pytest.param(InvalidRequest("no text"), id="our-own-check"),
        pytest.param(UpstreamError("x", code="upstream_tool_intercepted"), id="tool"),
    ],
)
def test_what_is_the_requests_own_fault_is_not_held_against_the_account(account, error):
    for _ in range(5):
        account.fail(error)
    assert (account.health.state, account.health.failures, account.changes) == ("ready", 0, 0)


def test_a_403_of_the_web_session_means_that_it_ended(account):
    account.fail(UpstreamAuthExpired("no", upstream_status=403), kind="qwen_web")
    assert account.health.state == "expired"


def test_many_calls_that_fail_together_count_once(account):
    epoch = account.health.epoch
    for _ in range(20):
        account.fail(limited(), epoch=epoch)
    assert (account.health.failures, account.pause_s, account.changes) == (1, 15.0, 1)


def test_the_longest_time_that_calls_together_are_told_holds(account):
    epoch = account.health.epoch
    for retry_after_s in (5.0, 60.0, 2.0):
        account.fail(limited(retry_after_s), epoch=epoch)
    assert account.pause_s == 60.0


def test_a_call_that_began_before_cannot_end_a_state_and_can_make_it_worse(account):
    epoch = account.health.epoch
    account.fail(limited(), epoch=epoch)
    account.succeed(epoch=epoch)
    assert account.health.state == "cooling"
    account.fail(UpstreamChallenged("check"), epoch=epoch)
    assert (account.health.state, account.pause_s) == ("challenged", 900.0)
    account.fail(limited(), epoch=epoch)
    assert account.health.state == "challenged"


def test_a_trial_that_fails_for_another_reason_is_repeated_soon(account):
    account.fail(UpstreamChallenged("check"))
    account.wait()
    account.fail(UpstreamTimeout("silence"))
    assert (account.health.state, account.pause_s) == ("challenged", 15.0)
    assert account.health.reason == "upstream_challenge: check"


def stored(state="ready", since=None, until=None, failures=0, reason=""):
    def time(seconds):
        return None if seconds is None else datetime.fromtimestamp(seconds, UTC)

    return StoredAccount(
        id=1,
        name="a",
        kind="qwen_web",
        base_url="",
        priority=1,
        secrets={},
        state=state,
        state_reason=reason,
        state_since=time(since),
        state_until=time(until),
        failures=failures,
    )


def test_the_newer_state_of_another_process_is_taken_over(account):
    account.fail(limited())
    older = stored("challenged", START - 1, START + 100)
    account.health.adopt(older, anew=False)
    assert account.health.state == "cooling"
    newer = stored("challenged", START + 1, START + 100, failures=2)
    account.health.adopt(newer, anew=False)
    assert (account.health.state, account.pause_s, account.health.failures) == (
        "challenged",
        100.0,
        2,
    )


def test_what_was_written_is_not_newer_when_it_is_read(account):
    account.now = START + 0.123456789
    account.fail(limited(5.0))
    epoch, snapshot = account.health.epoch, account.health.snapshot()
    row = stored("cooling", reason=snapshot.reason, until=START)
    row = StoredAccount(
        **{name: getattr(row, name) for name in StoredAccount.__slots__}
        | {"state_since": snapshot.since}
    )
    account.health.adopt(row, anew=False)
    assert (account.health.epoch, account.pause_s) == (epoch, pytest.approx(5.0))


def test_a_quota_is_as_strict_in_another_process(account):
    account.fail(limited(60.0))
    snapshot = account.health.snapshot()
    other = Account()
    row = stored("cooling", START, START + 60.0, reason=snapshot.reason)
    other.health.adopt(row, anew=False)
    assert other.health.standing() == "out"


def test_a_clock_that_is_set_back_does_not_make_news_old(account):
    account.fail(limited())
    first = account.health.since
    account.now -= 3600
    account.fail(UpstreamChallenged("check"))
    assert account.health.since > first
    assert account.pause_s == 900.0


def test_a_success_is_written_at_most_once_a_minute(account):
    for _ in range(120):
        account.now += 1
        account.succeed()
    assert account.changes in (2, 3)
    assert account.health.snapshot().since is None

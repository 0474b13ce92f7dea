"""What limits let through and how a refusal is told: decisions alone."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from qwenproxy.access.models import Limits
from qwenproxy.errors import error_headers
from requests_app.limits import (
    Asked,
    Moment,
    Refusals,
    Used,
    duration,
    exceeded,
    refuse,
    refuse_always,
    standing,
)

NOON = Moment.at(datetime(2026, 12, 31, 12, 0, tzinfo=UTC).timestamp())


def refused(reason, limits, used, tokens=0, minute=()):
    return refuse(Asked(reason, limits, tokens, time.monotonic()), used, NOON, minute)


def test_a_moment_lies_in_a_quarter_of_a_second_a_day_and_a_month():
    assert Moment.at(0.0) == Moment(0.0, 0, 0, 1970 * 12)
    assert Moment.at(86400.26) == Moment(86400.26, 345601, 1, 1970 * 12)
    assert NOON.month == 2026 * 12 + 11
    assert (NOON.until_next_day_s, NOON.until_next_month_s) == (43200, 43200)


def test_a_unit_comes_back_no_sooner_than_a_minute_after_it_was_taken():
    for offset in (0.0, 0.1, 0.2499, 0.5):
        taken = Moment.at(1000.0 + offset)
        assert 60 <= taken.until_free_s(taken.minute) <= 60.25
        assert Moment.at(taken.seconds + 60).oldest <= taken.minute
        assert Moment.at(taken.seconds + 60.25).oldest > taken.minute


@pytest.mark.parametrize(
    ("limits", "used", "tokens", "reason"),
    [
        pytest.param(Limits(requests_per_minute=3), Used(requests=2), 0, None, id="last-request"),
        pytest.param(Limits(requests_per_minute=3), Used(requests=3), 0, "requests", id="requests"),
        pytest.param(Limits(tokens_per_minute=9), Used(tokens=4), 5, None, id="last-token"),
        pytest.param(Limits(tokens_per_minute=9), Used(tokens=4), 6, "tokens", id="tokens"),
        pytest.param(Limits(tokens_per_minute=9), Used(tokens=9), 0, "tokens", id="needs-nothing"),
        pytest.param(Limits(max_concurrent=2), Used(running=1), 0, None, id="last-place"),
        pytest.param(Limits(max_concurrent=2), Used(running=2), 0, "concurrency", id="concurrency"),
        pytest.param(Limits(tokens_per_day=9), Used(day=4), 5, None, id="day-passes"),
        pytest.param(Limits(tokens_per_day=9), Used(day=5), 5, "day", id="day"),
        pytest.param(Limits(tokens_per_month=9), Used(month=9), 1, "month", id="month"),
        pytest.param(
            Limits(1, 1, 1, 1, 1), Used(1, 1, None, 1, 1, 1), 1, "month", id="longest-first"
        ),
        pytest.param(Limits(requests_per_minute=1), Used(tokens=10**9), 10**9, None, id="others"),
    ],
)
def test_a_turn_passes_up_to_each_limit(limits, used, tokens, reason):
    assert exceeded(limits, used, tokens) == reason


def test_a_refusal_says_when_enough_of_the_minute_is_free_again():
    limits = Limits(requests_per_minute=3, tokens_per_minute=100)
    newest = NOON.minute
    minute = [(newest - 200, 1, 10), (newest - 100, 1, 60), (newest, 1, 30)]
    used = Used(requests=3, tokens=100, newest=newest)
    by_requests = refused("requests", limits, used, 1, minute)
    assert by_requests.frees_in_s == (241 - 200) / 4
    assert refused("tokens", limits, used, 10, minute).frees_in_s == (241 - 200) / 4
    assert refused("tokens", limits, used, 11, minute).frees_in_s == (241 - 100) / 4
    assert refused("tokens", limits, used, 71, minute).frees_in_s == 241 / 4
    error = by_requests.error()
    assert (error.http_status, error.error_code) == (429, "rate_limit_exceeded")
    assert error.message == (
        "This API key may make 3 requests a minute and has made 3. Try again in 11s."
    )
    headers = error_headers(error)
    assert headers["Retry-After"] == "11"
    assert 10_000 < int(headers["retry-after-ms"]) <= 10_250
    assert headers["x-ratelimit-limit-requests"] == "3"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] == "1m1s"
    assert headers["x-ratelimit-remaining-tokens"] == "0"


def test_tokens_are_told_as_used_and_held():
    error = refused(
        "tokens", Limits(tokens_per_minute=9000), Used(tokens=8500, reserved=1500), 1024
    ).error()
    assert error.message.startswith(
        "This API key may use 9,000 tokens a minute: 8,500 are used, 1,500 of them held for running "
        "answers, and this request may need 1,024. Try again in "
    )


@pytest.mark.parametrize("span", ["day", "month"])
def test_a_budget_that_is_used_up_comes_back_with_the_next_day_or_month(span):
    limits = Limits(**{f"tokens_per_{span}": 50})
    error = refused(span, limits, Used(day=50, month=50), 10).error()
    assert error.error_code == "insufficient_quota"
    assert error.message.endswith("The count begins anew at 2027-01-01 00:00 UTC.")
    headers = error_headers(error)
    assert headers["Retry-After"] == "43200"
    assert headers["x-should-retry"] == "false"


@pytest.mark.parametrize("span", ["day", "month"])
def test_a_budget_that_is_only_held_is_not_used_up(span):
    limits = Limits(**{f"tokens_per_{span}": 50})
    used = Used(day=50, month=50, reserved=10)
    error = refused(span, limits, used, 10).error()
    assert error.error_code == "rate_limit_exceeded"
    assert error.message.endswith("may need 10: try again when one of them has ended.")
    headers = error_headers(error)
    assert headers["Retry-After"] == "1"
    assert "x-should-retry" not in headers
    assert refused(span, limits, used, 11).error().error_code == "insufficient_quota"


def test_nobody_knows_when_a_place_is_free():
    refusal = refused("concurrency", Limits(max_concurrent=2), Used(running=2))
    assert refusal.error().error_code == "concurrency_limit_exceeded"
    assert error_headers(refusal.error())["Retry-After"] == "1"
    assert not refusal.is_certain


@pytest.mark.parametrize(
    ("limits", "tokens", "said"),
    [
        pytest.param(Limits(requests_per_minute=0), 0, "0 requests a minute", id="requests"),
        pytest.param(Limits(max_concurrent=0), 0, "0 requests at the same time", id="concurrent"),
        pytest.param(Limits(tokens_per_minute=0), 1, "0 tokens a minute", id="tokens"),
        pytest.param(Limits(tokens_per_day=0), 1, "0 tokens a day", id="day"),
        pytest.param(Limits(tokens_per_month=0), 1, "0 tokens a month", id="month"),
        pytest.param(Limits(tokens_per_minute=99), 100, "lower max_tokens", id="too-large"),
    ],
)
def test_what_never_passes_names_no_time(limits, tokens, said):
    error = refuse_always(limits, tokens).error()
    assert said in error.message
    headers = error_headers(error)
    assert "Retry-After" not in headers
    assert headers["x-should-retry"] == "false"


def test_what_may_pass_is_not_refused_for_always():
    assert refuse_always(Limits(requests_per_minute=1, tokens_per_day=100), 100) is None


def test_of_several_token_limits_the_nearest_is_told():
    limits = Limits(tokens_per_minute=100, tokens_per_day=500, tokens_per_month=10_000)
    used = Used(tokens=20, newest=NOON.minute, day=450, month=5000)
    headers = standing(limits, used, NOON).headers()
    assert headers.pop("anthropic-ratelimit-tokens-reset").endswith("Z")
    assert headers == {
        "anthropic-ratelimit-tokens-limit": "500",
        "anthropic-ratelimit-tokens-remaining": "50",
        "x-ratelimit-limit-tokens": "500",
        "x-ratelimit-remaining-tokens": "50",
        "x-ratelimit-reset-tokens": "12h0m0s",
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0ms"), (0.25, "250ms"), (1, "1s"), (8.2, "9s"), (59.9, "1m0s"), (360, "6m0s"),
        (86399, "23h59m59s"), (100 * 3600, "100h0m0s"),
    ],
)  # fmt: skip
def test_durations_are_written_as_openai_does(seconds, text):
    assert duration(seconds) == text


KEY = 7


def remembered(refusal, limits, tokens=10):
    refusals = Refusals()
    refusals.remember(KEY, limits, tokens, refusal)
    return refusals


def test_a_refusal_is_remembered_for_as_much_and_for_more():
    limits = Limits(tokens_per_minute=100)
    refusals = remembered(refused("tokens", limits, Used(tokens=95, newest=NOON.minute)), limits)
    assert refusals.find(KEY, limits, 10) is not None
    assert refusals.find(KEY, limits, 11) is not None
    assert refusals.find(KEY, limits, 9) is None
    assert refusals.find(KEY + 1, limits, 10) is None


def test_a_refusal_is_forgotten_when_the_limits_change():
    limits = Limits(requests_per_minute=1)
    refusals = remembered(refused("requests", limits, Used(requests=1)), limits)
    assert refusals.find(KEY, Limits(requests_per_minute=2), 0) is None
    assert refusals.find(KEY, limits, 0) is None


def test_a_refusal_is_forgotten_when_its_time_has_come(monkeypatch):
    limits = Limits(requests_per_minute=1)
    begin = NOON.minute - 240
    refusals = remembered(refused("requests", limits, Used(requests=1), 0, [(begin, 1, 0)]), limits)
    now = time.monotonic()
    # Free in a quarter of a second.
    monkeypatch.setattr(time, "monotonic", lambda: now + 0.2)
    assert refusals.find(KEY, limits, 0) is not None
    monkeypatch.setattr(time, "monotonic", lambda: now + 0.25)
    assert refusals.find(KEY, limits, 0) is None


def test_what_a_running_turn_may_give_back_is_not_remembered():
    limits = Limits(tokens_per_day=100)
    used = Used(day=100, reserved=1)
    assert remembered(refused("day", limits, used), limits).find(KEY, limits, 10) is None


def test_a_month_is_asked_for_again_after_seconds(monkeypatch):
    limits = Limits(tokens_per_month=100)
    refusals = remembered(refused("month", limits, Used(month=100)), limits)
    assert refusals.find(KEY, limits, 10) is not None
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 5)
    assert refusals.find(KEY, limits, 10) is None

"""Counting turns of limited keys: exact, shared by all processes, and free for keys without limits."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from django.db import connection

from qwenproxy.access.models import KeyUsage, Limits
from qwenproxy.errors import GatewayError, RateLimited, RecorderUnavailable
from qwenproxy.transaction import transaction
from qwenproxy.wire.events import TextDelta, UsageReport
from requests_app import recorder as recorder_module
from requests_app import usage
from requests_app.deletion import delete_session_rows
from requests_app.limits import Moment, Refusal, Standing
from requests_app.models import Request, Response
from requests_app.usage import Ledger
from tests.factories import make_api_key
from tests.requests_app.test_recorder import connect, in_thread, locked_database
from tests.turns import make_closing, make_opening, one_shots, running_recorder, user

pytestmark = pytest.mark.django_db(transaction=True)

START = datetime(2026, 11, 22, 12, 0, tzinfo=UTC).timestamp()


@pytest.fixture
def key():
    return make_api_key()


@pytest.fixture
def run(tmp_path, transactional_db):
    """Run an async function with some started recorders."""

    def run(test, count=1, **fields):
        async def main():
            async with contextlib.AsyncExitStack() as stack:
                recorders = [
                    await stack.enter_async_context(
                        running_recorder(tmp_path / "workers", **fields)
                    )
                    for _ in range(count)
                ]
                return await test(*recorders)

        return asyncio.run(main())

    return run


def limited(key, *, tokens=0, text="hi", **limits):
    return make_opening(key, user(text), limits=Limits(**limits), reserved_tokens=tokens)


async def outcome_of(turn):
    """What became of opening a turn: none, or the reason of its refusal."""
    try:
        await turn
    except RateLimited as error:
        return error.reason
    return None


async def open_all(recorders, openings):
    """Open all at once, on the recorders in turn."""
    turns = [
        outcome_of(recorders[i % len(recorders)].open(turn)) for i, turn in enumerate(openings)
    ]
    return await asyncio.gather(*turns)


def counted(key, span):
    rows = KeyUsage.objects.filter(api_key=key, span=span)
    return sum(row.requests for row in rows), sum(row.tokens for row in rows)


# Through recorders.


def test_of_two_requests_at_the_last_unit_one_passes(run, key):
    async def test(*recorders):
        for limit in range(1, 6):
            openings = [limited(key, requests_per_minute=limit) for _ in range(2)]
            outcomes = await open_all(recorders, openings)
            assert sorted(outcomes, key=str) == [None, "requests"]

    run(test, count=2)
    assert Request.objects.count() == 5
    assert counted(key, "minute") == (5, 0)


def test_many_clients_of_two_processes_get_what_the_limit_lets_through(run, key):
    async def test(*recorders):
        async def client(number):
            recorder, passed = recorders[number % 2], 0
            for _ in range(10):
                opening = limited(key, requests_per_minute=60, tokens_per_minute=10**6, tokens=10)
                try:
                    opened = await recorder.open(opening)
                except RateLimited:
                    continue
                passed += 1
                await recorder.commit(make_closing(opening, opened, "ok", total_tokens=7))
            return passed

        return await asyncio.gather(*(client(number) for number in range(20)))

    assert sum(run(test, count=2)) == 60
    assert Request.objects.count() == 60
    assert counted(key, "day") == counted(key, "month") == counted(key, "minute") == (60, 420)
    assert counted(key, "live") == (0, 0)


def test_tokens_are_held_until_the_true_count_is_known(run, key):
    limits = {"tokens_per_minute": 100, "tokens": 50}

    async def test(recorder):
        first, second, third = (limited(key, **limits) for _ in range(3))
        opened = await recorder.open(first)
        await recorder.open(second)
        assert await outcome_of(recorder.open(third)) == "tokens"
        await recorder.commit(make_closing(first, opened, "ok", total_tokens=20))
        assert await outcome_of(recorder.open(limited(key, **limits))) == "tokens"
        assert await outcome_of(recorder.open(limited(key, **limits | {"tokens": 30}))) is None

    run(test)
    assert counted(key, "minute") == (3, 100)


def test_an_answer_that_took_more_than_was_held_is_counted_whole(run, key):
    async def test(recorder):
        opening = limited(key, tokens_per_day=100, tokens=10)
        await recorder.commit(
            make_closing(opening, await recorder.open(opening), "ok", total_tokens=150)
        )
        return await outcome_of(recorder.open(limited(key, tokens_per_day=100, tokens=10)))

    assert run(test) == "day"
    assert counted(key, "day") == counted(key, "month") == (1, 150)


def test_a_failed_turn_gives_its_tokens_back_but_was_a_request(run, key):
    async def test(recorder):
        opening = limited(key, tokens_per_month=100, tokens=80)
        await recorder.commit(make_closing(opening, await recorder.open(opening), None))

    run(test)
    assert counted(key, "month") == (1, 0)


def test_a_place_is_free_once_the_end_is_on_record(run, key):
    async def test(*recorders):
        openings = [limited(key, max_concurrent=2) for _ in range(4)]
        opened = await recorders[0].open(openings[0])
        await recorders[1].open(openings[1])
        for recorder in recorders:
            assert await outcome_of(recorder.open(openings[2])) == "concurrency"
        await recorders[0].commit(make_closing(openings[0], opened, "ok"))
        assert await open_all(recorders, openings[2:]) in (
            [None, "concurrency"],
            ["concurrency", None],
        )

    run(test, count=2)


def test_a_deleted_session_gives_nothing_back(run, key):
    limits = {"requests_per_minute": 5, "tokens_per_day": 100, "max_concurrent": 1}

    async def test(recorder):
        opening = limited(key, tokens=40, **limits)
        opened = await recorder.open(opening)
        assert await in_thread(delete_session_rows, opened.session_id, key.pk)
        # It still runs, recorded or not.
        assert await outcome_of(recorder.open(limited(key, tokens=1, **limits))) == "concurrency"
        await recorder.commit(make_closing(opening, opened, "ok", total_tokens=70))
        assert recorder.unrecorded == 1
        assert await outcome_of(recorder.open(limited(key, tokens=31, **limits))) == "day"
        assert await outcome_of(recorder.open(limited(key, tokens=30, **limits))) is None

    run(test)
    # The other one never ended: what it held went with its process.
    assert counted(key, "day") == (2, 70)


def test_a_refused_turn_writes_nothing_and_delays_no_other(run, key):
    other = make_api_key()

    async def test(recorder):
        # The first is written alone; all others come meanwhile and are one batch.
        openings = [*one_shots(other, 1), *(limited(key, requests_per_minute=3) for _ in range(9))]
        openings += one_shots(other, 9)
        return await open_all([recorder], openings)

    outcomes = run(test)
    assert outcomes == [*[None] * 4, *["requests"] * 6, *[None] * 9]
    assert Request.objects.filter(api_key=key).count() == 3
    assert Request.objects.filter(api_key=other).count() == 10


def test_a_poisoned_turn_is_not_counted(run, key):
    openings = [limited(key, requests_per_minute=20) for _ in range(10)]
    openings[5] = replace(openings[5], model=None)

    async def test(recorder):
        return await asyncio.gather(*map(recorder.open, openings), return_exceptions=True)

    outcomes = run(test)
    assert [i for i, o in enumerate(outcomes) if isinstance(o, GatewayError)] == [5]
    assert counted(key, "minute") == (9, 0)


def test_keys_without_limits_cost_no_statement(run, key, monkeypatch):
    statements = []
    real = Ledger.begin

    def spy(self, tx, openings, closings):
        for name in ("execute", "executemany"):
            monkeypatch.setattr(tx, name, listen(getattr(tx, name)), raising=False)
        real(self, tx, openings, closings)

    def listen(method):
        def call(sql, *args):
            statements.append(sql)
            return method(sql, *args)

        return call

    monkeypatch.setattr(Ledger, "begin", spy)

    async def test(recorder):
        opening = make_opening(key, user("hi"))
        await recorder.commit(make_closing(opening, await recorder.open(opening), "ok"))

    run(test)
    assert len(statements) > 5
    assert not [sql for sql in statements if "NO KEY UPDATE" in sql and "apikey" in sql]
    assert not [sql for sql in statements if "keyusage" in sql and "'live'" not in sql]
    assert not KeyUsage.objects.exists()


def test_a_key_that_hammers_on_costs_the_database_nothing(run, key, monkeypatch):
    batches = []
    admit = Ledger.admit

    def spy(self, tx, openings):
        batches.append(len(openings))
        return admit(self, tx, openings)

    monkeypatch.setattr(Ledger, "admit", spy)

    async def test(recorder):
        assert await outcome_of(recorder.open(limited(key, requests_per_minute=1))) is None
        for _ in range(20):
            assert await outcome_of(recorder.open(limited(key, requests_per_minute=1))) is not None
        assert batches == [1, 1]
        assert await outcome_of(recorder.open(limited(key, requests_per_minute=0))) is not None
        assert batches == [1, 1]
        # The operator raised the limit.
        assert await outcome_of(recorder.open(limited(key, requests_per_minute=2))) is None
        assert batches == [1, 1, 1]

    run(test)


def test_an_end_that_is_written_twice_is_counted_once(run, key):
    async def test(recorder):
        opening = limited(key, tokens_per_day=100, max_concurrent=9, tokens=50)
        opened = await recorder.open(opening)
        running = dict(recorder._ledger._running)
        await recorder.commit(make_closing(opening, opened, "ok", total_tokens=10))
        # As if the answer to COMMIT had been lost: this process does not know that it was written.
        recorder._ledger._running.update(running)
        recorder._ledger._held[key.pk] = (1, 50)
        await recorder.commit(make_closing(opening, opened, "ok", total_tokens=10))

    run(test)
    assert counted(key, "day") == (1, 10)
    assert counted(key, "live") == (0, 0)


def test_a_lost_answer_to_commit_counts_no_turn_twice(run, key):
    if connection.vendor != "postgresql":
        pytest.skip("SQLite's COMMIT answers itself")

    async def test(recorder):
        refused = limited(key, requests_per_minute=0)
        opening = limited(key, requests_per_minute=9)
        write = recorder._apply
        lost = []

        def lose(tx, attempt):
            outcomes = write(tx, attempt)
            if not lost:
                lost.append(tx)
                tx.execute("SELECT pg_backend_pid()")
                (pid,) = tx.fetchone()
                tx.execute("COMMIT")
                with connect() as other:
                    other.execute("SELECT pg_terminate_backend(%s)", [pid])
            return outcomes

        recorder._apply = lose
        await open_all([recorder], [refused, opening])

    run(test)
    assert Response.objects.count() == 1
    assert counted(key, "day") == (1, 0)


def test_a_stop_leaves_nothing_running(run, key):
    async def test(recorder):
        await recorder.open(limited(key, max_concurrent=1, tokens_per_day=100, tokens=60))
        assert await in_thread(counted, key, "live") == (1, 60)

    run(test)
    assert not KeyUsage.objects.filter(span="live").exists()
    assert counted(key, "day") == (1, 0)


def test_what_a_killed_process_ran_is_freed_and_what_it_used_stays(run, key):
    limits = {"max_concurrent": 2, "tokens_per_day": 100}

    async def test(dead, alive):
        for turn in (limited(key, tokens=30, **limits), limited(key, tokens=70, **limits)):
            await dead.open(turn)
            dead.append(turn.response_id, [TextDelta("a")])
        dead.append(turn.response_id, [UsageReport(5, 3, 8)])
        await dead.flush()
        assert await outcome_of(alive.open(limited(key, tokens=1, **limits))) == "day"
        # Its lock is what tells that it lives.
        dead._lock.release()
        await alive.settle()
        assert await outcome_of(alive.open(limited(key, tokens=93, **limits))) == "day"
        assert await outcome_of(alive.open(limited(key, tokens=92, **limits))) is None

    if connection.vendor == "postgresql":
        pytest.skip("the lock belongs to the connection")
    run(test, count=2)


def test_a_database_that_was_away_leaves_the_counts_right(run, key):
    limits = {"max_concurrent": 1, "tokens_per_day": 100, "tokens": 40}

    async def test(recorder):
        opening = limited(key, **limits)
        opened = await recorder.open(opening)
        with locked_database():
            with pytest.raises(RecorderUnavailable):
                await recorder.commit(make_closing(opening, opened, "ok", total_tokens=10))
            with contextlib.suppress(RecorderUnavailable):
                await recorder.settle()
        await recorder.settle()
        assert await outcome_of(recorder.open(limited(key, **limits))) is None

    run(test, deadline_s=0.2)
    assert counted(key, "day") == (2, 10)


# The ledger alone, with a clock of the test's own.


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        seconds = START

    clock = Clock()
    monkeypatch.setattr(usage, "_now", lambda tx: Moment.at(clock.seconds))
    return clock


def admit(ledger, *openings, closings=()):
    with transaction(lock_wait_s=5) as tx:
        ledger.begin(tx, openings, closings)
        ledger.close(tx, closings)
        outcomes = ledger.admit(tx, openings)
        ledger.finish(tx)
    ledger.committed()
    return [outcome.reason if isinstance(outcome, Refusal) else None for outcome in outcomes]


@pytest.fixture
def ledger():
    return Ledger("00000000-0000-4000-8000-000000000001")


def test_the_minute_slides(ledger, clock, key):
    def ask(at_s):
        clock.seconds = START + at_s
        return admit(ledger, limited(key, requests_per_minute=2))[0]

    assert [ask(0), ask(20), ask(40), ask(60)] == [None, None, "requests", "requests"]
    # The first is a minute old, the second not.
    assert [ask(60.25), ask(60.25), ask(80), ask(80.25)] == [None, "requests", "requests", None]


def test_no_minute_holds_more_than_the_limit(ledger, clock, key):
    passed = []
    for tick in range(400):
        clock.seconds = START + tick / 2
        if admit(ledger, limited(key, requests_per_minute=20)) == [None]:
            passed.append(clock.seconds)
    for at in passed:
        assert sum(at <= other < at + 60 for other in passed) <= 20
    # 200 seconds of it: three whole minutes and a bit.
    assert len(passed) == 80


def test_days_and_months_begin_anew(ledger, clock, key):
    def ask(day, tokens, hour=0):
        clock.seconds = datetime(2026, 12, day, hour, tzinfo=UTC).timestamp()
        limits = {"tokens_per_day": 10, "tokens_per_month": 25}
        return admit(ledger, limited(key, tokens=tokens, **limits))[0]

    assert ask(29, 10) is None
    assert ask(29, 1, hour=23) == "day"
    assert ask(30, 10) is None
    assert ask(31, 6) == "month"
    clock.seconds += 86400
    assert admit(ledger, limited(key, tokens_per_month=25, tokens=25)) == [None]


def test_a_true_count_goes_where_its_tokens_were_held(ledger, clock, key):
    opening = limited(key, tokens_per_minute=100, tokens=50)
    clock.seconds = datetime(2026, 11, 30, 23, 59, 50, tzinfo=UTC).timestamp()
    admit(ledger, opening)
    clock.seconds += 30
    with transaction(lock_wait_s=5) as tx:
        opened = recorder_module.open_turns(tx, [make_opening(key, user("x"))], worker_id=None)[0]
    closing = make_closing(opening, opened, "ok", total_tokens=20)
    admit(ledger, limited(key, tokens_per_minute=100, tokens=1), closings=[closing])
    assert list(
        KeyUsage.objects.exclude(span="live").order_by("span", "slot").values_list("span", "tokens")
    ) == [("day", 20), ("day", 1), ("minute", 20), ("minute", 1), ("month", 20), ("month", 1)]


@pytest.mark.parametrize("back_s", [0.3, 30, 3600])
def test_a_clock_that_is_set_back_neither_frees_nor_blocks(ledger, clock, key, back_s):
    def ask(at_s):
        clock.seconds = START + at_s
        return admit(ledger, limited(key, requests_per_minute=2))[0]

    assert [ask(1), ask(1), ask(1)] == [None, None, "requests"]
    assert ask(1 - back_s) == "requests"
    assert ask(1 - back_s + 60) == "requests"
    assert ask(1 - back_s + 60.25) is None


def test_what_another_process_counted_counts(clock, key):
    first, second = Ledger("first"), Ledger("second")
    assert admit(first, limited(key, max_concurrent=2, tokens_per_day=50, tokens=20)) == [None]
    assert admit(second, limited(key, max_concurrent=2, tokens_per_day=50, tokens=20)) == [None]
    both = limited(key, max_concurrent=2, tokens_per_day=50, tokens=20)
    assert admit(first, both) == ["day"]
    assert admit(first, replace(both, reserved_tokens=10)) == ["concurrency"]
    with transaction(lock_wait_s=5) as tx:
        usage.forget_worker(tx, "second")
    assert admit(first, replace(both, reserved_tokens=30)) == [None]


def test_a_transaction_that_fails_is_not_remembered(ledger, clock, key):
    opening = limited(key, max_concurrent=1)

    def fail():
        with transaction(lock_wait_s=5) as tx:
            ledger.begin(tx, [opening], [])
            assert isinstance(ledger.admit(tx, [opening])[0], Standing)
            ledger.finish(tx)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert admit(ledger, opening, limited(key, max_concurrent=1)) == [None, "concurrency"]


def test_many_keys_are_counted_in_one_batch(ledger, clock):
    keys = [make_api_key() for _ in range(205)]
    openings = [limited(key, requests_per_minute=1) for key in keys]
    assert admit(ledger, *openings, *openings) == [*[None] * 205, *["requests"] * 205]


def test_old_counts_are_deleted(ledger, clock, key):
    def ask(days):
        clock.seconds = START + days * 86400
        assert admit(ledger, limited(key, requests_per_minute=9)) == [None]

    for days in (-500, -70, -60, 0):
        ask(days)
    clock.seconds += 30
    with transaction(lock_wait_s=5) as tx:
        usage.prune(tx)
    rows = KeyUsage.objects.order_by("span").values_list("span")
    spans = [span for (span,) in rows]
    assert [spans.count(span) for span in ("minute", "day", "month", "live")] == [1, 2, 2, 1]

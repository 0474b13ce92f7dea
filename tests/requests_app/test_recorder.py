"""The one writer: batches, faults of database and data, retries, and what survives them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sqlite3
import threading
import time
from dataclasses import replace

import psycopg
import pytest
from django.db import connection, connections

from qwenproxy.errors import RecorderUnavailable
from qwenproxy.wire.events import Started, TextDelta, unpack
from requests_app import recorder as recorder_module
from requests_app import writes
from requests_app.deletion import delete_session_rows
from requests_app.models import Partial, Request, Response, Worker
from sessions_app.models import Message, Session
from tests.factories import make_api_key
from tests.turns import assistant, make_closing, make_opening, one_shots, running_recorder, user

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def key():
    return make_api_key()


@pytest.fixture
def run(tmp_path, transactional_db):
    """Run an async function with a started recorder."""

    def run(test, **fields):
        async def main():
            async with running_recorder(tmp_path / "workers", **fields) as recorder:
                return await test(recorder)

        return asyncio.run(main())

    return run


async def in_thread(function, *args):
    def call():
        try:
            return function(*args)
        finally:
            connections.close_all()

    return await asyncio.to_thread(call)


async def take(recorder, opening, answer="ok", **fields):
    opened = await recorder.open(opening)
    await recorder.commit(make_closing(opening, opened, answer, **fields))
    return opened


def test_a_turn_is_on_record_before_and_after_its_answer(run, key):
    async def test(recorder):
        opening = make_opening(key, user("hi"))
        opened = await recorder.open(opening)
        before = await in_thread(lambda: Response.objects.get())
        assert (before.status, before.worker_id) == ("in_progress", recorder.worker_id)
        await recorder.commit(make_closing(opening, opened, "hello"))

    run(test)
    response = Response.objects.get()
    assert (response.status, response.worker_id, response.reply.content) == (
        "completed", None, '"hello"',
    )  # fmt: skip
    assert Worker.objects.count() == 0


def test_many_turns_at_once_share_transactions(run, key, monkeypatch):
    batches = []
    close_turns = recorder_module.close_turns

    def count(tx, closings):
        batches.append(len(closings))
        return close_turns(tx, closings)

    monkeypatch.setattr(recorder_module, "close_turns", count)

    async def test(recorder):
        await asyncio.gather(*(take(recorder, o) for o in one_shots(key, 200)))

    run(test)
    assert Response.objects.filter(status="completed").count() == 200
    assert sum(batches) == 200
    assert max(batches) > 50


def test_a_full_queue_lets_callers_wait_and_drops_nothing(run, key):
    async def test(recorder):
        tasks = [asyncio.create_task(take(recorder, o)) for o in one_shots(key, 60)]
        await asyncio.sleep(0)
        assert recorder.queued <= 5
        await asyncio.gather(*tasks)

    run(test, queue_turns=5)
    assert Response.objects.filter(status="completed").count() == 60


def test_stop_writes_what_is_queued(run, key):
    tasks = []

    async def test(recorder):
        tasks.extend(asyncio.create_task(recorder.open(o)) for o in one_shots(key, 50))
        await asyncio.sleep(0)

    run(test)
    assert Request.objects.count() == 50


POISONS = {
    "null": {"model": None},
    "duplicate": {"request_id": "req_taken"},
    "key": {"api_key_id": 2**40},
}


@pytest.mark.parametrize("poison", POISONS)
def test_one_poisoned_turn_fails_alone(run, key, poison):
    openings = one_shots(key, 64)
    if poison == "duplicate":
        openings[0].request_id = "req_taken"
    openings[30] = replace(openings[30], **POISONS[poison])

    async def test(recorder):
        return await asyncio.gather(*(take(recorder, o) for o in openings), return_exceptions=True)

    outcomes = run(test)
    failed = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Exception)]
    assert failed == [30]
    assert isinstance(outcomes[30], RecorderUnavailable)
    assert Response.objects.filter(status="completed").count() == 63
    assert Session.objects.count() == 63


@pytest.mark.parametrize(
    "text", [pytest.param("nul \x00", id="nul"), pytest.param("x" * 300, id="too long")]
)
def test_a_text_that_the_database_refuses_fails_alone(run, key, text):
    if connection.vendor != "postgresql":
        pytest.skip("SQLite takes any text")
    openings = one_shots(key, 20)
    openings[10].model = text

    async def test(recorder):
        return await asyncio.gather(*(take(recorder, o) for o in openings), return_exceptions=True)

    outcomes = run(test)
    assert [i for i, o in enumerate(outcomes) if isinstance(o, Exception)] == [10]


def test_a_poisoned_end_fails_alone(run, key):
    async def test(recorder):
        openings = one_shots(key, 20)
        opened = await asyncio.gather(*(recorder.open(o) for o in openings))
        closings = [make_closing(a, b, "ok") for a, b in zip(openings, opened, strict=True)]
        closings[7].status = None
        outcomes = await asyncio.gather(
            *(recorder.commit(c) for c in closings), return_exceptions=True
        )
        assert [i for i, o in enumerate(outcomes) if o] == [7]
        # Another end of the turn takes the place of the one that cannot be written.
        await recorder.commit(make_closing(openings[7], opened[7], None))

    run(test)
    assert Response.objects.filter(status="completed").count() == 19
    assert Response.objects.filter(status="failed").count() == 1


def test_an_end_is_written_without_what_the_database_refuses_of_the_upstream(run, key):
    async def test(recorder):
        opening = make_opening(key, user("hi"))
        # No driver takes that.
        await take(recorder, opening, "hello", upstream_response=object(), total_tokens=3)
        assert recorder.owed == 0

    run(test)
    row = Response.objects.get()
    assert (row.status, row.reply.content) == ("completed", '"hello"')
    assert (row.upstream_response, row.total_tokens) == ("", 0)


def test_what_an_upstream_says_never_keeps_an_answer_from_the_record(run, key):
    async def test(recorder):
        await take(
            recorder,
            make_opening(key, user("hi")),
            "hello",
            finish_reason="model_context_window_exceeded\x00",
            error_code="x" * 80,
            upstream_id="i" * 300,
            upstream_parent_id="nul\x00",
            prompt_tokens=2**40,
            completion_tokens=-(2**40),
            total_tokens=2**80,
        )

    run(test)
    response = Response.objects.get()
    assert (response.status, response.finish_reason) == ("completed", "model_context_window")
    assert response.total_tokens == 2**31 - 1
    assert response.completion_tokens == 0
    assert (response.reply.upstream_id, response.reply.upstream_parent_id) == (None, None)


@contextlib.contextmanager
def locked_database():
    """Another connection keeps writers out, until the block ends."""
    if connection.vendor == "sqlite":
        other = sqlite3.connect(connection.settings_dict["NAME"], isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")
            other.close()
        return
    with connect() as other:
        other.execute("LOCK TABLE sessions_app_session, requests_app_partial")
        yield
        other.rollback()


def connect():
    """A connection of the test's own, past Django, which refuses where an event loop runs."""
    names = {
        "HOST": "host",
        "PORT": "port",
        "USER": "user",
        "PASSWORD": "password",
        "NAME": "dbname",
    }
    settings = connection.settings_dict
    return psycopg.connect(**{theirs: settings[ours] for ours, theirs in names.items()})


def test_a_locked_database_is_waited_for(run, key):
    async def test(recorder):
        with locked_database():
            task = asyncio.create_task(take(recorder, make_opening(key, user("hi"))))
            done, _ = await asyncio.wait([task], timeout=0.4)
            assert not done
        await task

    run(test)
    assert Response.objects.get().status == "completed"


def test_a_database_locked_for_too_long_refuses_all_waiters_and_recovers(run, key):
    async def test(recorder):
        openings = one_shots(key, 20)
        with locked_database():
            began = time.monotonic()
            outcomes = await asyncio.gather(
                *(recorder.open(o) for o in openings), return_exceptions=True
            )
            # Two batches: the first turn alone, then all that came meanwhile.
            assert time.monotonic() - began < 3
        assert all(isinstance(outcome, RecorderUnavailable) for outcome in outcomes)
        await take(recorder, make_opening(key, user("hi")))

    run(test, deadline_s=0.5)
    assert Response.objects.get().status == "completed"


def test_after_a_refusal_others_are_refused_at_once_until_a_write_succeeds(run, key):
    first, second, third, fourth = one_shots(key, 4)

    async def test(recorder):
        with locked_database():
            with pytest.raises(RecorderUnavailable):
                await recorder.open(first)
            trying = asyncio.create_task(recorder.open(second))
            await asyncio.sleep(0)
            with pytest.raises(RecorderUnavailable):
                await recorder.open(third)
            assert not trying.done()
        await trying
        await recorder.open(fourth)

    run(test, deadline_s=2)
    asked = set(Request.objects.values_list("request_id", flat=True))
    assert asked == {second.request_id, fourth.request_id}


def test_an_end_that_could_not_be_written_is_written_when_the_database_is_back(run, key):
    async def test(recorder):
        opening = make_opening(key, user("hi"))
        opened = await recorder.open(opening)
        with locked_database():
            with pytest.raises(RecorderUnavailable):
                await recorder.commit(make_closing(opening, opened, "hello"))
            with pytest.raises(RecorderUnavailable):
                await recorder.commit(make_closing(opening, opened, "hello", status="failed"))
            with contextlib.suppress(RecorderUnavailable):
                await recorder.settle()
        await recorder.settle()
        response = await in_thread(lambda: Response.objects.select_related("reply").get())
        assert (response.status, response.reply.content) == ("failed", '"hello"')

    run(test, deadline_s=0.2)


def test_partials_grow_by_what_is_new_and_go_with_the_end(run, key):
    async def test(recorder):
        opening = make_opening(key, user("hi"))
        opened = await recorder.open(opening)
        for events in ([Started("r1"), TextDelta("a")], [TextDelta("b")], []):
            recorder.append(opening.response_id, events)
            await recorder.flush()
        rows = await in_thread(lambda: list(Partial.objects.order_by("seq").values_list("events")))
        assert [unpack(events) for (events,) in rows] == [
            [Started("r1"), TextDelta("a")],
            [TextDelta("b")],
        ]
        await recorder.commit(make_closing(opening, opened, "ab"))
        # Too late: nobody may bring a partial back.
        recorder.append(opening.response_id, [TextDelta("c")])
        await recorder.flush()

    run(test)
    assert Partial.objects.count() == 0


def test_partials_that_could_not_be_written_come_with_the_next_ones_once(run, key):
    async def test(recorder):
        opening = make_opening(key, user("hi"))
        await recorder.open(opening)
        recorder.append(opening.response_id, [TextDelta("a")])
        with locked_database(), pytest.raises(RecorderUnavailable):
            await recorder.flush()
        recorder.append(opening.response_id, [TextDelta("b")])
        await recorder.flush()
        rows = await in_thread(lambda: list(Partial.objects.values_list("events", flat=True)))
        assert [unpack(events) for events in rows] == [[TextDelta("ab")]]

    run(test, deadline_s=0.2)


def test_partials_that_cannot_be_written_keep_no_others_back(run, key):
    one, other = one_shots(key, 2)

    async def test(recorder):
        for opening in (one, other):
            await recorder.open(opening)
        recorder.append(one.response_id, [Started(object())])
        recorder.append(other.response_id, [TextDelta("a")])
        with pytest.raises(RecorderUnavailable):
            await recorder.flush()
        rows = await in_thread(lambda: list(Partial.objects.values_list("events", flat=True)))
        assert [unpack(events) for events in rows] == [[TextDelta("a")]]

    run(test)


def test_periodic_work_outlives_a_fault(run):
    rounds = []

    async def test(recorder):
        async def work():
            rounds.append(None)
            raise KeyError("a fault")

        task = asyncio.create_task(recorder._every(0.01, work))
        async with asyncio.timeout(30):
            while len(rounds) < 2:  # noqa: ASYNC110  # no event tells of a round
                await asyncio.sleep(0.01)
        task.cancel()

    run(test)


def test_partials_wait_for_no_queue(run, key, monkeypatch):
    monkeypatch.setattr(recorder_module, "_BATCH_TURNS", 1)
    found = []

    def count(tx):
        tx.execute("SELECT COUNT(*) FROM requests_app_partial")
        found.append(tx.fetchone()[0])

    async def test(recorder):
        opening = make_opening(key, user("hi"))
        await recorder.open(opening)
        recorder.append(opening.response_id, [TextDelta("a")])
        going_on = threading.Event()
        tasks = [asyncio.create_task(recorder.run(lambda tx: going_on.wait(30)))]
        tasks += [asyncio.create_task(recorder.run(count)) for _ in range(5)]
        await asyncio.sleep(0)
        flush = asyncio.create_task(recorder.flush())
        await asyncio.sleep(0)
        going_on.set()
        await asyncio.gather(flush, *tasks)

    run(test, queue_turns=3)
    assert found == [1] * 5


def test_periodic_work_begins_on_time_however_long_it_takes(run):
    began = []

    async def test(recorder):
        async def work():
            began.append(time.monotonic())
            await asyncio.sleep(0.03)

        task = asyncio.create_task(recorder._every(0.04, work))
        async with asyncio.timeout(30):
            while len(began) < 12:  # noqa: ASYNC110  # a busy machine makes some late, not all
                await asyncio.sleep(0.01)
        task.cancel()

    run(test)
    assert min(later - one for one, later in itertools.pairwise(began)) < 0.065


def test_a_session_deleted_in_mid_turn_ends_unrecorded(run, key):
    async def test(recorder):
        kept, gone = one_shots(key, 2)
        opened = await asyncio.gather(recorder.open(kept), recorder.open(gone))
        recorder.append(gone.response_id, [TextDelta("x")])
        await recorder.flush()
        assert await in_thread(delete_session_rows, opened[1].session_id, key.pk)
        recorder.append(gone.response_id, [TextDelta("y")])
        await recorder.flush()
        await asyncio.gather(
            recorder.commit(make_closing(kept, opened[0], "ok")),
            recorder.commit(make_closing(gone, opened[1], "ok")),
        )
        assert recorder.unrecorded == 1

    run(test)
    assert Response.objects.get().status == "completed"
    assert (Session.objects.count(), Message.objects.count(), Partial.objects.count()) == (1, 2, 0)


def test_other_writes_run_in_the_writers_transaction(run, key):
    async def test(recorder):
        async def broken():
            def task(tx):
                tx.execute("DELETE FROM requests_app_worker")
                raise ValueError("no")

            await recorder.run(task)

        with pytest.raises(RecorderUnavailable):
            await broken()
        assert await recorder.run(lambda tx: 42) == 42
        assert await in_thread(Worker.objects.count) == 1

    run(test)


def test_a_waiter_that_is_cancelled_does_not_stop_what_is_written(run, key):
    async def test(recorder):
        opening = make_opening(key, user("hi"))
        task = asyncio.create_task(recorder.open(opening))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await recorder.run(lambda tx: None)

    run(test)
    assert Request.objects.count() == 1


async def converse(recorder, key, number, turns):
    """A conversation that begins like all others and goes on by itself, partly in one of two named sessions."""
    named = {"external_id": f"shared {number // 6 % 2}"} if number % 3 == 0 else {}
    history = [user("hi")] if not named else [user(f"hi from {number}")]
    tools = [{"type": "function", "function": {"name": f"tool_{number % 4}"}}]
    system = {"role": "system", "content": f"system {number % 5}"}
    sessions = set()
    for turn in range(turns):
        opening = make_opening(key, system, *history, tools=tools, **named)
        opened = await recorder.open(opening)
        sessions.add(opened.session_id)
        recorder.append(opening.response_id, [TextDelta("x")])
        answer = f"{number}.{turn}"
        await recorder.commit(make_closing(opening, opened, answer))
        history += [assistant(answer), user(f"on {number}.{turn}")]
    assert len(sessions) == 1
    return sessions.pop(), opening, history


@pytest.mark.parametrize("recorders", [2])
def test_two_recorders_on_one_database_mix_nothing_and_lose_nothing(tmp_path, key, recorders):
    conversations, turns = 24, 5
    results, errors = {}, []
    before = deadlocks()

    def serve(part):
        async def main():
            async with running_recorder(tmp_path / "workers", deadline_s=20) as recorder:
                outcomes = await asyncio.gather(
                    *(
                        converse(recorder, key, number, turns)
                        for number in range(part, conversations, recorders)
                    )
                )
                numbers = range(part, conversations, recorders)
                results.update(zip(numbers, outcomes, strict=True))

        try:
            asyncio.run(main())
        except Exception as exc:
            errors.append(exc)
            raise
        finally:
            connections.close_all()

    threads = [threading.Thread(target=serve, args=(part,)) for part in range(recorders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert Response.objects.filter(status="completed").count() == conversations * turns
    assert Response.objects.count() == Request.objects.count() == conversations * turns
    apart = {session for n, (session, *_) in results.items() if n % 3}
    assert len(apart) == conversations - len(range(0, conversations, 3))
    assert Session.objects.count() == len(apart) + 2
    for response in Response.objects.select_related("reply", "request__prompt"):
        # The answer hangs below its own question.
        assert response.reply.parent_id == response.request.prompt_id
        assert response.reply.session_id == response.session_id == response.request.session_id
    for session in Session.objects.all():
        assert session.request_count == Request.objects.filter(session=session).count()
    assert deadlocks() == before


def deadlocks():
    if connection.vendor != "postgresql":
        return 0
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        return cursor.fetchone()[0]


class TestLostConnection:
    """What a PostgreSQL server that drops its connections leaves."""

    @pytest.fixture(autouse=True)
    def _postgresql(self, transactional_db):
        if connection.vendor != "postgresql":
            pytest.skip("SQLite has no connection to lose")
        connection.ensure_connection()
        self.own_pid = connection.connection.info.backend_pid

    def drop_connections(self):
        """Every one of this database but the test's."""
        with connect() as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname ="
                " current_database() AND pid NOT IN (pg_backend_pid(), %s)",
                [self.own_pid],
            )

    def lose_next_commit(self, monkeypatch, *, written):
        """The next COMMIT's answer never arrives."""
        real = recorder_module.transaction
        lost = []

        @contextlib.contextmanager
        def transaction(**fields):
            if lost:
                with real(**fields) as tx:
                    yield tx
                return
            with real(**fields) as tx:
                yield tx
                if not written:
                    lost.append(1)
                    connections["default"].connection.close()
            if written:
                lost.append(1)
                connections["default"].connection.close()
                raise psycopg.OperationalError("the connection is lost")

        monkeypatch.setattr(recorder_module, "transaction", transaction)

    def test_a_dropped_connection_is_opened_anew(self, run, key):
        async def test(recorder):
            await take(recorder, make_opening(key, user("a")))
            await asyncio.to_thread(self.drop_connections)
            await take(recorder, make_opening(key, user("b")))

        run(test)
        assert Response.objects.filter(status="completed").count() == 2

    def test_connections_dropped_at_any_moment_lose_nothing_that_was_confirmed(self, run, key):
        confirmed = []

        async def test(recorder):
            async def disturb():
                for _ in range(10):
                    await asyncio.to_thread(self.drop_connections)
                    await asyncio.sleep(0.05)

            async def serve(opening):
                await take(recorder, opening)
                confirmed.append(opening.response_id)

            disturber = asyncio.create_task(disturb())
            rounds = 0
            while not disturber.done():
                rounds += 1
                await asyncio.gather(*(serve(o) for o in one_shots(key, 10)))
            await disturber
            return rounds * 10

        turns = run(test, deadline_s=30)
        assert len(confirmed) == turns
        assert Response.objects.filter(status="completed").count() == turns
        assert Message.objects.count() == turns * 2

    @pytest.mark.parametrize("written", [True, False], ids=["written", "not written"])
    def test_a_commit_without_answer_is_no_second_turn(self, run, key, monkeypatch, written):
        async def test(recorder):
            self.lose_next_commit(monkeypatch, written=written)
            openings = one_shots(key, 5)
            opened = await asyncio.gather(*(recorder.open(o) for o in openings))
            for opening, o in zip(openings, opened, strict=True):
                await recorder.commit(make_closing(opening, o, "ok"))

        run(test)
        assert Request.objects.count() == Session.objects.count() == 5
        assert set(Session.objects.values_list("request_count", flat=True)) == {1}
        assert Response.objects.filter(status="completed").count() == 5

    def test_an_end_whose_commit_has_no_answer_is_written_once(self, run, key, monkeypatch):
        async def test(recorder):
            openings = one_shots(key, 5)
            opened = await asyncio.gather(*(recorder.open(o) for o in openings))
            self.lose_next_commit(monkeypatch, written=True)
            await asyncio.gather(
                *(
                    recorder.commit(make_closing(a, b, "ok"))
                    for a, b in zip(openings, opened, strict=True)
                )
            )
            assert recorder.unrecorded == 0

        run(test)
        assert Message.objects.count() == 10
        assert set(Session.objects.values_list("message_count", flat=True)) == {2}

    def test_a_session_deleted_between_resolution_and_insertion_is_resolved_again(
        self, run, key, monkeypatch
    ):
        deleted = []
        real = recorder_module.open_turns

        async def test(recorder):
            first = await take(recorder, make_opening(key, user("hi")), "hello")

            def open_turns(tx, turns, *, worker_id):
                resolve = writes.resolve

                def resolve_and_lose(*args, **fields):
                    found = resolve(*args, **fields)
                    if not deleted:
                        deleted.append(found.session_id)
                        thread = threading.Thread(
                            target=lambda: (
                                delete_session_rows(found.session_id, key.pk),
                                connections.close_all(),
                            )
                        )
                        thread.start()
                        thread.join()
                    return found

                monkeypatch.setattr(writes, "resolve", resolve_and_lose)
                try:
                    return real(tx, turns, worker_id=worker_id)
                finally:
                    monkeypatch.setattr(writes, "resolve", resolve)

            monkeypatch.setattr(recorder_module, "open_turns", open_turns)
            history = [user("hi"), assistant("hello"), user("more")]
            return first, await take(recorder, make_opening(key, *history), "well")

        first, second = run(test)
        assert deleted == [first.session_id]
        assert (second.match, second.session_id != first.session_id) == ("imported", True)
        assert Session.objects.get().id == second.session_id
        assert Message.objects.count() == 4

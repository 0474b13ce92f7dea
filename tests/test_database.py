"""`run_in_db`: kept connections, time limits, and which errors mean what."""

from __future__ import annotations

import asyncio
import sqlite3
import threading

import pytest
from django.contrib.auth.models import Group
from django.contrib.contenttypes.models import ContentType
from django.db import IntegrityError, InterfaceError, OperationalError, connection

from qwenproxy import database
from qwenproxy.database import close_pool, is_connection_error, read_in_db, run_in_db

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _fresh_pool():
    close_pool()
    yield
    close_pool()


def driver_connection():
    connection.ensure_connection()
    return threading.get_ident(), connection.connection


def count_slowly():
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(
                "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 1000000000)"
                " SELECT count(*) FROM n"
            )
        else:
            cursor.execute("SELECT pg_sleep(60)")
        return cursor.fetchone()


def test_returns_what_the_function_returns_and_runs_elsewhere():
    async def call():
        return await run_in_db(lambda a, *, b: (a, b, threading.get_ident()), 1, b=2)

    assert asyncio.run(call())[:2] == (1, 2)
    assert asyncio.run(call())[2] != threading.get_ident()


def test_writes_are_seen_by_other_connections():
    asyncio.run(run_in_db(Group.objects.create, name="written"))
    assert Group.objects.filter(name="written").exists()


def test_a_connection_is_kept_between_calls():
    async def calls():
        return [await run_in_db(driver_connection) for _ in range(20)]

    seen = asyncio.run(calls())
    assert len({thread for thread, _ in seen}) <= database.THREADS
    assert len({id(kept) for _, kept in seen}) <= database.THREADS


def test_calls_run_beside_each_other_up_to_the_number_of_threads():
    barrier = threading.Barrier(database.THREADS)

    async def calls():
        waits = (run_in_db(barrier.wait, 30) for _ in range(database.THREADS))
        return await asyncio.gather(*waits)

    assert sorted(asyncio.run(calls())) == list(range(database.THREADS))


def test_what_chats_wait_for_does_not_wait_for_reports():
    ended = threading.Event()

    async def calls():
        reports = [asyncio.create_task(read_in_db(ended.wait, 30)) for _ in range(20)]
        chats = [await asyncio.wait_for(run_in_db(int), 20) for _ in range(5)]
        begun = any(report.done() for report in reports)
        ended.set()
        return chats, begun, await asyncio.gather(*reports)

    assert asyncio.run(calls()) == ([0] * 5, False, [True] * 20)


def test_a_statement_that_takes_too_long_is_ended(monkeypatch):
    monkeypatch.setattr(database, "STATEMENT_TIMEOUT_S", 0.1)
    with pytest.raises(OperationalError):
        asyncio.run(run_in_db(count_slowly))


def test_after_a_late_statement_the_pool_works(monkeypatch):
    monkeypatch.setattr(database, "STATEMENT_TIMEOUT_S", 0.1)
    with pytest.raises(OperationalError):
        asyncio.run(run_in_db(count_slowly))
    monkeypatch.undo()
    assert asyncio.run(run_in_db(ContentType.objects.count)) > 0


@pytest.mark.parametrize("error", [OperationalError("gone"), InterfaceError("closed")])
def test_a_connection_error_drops_the_connection_and_goes_to_the_caller(monkeypatch, error):
    monkeypatch.setattr(database, "THREADS", 1)

    def fail():
        raise error

    async def calls():
        before = await run_in_db(driver_connection)
        with pytest.raises(type(error)):
            await run_in_db(fail)
        return before, await run_in_db(driver_connection)

    before, after = asyncio.run(calls())
    assert before[0] == after[0]
    assert before[1] is not after[1]


def test_an_error_of_the_data_keeps_the_connection(monkeypatch):
    monkeypatch.setattr(database, "THREADS", 1)
    Group.objects.create(name="taken")

    async def calls():
        before = await run_in_db(driver_connection)
        with pytest.raises(IntegrityError):
            await run_in_db(Group.objects.create, name="taken")
        return before, await run_in_db(driver_connection)

    before, after = asyncio.run(calls())
    assert before[1] is after[1]


def test_an_idle_connection_that_died_is_replaced_before_use(monkeypatch):
    if connection.vendor == "sqlite":
        pytest.skip("a file does not hang up")
    monkeypatch.setattr(database, "THREADS", 1)
    monkeypatch.setattr(database, "_TRUSTED_IDLE_S", -1)

    async def calls():
        _, kept = await run_in_db(driver_connection)
        pid = kept.info.backend_pid

        def terminate():
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(%s)", [pid])

        terminator = threading.Thread(target=lambda: (terminate(), connection.close()))
        terminator.start()
        terminator.join()
        return await run_in_db(ContentType.objects.count)

    assert asyncio.run(calls()) > 0


def test_closing_ends_threads_and_connections():
    asyncio.run(run_in_db(driver_connection))
    pool = database._pools["chats"]
    close_pool()
    assert [kept.connection for kept in pool.connections] == [None] * len(pool.connections)
    assert not [t for t in threading.enumerate() if t.name.startswith("qwenproxy-db")]


def test_closing_works_on_a_thread_that_runs_a_loop():
    async def call_and_close():
        await run_in_db(Group.objects.count)
        close_pool()

    asyncio.run(call_and_close())
    assert database._pools == {}


def test_a_cancelled_caller_leaves_the_pool_usable():
    leave = threading.Event()

    async def cancel():
        loop, entered = asyncio.get_running_loop(), asyncio.Event()

        def block():
            loop.call_soon_threadsafe(entered.set)
            leave.wait(30)

        call = asyncio.create_task(run_in_db(block))
        await entered.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        leave.set()
        return await run_in_db(ContentType.objects.count)

    assert asyncio.run(cancel()) > 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(OperationalError(), True, id="django-operational"),
        pytest.param(InterfaceError(), True, id="django-interface"),
        pytest.param(sqlite3.OperationalError(), True, id="driver"),
        pytest.param(IntegrityError(), False, id="integrity"),
        pytest.param(OSError(), False, id="other"),
    ],
)
def test_connection_errors_are_told_by_their_class(error, expected):
    assert is_connection_error(error) is expected

"""`run_in_db`: kept connections, time limits, and which errors mean what."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading

import pytest
from django.contrib.auth.models import Group
from django.db import DatabaseError, IntegrityError, InterfaceError, OperationalError, connection

from qwenproxy import database
from qwenproxy.database import close_pool, is_connection_error, is_retryable, run_in_db

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


def test_a_statement_that_takes_too_long_is_ended(monkeypatch):
    monkeypatch.setattr(database, "STATEMENT_TIMEOUT_S", 0.1)
    with pytest.raises(OperationalError) as error:
        asyncio.run(run_in_db(count_slowly))
    assert not is_retryable(error.value)


def test_after_a_late_statement_the_pool_works(monkeypatch):
    monkeypatch.setattr(database, "STATEMENT_TIMEOUT_S", 0.1)
    with pytest.raises(OperationalError):
        asyncio.run(run_in_db(count_slowly))
    monkeypatch.undo()
    assert asyncio.run(run_in_db(Group.objects.count)) == 0


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
        return await run_in_db(Group.objects.count)

    assert asyncio.run(calls()) == 0


def test_closing_ends_threads_and_connections():
    asyncio.run(run_in_db(driver_connection))
    pool = database._pool
    close_pool()
    assert [kept.connection for kept in pool.connections] == [None] * len(pool.connections)
    assert not [t for t in threading.enumerate() if t.name.startswith("qwenproxy-db")]


def test_closing_works_on_a_thread_that_runs_a_loop():
    async def call_and_close():
        await run_in_db(Group.objects.count)
        close_pool()

    asyncio.run(call_and_close())
    assert database._pool is None


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
        return await run_in_db(Group.objects.count)

    assert asyncio.run(cancel()) == 0


def sqlite_error(code, message="from the driver"):
    cause = sqlite3.OperationalError(message)
    cause.sqlite_errorcode = code
    return cause


def wrapped(cause, kind=OperationalError):
    error = kind(str(cause))
    error.__cause__ = cause
    return error


class ServerError(Exception):
    def __init__(self, sqlstate):
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(wrapped(sqlite_error(sqlite3.SQLITE_BUSY)), True, id="locked"),
        pytest.param(wrapped(sqlite_error(sqlite3.SQLITE_BUSY_SNAPSHOT)), True, id="extended-code"),
        pytest.param(sqlite_error(sqlite3.SQLITE_FULL), True, id="full, bare from the driver"),
        pytest.param(wrapped(sqlite_error(sqlite3.SQLITE_IOERR_WRITE)), True, id="disk"),
        pytest.param(wrapped(sqlite_error(sqlite3.SQLITE_INTERRUPT)), False, id="took too long"),
        pytest.param(wrapped(sqlite_error(sqlite3.SQLITE_ERROR)), False, id="no such table"),
        pytest.param(
            wrapped(sqlite_error(sqlite3.SQLITE_CONSTRAINT), IntegrityError), False, id="constraint"
        ),
        pytest.param(wrapped(ServerError("40P01")), True, id="deadlock"),
        pytest.param(wrapped(ServerError("40001")), True, id="serialization"),
        pytest.param(wrapped(ServerError("57P01")), True, id="shutdown"),
        pytest.param(wrapped(ServerError("08006")), True, id="connection failure"),
        pytest.param(wrapped(ServerError("53100")), True, id="server's disk is full"),
        pytest.param(wrapped(ServerError("57014")), False, id="statement timeout"),
        pytest.param(wrapped(ServerError("23505"), IntegrityError), False, id="unique"),
        pytest.param(wrapped(ServerError("42P01"), DatabaseError), False, id="undefined table"),
        pytest.param(
            OperationalError("server closed the connection"), True, id="noticed by driver"
        ),
        pytest.param(InterfaceError("connection already closed"), True, id="closed"),
        pytest.param(IntegrityError("null"), False, id="data without a code"),
        pytest.param(ValueError("no"), False, id="not the database's"),
    ],
)
def test_retryable_is_what_the_database_and_not_the_data_caused(error, expected):
    assert is_retryable(error) is expected


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


def test_a_real_lock_is_retryable(settings, tmp_path):
    path = os.fspath(tmp_path / "locked.sqlite3")
    holder, other = sqlite3.connect(path), sqlite3.connect(path, timeout=0)
    try:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError) as error:
            other.execute("CREATE TABLE t (x)")
    finally:
        holder.close()
        other.close()
    assert is_retryable(error.value)

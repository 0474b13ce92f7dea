"""Raw transactions: what is rolled back, what is waited for, and which faults pass."""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
from datetime import UTC, datetime

import django.db
import psycopg
import pytest
from django.db import connection, connections

from qwenproxy.access.models import ApiKey
from qwenproxy.transaction import (
    is_connection_lost,
    is_reference_broken,
    is_transient,
    transaction,
)
from tests.factories import make_api_key

pytestmark = pytest.mark.django_db(transaction=True)


def rename(tx, name):
    return tx.executemany("UPDATE access_apikey SET name = %s WHERE name = %s", [(name, "a")])


def test_a_block_is_committed_as_one():
    make_api_key("a")
    with transaction(lock_wait_s=1) as tx:
        assert rename(tx, "100 %s ?") == 1
    assert ApiKey.objects.get().name == "100 %s ?"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_rolls_the_block_back(error):
    make_api_key("a")

    def fail():
        with transaction(lock_wait_s=1) as tx:
            rename(tx, "b")
            raise error

    with pytest.raises(error):
        fail()
    assert ApiKey.objects.get().name == "a"
    with transaction(lock_wait_s=1) as tx:
        assert rename(tx, "c") == 1


def test_a_broken_reference_is_found_at_commit_and_leaves_nothing():
    make_api_key("a")

    def break_reference():
        with transaction(lock_wait_s=1) as tx:
            rename(tx, "b")
            tx.execute(
                "INSERT INTO requests_app_blob (api_key_id, digest, kind, body)"
                " VALUES (%s, %s, %s, %s)",
                [2**40, b"x", "system", ""],
            )

    with pytest.raises((sqlite3.IntegrityError, psycopg.errors.ForeignKeyViolation)) as caught:
        break_reference()
    assert not is_transient(caught.value)
    assert is_reference_broken(caught.value) == (connection.vendor == "postgresql")
    assert ApiKey.objects.get().name == "a"


def test_rows_that_a_statement_wrote_are_counted():
    for name in ("a", "a", "b"):
        make_api_key(name)
    sql = "UPDATE access_apikey SET name = %s WHERE name = %s"
    with transaction(lock_wait_s=1) as tx:
        assert tx.executemany(sql, [("c", "a"), ("d", "b"), ("e", "none")]) == 3


def test_a_time_is_what_django_reads():
    key = make_api_key()
    now = datetime(2026, 1, 2, 3, 4, 5, 0, tzinfo=UTC)
    for moment in (now, now.replace(microsecond=123456)):
        with transaction(lock_wait_s=1) as tx:
            tx.execute("UPDATE access_apikey SET revoked_at = %s", [tx.time(moment)])
        key.refresh_from_db()
        assert key.revoked_at == moment


def test_another_writer_is_waited_for_as_long_as_was_said():
    if connection.vendor != "sqlite":
        pytest.skip("PostgreSQL has many writers")
    ready, end = threading.Event(), threading.Event()

    def write():
        with transaction(lock_wait_s=5):
            ready.set()
            end.wait(10)
        connections.close_all()

    thread = threading.Thread(target=write)
    thread.start()
    ready.wait(10)
    began = time.monotonic()
    with pytest.raises(sqlite3.OperationalError) as caught, transaction(lock_wait_s=0.2):
        pass
    assert 0.15 < time.monotonic() - began < 2
    assert is_transient(caught.value)
    threading.Timer(0.1, end.set).start()
    with transaction(lock_wait_s=10):
        pass
    thread.join()


def test_a_connection_lost_before_commit_is_told():
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no connection to lose")
    make_api_key("a")

    def lose_connection():
        with transaction(lock_wait_s=1) as tx:
            rename(tx, "b")
            connection.connection.close()

    with pytest.raises(psycopg.OperationalError) as caught:
        lose_connection()
    assert is_connection_lost(caught.value)
    connection.close()
    assert ApiKey.objects.get().name == "a"


def sqlite_error(code, kind=sqlite3.OperationalError):
    error = kind("x")
    error.sqlite_errorcode = code
    return error


def wrapped(error):
    outer = django.db.OperationalError("x")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "transient", "lost"),
    [
        pytest.param(sqlite_error(5), True, False, id="busy"),
        pytest.param(sqlite_error(5 | 2 << 8), True, False, id="busy, extended"),
        pytest.param(sqlite_error(13), True, False, id="full"),
        pytest.param(sqlite_error(8 | 4 << 8), True, True, id="file replaced"),
        pytest.param(sqlite_error(10), True, True, id="i/o"),
        pytest.param(sqlite_error(14), True, True, id="cannot open"),
        pytest.param(wrapped(sqlite_error(14)), True, True, id="cannot open, by django"),
        pytest.param(sqlite_error(19, sqlite3.IntegrityError), False, False, id="constraint"),
        pytest.param(sqlite_error(1), False, False, id="no such table"),
        pytest.param(sqlite3.ProgrammingError("x"), False, False, id="wrong use"),
        pytest.param(psycopg.OperationalError("x"), True, True, id="connection"),
        pytest.param(wrapped(psycopg.OperationalError("x")), True, True, id="refused, by django"),
        pytest.param(psycopg.errors.AdminShutdown("x"), True, True, id="shutdown"),
        pytest.param(psycopg.errors.DeadlockDetected("x"), True, False, id="deadlock"),
        pytest.param(psycopg.errors.SerializationFailure("x"), True, False, id="serialization"),
        pytest.param(psycopg.errors.LockNotAvailable("x"), True, False, id="lock timeout"),
        pytest.param(psycopg.errors.DiskFull("x"), True, False, id="disk full"),
        pytest.param(psycopg.errors.UniqueViolation("x"), False, False, id="unique"),
        pytest.param(psycopg.DataError("NUL"), False, False, id="nul"),
        pytest.param(ValueError("x"), False, False, id="ours"),
    ],
)
def test_faults_of_the_database_are_told_from_faults_of_data(error, transient, lost):
    assert (is_transient(error), is_connection_lost(error)) == (transient, lost)


def test_a_server_that_is_gone_is_noticed_within_its_time():
    if connection.vendor != "postgresql":
        pytest.skip("SQLite has no server")
    connection.ensure_connection()
    with socket.socket(fileno=os.dup(connection.connection.fileno())) as wire:
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_USER_TIMEOUT)
        assert [wire.getsockopt(socket.IPPROTO_TCP, name) for name in options] == [10, 5, 15_000]

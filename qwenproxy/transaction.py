"""Raw transactions on Django's connection, for the recorder's statements on both engines.

Django opens and configures the connection; statements go past its cursor wrapper, which costs more
than the statements themselves. One thread, one connection, one transaction at a time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any, ClassVar

import django.db
import psycopg
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

# Primary SQLite result codes of faults that pass: busy, locked, out of memory, read-only, I/O error,
# full, cannot open. None of them says anything against the data.
_SQLITE_TRANSIENT = {5, 6, 7, 8, 10, 13, 14}
# Of these, the ones that a kept connection may never get over: the file was replaced or moved.
_SQLITE_LOST = {8, 10, 14}
# PostgreSQL: connection, serialization and deadlock, resources, shutdown, lock not available.
_PG_TRANSIENT = ("08", "40", "53", "57P", "55P03")


def is_transient(error: BaseException) -> bool:
    """Whether a fault lies with the database, not with the data: the same batch may be tried again."""
    error = _driver_error(error)
    if isinstance(error, sqlite3.Error):
        return _sqlite_code(error) in _SQLITE_TRANSIENT
    if isinstance(error, psycopg.Error):
        return is_connection_lost(error) or (error.sqlstate or "").startswith(_PG_TRANSIENT)
    return False


def is_connection_lost(error: BaseException) -> bool:
    """Whether this thread's connection cannot be used any more."""
    error = _driver_error(error)
    if isinstance(error, sqlite3.Error):
        return _sqlite_code(error) in _SQLITE_LOST
    if not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return False
    state = error.sqlstate or ""
    return not state or state.startswith(("08", "57P"))


def is_reference_broken(error: BaseException) -> bool:
    """Whether a row that others build on was deleted meanwhile; SQLite has one writer at a time."""
    return isinstance(error, psycopg.errors.ForeignKeyViolation)


def _driver_error(error: BaseException) -> BaseException:
    if isinstance(error, django.db.Error) and error.__cause__ is not None:
        return error.__cause__
    return error


def _sqlite_code(error: sqlite3.Error) -> int:
    # The low byte is the primary code; errors of the module itself have none.
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


class Transaction:
    """A running transaction; statements mark parameters with `%s` on either engine."""

    vendor: ClassVar[str]

    def execute(self, sql: str, params: Sequence[Any] = ()) -> None:
        raise NotImplementedError

    def fetchone(self) -> Any:
        raise NotImplementedError

    def fetchall(self) -> list[Any]:
        raise NotImplementedError

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        """Run one statement per row; return how many rows were written in all."""
        raise NotImplementedError

    def time(self, value: datetime) -> Any:
        """A timestamp in the form that Django stores on this engine."""
        raise NotImplementedError


@lru_cache(maxsize=256)
def _qmark(sql: str) -> str:
    return sql.replace("%s", "?")


class SQLiteTransaction(Transaction):
    vendor = "sqlite"

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._cursor = connection.cursor()

    def execute(self, sql: str, params: Sequence[Any] = ()) -> None:
        self._cursor.execute(_qmark(sql), params)

    def fetchone(self) -> Any:
        return self._cursor.fetchone()

    def fetchall(self) -> list[Any]:
        return self._cursor.fetchall()

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        self._cursor.executemany(_qmark(sql), rows)
        return self._cursor.rowcount

    def time(self, value: datetime) -> str:
        # As Django writes it: without a fraction where there is none.
        return str(value.replace(tzinfo=None))


class PostgreSQLTransaction(Transaction):
    vendor = "postgresql"

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        # Bound on the server, so that `executemany` runs in pipeline mode; Django's cursors are not.
        self._cursor = psycopg.Cursor(connection)

    def execute(self, sql: str, params: Sequence[Any] = ()) -> None:
        self._cursor.execute(sql, params)

    def fetchone(self) -> Any:
        return self._cursor.fetchone()

    def fetchall(self) -> list[Any]:
        return self._cursor.fetchall()

    def executemany(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        self._cursor.executemany(sql, rows)
        return self._cursor.rowcount

    def time(self, value: datetime) -> datetime:
        return value


def raw_connection() -> tuple[BaseDatabaseWrapper, Any]:
    """Django's wrapper of this thread and the driver's connection below it, opened if need be."""
    wrapper = connections["default"]
    wrapper.ensure_connection()
    return wrapper, wrapper.connection


@contextmanager
def transaction(*, lock_wait_s: float) -> Iterator[Transaction]:
    """Run a block in one write transaction of this thread's connection.

    On SQLite another writer is waited for up to `lock_wait_s`.

    Raises:
        sqlite3.Error, psycopg.Error: from the driver, unmapped; the transaction is rolled back.
    """
    wrapper, raw = raw_connection()
    if wrapper.vendor == "postgresql":
        with raw.transaction():
            yield PostgreSQLTransaction(raw)
            if raw.closed:
                # The block's end would neither commit nor say so.
                raise psycopg.OperationalError("the connection was lost before COMMIT")
        return
    raw.execute(f"PRAGMA busy_timeout = {round(lock_wait_s * 1000)}")
    # The write lock is taken at once: a read that becomes a write later would fail as busy.
    raw.execute("BEGIN IMMEDIATE")
    try:
        yield SQLiteTransaction(raw)
        raw.execute("COMMIT")
    except BaseException:
        # Some failures (a full disk) have ended the transaction already.
        if raw.in_transaction:
            raw.execute("ROLLBACK")
        raise

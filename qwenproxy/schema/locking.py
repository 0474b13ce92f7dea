"""The lock that one migrating process has, per database; it is freed when that process dies.

SQLite: an exclusive lock on an empty database beside the data file, so that containers that share the
volume share the lock. PostgreSQL: a session's advisory lock on the connection that migrates, so that
whoever has lost the lock cannot go on. In-memory and test databases have none.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from django.conf import settings
from django.db import DEFAULT_DB_ALIAS
from django.db.backends.base.base import BaseDatabaseWrapper

from qwenproxy.schema import engine
from qwenproxy.schema.refusals import LockTimeout, Refused

# "qwen" in ASCII: the first half of the advisory key; the other names the search path.
_ADVISORY_CLASS = int.from_bytes(b"qwen", "big")
# Before there is a history to ask.
_HOLDING_SESSION = """
    SELECT format('backend %%s of %%s, since %%s', pid, coalesce(host(client_addr), 'the server'),
        to_char(backend_start AT TIME ZONE 'UTC', 'HH24:MI:SS UTC'))
    FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND database = (
        SELECT oid FROM pg_database WHERE datname = current_database()
    ) AND classid = %s::int8 AND objid = (%s::int8 & 4294967295)
"""
_POLL_S = 0.1
_TELL_EVERY_S = 5.0

Write = Callable[[str], None]


def is_scratch(connection: BaseDatabaseWrapper) -> bool:
    """Whether the database is in memory or a test's: nobody shares it, and nobody wants it back."""
    name = str(connection.settings_dict["NAME"])
    if connection.vendor != "sqlite":
        return connection.alias == DEFAULT_DB_ALIAS and name not in settings.DATABASE_NAMES
    if connection.creation.is_in_memory_db(name):  # type: ignore[attr-defined]  # SQLite has it
        return True
    return name == str(connection.settings_dict["TEST"]["NAME"])


def lock_path(connection: BaseDatabaseWrapper) -> str:
    return f"{connection.settings_dict['NAME']}.migrate.lock"


@contextmanager
def migration_lock(
    connection: BaseDatabaseWrapper,
    wait_s: float,
    write: Write,
    holder: Callable[[], str] = str,
) -> Iterator[None]:
    """Hold the lock; while another has it, `write` is told every 5 s who that is.

    Raises:
        LockTimeout: it was not free within `wait_s`.
        Refused: there is no place for the lock, or the connection is pooled by transaction.
    """
    if is_scratch(connection):
        yield
    elif connection.vendor == "postgresql":
        with (
            engine.direct(connection),
            engine.set_apart(connection),
            _advisory_lock(connection, wait_s, write, holder),
        ):
            yield
    else:
        with _file_lock(lock_path(connection), _attempts(wait_s, write, holder)):
            yield


def refuse_pool(connection: BaseDatabaseWrapper) -> None:
    """Refuse to serve where no lock of a session holds; blocks, opens a second connection for a moment.

    Raises:
        Refused: the connection is pooled by transaction. Other processes would take this one for dead.
    """
    if connection.vendor != "postgresql" or is_scratch(connection):
        return
    with connection.cursor() as cursor:
        if _is_pooled(connection, cursor):
            raise Refused(
                "DATABASE_URL goes through a pool that changes servers between transactions, where no "
                "lock tells that this process is alive. Nothing was changed. Let the pool keep sessions "
                "whole (PgBouncer: pool_mode = session), or name PostgreSQL itself."
            )


@contextmanager
def _file_lock(path: str, attempts: Iterator[None]) -> Iterator[None]:
    lock: sqlite3.Connection | None = None
    try:
        for _ in attempts:
            try:
                lock = lock or sqlite3.connect(path, timeout=0, isolation_level=None)
                lock.execute("BEGIN EXCLUSIVE")
                break
            except sqlite3.OperationalError as exc:
                if getattr(exc, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY:
                    raise Refused(
                        f"Cannot write {path}: {exc}. Nothing was changed. "
                        "The directory of the database must be writable."
                    ) from exc
        yield
    finally:
        if lock is not None:
            lock.close()


@contextmanager
def _advisory_lock(
    connection: BaseDatabaseWrapper, wait_s: float, write: Write, holder: Callable[[], str]
) -> Iterator[None]:
    # Polled: a session that waits inside pg_advisory_lock holds a snapshot, and CREATE INDEX
    # CONCURRENTLY would wait for it.
    with connection.cursor() as cursor:
        if _is_pooled(connection, cursor):
            raise Refused(
                "The connection goes through a pool that changes servers between statements, where "
                "no lock holds. Nothing was changed. Let QWENPROXY_MIGRATE_DATABASE_URL name "
                "PostgreSQL itself, and DATABASE_URL its pool."
            )
        key = [_ADVISORY_CLASS, _signed(zlib.crc32(_one(cursor, "SHOW search_path").encode()))]

        def session() -> str:
            cursor.execute(_HOLDING_SESSION, key)
            return next((name for (name,) in cursor.fetchall()), "")

        for _ in _attempts(wait_s, write, lambda: holder() or session()):
            if _one(cursor, "SELECT pg_try_advisory_lock(%s, %s)", key):
                break
        session_of_lock = connection.connection
        try:
            yield
        finally:
            # A connection that was lost has lost the lock with it; another may stand in its place.
            if connection.connection is session_of_lock and connection.is_usable():
                cursor.execute("SELECT pg_advisory_unlock(%s, %s)", key)


def _is_pooled(connection: BaseDatabaseWrapper, cursor: Any) -> bool:
    """Whether a transaction of another client can get the server process that this one has."""
    pid = "SELECT pg_backend_pid()"
    ours = _one(cursor, pid)
    # An idle pool would give a client that is alone the same one every time.
    with closing(connection.copy()) as other, other.cursor() as theirs:
        theirs.execute("BEGIN")
        return bool(_one(theirs, pid) == ours or _one(cursor, pid) != ours)


def _one(cursor: Any, sql: str, params: Any = None) -> Any:
    cursor.execute(sql, params)
    return cursor.fetchone()[0]


def _signed(value: int) -> int:
    return value - 2**32 if value >= 2**31 else value


def _attempts(wait_s: float, write: Write, holder: Callable[[], str]) -> Iterator[None]:
    """Yield until the caller breaks off, at most to the deadline."""
    begun = told = time.monotonic()
    is_first = True
    while True:
        yield
        now = time.monotonic()
        if now - begun > wait_s:
            raise LockTimeout(
                f"Another process has been migrating this database for over {wait_s:g} s"
                f"{_by(holder)}. Nothing was changed. See its log, or wait longer: --lock-wait."
            )
        if is_first or now - told >= _TELL_EVERY_S:
            write(f"Waiting for another process that migrates this database{_by(holder)} ...")
            is_first, told = False, now
        time.sleep(_POLL_S)


def _by(holder: Callable[[], str]) -> str:
    name = holder()
    return f" ({name})" if name else ""

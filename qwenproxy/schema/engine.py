"""What the two engines need around migrations: timeouts, foreign keys, leftovers of killed attempts."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import django.db
import psycopg
from django.apps import apps
from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import AddIndex, Migration, RemoveIndex
from django.db.migrations.recorder import MigrationRecorder

from qwenproxy.schema.files import are_foreign
from qwenproxy.schema.refusals import Refused

# Beyond that, what a rewritten table has left in the WAL is given back to the file system at once.
_LARGE_WAL_BYTES = 16 * 2**20
# An index or a table was not to be had within lock_timeout, or two waited for each other.
_CONFLICTS = ("55P03", "40P01")
_BUSY_S, _POLL_S = 20, 0.05
_RECORD = MigrationRecorder.Migration._meta.db_table


def ensure_open(connection: BaseDatabaseWrapper) -> None:
    """
    Raises:
        Refused: there is no database, no right to it, or no server; or SQLite's file is another's.
    """
    if connection.connection is None and connection.vendor == "sqlite":
        _refuse_foreign(Path(str(connection.settings_dict["NAME"])))
    ends = time.monotonic() + _BUSY_S
    while True:
        try:
            connection.ensure_connection()
            return
        except django.db.DatabaseError as exc:
            # A new file is put into WAL mode by the first connection; SQLite lets none wait for that.
            if not _is_busy(exc) or time.monotonic() > ends:
                raise unusable(connection, exc) from exc
        time.sleep(_POLL_S)


def unusable(connection: BaseDatabaseWrapper, error: Exception) -> Refused:
    """What to say of a database that cannot be opened or read."""
    file = f" {connection.settings_dict['NAME']}" if connection.vendor == "sqlite" else ""
    return Refused(
        f"The database{file} cannot be opened: {' '.join(str(error).split())}. Nothing was changed. "
        "DATABASE_URL or QWENPROXY_DATA_DIR says where it is."
    )


def _refuse_foreign(path: Path) -> None:
    """Before it is opened to write: that alone would put another's file into WAL mode."""
    if not path.is_file():
        return
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=0)
        ) as file:
            tables = {
                name
                for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
                if not name.startswith("sqlite_")
            }
            labels = recorded_labels(file) if _RECORD in tables else set()
    except sqlite3.Error:
        # Opening it tells why.
        return
    if are_foreign(labels) or (tables - {_RECORD} and not labels):
        raise Refused(
            f"{path} is the database of something else. Nothing was changed. Name another place: "
            "QWENPROXY_DATA_DIR or DATABASE_URL."
        )


def recorded_labels(file: sqlite3.Connection) -> set[str]:
    """The apps that Django's record names."""
    return {label for (label,) in file.execute(f"SELECT DISTINCT app FROM {_RECORD}")}  # noqa: S608


def _is_busy(error: django.db.DatabaseError) -> bool:
    code = getattr(error.__cause__, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_BUSY


@contextmanager
def direct(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Leave the pool for PostgreSQL itself, where QWENPROXY_MIGRATE_DATABASE_URL says how."""
    if settings.MIGRATE_DATABASE is None or connection.alias != django.db.DEFAULT_DB_ALIAS:
        yield
        return
    before = connection.settings_dict
    connection.close()
    connection.settings_dict = {**before, **settings.MIGRATE_DATABASE}
    try:
        ensure_open(connection)
        yield
    finally:
        connection.close()
        connection.settings_dict = before


@contextmanager
def set_apart(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Let the session not count among those that serve."""
    if connection.vendor != "postgresql":
        yield
        return
    _execute(connection, ["SET application_name = 'qwenproxy-migrate'"])
    try:
        yield
    finally:
        if connection.connection is not None and connection.is_usable():
            _execute(connection, ["RESET application_name"])


def count_serving(connection: BaseDatabaseWrapper) -> int:
    """How many connections other processes of ours have to the database; 0 on SQLite."""
    if connection.vendor != "postgresql":
        return 0
    options = settings.DATABASES[django.db.DEFAULT_DB_ALIAS].get("OPTIONS", {})
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = %s",
            [options.get("application_name")],
        )
        return int(cursor.fetchone()[0])


@contextmanager
def session(
    connection: BaseDatabaseWrapper, lock_wait_s: float, lock_timeout_s: float
) -> Iterator[None]:
    """Set a connection up for migrating, and back.

    On PostgreSQL call it with the migration lock held: its timeout is for tables alone.
    """
    connection.ensure_connection()
    if connection.vendor == "postgresql":
        values = {
            "lock_timeout": f"{round(lock_timeout_s * 1000)}ms",
            "statement_timeout": "0",
            "idle_in_transaction_session_timeout": "0",
        }
        # A server notices a dead client, and lets go of its locks, only when it looks.
        if connection.pg_version >= 140000:  # type: ignore[attr-defined]  # PostgreSQL has it
            values["client_connection_check_interval"] = "2s"
        begin = [f"SET {name} = '{value}'" for name, value in values.items()]
        end = [f"RESET {name}" for name in values]
    elif connection.vendor == "sqlite":
        before = _fetch(connection, "PRAGMA busy_timeout")
        begin = [f"PRAGMA busy_timeout = {round(lock_wait_s * 1000)}"]
        end = [f"PRAGMA busy_timeout = {before}"]
    else:
        begin = end = []
    _execute(connection, begin)
    try:
        yield
    finally:
        if connection.connection is not None and connection.is_usable():
            _execute(connection, end)


@contextmanager
def foreign_keys_off(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """SQLite: remaking a table that others refer to would empty these others."""
    if connection.vendor != "sqlite" or connection.in_atomic_block:
        yield
        return
    connection.disable_constraint_checking()
    try:
        yield
    finally:
        if connection.connection is not None:
            connection.enable_constraint_checking()


def is_lock_conflict(error: BaseException) -> bool:
    """Whether PostgreSQL refused for want of a table lock: the same may succeed a little later."""
    cause = error.__cause__ if isinstance(error, django.db.Error) else error
    return isinstance(cause, psycopg.Error) and cause.sqlstate in _CONFLICTS


def drop_invalid_indexes(connection: BaseDatabaseWrapper, migration: Migration) -> None:
    """Remove what a killed CREATE INDEX CONCURRENTLY of this migration has left; it blocks the next.

    That is one that was not finished, or that was and could not be recorded any more.
    """
    if connection.vendor != "postgresql":
        return
    tables = {
        operation.index.name if isinstance(operation, AddIndex) else operation.name: _table_of(
            migration.app_label, operation.model_name
        )
        for operation in migration.operations
        if isinstance(operation, AddIndex | RemoveIndex)
    }
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT indexes.relname FROM pg_index JOIN pg_class indexes ON indexes.oid = indexrelid "
            "JOIN pg_class tables ON tables.oid = indrelid "
            "WHERE indexes.relname = ANY(%s) AND pg_table_is_visible(indexrelid) "
            "AND (NOT indisvalid OR tables.relname = ANY(%s))",
            [list(tables), list(tables.values())],
        )
        for (name,) in cursor.fetchall():
            cursor.execute(f"DROP INDEX CONCURRENTLY {connection.ops.quote_name(name)}")


def _table_of(label: str, model: str) -> str:
    try:
        return str(apps.get_model(label, model)._meta.db_table)
    except LookupError:
        # The model went in a later migration.
        return f"{label}_{model.lower()}"


def shrink_wal(connection: BaseDatabaseWrapper) -> None:
    if connection.vendor != "sqlite" or connection.in_atomic_block:
        return
    try:
        size = os.stat(f"{connection.settings_dict['NAME']}-wal").st_size
    except (FileNotFoundError, ValueError):
        return
    if size > _LARGE_WAL_BYTES:
        before = _fetch(connection, "PRAGMA busy_timeout")
        # A long reader is not waited for: the WAL shrinks another time.
        _execute(connection, ["PRAGMA busy_timeout = 1000", "PRAGMA wal_checkpoint(TRUNCATE)"])
        _execute(connection, [f"PRAGMA busy_timeout = {before}"])


def _execute(connection: BaseDatabaseWrapper, statements: list[str]) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def _fetch(connection: BaseDatabaseWrapper, sql: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]

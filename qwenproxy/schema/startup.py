"""Bringing the database up to date before serving.

Nothing to do is the usual case and costs one SELECT: applied names against the migration files on
disk, no lock, no import of a migration. Otherwise one process migrates under a lock that dies with it
while the others wait, then look again. A database ahead of the code is refused.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from django.apps import apps
from django.core.management import call_command
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.db.utils import OperationalError, ProgrammingError

# "qwenproxy" in ASCII, cut to a bigint: the same for every process that shares a database.
_ADVISORY_KEY = int.from_bytes(b"qwenprox", "big") >> 1
_POLL_S = 0.1

MigrationName = tuple[str, str]


class DatabaseAhead(Exception):
    """The database has migrations that this version does not know."""


class LockTimeout(Exception):
    """Another process held the migration lock for too long."""


@dataclass(frozen=True, slots=True)
class SchemaState:
    # (app label, migration name), sorted.
    pending: list[MigrationName]
    # Applied migrations of our own apps without a file.
    unknown: list[MigrationName]


def read_state() -> SchemaState:
    """Compare the applied migrations with the files on disk; reads only."""
    applied = _applied()
    on_disk = set(_on_disk())
    own = {label for label, _ in on_disk if _is_own(label)}
    return SchemaState(
        pending=sorted(on_disk - applied),
        unknown=sorted(name for name in applied - on_disk if name[0] in own),
    )


def _applied() -> set[MigrationName]:
    table = MigrationRecorder.Migration._meta.db_table
    with connection.cursor() as cursor:
        try:
            cursor.execute(f"SELECT app, name FROM {table}")  # noqa: S608  # Django's own name
        except (OperationalError, ProgrammingError):
            if table in connection.introspection.table_names():
                raise
            return set()
        return {(app, name) for app, name in cursor.fetchall()}


def _on_disk() -> Iterator[MigrationName]:
    for config in apps.get_app_configs():
        for path in (Path(config.path) / "migrations").glob("*.py"):
            # Django's loader passes over names that begin so.
            if path.name[0] not in "_~":
                yield config.label, path.stem


def _is_own(label: str) -> bool:
    return not apps.get_app_config(label).name.startswith("django.")


def bring_up_to_date(write: Callable[[str], None], *, lock_wait_s: float = 60) -> None:
    """Apply what is pending, in one process at a time; `write` is told about it in lines.

    Raises:
        DatabaseAhead: nothing was changed.
        LockTimeout: nothing was changed by this process.
    """
    state = read_state()
    _refuse_ahead(state)
    if not state.pending:
        return
    with migration_lock(lock_wait_s, write):
        state = read_state()
        _refuse_ahead(state)
        if state.pending:
            write(f"Applying {len(state.pending)} migrations ...")
            call_command("migrate", interactive=False, verbosity=0)
            write("The database is up to date.")


def _refuse_ahead(state: SchemaState) -> None:
    if state.unknown:
        names = ", ".join(f"{app}.{name}" for app, name in state.unknown)
        raise DatabaseAhead(
            f"The database is ahead of this version: it has {names}. Nothing was changed. "
            "Start the newer version again, or restore a backup that was made before it."
        )


@contextmanager
def migration_lock(wait_s: float, write: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock that only one migrating process has; it is freed when the process dies.

    Raises:
        LockTimeout: it was not free within `wait_s`.
    """
    deadline = time.monotonic() + wait_s
    if connection.vendor == "postgresql":
        with _advisory_lock(deadline, write):
            yield
        return
    name = str(connection.settings_dict["NAME"])
    if name == ":memory:" or name.startswith("file:"):
        yield
        return
    with _file_lock(f"{name}.migrate.lock", deadline, write):
        yield


@contextmanager
def _file_lock(path: str, deadline: float, write: Callable[[str], None]) -> Iterator[None]:
    # A lock of SQLite's own, beside the data: containers that share the volume share it.
    lock = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        for _ in _attempts(deadline, write):
            try:
                lock.execute("BEGIN EXCLUSIVE")
                break
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
        yield
    finally:
        lock.close()


@contextmanager
def _advisory_lock(deadline: float, write: Callable[[str], None]) -> Iterator[None]:
    # Polled: a session that waits inside pg_advisory_lock holds a snapshot, and CREATE INDEX
    # CONCURRENTLY would wait for it.
    with connection.cursor() as cursor:
        for _ in _attempts(deadline, write):
            cursor.execute("SELECT pg_try_advisory_lock(%s)", [_ADVISORY_KEY])
            if cursor.fetchone()[0]:
                break
        try:
            yield
        finally:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [_ADVISORY_KEY])


def _attempts(deadline: float, write: Callable[[str], None]) -> Iterator[None]:
    """Yield until the caller breaks off, at most to the deadline."""
    has_told = False
    while True:
        yield
        if time.monotonic() > deadline:
            raise LockTimeout(
                "Another process has been migrating this database for too long; see its log."
            )
        if not has_told:
            write("Waiting for another process that migrates this database ...")
            has_told = True
        time.sleep(_POLL_S)

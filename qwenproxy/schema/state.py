"""Where the database stands against the code: what is pending, unknown, held, or edited since it ran.

Nothing to do is the usual case and costs one SELECT: applied names against the files on disk, no lock,
no import of a migration. Reads only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration
from django.db.migrations.recorder import MigrationRecorder
from django.db.utils import OperationalError, ProgrammingError

from qwenproxy.schema import files
from qwenproxy.schema.files import MigrationName
from qwenproxy.schema.history import APPLIED, History
from qwenproxy.schema.locking import Write
from qwenproxy.schema.refusals import DatabaseAhead, SchemaChanged


@dataclass(frozen=True, slots=True)
class SchemaState:
    # (app label, migration name), sorted.
    pending: list[MigrationName]
    # Applied migrations of our own apps without a file: newer code was at this database.
    unknown: list[MigrationName] = field(default_factory=list)
    # Those of `unknown` that this version may not be able to live with.
    ahead: list[MigrationName] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not self.pending and not self.unknown


@dataclass(frozen=True, slots=True)
class Known:
    """What a caller has read already."""

    # The newest ok event of each migration.
    newest: Mapping[MigrationName, Mapping[str, Any]]
    # Every migration on disk, imported.
    migrations: Mapping[MigrationName, Migration]


def read_state(alias: str = "default") -> SchemaState:
    """Compare the applied migrations with the files on disk; reads only. Blocks."""
    connection = connections[alias]
    applied = _applied(connection)
    on_disk = files.on_disk(alias)
    pending = sorted(on_disk - applied)
    unknown = sorted(name for name in applied - on_disk if files.is_own(name[0]))
    if unknown:
        unknown = _without_replaced(connection, unknown)
    ahead = unknown and _ahead(connection, unknown)
    return SchemaState(pending=pending, unknown=unknown, ahead=ahead)


def _applied(connection: BaseDatabaseWrapper) -> set[MigrationName]:
    table = MigrationRecorder.Migration._meta.db_table
    sql = f"SELECT app, name FROM {table}"  # noqa: S608  # Django's own name
    with connection.cursor() as cursor:
        try:
            cursor.execute(sql)
        except (OperationalError, ProgrammingError):
            if table not in connection.introspection.table_names():
                return set()
            # Another process has made it in between; or this fails again.
            cursor.execute(sql)
        return {(app, name) for app, name in cursor.fetchall()}


def _without_replaced(
    connection: BaseDatabaseWrapper, unknown: list[MigrationName]
) -> list[MigrationName]:
    replaced = {
        key for migration in files.loaded(connection).values() for key in migration.replaces
    }
    return [name for name in unknown if name not in replaced]


def _ahead(connection: BaseDatabaseWrapper, unknown: list[MigrationName]) -> list[MigrationName]:
    newest = History(connection).newest()
    return [
        name
        for name in unknown
        if name not in newest or newest[name]["breaking"] or not newest[name]["checksum"]
    ]


def refuse_ahead(state: SchemaState, alias: str = "default") -> None:
    """
    Raises:
        DatabaseAhead: this version does not know what the database has become.
    """
    if not state.ahead:
        return
    newest = History(connections[alias]).newest()
    named = ", ".join(f"{app}.{name}" for app, name in state.ahead)
    event = next((newest[name] for name in state.ahead if name in newest), None)
    by = ""
    if event is not None:
        by = f" (applied {event['at']:%Y-%m-%d %H:%M} UTC by version {event['app_version']})"
    backup = event["backup"] if event is not None and event["backup"] else ""
    restore = (
        f"manage.py dbrestore {backup} --yes"
        if backup
        else "restore a backup that was made before it"
    )
    raise DatabaseAhead(
        f"The database is ahead of this version: it has {named}{by}. Nothing was changed. "
        f"Start the newer version again, or {restore}."
    )


def refuse_edited(write: Write, alias: str = "default") -> None:
    """
    Raises:
        SchemaChanged: an applied file was edited, and QWENPROXY_MIGRATE_DRIFT is not to warn alone.
    """
    edited = changed(alias)
    if not edited:
        return
    message = f"Edited after it was applied: {', '.join('.'.join(name) for name in edited)}."
    if settings.MIGRATE_DRIFT == "refuse":
        raise SchemaChanged(
            f"{message} Nothing was changed. Put the release's files back, or go on all the same: "
            "QWENPROXY_MIGRATE_DRIFT=warn."
        )
    write(message)


def warn_unknown(state: SchemaState) -> str:
    names = ", ".join(f"{app}.{name}" for app, name in state.unknown)
    return (
        f"A newer version has added {names} to this database, and says that this version can live "
        "with it."
    )


def held(
    alias: str, pending: Iterable[MigrationName], known: Known | None = None
) -> list[MigrationName]:
    """Those of `pending` that were rolled back by hand and have not been edited since."""
    newest = known.newest if known else History(connections[alias]).newest()
    found = [
        name
        for name in pending
        if name in newest and newest[name]["action"] == "unapply" and newest[name]["checksum"]
    ]
    if not found:
        return []
    migrations = known.migrations if known else files.loaded(connections[alias])
    return [
        name
        for name in found
        if name in migrations and files.checksum(migrations[name]) == newest[name]["checksum"]
    ]


def changed(alias: str, known: Known | None = None) -> list[MigrationName]:
    """Applied migrations of our own apps whose file does something else now. Reads every file."""
    migrations = known.migrations if known else files.loaded(connections[alias])
    newest = known.newest if known else History(connections[alias]).newest()
    return sorted(
        name
        for name, row in newest.items()
        if name in migrations
        and row["action"] in APPLIED
        and row["checksum"]
        and files.is_own(name[0])
        and files.checksum(migrations[name]) != row["checksum"]
    )

"""Everything there is to know about a schema, as one JSON document.

Reads through a connection that cannot write, works where tables of ours are missing or hold what they
should not, and where the database file itself is not there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from django.core.exceptions import ValidationError
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration
from django.db.migrations.loader import MigrationLoader
from django.db.models import CharField, Field

from qwenproxy.schema import backup, files, state
from qwenproxy.schema.files import MigrationName
from qwenproxy.schema.history import History
from qwenproxy.schema.locking import is_scratch
from qwenproxy.schema.models import MigrationEvent
from qwenproxy.schema.refusals import (
    DatabaseAhead,
    Held,
    Pending,
    SchemaChanged,
    SchemaRefusal,
)
from qwenproxy.wire.json import JSONObject

# State of a migration -> symbol, and what stands for it where the terminal cannot show it. Of one that
# is in several states the last counts.
SYMBOLS = {
    "applied": ("✓", "[x]"),
    "pending": ("○", "[ ]"),
    "failed": ("✗", "[!]"),
    "held": ("↺", "[<]"),
    "changed": ("≠", "[#]"),
    "unknown": ("?", "[?]"),
}


# State of the whole -> how a check ends, the migrations it names, what they are, and what to do.
_NOT_READY: dict[str, tuple[type[SchemaRefusal], str, str, str]] = {
    "ahead": (
        DatabaseAhead,
        "unknown",
        "The database is ahead of this version, it has",
        "Start the newer version again, or restore a backup that was made before it",
    ),
    "drift": (
        SchemaChanged,
        "changed",
        "Edited after it was applied",
        "Put the release's files back",
    ),
    "pending": (Pending, "pending", "Pending", "Start the gateway, or: manage.py migrate"),
    "held": (
        Held,
        "held",
        "Rolled back by hand, and held",
        "Apply it by hand (manage.py migrate), or start the version before it",
    ),
}

_FIELDS = {field.attname: field for field in MigrationEvent._meta.concrete_fields}


@contextmanager
def read_only(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Let nothing be written through the connection, not even a missing file be made."""
    if connection.in_atomic_block or is_scratch(connection):
        yield
        return
    connection.close()
    before = connection.settings_dict
    options = dict(before["OPTIONS"])
    name = before["NAME"]
    is_missing = False
    if connection.vendor == "sqlite":
        options.pop("init_command", None)
        path = Path(str(name)).absolute()
        is_missing = not path.exists()
        name = f"{path.as_uri()}?mode={'memory' if is_missing else 'ro'}"
    elif connection.vendor == "postgresql":
        flag = "-c default_transaction_read_only=on"
        options["options"] = f"{options.get('options', '')} {flag}".strip()
    connection.settings_dict = {**before, "NAME": name, "OPTIONS": options}
    try:
        yield
    finally:
        # In-memory stand-ins ignore close(): the handle itself is dropped.
        connection.connection = None if is_missing else connection.connection
        connection.close()
        connection.settings_dict = before


def build(connection: BaseDatabaseWrapper) -> JSONObject:
    """The document of `showmigrations --json`; call it in `read_only`."""
    # Once: it imports every migration.
    loader = MigrationLoader(connection, ignore_no_migrations=True)
    history = History(connection)
    events = read_events(history)
    newest = {_name(row): row for row in events if row["status"] == "ok"}
    latest = {_name(row): row for row in events}
    applied = dict(loader.applied_migrations or {})
    listed = _listed(connection, loader, newest, latest)

    def describe(name: MigrationName) -> JSONObject:
        found: JSONObject = {"app": name[0], "name": name[1]}
        if name in applied:
            # None where it is not applied itself, but all that it replaces.
            found["applied_at"] = _iso(getattr(applied[name], "applied", None))
        if name in loader.graph.nodes:
            found |= _of_file(loader.graph.nodes[name])
        row = newest.get(name) if name in applied else latest.get(name)
        if row is not None:
            told = ("ms", "actor", "host", "source", "app_version", "error")
            found |= {"at": _iso(row["at"]), **{key: row[key] for key in told}}
        return found

    return {
        "version": 1,
        "database": connection.alias,
        "engine": f"{connection.vendor} {'.'.join(map(str, connection.get_database_version()))}",
        "file": str(connections.settings[connection.alias]["NAME"]),
        "bytes": _size_bytes(connection),
        "state": _state(connection, listed),
        **{key: [describe(name) for name in names] for key, names in listed.items()},
        "last_run": _run(events),
        "backup": _backup(connection),
        "lock": _lock(events),
        "problem": _problem(history, applied),
    }


def read_events(history: History, **filters: Any) -> list[dict[str, Any]]:
    """Events, oldest first, each column of its type: SQLite keeps whatever hands have written."""
    return [
        {name: _typed(field, row.get(name)) for name, field in _FIELDS.items()}
        for row in history.rows(**filters)
    ]


def _typed(field: Field[Any, Any], value: Any) -> Any:
    default = field.default if field.has_default() else "" if isinstance(field, CharField) else None
    try:
        return default if value is None else field.to_python(value)
    except ValidationError:
        return default


def _name(row: Mapping[str, Any]) -> MigrationName:
    return row["app"], row["name"]


def _listed(
    connection: BaseDatabaseWrapper,
    loader: MigrationLoader,
    newest: Mapping[MigrationName, Mapping[str, Any]],
    latest: Mapping[MigrationName, Mapping[str, Any]],
) -> dict[str, list[MigrationName]]:
    """State -> migrations, in the order in which they are applied."""
    graph = loader.graph
    leaves = graph.leaf_nodes()
    order = list(dict.fromkeys(name for leaf in leaves for name in graph.forwards_plan(leaf)))
    applied = dict(loader.applied_migrations or {})
    pending = [name for name in order if name not in applied]
    migrations: dict[MigrationName, Migration] = dict(loader.disk_migrations)
    told = {*order, *migrations}
    told.update(name for migration in migrations.values() for name in migration.replaces)
    known = state.Known(newest, migrations)
    changed = state.changed(connection.alias, known)
    return {
        "applied": [name for name in order if name in applied],
        "pending": pending,
        "unknown": [name for name in applied if name not in told],
        "changed": [name for name in order if name in changed],
        "held": state.held(connection.alias, pending, known),
        "failed": [
            name for name in pending if name in latest and latest[name]["status"] == "failed"
        ],
    }


def states(document: Mapping[str, Any]) -> dict[MigrationName, tuple[str, Mapping[str, Any]]]:
    """Of each migration in the document its state and its row, in order; unknown ones last."""
    return {_name(row): (state, row) for state in SYMBOLS for row in document.get(state, ())}


def _of_file(migration: Migration) -> JSONObject:
    return {
        "needs": [".".join(key) for key in migration.dependencies],
        "breaking": files.is_breaking(migration),
        "reversible": all(operation.reversible for operation in migration.operations),
    }


def _state(connection: BaseDatabaseWrapper, listed: dict[str, list[MigrationName]]) -> str:
    if listed["unknown"] and state.read_state(connection.alias).ahead:
        return "ahead"
    first = next((key for key in ("changed", "held", "pending") if listed[key]), "ready")
    return "drift" if first == "changed" else first


def _iso(at: Any) -> str | None:
    return at.isoformat() if at else None


def _run(events: list[dict[str, Any]]) -> JSONObject | None:
    row = next((row for row in reversed(events) if row["app"]), None)
    if row is None:
        return None
    return {"run": str(row["run"]), "at": _iso(row["at"]), "status": row["status"]}


def _lock(events: list[dict[str, Any]]) -> JSONObject | None:
    row = next((row for row in reversed(events) if row["status"] == "started"), None)
    if row is None:
        return None
    return {"pid": row["pid"], "host": row["host"], "since": _iso(row["at"])}


def _problem(history: History, applied: Mapping[MigrationName, Any]) -> str:
    """What the history lacks, where the migrations that make it are applied."""
    label = MigrationEvent._meta.app_label
    known = {name for name in files.on_disk() if name[0] == label}
    if not known <= applied.keys():
        return ""
    if not history.columns:
        return "The table of the history is missing."
    missing = ", ".join(name for name in _FIELDS if name not in history.columns)
    return f"The table of the history has no columns {missing}." if missing else ""


def _size_bytes(connection: BaseDatabaseWrapper) -> int:
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_database_size(current_database())")
            return int(cursor.fetchone()[0])
    path = connections.settings[connection.alias]["NAME"]
    return sum(os.path.getsize(name) for name in (path, f"{path}-wal") if os.path.exists(name))


def backups(connection: BaseDatabaseWrapper) -> list[backup.Backup]:
    """All, newest first; call it in `read_only`, where only a shared database's file has a URI."""
    is_file = str(connection.settings_dict["NAME"]).startswith("file:///")
    return backup.existing(connection) if is_file else []


def _backup(connection: BaseDatabaseWrapper) -> JSONObject | None:
    found = next(iter(backups(connection)), None)
    if found is None:
        return None
    return {
        "path": str(found.path),
        "bytes": found.size_bytes,
        "at": found.at.isoformat(timespec="seconds"),
    }


def check(document: JSONObject) -> None:
    """
    Raises:
        SchemaRefusal: the state is not `ready`; its exit code says which it is.
    """
    found = _NOT_READY.get(str(document["state"]))
    if found is None:
        return
    refusal, listed, what, cure = found
    rows = cast("list[dict[str, str]]", document[listed])
    names = ", ".join(".".join(_name(row)) for row in rows)
    raise refusal(f"{what}: {names}. {cure}.")

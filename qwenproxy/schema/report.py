"""Everything there is to know about a schema, as one JSON document and as text for a terminal.

Reads through a connection that cannot write, works where tables of ours are missing, and where the
database file itself is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.executor import MigrationExecutor

from qwenproxy.schema import backup, files, state
from qwenproxy.schema.files import MigrationName
from qwenproxy.schema.history import History, applied_migrations
from qwenproxy.schema.locking import is_scratch
from qwenproxy.schema.refusals import DatabaseAhead, Held, Pending, SchemaChanged
from qwenproxy.wire.json import JSONObject

# State of a migration -> symbol, and what stands for it where the terminal cannot show it.
SYMBOLS = {
    "applied": ("✓", "[x]"),
    "pending": ("○", "[ ]"),
    "failed": ("✗", "[!]"),
    "held": ("↺", "[<]"),
    "unknown": ("?", "[?]"),
    "changed": ("≠", "[#]"),
}


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
    if connection.vendor == "sqlite":
        options.pop("init_command", None)
        path = Path(str(name))
        name = f"{path.absolute().as_uri()}?mode=ro" if path.exists() else ":memory:"
    elif connection.vendor == "postgresql":
        flag = "-c default_transaction_read_only=on"
        options["options"] = f"{options.get('options', '')} {flag}".strip()
    connection.settings_dict = {**before, "NAME": name, "OPTIONS": options}
    try:
        yield
    finally:
        # In-memory stand-ins ignore close(): the handle itself is dropped.
        connection.connection = None if name == ":memory:" else connection.connection
        connection.close()
        connection.settings_dict = before


def build(connection: BaseDatabaseWrapper) -> JSONObject:
    """The document of `showmigrations --json`; call it in `read_only`."""
    alias = connection.alias
    executor = MigrationExecutor(connection)
    graph = executor.loader.graph
    plan = executor.migration_plan(graph.leaf_nodes(), clean_start=True)
    order = [(migration.app_label, migration.name) for migration, _ in plan]
    applied = applied_migrations(connection)
    history = History(connection)
    events = history.rows()
    newest = {(row["app"], row["name"]): row for row in events if row["status"] == "ok"}
    latest = {(row["app"], row["name"]): row for row in events}
    now = state.read_state(alias)
    pending = [name for name in order if name not in applied]
    held = set(state.held(alias, pending))
    failed = {name for name in pending if name in latest and latest[name]["status"] == "failed"}
    changed = set(state.changed(alias))

    def describe(name: MigrationName) -> JSONObject:
        row = newest.get(name) if name in applied else latest.get(name)
        found: JSONObject = {"app": name[0], "name": name[1]}
        if name in applied:
            found["applied_at"] = applied[name].isoformat() if applied[name] else None
        if name in graph.nodes:
            migration = graph.nodes[name]
            found["needs"] = [".".join(key) for key in migration.dependencies]
            found["breaking"] = files.is_breaking(migration)
            found["reversible"] = all(op.reversible for op in migration.operations)
        if row is not None:
            found |= {key: row[key] for key in ("ms", "actor", "host", "source", "app_version")}
            found["error"] = row["error"]
        return found

    last = next((row for row in reversed(events) if row["app"]), None)
    return {
        "version": 1,
        "database": alias,
        "engine": f"{connection.vendor} {'.'.join(map(str, connection.get_database_version()))}",
        "file": _file(connection),
        "state": _state(now, bool(held), bool(changed)),
        "applied": [describe(name) for name in order if name in applied],
        "pending": [describe(name) for name in pending],
        "unknown": [describe(name) for name in now.unknown],
        "changed": [describe(name) for name in order if name in changed],
        "held": [describe(name) for name in pending if name in held],
        "failed": [describe(name) for name in pending if name in failed],
        "last_run": _run(last),
        "backup": _backup(connection),
        "lock": _lock(events),
    }


def _state(now: state.SchemaState, is_held: bool, is_changed: bool) -> str:
    if now.ahead:
        return "ahead"
    if is_changed:
        return "drift"
    if is_held:
        return "held"
    return "pending" if now.pending else "ready"


def _file(connection: BaseDatabaseWrapper) -> str:
    name = str(connection.settings_dict["NAME"])
    if connection.vendor != "sqlite":
        return name
    return name.removeprefix("file://").removesuffix("?mode=ro")


def _run(row: dict[str, Any] | None) -> JSONObject | None:
    if row is None:
        return None
    return {"run": str(row["run"]), "at": row["at"].isoformat(), "status": row["status"]}


def _lock(events: list[dict[str, Any]]) -> JSONObject | None:
    row = next((row for row in reversed(events) if row["status"] == "started"), None)
    if row is None:
        return None
    return {"pid": row["pid"], "host": row["host"], "since": row["at"].isoformat()}


def _backup(connection: BaseDatabaseWrapper) -> JSONObject | None:
    found = next(iter(backup.existing(connection)), None) if _has_file(connection) else None
    if found is None:
        return None
    return {
        "path": str(found.path),
        "bytes": found.size_bytes,
        "at": found.at.isoformat(timespec="seconds"),
    }


def _has_file(connection: BaseDatabaseWrapper) -> bool:
    return connection.vendor == "sqlite" and not is_scratch(connection)


def check(document: JSONObject) -> None:
    """
    Raises:
        SchemaRefusal: the state is not `ready`; its exit code says which it is.
    """
    refusal = {"ahead": DatabaseAhead, "drift": SchemaChanged, "pending": Pending, "held": Held}
    found = refusal.get(str(document["state"]))
    if found is not None:
        raise found(f"The database is not ready: {document['state']}.")

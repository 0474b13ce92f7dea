"""Where the schema stands, for people and for metrics: states per app, the runs, the plan.

Works where tables are missing, where migrations wait, and where the database is ahead of the code: of
the history only columns that exist are read, and what cannot be read is told as such. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any

from django.apps import apps
from django.db import connection

from qwenproxy.schema import plan, report
from qwenproxy.schema.backup import Backup
from qwenproxy.schema.history import History
from qwenproxy.schema.report import SYMBOLS
from qwenproxy.schema.state import SchemaState, changed, read_state

# Runs of all but the newest events are for the list of events.
_SHOWN_EVENTS = 400
_SHOWN_RUNS = 20
_WORDS = {
    "apply": "applied",
    "unapply": "rolled back",
    "fake": "faked",
    "adopt": "noted",
    "backup": "backup",
    "restore": "restored",
    "copy": "copied from SQLite",
}


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    name: str
    # A key of `report.SYMBOLS`.
    state: str
    is_applied: bool
    # Null where it is not applied, or not on its own but as a part of what it replaces.
    applied_at: datetime | None = None
    # What the history tells, where there is one.
    ms: int | None = None
    by: str = ""
    needs: tuple[str, ...] = ()

    @property
    def symbol(self) -> str:
        return SYMBOLS[self.state][0]


@dataclass(frozen=True, slots=True)
class AppStatus:
    label: str
    name: str
    # In the order in which they are applied; unknown ones last.
    migrations: list[MigrationStatus] = field(default_factory=list)

    def count(self, state: str) -> int:
        return sum(item.state == state for item in self.migrations)

    @property
    def counts(self) -> list[tuple[str, str, int]]:
        """State, symbol, and how many; the states that need somebody to look."""
        found = [(state, symbol, self.count(state)) for state, (symbol, _) in SYMBOLS.items()]
        return [item for item in found if item[2] and item[0] != "applied"]

    @property
    def applied(self) -> int:
        return sum(item.is_applied for item in self.migrations) - self.count("unknown")

    @property
    def known(self) -> int:
        return len(self.migrations) - self.count("unknown")

    @property
    def latest(self) -> MigrationStatus | None:
        """The one applied last."""
        return next((item for item in reversed(self.migrations) if item.is_applied), None)


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One change of the schema, a backup or a restore: the events of one run, added up."""

    run: str
    # Null where the history is damaged.
    at: datetime | None
    actor: str
    source: str
    app_version: str
    # "3 applied", and the first and the last of them.
    what: str
    first: str
    last: str
    ms: int
    # The worst of its events.
    status: str
    backup: str
    error: str


@dataclass(frozen=True, slots=True)
class Overview:
    """All that the page of the migrations shows."""

    # ready, pending, held, drift or ahead
    state: str
    # Of `showmigrations --json`; empty where only the state was asked for.
    document: Mapping[str, Any] = field(default_factory=dict)
    apps: list[AppStatus] = field(default_factory=list)
    # Of `migrate --plan --json`; null where nothing waits.
    plan: Mapping[str, Any] | None = None
    runs: list[RunStatus] = field(default_factory=list)
    backups: list[Backup] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return self.state == "ready"


def read_brief() -> Overview:
    """The state alone; one query where every migration is applied and known. Blocks."""
    if read_state().is_clean:
        return Overview("ready")
    with report.read_only(connection):
        document = report.build(connection)
    return Overview(str(document["state"]), document)


def read_overview() -> Overview:
    """Read everything, on a connection that cannot write. Blocks, about 0.1 s."""
    with report.read_only(connection):
        document: Mapping[str, Any] = report.build(connection)
        return Overview(
            document["state"],
            document,
            _apps(document),
            plan.describe(connection) if document["pending"] else None,
            _read_runs(),
            report.backups(connection),
        )


def _apps(document: Mapping[str, Any]) -> list[AppStatus]:
    found: dict[str, AppStatus] = {}
    for (label, name), (state, row) in report.states(document).items():
        app = found.setdefault(label, AppStatus(label, _name(label)))
        applied_at = row.get("applied_at")
        app.migrations.append(
            MigrationStatus(
                name,
                state,
                "applied_at" in row,
                datetime.fromisoformat(applied_at) if applied_at else None,
                row.get("ms"),
                f"{row['actor']}@{row['host']} {row['source']}" if row.get("actor") else "",
                tuple(row.get("needs", ())),
            )
        )
    return [found[label] for label in sorted(found)]


def _name(label: str) -> str:
    try:
        return str(apps.get_app_config(label).verbose_name)
    except LookupError:
        # Its migrations are still on record, its app is not installed any more.
        return label


def _read_runs() -> list[RunStatus]:
    newest = report.read_events(History(connection))[-_SHOWN_EVENTS:]
    runs = groupby(reversed(newest), key=lambda row: row["run"])
    return [_run(list(rows)[::-1]) for _, rows in runs][:_SHOWN_RUNS]


def _run(events: list[dict[str, Any]]) -> RunStatus:
    """Of its events, the oldest first."""
    first = events[0]
    # A backup before the change belongs to it, and adopted rows are only noted.
    main = [row for row in events if row["action"] not in ("backup", "adopt")] or events
    actions = list(dict.fromkeys(row["action"] for row in main))
    names = [f"{row['app']}.{row['name']}" if row["app"] else row["name"] for row in main]
    of_apps = [row for row in main if row["app"]]
    statuses = [row["status"] for row in events]
    worst = ("failed", "interrupted", "started")
    status = next((status for status in worst if status in statuses), "ok")
    words = ", ".join(_WORDS.get(action, action) for action in actions)
    count = f"{len(of_apps)} " if of_apps else ""
    return RunStatus(
        run=str(first["run"]),
        at=first["at"],
        actor=f"{first['actor']}@{first['host']}",
        source=first["source"],
        app_version=first["app_version"],
        what=f"{count}{'' if status == 'ok' else 'to be '}{words}",
        first=names[0],
        last=names[-1],
        ms=sum(row["ms"] or 0 for row in events),
        status=status,
        backup=next((row["backup"] for row in events if row["backup"]), ""),
        error=next((row["error"] for row in events if row["status"] == "failed"), ""),
    )


def read_standing() -> tuple[str, SchemaState]:
    """ready, ahead, pending, migrating or drift; one query where it is ready. Blocks."""
    now = read_state()
    if now.ahead or not now.pending:
        return "ahead" if now.ahead else "ready", now
    events = History(connection).rows()
    if events and events[-1]["status"] == "started":
        return "migrating", now
    return "drift" if changed(connection.alias) else "pending", now


@dataclass(frozen=True, slots=True)
class Figures:
    pending: int
    # Of the newest change that has ended; null where none is on record.
    last_run_s: float | None = None
    last_run_ok: bool | None = None


def read_figures() -> Figures:
    """Count what is pending, and look at the last change of the schema; a few short queries. Blocks."""
    pending = len(read_state().pending)
    rows = report.read_events(History(connection), action__in=("apply", "fake", "unapply"))
    ended = [row for row in rows if row["status"] != "started"]
    if not ended:
        return Figures(pending)
    last = [row for row in rows if row["run"] == ended[-1]["run"]]
    took_s = sum(row["ms"] or 0 for row in last) / 1000
    return Figures(pending, took_s, all(row["status"] == "ok" for row in last))

"""Where the schema stands, for people and for metrics: states per app, the runs, the plan.

Works where tables are missing, where migrations wait, and where the database is ahead of the code: of
the history only columns that exist are read, and what cannot be read is told as such. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import groupby
from typing import Any

from django.apps import apps
from django.db import Error as DatabaseError
from django.db import connection
from django.db.migrations.loader import MigrationLoader

from qwenproxy.schema import backup, plan, report
from qwenproxy.schema.backup import Backup
from qwenproxy.schema.files import MigrationName
from qwenproxy.schema.history import History
from qwenproxy.schema.locking import is_scratch
from qwenproxy.schema.models import MigrationEvent
from qwenproxy.schema.report import SYMBOLS
from qwenproxy.schema.state import read_state

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
}
# A state that the history tells weighs more than one that names alone tell; later ones the most.
_TOLD_STATES = ("applied", "pending", "failed", "held", "changed", "unknown")


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    name: str
    # applied, pending, failed, held, unknown, changed
    state: str
    # Null where it is not applied, or not on its own but as a part of what it replaces.
    applied_at: datetime | None = None
    # What the history tells, where there is one.
    ms: int | None = None
    by: str = ""
    needs: tuple[str, ...] = ()
    error: str = ""

    @property
    def is_applied(self) -> bool:
        return self.state in ("applied", "changed", "unknown")

    @property
    def is_unknown(self) -> bool:
        """It is applied and has no file: newer code has been at this database."""
        return self.state == "unknown"

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
    def applied(self) -> int:
        return sum(item.is_applied and not item.is_unknown for item in self.migrations)

    @property
    def known(self) -> int:
        return sum(not item.is_unknown for item in self.migrations)

    @property
    def pending(self) -> int:
        """All that is not applied, whatever the reason."""
        return self.known - self.applied

    @property
    def failed(self) -> int:
        return self.count("failed")

    @property
    def held(self) -> int:
        return self.count("held")

    @property
    def changed(self) -> int:
        return self.count("changed")

    @property
    def unknown(self) -> int:
        return self.count("unknown")

    @property
    def is_clean(self) -> bool:
        return all(item.state == "applied" for item in self.migrations)

    @property
    def latest(self) -> MigrationStatus | None:
        """The one applied last."""
        return next((item for item in reversed(self.migrations) if item.is_applied), None)


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    apps: list[AppStatus]

    @property
    def applied(self) -> int:
        return sum(app.applied for app in self.apps)

    @property
    def pending(self) -> int:
        return sum(app.pending for app in self.apps)

    @property
    def unknown(self) -> int:
        return sum(app.unknown for app in self.apps)

    @property
    def is_clean(self) -> bool:
        return not self.pending and not self.unknown


@dataclass(frozen=True, slots=True)
class RunStatus:
    """One change of the schema, a backup or a restore: the events of one run, added up."""

    run: str
    at: datetime
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

    status: SchemaStatus
    # ready, pending, held, drift or ahead
    state: str
    # Of `showmigrations --json`; null where it could not be read, `problem` says why.
    document: Mapping[str, Any] | None = None
    # Of `migrate --plan --json`; null where nothing waits.
    plan: Mapping[str, Any] | None = None
    runs: list[RunStatus] = field(default_factory=list)
    backups: list[Backup] = field(default_factory=list)
    # The table of the history is there.
    has_history: bool = True
    problem: str = ""

    @property
    def is_clean(self) -> bool:
        return self.state == "ready"


def read_brief() -> Overview:
    """The state alone; two queries where every migration is applied and known. Blocks."""
    status = read_status()
    if status.is_clean:
        return Overview(status, "ready")
    return read_overview(with_plan=False)


def read_overview(*, with_plan: bool = True) -> Overview:
    """Read everything, on a connection that cannot write. Blocks, about 0.1 s."""
    problem = ""
    with report.read_only(connection):
        status = read_status()
        try:
            document = report.build(connection)
            runs = _read_runs()
        except (DatabaseError, LookupError) as exc:
            # A history of another form: what Django's own record says is left.
            state = "ahead" if status.unknown else "pending" if status.pending else "ready"
            problem = f"The history is not in this version's form: {type(exc).__name__}: {exc}"
            return Overview(status, state, problem=problem)
        steps = None
        if with_plan and document["pending"]:
            try:
                steps = plan.describe(connection, plan.read_plan(connection))
            except (DatabaseError, LookupError, ValueError) as exc:
                # What a statement looks up is perhaps made by a migration before it.
                problem = f"The plan cannot be told before it runs: {exc}"
        has_history = bool(History(connection).columns)
    is_file = connection.vendor == "sqlite" and not is_scratch(connection)
    return Overview(
        _with_history(status, document),
        str(document["state"]),
        document,
        steps,
        runs,
        backup.existing(connection) if is_file else [],
        has_history,
        problem,
    )


def _with_history(status: SchemaStatus, document: Mapping[str, Any]) -> SchemaStatus:
    told: dict[MigrationName, tuple[str, Mapping[str, Any]]] = {
        (row["app"], row["name"]): (state, row) for state in _TOLD_STATES for row in document[state]
    }

    def complete(label: str, item: MigrationStatus) -> MigrationStatus:
        if (label, item.name) not in told:
            return item
        state, row = told[label, item.name]
        return replace(
            item,
            # Django also counts what is applied by way of what it replaces.
            state="applied" if state == "pending" and item.is_applied else state,
            ms=row.get("ms"),
            by=f"{row['actor']}@{row['host']} {row['source']}" if row.get("actor") else "",
            needs=tuple(row.get("needs", ())),
            error=row.get("error", "").split("\n", 1)[0],
        )

    return SchemaStatus(
        [
            replace(app, migrations=[complete(app.label, item) for item in app.migrations])
            for app in status.apps
        ]
    )


def _read_runs() -> list[RunStatus]:
    columns = History(connection).columns
    if not columns:
        return []
    newest = MigrationEvent.objects.order_by("-id").values(*columns)[:_SHOWN_EVENTS]
    runs = groupby(newest, key=lambda row: row["run"])
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
        actor=f"{first.get('actor', '')}@{first.get('host', '')}",
        source=first.get("source", ""),
        app_version=first.get("app_version", ""),
        what=f"{count}{'' if status == 'ok' else 'to be '}{words}",
        first=names[0],
        last=names[-1],
        ms=sum(row.get("ms") or 0 for row in events),
        status=status,
        backup=next((row["backup"] for row in events if row.get("backup")), ""),
        error=next((row["error"] for row in events if row["status"] == "failed"), ""),
    )


def read_status() -> SchemaStatus:
    """Compare the migration files with the applied migrations; two queries. Blocks."""
    loader = MigrationLoader(connection, ignore_no_migrations=True)
    known = set(loader.disk_migrations) | set(loader.graph.nodes)
    for migration in loader.disk_migrations.values():
        known.update(migration.replaces)
    labels = {app for app, _ in loader.graph.nodes} | {app for app, _ in loader.applied_migrations}
    return SchemaStatus(
        [
            AppStatus(label, _name(label), _known(loader, label) + _unknown(loader, known, label))
            for label in sorted(labels)
        ]
    )


def _name(label: str) -> str:
    try:
        return str(apps.get_app_config(label).verbose_name)
    except LookupError:
        # Its migrations are still on record, its app is not installed any more.
        return label


def _known(loader: MigrationLoader, label: str) -> list[MigrationStatus]:
    names: dict[str, None] = {}
    for leaf in loader.graph.leaf_nodes(label):
        plan = loader.graph.forwards_plan(leaf)
        names.update((name, None) for app, name in plan if app == label)
    return [_status(loader, (label, name)) for name in names]


def _status(loader: MigrationLoader, key: tuple[str, str]) -> MigrationStatus:
    row = loader.applied_migrations.get(key)
    # The loader puts the migration itself where it is applied through what it replaces.
    applied_at: datetime | None = getattr(row, "applied", None)
    return MigrationStatus(key[1], "pending" if row is None else "applied", applied_at)


def _unknown(
    loader: MigrationLoader, known: set[tuple[str, str]], label: str
) -> list[MigrationStatus]:
    return [
        MigrationStatus(name, "unknown", getattr(row, "applied", None))
        for (app, name), row in sorted(loader.applied_migrations.items())
        if app == label and (app, name) not in known
    ]


@dataclass(frozen=True, slots=True)
class Figures:
    pending: int
    # Of the newest change that has ended; null where none is on record.
    last_run_s: float | None = None
    last_run_ok: bool | None = None


def read_figures() -> Figures:
    """Count what is pending, and look at the last change of the schema; a few short queries. Blocks."""
    pending = len(read_state().pending)
    if not History(connection).columns:
        return Figures(pending)
    changes = MigrationEvent.objects.filter(action__in=("apply", "fake", "unapply"))
    ended = changes.exclude(status="started").order_by("-id").values_list("run", flat=True)
    run = ended.first()
    if run is None:
        return Figures(pending)
    rows = list(changes.filter(run=run).values_list("status", "ms"))
    took_s = sum(ms or 0 for _, ms in rows) / 1000
    return Figures(pending, took_s, all(status == "ok" for status, _ in rows))

"""Which migrations are applied and which wait, per app, for the admin; a few figures for the metrics.

Works where tables are missing, where migrations wait, and where the database is ahead of the code: of
the history only columns that exist are read. Writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from django.apps import apps
from django.db import connection
from django.db.migrations.loader import MigrationLoader

from qwenproxy.schema.history import History
from qwenproxy.schema.models import MigrationEvent
from qwenproxy.schema.state import read_state


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    name: str
    is_applied: bool
    # Null where it is not applied, or not on its own but as a part of what it replaces.
    applied_at: datetime | None = None
    # It is applied and has no file: newer code has been at this database.
    is_unknown: bool = False


@dataclass(frozen=True, slots=True)
class AppStatus:
    label: str
    name: str
    # In the order in which they are applied; unknown ones last.
    migrations: list[MigrationStatus] = field(default_factory=list)

    @property
    def applied(self) -> int:
        return sum(item.is_applied and not item.is_unknown for item in self.migrations)

    @property
    def known(self) -> int:
        return sum(not item.is_unknown for item in self.migrations)

    @property
    def pending(self) -> int:
        return self.known - self.applied

    @property
    def unknown(self) -> int:
        return sum(item.is_unknown for item in self.migrations)

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
    return MigrationStatus(key[1], row is not None, applied_at)


def _unknown(
    loader: MigrationLoader, known: set[tuple[str, str]], label: str
) -> list[MigrationStatus]:
    return [
        MigrationStatus(name, True, getattr(row, "applied", None), is_unknown=True)
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

"""Reading and writing events on a table that may not exist yet, or have fewer columns than this code.

Nothing here decides anything: `runner` does, and the states are read by `state`. A write to a missing
table is passed over; the runner writes its events again when the table appears. A table that somebody
has damaged is mended, and reading it never fails: Django's own record is what counts.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from django.db import DatabaseError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import QuerySet
from django.utils import timezone

from qwenproxy.schema import engine
from qwenproxy.schema.files import MigrationName
from qwenproxy.schema.models import MigrationEvent

_TABLE = MigrationEvent._meta.db_table
_FIELDS = {field.attname: field for field in MigrationEvent._meta.concrete_fields}
# Without these an event says nothing.
_NEEDED = frozenset(("id", "run", "app", "name", "action", "status", "at"))
_DEFAULTS = {name: field.get_default() for name, field in _FIELDS.items() if name not in _NEEDED}
# What Django's conversions raise for what nobody but a stranger can have written.
_UNREADABLE = (ValueError, TypeError, AttributeError)
# Actions of events that stand beside a row of django_migrations.
APPLIED = frozenset(("apply", "fake", "adopt"))


def applied_migrations(connection: BaseDatabaseWrapper) -> dict[MigrationName, Any]:
    """Django's own record: migration -> when."""
    recorder = MigrationRecorder(connection)
    if not recorder.has_table():
        return {}
    rows = recorder.migration_qs.order_by("id").values_list("app", "name", "applied")
    return {(app, name): applied for app, name, applied in rows}


class History:
    """The events of one database."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self._connection = connection
        self._columns: tuple[str, ...] | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The fields that the table has; none while it is missing."""
        if self._columns is None:
            with self._connection.cursor() as cursor:
                introspection = self._connection.introspection
                present: set[str] = set()
                if _TABLE in introspection.table_names(cursor):
                    # SQLite's introspection would parse the statement that made it, in 10 ms.
                    cursor.execute(f"SELECT * FROM {_TABLE} LIMIT 0")  # noqa: S608  # our own name
                    present = {column[0] for column in cursor.description}
            self._columns = tuple(name for name in _FIELDS if name in present)
        return self._columns

    def look_again(self) -> None:
        """The table may have come, gone or changed."""
        self._columns = None

    def insert(self, events: Iterable[MigrationEvent]) -> None:
        names = [name for name in self.columns if name != "id"]
        if not names:
            return
        quote = self._connection.ops.quote_name
        columns = ", ".join(quote(name) for name in names)
        marks = ", ".join(["%s"] * len(names))
        sql = f"INSERT INTO {quote(_TABLE)} ({columns}) VALUES ({marks})"  # noqa: S608  # own names
        rows = [[self._value(event, name) for name in names] for event in events]
        if rows:
            with transaction.atomic(self._connection.alias), self._connection.cursor() as cursor:
                cursor.executemany(sql, rows)

    def update(self, event: MigrationEvent) -> None:
        """Write what may have changed since the event was inserted."""
        names = [
            name
            for name in ("action", "status", "ms", "rows", "error", "backup")
            if name in self.columns
        ]
        if not names:
            return
        quote = self._connection.ops.quote_name
        columns = ", ".join(f"{quote(name)} = %s" for name in names)
        sql = f"UPDATE {quote(_TABLE)} SET {columns} WHERE run = %s AND seq = %s"  # noqa: S608
        values = [self._value(event, name) for name in (*names, "run", "seq")]
        with self._connection.cursor() as cursor:
            cursor.execute(sql, values)

    def _value(self, event: MigrationEvent, name: str) -> Any:
        return _FIELDS[name].get_db_prep_save(getattr(event, name), self._connection)

    def settle_interrupted(self) -> int:
        """Call with the migration lock held: what is still `started` belongs to a dead process."""
        if "status" not in self.columns:
            return 0
        events = MigrationEvent.objects.using(self._connection.alias)
        return events.filter(status="started").update(status="interrupted")

    def is_whole(self) -> bool:
        """Whether the table has all columns, and an event for each applied migration. One query."""
        columns = ", ".join(f"e.{self._connection.ops.quote_name(name)}" for name in _FIELDS)
        recorded = MigrationRecorder.Migration._meta.db_table
        of_migration = "app = m.app AND name = m.name AND status = 'ok'"
        actions = ", ".join(f"'{action}'" for action in sorted(APPLIED))
        sql = (
            f"SELECT count(*) FROM {recorded} m WHERE NOT EXISTS (SELECT {columns} FROM {_TABLE} e "  # noqa: S608
            f"WHERE action IN ({actions}) AND "
            f"id = (SELECT max(id) FROM {_TABLE} WHERE {of_migration}))"
        )
        try:
            with self._connection.cursor() as cursor:
                cursor.execute(sql)
                return bool(cursor.fetchone() == (0,))
        except DatabaseError:
            return False

    def mend(self) -> None:
        """Make the table anew where it or a column is lost; its rows stay, as far as they can.

        Call it with the migration lock held, outside a transaction.
        """
        if len(self.columns) == len(_FIELDS):
            return
        label = MigrationEvent._meta.app_label
        applied = [name for name in applied_migrations(self._connection) if name[0] == label]
        if not applied:
            # A first run: it makes the table by itself.
            return
        loader = MigrationLoader(self._connection)
        nodes = [name for name in applied if name in loader.graph.nodes]
        try:
            model = loader.project_state(nodes).apps.get_model(label, MigrationEvent.__name__)
        except LookupError:
            # Of newer code alone.
            return
        wanted = {field.column for field in model._meta.local_concrete_fields}
        if wanted <= set(self.columns):
            return
        kept = self._kept()
        with engine.foreign_keys_off(self._connection), transaction.atomic(self._connection.alias):
            with self._connection.schema_editor(atomic=False) as editor:
                if self.columns:
                    editor.delete_model(model)
                editor.create_model(model)
            self.look_again()
            self.insert(kept)

    def _kept(self) -> list[MigrationEvent]:
        """The events, with what can be read of them."""
        known = {"run": uuid.UUID(int=0), "at": timezone.now()}
        events = MigrationEvent.objects.using(self._connection.alias)
        rows = self._read(events.order_by(*(["id"] if "id" in self.columns else [])))
        return [
            MigrationEvent(**known | {name: row[name] for name in row.keys() - {"id"} if row[name]})
            for row in rows
        ]

    def newest(self) -> dict[MigrationName, Mapping[str, Any]]:
        """The newest ok event of each migration."""
        rows = self.rows(status="ok")
        return {(row["app"], row["name"]): row for row in rows if row["app"]}

    def rows(self, **filters: Any) -> list[dict[str, Any]]:
        """Events as they are stored, oldest first; those that cannot be read are passed over."""
        wanted = _NEEDED | {name.partition("__")[0] for name in filters}
        if not wanted <= set(self.columns):
            return []
        events = MigrationEvent.objects.using(self._connection.alias)
        rows = self._read(events.filter(**filters).order_by("id"))
        return [_DEFAULTS | row for row in rows if row["at"] is not None]

    def _read(self, events: QuerySet[MigrationEvent]) -> list[dict[str, Any]]:
        if not self.columns:
            return []
        try:
            return list(events.values(*self.columns))
        except _UNREADABLE:
            if "id" not in self.columns:
                return []
        found = []
        for key in list(events.values_list("id", flat=True)):
            try:
                found += list(events.filter(id=key).values(*self.columns))
            except _UNREADABLE:
                continue
        return found

    def disagreements(self) -> list[tuple[MigrationName, str]]:
        """What Django's record has and the history has not, with the action that mends it."""
        applied = applied_migrations(self._connection)
        newest = {name: row["action"] for name, row in self.newest().items()}
        missing = [(name, "adopt") for name in applied if newest.get(name) not in APPLIED]
        gone = [
            (name, "unapply")
            for name, action in newest.items()
            if action in APPLIED and name not in applied
        ]
        return missing + gone

"""Reading and writing events on a table that may not exist yet, or have fewer columns than this code.

Nothing here decides anything: `runner` does, and the states are read by `state`. A write to a missing
table is passed over; the runner writes its events again when the table appears.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.recorder import MigrationRecorder

from qwenproxy.schema.files import MigrationName
from qwenproxy.schema.models import MigrationEvent

_TABLE = MigrationEvent._meta.db_table
_FIELDS = {field.attname: field for field in MigrationEvent._meta.concrete_fields}
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
                    description = introspection.get_table_description(cursor, _TABLE)
                    present = {column.name for column in description}
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
        if not self.columns:
            return 0
        events = MigrationEvent.objects.using(self._connection.alias)
        return events.filter(status="started").update(status="interrupted")

    def newest(self) -> dict[MigrationName, Mapping[str, Any]]:
        """The newest ok event of each migration."""
        rows = self.rows(status="ok")
        return {(row["app"], row["name"]): row for row in rows if row["app"]}

    def rows(self, **filters: Any) -> list[dict[str, Any]]:
        """Events as they are stored, oldest first."""
        if not self.columns:
            return []
        events = MigrationEvent.objects.using(self._connection.alias)
        return list(events.filter(**filters).order_by("id").values(*self.columns))

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

"""The rows of tables that a migration writes anew: as many after it as before, or it fails.

SQLite's editor copies a table into `new__x`, drops it and renames the copy. The rows are counted before
the copy and at the migration's end, in its transaction, when the indexes that make counting cheap are
back; code or SQL of the migration's own may change their number, so there it is at the copy's end.
PostgreSQL rewrites tables itself, under a lock that counting twice would only lengthen: what it has
rewritten is counted once, for the history.
"""

from __future__ import annotations

import re

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration, RunPython, RunSQL

from qwenproxy.schema.files import database_operations

_COPY = re.compile(r'CREATE TABLE "new__([^"]+)"')
_RENAME = re.compile(r'ALTER TABLE "([^"]+)" RENAME TO "([^"]+)"')
_ALTER = re.compile(r'ALTER TABLE "([^"]+)" .*ALTER COLUMN .* TYPE ', re.DOTALL)


class RowsDiffer(Exception):
    """A table has not the rows that it had before it was written anew."""


class Rewrites:
    """Those of one migration; `before` and `after` are told of each statement that it runs."""

    def __init__(self, connection: BaseDatabaseWrapper, migration: Migration) -> None:
        self._connection = connection
        self._is_postgresql = connection.vendor == "postgresql"
        own = [
            operation
            for operation in database_operations(migration.operations)
            if isinstance(operation, RunPython | RunSQL)
        ]
        self._has_own_code = bool(own)
        # SQL that copies a table in SQLite's own way may leave rows out on purpose.
        self._copies_itself = any(
            isinstance(operation, RunSQL) and "new__" in str(operation.sql) for operation in own
        )
        # Table -> its rows before; on PostgreSQL the number of its file, which a rewrite changes.
        self._before: dict[str, int] = {}
        self._rows: dict[str, int] = {}

    def before(self, sql: str) -> None:
        found = (_ALTER if self._is_postgresql else _COPY).match(sql)
        if found is None or self._copies_itself or found[1] in self._before:
            return
        if found[1] in self._tables():
            self._before[found[1]] = self._measure(found[1])

    def after(self, sql: str) -> None:
        """
        Raises:
            RowsDiffer: the copy of a table has not its rows.
        """
        found = _RENAME.match(sql) if self._before else None
        if found is None:
            return
        old, new = found.groups()
        if old in self._before:
            self._before[new] = self._before.pop(old)
        elif self._has_own_code and old == f"new__{new}" and new in self._before:
            self._compare(new)

    def settle(self) -> dict[str, int]:
        """Call at the migration's end: table -> rows, of what was written anew and is still there.

        Raises:
            RowsDiffer: a table has lost rows, or has more.
        """
        if self._before:
            for table in self._before.keys() & self._tables():
                self._compare(table)
        return self._rows

    def _compare(self, table: str) -> None:
        before = self._before.pop(table)
        if self._is_postgresql and self._measure(table) == before:
            return
        self._rows[table] = now = self._count(table)
        if now != before and not self._is_postgresql:
            raise RowsDiffer(f"{table} had {before:,} rows and was left with {now:,}")

    def _measure(self, table: str) -> int:
        if not self._is_postgresql:
            return self._count(table)
        return self._fetch("SELECT pg_relation_filenode(%s::regclass)", [f'"{table}"'])

    def _count(self, table: str) -> int:
        return self._fetch(f'SELECT count(*) FROM "{table}"')  # noqa: S608  # a table's own name

    def _fetch(self, sql: str, params: list[str] | None = None) -> int:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, params)
            return int(cursor.fetchone()[0])

    def _tables(self) -> set[str]:
        return set(self._connection.introspection.table_names())

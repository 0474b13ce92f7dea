"""How long a statement takes on a table, and how much disk: told from a sample, in milliseconds.

SQLite: rows from all over the table are copied to a temporary one, with its indexes; a connection that
cannot write the database can do that. PostgreSQL: a sample of its pages is read. What was timed is
multiplied by factors that were measured once, so that a slow disk or processor is told as such. Right
within a factor of three; see `benchmarks/migration_estimates.py`.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

from django.db import Error as DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper

_SAMPLE = "qwenproxy_sample"
# Rows are taken from so many places, at most so many from each: 8,000, in 20 to 40 ms.
_PLACES, _ROWS_EACH = 40, 200
# Of tables whose rows are large, fewer.
_PLACE_BYTES = 2**19
# Up to here rows are counted.
_COUNTED_ROWS = 20_000
# 8 MB; a smaller sample would be timed as the way to the server.
_SAMPLE_PAGES = 1000
_TEXT = re.compile(r"(?:text|varchar|character varying)(?:\((\d+)\))?", re.IGNORECASE)
# SQLite looks at every foreign key of the database after each migration.
_FOREIGN_KEY_S = 0.3e-6
# SQLite: a table that is written anew is in the log about twice, and the file has both for a time.
REWRITE_DISK = 2.8


@dataclass(frozen=True, slots=True)
class Table:
    """A table as it is now; all figures are estimates."""

    rows: int = 0
    table_bytes: int = 0
    # All its indexes together, and how many they are.
    index_bytes: int = 0
    indexes: int = 0
    # To read it (PostgreSQL), to copy it without its indexes (SQLite).
    pass_s: float = 0.0
    # To make its indexes anew, together.
    indexes_s: float = 0.0

    @property
    def bytes(self) -> int:
        return self.table_bytes + self.index_bytes

    def cost(self, vendor: str, effect: str) -> tuple[float, int]:
        """Seconds, and bytes of disk that are needed for a time: the log's, and those of the file."""
        # One that is not there yet costs as much as the average of those that are.
        index_s = self.indexes_s / self.indexes if self.indexes else self.pass_s
        index_bytes = self.index_bytes / self.indexes if self.indexes else 20 * self.rows
        if vendor == "sqlite":
            anew_s = 2.5 * (self.pass_s + self.indexes_s)
            costs = {
                "rewrite": (anew_s, REWRITE_DISK * self.bytes),
                "write": (anew_s, self.bytes),
                "delete": (2 * self.pass_s, self.bytes),
                "drop-column": (2 * self.pass_s, self.table_bytes),
                "drop": (1.5 * self.pass_s, self.bytes),
                "scan": (self.pass_s, 0),
                "index": (2 * index_s, 2 * index_bytes),
            }
        else:
            # Writing is logged row by row, index by index; reading is next to nothing beside it.
            costs = {
                "rewrite": ((10 + 3 * self.indexes) * self.pass_s, 2 * self.bytes),
                "write": (80 * self.pass_s, 2 * self.bytes),
                "delete": (5 * self.pass_s, self.table_bytes),
                "scan": (self.pass_s, 0),
                "index": (3 * self.pass_s, 2 * index_bytes),
                "index-concurrently": (5 * self.pass_s, 2 * index_bytes),
            }
        seconds, size = costs.get(effect, (0.0, 0))
        return seconds, round(size)


class Tables:
    """The tables of a database, measured when they are asked for, once."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self._connection = connection
        with connection.cursor() as cursor:
            self._present = set(connection.introspection.table_names(cursor))
        self._measured: dict[str, Table] = {}

    def __getitem__(self, name: str) -> Table:
        if name not in self._measured:
            self._measured[name] = self._measure(name) if name in self._present else Table()
        return self._measured[name]

    def rename(self, before: str, after: str) -> None:
        self._measured[after] = self[before]

    def is_widened(self, name: str, column: str, type_name: str) -> bool:
        """PostgreSQL: whether each value of the column is one of the new type as it is stored."""
        if name not in self._present:
            return False
        with self._connection.cursor() as cursor:
            cursor.execute(
                "SELECT format_type(atttypid, atttypmod) FROM pg_attribute "
                "WHERE attrelid = %s::regclass AND attname = %s",
                [self._connection.ops.quote_name(name), column],
            )
            found = cursor.fetchone()
        before = _TEXT.fullmatch(found[0] if found else "")
        after = _TEXT.fullmatch(type_name)
        if before is None or after is None:
            return False
        return not after[1] or (bool(before[1]) and int(before[1]) <= int(after[1]))

    def foreign_keys_s(self) -> float:
        """What one check of all foreign keys takes."""
        if self._connection.vendor != "sqlite":
            return 0.0
        quote = self._connection.ops.quote_name
        with self._connection.cursor() as cursor:
            cursor.execute(
                "SELECT tables.name, count(DISTINCT keys.id) FROM sqlite_master AS tables, "
                "pragma_foreign_key_list(tables.name) AS keys WHERE type = 'table' GROUP BY 1"
            )
            keys = 0
            for table, count in cursor.fetchall():
                first, last = _bounds(cursor, quote(table))
                keys += count * (last - first + 1)
        return keys * _FOREIGN_KEY_S

    def _measure(self, name: str) -> Table:
        quoted = self._connection.ops.quote_name(name)
        with self._connection.cursor() as cursor:
            try:
                if self._connection.vendor == "sqlite":
                    return _copy_sample(cursor, name, quoted)
                if self._connection.vendor == "postgresql":
                    return _read_sample(cursor, quoted)
            except DatabaseError:
                # A table without row ids, or one that this user may not read.
                return Table()
        return Table()


def _bounds(cursor: Any, quoted: str) -> tuple[int, int]:
    """The first and the last row id: two look-ups, where a count reads the table."""
    ends = f"(SELECT min(rowid) FROM {quoted}), (SELECT max(rowid) FROM {quoted})"  # noqa: S608
    cursor.execute(f"SELECT {ends}")
    first, last = cursor.fetchone()
    return (1, 0) if last is None else (first, last)


def _copy_sample(cursor: Any, name: str, quoted: str) -> Table:
    first, last = _bounds(cursor, quoted)
    if last < first:
        return Table()
    cursor.execute(f"CREATE TEMP TABLE {_SAMPLE} AS SELECT * FROM {quoted} WHERE 0")  # noqa: S608
    try:
        begun_bytes = _temporary_bytes(cursor)
        copied, density, copied_s = _fill_sample(cursor, quoted, first, last)
        table_bytes = _temporary_bytes(cursor) - begun_bytes
        begun = time.perf_counter()
        indexes = _index_sample(cursor, name)
        indexes_s = time.perf_counter() - begun
        index_bytes = _temporary_bytes(cursor) - begun_bytes - table_bytes
    finally:
        cursor.execute(f"DROP TABLE temp.{_SAMPLE}")
    rows = round((last - first + 1) * density)
    if last - first < _COUNTED_ROWS:
        cursor.execute(f"SELECT count(*) FROM {quoted}")  # noqa: S608
        (rows,) = cursor.fetchone()
    factor = rows / copied
    return Table(
        rows,
        round(table_bytes * factor),
        round(index_bytes * factor),
        indexes,
        copied_s * factor,
        indexes_s * factor,
    )


def _fill_sample(cursor: Any, quoted: str, first: int, last: int) -> tuple[int, float, float]:
    """Copy rows; return how many, how many there are to a row id, and the seconds of copying."""
    copied = spanned = 0
    copied_s = 0.0
    each = 5
    for number in range(_PLACES):
        start = first + (last - first + 1) * number // _PLACES
        some = f"FROM {quoted} WHERE rowid >= {start} ORDER BY rowid LIMIT {each}"
        begun_bytes, begun = _temporary_bytes(cursor), time.perf_counter()
        cursor.execute(f"INSERT INTO temp.{_SAMPLE} SELECT * {some}")
        copied_s += time.perf_counter() - begun
        copied += cursor.rowcount
        size = _temporary_bytes(cursor) - begun_bytes
        cursor.execute(f"SELECT max(id) FROM (SELECT rowid AS id {some})")  # noqa: S608
        spanned += cursor.fetchone()[0] + 1 - start
        if not number:
            each = max(1, min(_ROWS_EACH, each * _PLACE_BYTES // max(size, 1)))
    return copied, copied / spanned, copied_s


def _index_sample(cursor: Any, name: str) -> int:
    cursor.execute(
        "SELECT lists.name, columns.name FROM pragma_index_list(%s) AS lists, "
        "pragma_index_info(lists.name) AS columns ORDER BY 1, columns.seqno",
        [name],
    )
    found: dict[str, list[str]] = {}
    for index, column in cursor.fetchall():
        # An expression has no name: it is taken for one more column.
        found.setdefault(index, []).append(f'"{column}"' if column else "1")
    for number, columns in enumerate(found.values()):
        cursor.execute(f"CREATE INDEX temp.{_SAMPLE}_{number} ON {_SAMPLE} ({', '.join(columns)})")
    return len(found)


def _temporary_bytes(cursor: Any) -> int:
    figures = []
    for name in ("page_count", "freelist_count", "page_size"):
        cursor.execute(f"PRAGMA temp.{name}")
        figures.append(int(cursor.fetchone()[0]))
    pages, free, page_bytes = figures
    return (pages - free) * page_bytes


def _read_sample(cursor: Any, quoted: str) -> Table:
    # Even its size would be waited for to the end of what rewrites it.
    cursor.execute(
        "SELECT 1 FROM pg_locks WHERE relation = %s::regclass AND mode = 'AccessExclusiveLock' AND pid "
        "<> pg_backend_pid() AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        [quoted],
    )
    if cursor.fetchone():
        return Table()
    cursor.execute(
        "SELECT pg_table_size(oid), pg_indexes_size(oid), "
        "pg_relation_size(oid) / current_setting('block_size')::int, "
        "(SELECT count(*) FROM pg_index WHERE indrelid = pg_class.oid) "
        "FROM pg_class WHERE oid = %s::regclass",
        [quoted],
    )
    table_bytes, index_bytes, pages, indexes = cursor.fetchone()
    if not pages:
        return Table()
    share = min(1.0, _SAMPLE_PAGES / pages)
    begun = time.perf_counter()
    cursor.execute(f"SELECT count(*) FROM {quoted} TABLESAMPLE SYSTEM ({100 * share})")  # noqa: S608
    # Pages here and there take twice as long as one after the other.
    pass_s = (time.perf_counter() - begun) / share / 2
    rows = round(cursor.fetchone()[0] / share)
    return Table(rows, table_bytes, index_bytes, indexes, pass_s, 3 * indexes * pass_s)

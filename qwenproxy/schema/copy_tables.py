"""Tables as they are copied from SQLite to PostgreSQL: their columns, their order, their rows in one form.

Both engines' rows are read in the same form (None, int, float, str, bytes), which PostgreSQL's COPY takes
as it is; so two tables hold the same exactly when the same rows come out of both. A digest is the sum of
its rows' hashes: it needs no order, which the engines' collations would not agree on.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from typing import Any

import psycopg
from psycopg import sql

from qwenproxy.schema.refusals import Refused
from qwenproxy.wire import json

Row = tuple[Any, ...]
_MODULUS = 2**128
# How PostgreSQL is asked for a column of a type, and what comes of it.
_READ = {
    "bool": ("{}::int", "int4"),
    "int2": ("{}", "int4"),
    "int4": ("{}", "int4"),
    "int8": ("{}", "int8"),
    "float8": ("{}", "float8"),
    "text": ("{}", "text"),
    "varchar": ("{}", "text"),
    "bytea": ("{}", "bytea"),
    "uuid": ("replace({}::text, '-', '')", "text"),
    "jsonb": ("{}::text", "text"),
    "date": ("{}::text", "text"),
    "timestamptz": ("to_char({} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')", "text"),
}
_COLUMNS = """
    SELECT attname, typname FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
    WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
_REFERENCES = """
    SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint
    WHERE contype = 'f' AND conrelid <> confrelid
"""


@dataclass(frozen=True, slots=True)
class Table:
    name: str
    # Name -> PostgreSQL's type.
    columns: dict[str, str]

    def source_rows(self, source: sqlite3.Connection, after: int = 0) -> Iterator[tuple[int, Row]]:
        """SQLite's row id and the row, in the order of the ids, which is that of references within it."""
        names = ", ".join(f'"{name}"' for name in self.columns)
        found = source.execute(
            f'SELECT rowid, {names} FROM "{self.name}" WHERE rowid > ? ORDER BY rowid',  # noqa: S608
            [after],
        )
        forms = [
            (at, _FORMS[kind]) for at, kind in enumerate(self.columns.values()) if kind in _FORMS
        ]
        for rowid, *values in found:
            for at, form in forms:
                if values[at] is not None:
                    values[at] = form(values[at])
            yield rowid, tuple(values)

    def target_rows(self, target: psycopg.Connection[Any]) -> Iterator[Row]:
        asked = sql.SQL(", ").join(
            sql.SQL(_READ[kind][0]).format(sql.Identifier(name))
            for name, kind in self.columns.items()
        )
        query = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT").format(
            asked, sql.Identifier(self.name)
        )
        jsons = [at for at, kind in enumerate(self.columns.values()) if kind == "jsonb"]
        with psycopg.Cursor(target).copy(query) as copy:
            copy.set_types([_READ[kind][1] for kind in self.columns.values()])
            for row in copy.rows():
                if not jsons:
                    yield row
                    continue
                values = list(row)
                for at in jsons:
                    values[at] = values[at] and _json(values[at])
                yield tuple(values)

    def copy_into(self, target: psycopg.Connection[Any], rows: Sequence[Row]) -> None:
        names = sql.SQL(", ").join(map(sql.Identifier, self.columns))
        query = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(self.name), names)
        with psycopg.Cursor(target).copy(query) as copy:
            for row in rows:
                copy.write_row(row)


@dataclass(slots=True)
class Digest:
    """Of the rows of a table, whatever their order."""

    rows: int = 0
    total: int = 0

    def add(self, row: Row) -> None:
        hashed = hashlib.blake2b(repr(row).encode(), digest_size=16).digest()
        self.rows += 1
        self.total = (self.total + int.from_bytes(hashed, "big")) % _MODULUS

    def __str__(self) -> str:
        return f"{self.total:032x}"


def read_tables(
    source: sqlite3.Connection, target: psycopg.Connection[Any], names: Sequence[str]
) -> list[Table]:
    """The tables by these names, each behind those that it refers to.

    Raises:
        Refused: the two databases differ in them.
    """
    known = set(names)
    before: dict[str, set[str]] = {name: set() for name in sorted(names)}
    for name, referred in target.execute(_REFERENCES):
        if name in known and referred in known:
            before[name].add(referred)
    return [_read_table(source, target, name) for name in TopologicalSorter(before).static_order()]


def _read_table(source: sqlite3.Connection, target: psycopg.Connection[Any], name: str) -> Table:
    columns = dict(target.execute(_COLUMNS, [f'"{name}"']).fetchall())
    there = {row[1] for row in source.execute(f'PRAGMA table_info("{name}")')}
    if there != set(columns):
        differing = ", ".join(sorted(there ^ set(columns)))
        raise Refused(
            f"The table {name} is not the same in both databases ({differing}). Nothing was copied. "
            "See manage.py showmigrations --verify of both."
        )
    unknown = sorted(set(columns.values()) - set(_READ))
    if unknown:
        raise Refused(
            f"The table {name} has a column of the type {unknown[0]}, which this command does not "
            "copy. Nothing was copied."
        )
    return Table(name, columns)


def _text(value: Any) -> Any:
    # PostgreSQL keeps no NUL; the recorder writes none either.
    return json.plain(value) if isinstance(value, str) and "\x00" in value else value


def _time(value: str) -> str:
    if len(value) == 26 and value[10] == " ":
        return value
    time = datetime.fromisoformat(value)
    if time.tzinfo is not None:
        time = time.astimezone(UTC).replace(tzinfo=None)
    return time.isoformat(" ", "microseconds")


def _json(value: str) -> str:
    return json.dumps(json.loads_text(value), sort_keys=True).decode()


# SQLite's values in the common form, where they are not.
_FORMS: dict[str, Callable[[Any], Any]] = {
    "text": _text,
    "varchar": _text,
    "timestamptz": _time,
    "jsonb": _json,
}

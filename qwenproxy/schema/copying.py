"""Copies the database of a gateway from SQLite into an empty PostgreSQL, and proves that it is the same.

A batch and how far the copy has come are committed together, in a table of the copy's own, so that whoever
kills it loses one batch: the same call goes on. The source is locked against writers to the end. Until the
copy is whole and verified, the target has a migration on record that no version knows: none serves from it.
"""

from __future__ import annotations

import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg
from django.core.management import call_command
from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg import sql

from qwenproxy.schema import files
from qwenproxy.schema.copy_tables import Digest, Row, Table, read_tables
from qwenproxy.schema.history import History
from qwenproxy.schema.locking import Write
from qwenproxy.schema.refusals import Refused, SchemaRefusal
from qwenproxy.schema.runner import make_event

# Beside the gateway's own tables, while a copy is under way. `last` is SQLite's id of the last row copied.
_STATE = "copydatabase_state"
_MAKE_STATE = (
    f"CREATE TABLE IF NOT EXISTS {_STATE} (name text PRIMARY KEY, last bigint, rows bigint)"
)
_PUT_STATE = (
    f"INSERT INTO {_STATE} VALUES (%s, %s, %s) "  # noqa: S608  # our own name
    "ON CONFLICT (name) DO UPDATE SET last = excluded.last, rows = excluded.rows"
)
_GUARD = ("schema", "copydatabase_is_not_finished")
_BATCH_ROWS, _BATCH_BYTES = 20_000, 8 * 2**20
_TELL_EVERY_S = 5.0


class NotTheSame(SchemaRefusal):
    """The copy differs from its source; it stays guarded."""

    exit_code = 11


def open_source(path: str) -> sqlite3.Connection:
    """Open the file with its write lock held: what is read stays what it is.

    Raises:
        sqlite3.Error: it is in use, or cannot be read.
    """
    source = sqlite3.connect(path, uri=True, timeout=5, isolation_level=None)
    try:
        source.execute("BEGIN IMMEDIATE")
    except sqlite3.Error:
        source.close()
        raise
    return source


def refuse_source(source: sqlite3.Connection) -> None:
    """
    Raises:
        Refused: it is no gateway's database, not at this version's state, or its references are broken.
    """
    try:
        applied = set(source.execute("SELECT app, name FROM django_migrations"))
    except sqlite3.OperationalError as exc:
        raise Refused(f"The source is no gateway's database: {exc}. Nothing was changed.") from exc
    if files.are_foreign({app for app, _ in applied}) or not applied:
        raise Refused("The source is the database of something else. Nothing was changed.")
    if applied != files.on_disk():
        raise Refused(
            "The source is not at this version's state. Nothing was changed. Bring it there first: "
            "manage.py migrate, with DATABASE_URL naming it."
        )
    broken = source.execute("PRAGMA foreign_key_check").fetchone()
    if broken is not None:
        raise Refused(
            f"The source is damaged: row {broken[1]} of {broken[0]} refers to one of {broken[2]} that "
            "is not there. Nothing was changed. Restore a backup of it."
        )


class Copy:
    """One copy, begun or gone on with; `connection` is the target's.

    `identity` tells the source from others: a copy goes on from the one that it was begun from.
    """

    def __init__(
        self,
        source: sqlite3.Connection,
        connection: BaseDatabaseWrapper,
        *,
        identity: str,
        write: Write,
    ) -> None:
        self._source = source
        self._connection = connection
        self._identity = identity
        self._write = write
        self._told = time.monotonic()

    def prepare(self) -> None:
        """Give an empty target its tables; call without the migration lock.

        Raises:
            Refused: the target is not empty, and not of a copy of this source.
        """
        tables = self._connection.introspection.table_names()
        if tables and _STATE not in tables:
            raise Refused(
                f"The target has tables already ({len(tables)}, such as {sorted(tables)[0]}). Nothing "
                "was changed. Make an empty database, and name it in DATABASE_URL."
            )
        self._execute(_MAKE_STATE)
        self._execute(_PUT_STATE, [self._mark, 0, 0])
        state = self._state()
        if [name for name in state if name.startswith("source ")] != [self._mark]:
            raise Refused(
                "The target holds the unfinished copy of another database. Nothing was changed. Make an "
                "empty database, and name it in DATABASE_URL."
            )
        if "begun" not in state:
            call_command("migrate", verbosity=0, backup="never", interactive=False)

    def run(self) -> list[tuple[str, int]]:
        """Copy, verify, finish; call with the migration lock held. Returns tables and their rows.

        Raises:
            Refused: somebody has used the target meanwhile.
            NotTheSame: the copy is not what the source is.
            psycopg.Error, sqlite3.Error: call it again to go on.
        """
        names = self._connection.introspection.django_table_names(only_existing=True)
        tables = read_tables(self._source, self._raw, names)
        if "begun" not in self._state():
            self._begin(tables)
        for table in tables:
            self._copy(table)
        self._write("Verifying ...")
        copied = [(table.name, self._verify(table)) for table in tables]
        self._finish(tables)
        return copied

    @property
    def _mark(self) -> str:
        return f"source {self._identity}"

    @property
    def _raw(self) -> psycopg.Connection[Any]:
        self._connection.ensure_connection()
        raw: psycopg.Connection[Any] = self._connection.connection
        return raw

    def _execute(self, statement: str, params: Sequence[Any] = ()) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(statement, params)

    def _state(self) -> dict[str, tuple[int, int]]:
        with self._connection.cursor() as cursor:
            cursor.execute(f"SELECT name, last, rows FROM {_STATE}")  # noqa: S608  # our own name
            return {name: (last, rows) for name, last, rows in cursor.fetchall()}

    def _begin(self, tables: Sequence[Table]) -> None:
        """Take out what `migrate` has put in: the source has it, under its own ids."""
        with transaction.atomic(), self._connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM access_encryptioncanary")
            if cursor.fetchone()[0]:
                raise Refused(
                    "A gateway has been started on the target meanwhile. Nothing was copied. Make an "
                    "empty database, and name it in DATABASE_URL."
                )
            quoted = ", ".join(self._connection.ops.quote_name(table.name) for table in tables)
            cursor.execute(f"TRUNCATE {quoted}")
            cursor.execute(
                "INSERT INTO django_migrations (app, name, applied) VALUES (%s, %s, now())", _GUARD
            )
            cursor.execute(_PUT_STATE, ["begun", 0, 0])

    def _copy(self, table: Table) -> None:
        begun_after, done = self._state().get(table.name, (0, 0))
        counted = self._source.execute(f'SELECT count(*) FROM "{table.name}"')  # noqa: S608
        (rows,) = counted.fetchone()
        if done:
            self._write(f"{table.name}: {done:,} of {rows:,} rows were there")
        for last, batch in _batches(table.source_rows(self._source, begun_after)):
            done += len(batch)
            with self._raw.transaction():
                self._raw.execute("SET LOCAL TimeZone = 'UTC'")
                table.copy_into(self._raw, batch)
                self._raw.execute(_PUT_STATE, [table.name, last, done])
            self._tell(f"{table.name}: {done:,} of {rows:,} rows")
        self._write(f"{table.name}: {done:,} row{'' if done == 1 else 's'}")

    def _verify(self, table: Table) -> int:
        here, there = Digest(), Digest()
        for _, row in table.source_rows(self._source):
            here.add(row)
            self._tell(f"{table.name}: {here.rows:,} rows read of the source")
        for row in table.target_rows(self._raw):
            there.add(row)
            self._tell(f"{table.name}: {there.rows:,} rows read of the copy")
        if here != there:
            raise NotTheSame(
                f"The copy of {table.name} is not the same: {here.rows:,} rows with the digest {here} in "
                f"the source, {there.rows:,} with {there} in the copy. No gateway starts on it. Copy again "
                "into an empty database."
            )
        return here.rows

    def _finish(self, tables: Sequence[Table]) -> None:
        event = make_event(
            self._connection,
            run=uuid.uuid4(),
            app="",
            name="copydatabase",
            action="copy",
            status="ok",
        )
        with transaction.atomic():
            for table in tables:
                self._set_sequence(table)
            History(self._connection).insert([event])
            self._execute("DELETE FROM django_migrations WHERE app = %s AND name = %s", _GUARD)
            self._execute(f"DROP TABLE {_STATE}")
        # Without figures the first queries would read whole tables.
        self._execute("ANALYZE")

    def _set_sequence(self, table: Table) -> None:
        """Go on behind the highest number that SQLite ever gave: those of deleted rows are not reused."""
        if "id" not in table.columns:
            return
        given = self._source.execute(
            "SELECT seq FROM sqlite_sequence WHERE name = ?", [table.name]
        ).fetchone()
        self._raw.execute(
            sql.SQL(
                "SELECT setval(s, greatest(m, %s::bigint, 1), greatest(m, %s::bigint) > 0) FROM "
                "(SELECT pg_get_serial_sequence(%s, 'id') s, (SELECT max(id)::text FROM {}) t) named, "
                "LATERAL (SELECT CASE WHEN s IS NOT NULL THEN coalesce(t, '0')::bigint END m) highest "
                "WHERE s IS NOT NULL"
            ).format(sql.Identifier(table.name)),
            [given[0] if given else 0] * 2 + [f'"{table.name}"'],
        )

    def _tell(self, line: str) -> None:
        if time.monotonic() - self._told > _TELL_EVERY_S:
            self._told = time.monotonic()
            self._write(line)


def _batches(rows: Iterator[tuple[int, Row]]) -> Iterator[tuple[int, list[Row]]]:
    """Rows in batches of bounded number and bytes, each with the id of its last."""
    batch: list[Row] = []
    size, last = 0, 0
    for last, row in rows:
        batch.append(row)
        size += sum(len(value) for value in row if isinstance(value, str | bytes))
        if len(batch) >= _BATCH_ROWS or size >= _BATCH_BYTES:
            yield last, batch
            batch, size = [], 0
    if batch:
        yield last, batch

"""What an upgrade will do: the SQL that will run, and for each statement whom it makes wait.

The statements are Django's own, collected. Those of Python code and of what depends on data cannot be
known before; they are told as such. Reads only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from django.db import NotSupportedError, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration, RunPython
from django.db.migrations.executor import MigrationExecutor

from qwenproxy.schema import files
from qwenproxy.wire.json import JSONObject

# Measured with a table of 1 million rows and 500 MB; a rough figure for saying "seconds" or "minutes".
_REWRITE_BYTES_PER_S = 60e6
_INDEX_BYTES_PER_S = 300e6
# A rewritten table is written to the WAL about twice before it is in the file.
WAL_FACTOR = 2.2

_NAME = r'"?([\w$]+)"?'


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: re.Pattern[str]
    sqlite: str
    postgresql: str
    is_destructive: bool = False


def _rule(pattern: str, sqlite: str, postgresql: str, *, is_destructive: bool = False) -> _Rule:
    return _Rule(re.compile(pattern, re.IGNORECASE), sqlite, postgresql, is_destructive)


_REWRITE, _SCAN, _INDEX, _INSTANT = "rewrite", "scan", "index", "instant"
# The first that matches says the effect on each engine.
_RULES = (
    _rule(r'INSERT INTO "?new__([\w$]+)"?', _REWRITE, _INSTANT),
    _rule(r'(CREATE TABLE|ALTER TABLE) "?new__', _INSTANT, _INSTANT),
    _rule(r"CREATE TABLE", _INSTANT, _INSTANT),
    _rule(r"CREATE (UNIQUE )?INDEX CONCURRENTLY", _INDEX, "index-concurrently"),
    _rule(rf"CREATE (?:UNIQUE )?INDEX .*? ON {_NAME}", _INDEX, _INDEX),
    _rule(r"DROP INDEX", _INSTANT, _INSTANT),
    _rule(rf"DROP TABLE {_NAME}", "drop", "drop", is_destructive=True),
    _rule(rf"ALTER TABLE {_NAME} DROP COLUMN", _REWRITE, "drop", is_destructive=True),
    _rule(rf"ALTER TABLE {_NAME} .*ALTER COLUMN .* TYPE", _REWRITE, _REWRITE),
    _rule(rf"ALTER TABLE {_NAME} .*(ADD CONSTRAINT|SET NOT NULL)", _REWRITE, _SCAN),
    _rule(rf"ALTER TABLE {_NAME} .*RENAME", _INSTANT, _INSTANT),
    _rule(rf"ALTER TABLE {_NAME} ", _INSTANT, _INSTANT),
    _rule(rf"DELETE FROM {_NAME}", "write", "write", is_destructive=True),  # noqa: S608  # a pattern
    _rule(rf"(?:UPDATE|INSERT INTO) {_NAME}", "write", "write"),
)
WAITS = {
    ("sqlite", _REWRITE): "rewrites the table: all writers wait, readers do not",
    ("sqlite", _INDEX): "writers wait while the index is made",
    ("sqlite", _INSTANT): "instant",
    ("sqlite", "write"): "writers wait as long as it runs",
    ("sqlite", "drop"): "instant",
    ("postgresql", _REWRITE): "rewrites the table: readers and writers of it wait",
    (
        "postgresql",
        _SCAN,
    ): "reads the whole table under a lock: NOT VALID, then VALIDATE, would not",
    ("postgresql", _INDEX): "writers of the table wait: AddIndexConcurrently would not",
    ("postgresql", "index-concurrently"): "nobody waits; it runs outside the transaction",
    ("postgresql", _INSTANT): "instant, once the table's lock is free",
    ("postgresql", "write"): "locks the rows that it writes",
    ("postgresql", "drop"): "instant, once the table's lock is free",
}


def read_plan(connection: BaseDatabaseWrapper) -> Sequence[tuple[Migration, bool]]:
    executor = MigrationExecutor(connection)
    return executor.migration_plan(executor.loader.graph.leaf_nodes())


def describe(connection: BaseDatabaseWrapper, plan: Sequence[tuple[Migration, bool]]) -> JSONObject:
    """The document of `migrate --plan --json`. Runs nothing, and writes nothing."""
    executor = MigrationExecutor(connection)
    sizes = _sizes(connection)
    migrations: list[JSONObject] = []
    for step in plan:
        migrations.append(_describe_one(connection, executor, step, sizes))
    disk = sum(int(str(migration["disk_bytes"])) for migration in migrations)
    return {
        "version": 1,
        "engine": connection.vendor,
        "migrations": [*migrations],
        "seconds": round(sum(float(str(migration["seconds"])) for migration in migrations), 1),
        "disk_bytes": disk,
        "breaking": any(bool(migration["breaking"]) for migration in migrations),
        "destructive": any(bool(migration["destructive"]) for migration in migrations),
    }


def _describe_one(
    connection: BaseDatabaseWrapper,
    executor: MigrationExecutor,
    step: tuple[Migration, bool],
    sizes: dict[str, tuple[int, int]],
) -> JSONObject:
    migration, _ = step
    statements = collect(connection, executor, step)
    described = [_statement(connection.vendor, sql, sizes) for sql in statements]
    _pair_remakes(described)
    rewritten = sum(int(str(found["bytes"])) for found in described if found["effect"] == _REWRITE)
    return {
        "app": migration.app_label,
        "name": migration.name,
        "statements": [*described],
        "python": [_doc(op) for op in migration.operations if isinstance(op, RunPython)],
        "in_transaction": migration.atomic,
        "breaking": files.is_breaking(migration),
        "reversible": all(operation.reversible for operation in migration.operations),
        "destructive": any(bool(found["destructive"]) for found in described),
        "seconds": round(sum(float(str(found["seconds"])) for found in described), 2),
        "disk_bytes": round(rewritten * WAL_FACTOR) if connection.vendor == "sqlite" else rewritten,
    }


def _pair_remakes(statements: list[JSONObject]) -> None:
    """SQLite: a table is copied, dropped, and the copy takes its name; nothing is lost with it."""
    copied = {found["table"] for found in statements if str(found["sql"]).startswith("INSERT INTO")}
    for found in statements:
        if found["effect"] == "drop" and found["table"] in copied:
            found |= {"effect": _INSTANT, "waits": "instant", "destructive": False}


def _doc(operation: RunPython) -> str:
    return (operation.code.__doc__ or "Python code").strip().split("\n", 1)[0]


def collect(
    connection: BaseDatabaseWrapper, executor: MigrationExecutor, step: tuple[Migration, bool]
) -> list[str]:
    """The SQL of one migration, without comments; empty where only running it would tell."""
    try:
        lines = executor.loader.collect_sql([step])
    except NotSupportedError:
        return []
    return [line for line in lines if not line.startswith("--")]


def _statement(vendor: str, sql: str, sizes: dict[str, tuple[int, int]]) -> JSONObject:
    for rule in _RULES:
        match = rule.pattern.match(sql)
        if match:
            effect = rule.sqlite if vendor == "sqlite" else rule.postgresql
            table = next((group for group in match.groups() if group), "")
            rows, size = sizes.get(table, (0, 0))
            speed = _INDEX_BYTES_PER_S if effect in (_INDEX, _SCAN) else _REWRITE_BYTES_PER_S
            waits = effect in (_REWRITE, _SCAN, _INDEX, "write")
            return {
                "sql": sql,
                "effect": effect,
                "waits": WAITS.get((vendor, effect), effect),
                "table": table,
                "rows": rows,
                "bytes": size,
                "seconds": round(size / speed, 2) if waits else 0.0,
                "destructive": rule.is_destructive and rows > 0,
            }
    return {
        "sql": sql,
        "effect": "unknown",
        "waits": "unknown",
        "table": "",
        "rows": 0,
        "bytes": 0,
        "seconds": 0.0,
        "destructive": False,
    }


def _sizes(connection: BaseDatabaseWrapper) -> dict[str, tuple[int, int]]:
    """Table -> rows and bytes, both estimated."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT relname, greatest(reltuples, 0)::bigint, pg_total_relation_size(oid) "
                "FROM pg_class WHERE relkind = 'r' AND pg_table_is_visible(oid)"
            )
            return {name: (rows, size) for name, rows, size in cursor.fetchall()}
        tables = connection.introspection.table_names(cursor)
        found = {}
        for table in tables:
            # max(rowid) is a guess at the count that costs nothing.
            cursor.execute(f"SELECT max(rowid) FROM {connection.ops.quote_name(table)}")  # noqa: S608
            rows = cursor.fetchone()[0] or 0
            found[table] = (rows, _bytes(connection, table) if rows else 0)
        return found


def _bytes(connection: BaseDatabaseWrapper, table: str) -> int:
    with connection.cursor() as cursor:
        try:
            # Aggregated: one row of figures for the whole b-tree.
            cursor.execute(
                "SELECT pgsize FROM dbstat WHERE name = %s AND aggregate = TRUE", [table]
            )
        except OperationalError:
            # Not every build of SQLite can tell: no table is larger than all of them.
            cursor.execute(
                "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
            )
        row = cursor.fetchone()
        return int(row[0]) if row else 0

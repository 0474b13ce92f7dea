"""What an upgrade will do: the SQL that will run, and for each statement whom it makes wait.

The statements are Django's own, collected. What Python code does, and what depends on data or on what an
earlier migration makes, cannot be known before it runs, and is told as such. Reads only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from django.core.exceptions import FieldDoesNotExist, FieldError
from django.db import Error as DatabaseError
from django.db import OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations import Migration, RunPython
from django.db.migrations import operations as ops
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.state import ProjectState

from qwenproxy.schema import files
from qwenproxy.schema.estimate import REWRITE_DISK, Tables
from qwenproxy.wire.json import JSONObject

WAL_FACTOR = REWRITE_DISK

_NAME = r'"?([\w$]+)"?'
# An upgrade that waits for less needs no warning.
_NOTABLE_S = 1.0


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: re.Pattern[str]
    # In words, for a line of the status; "{}" stands for the number of rows.
    does: str
    # The effect on each engine.
    sqlite: str
    postgresql: str
    is_destructive: bool = False


def _rule(
    pattern: str, does: str, sqlite: str, postgresql: str = "", *, is_destructive: bool = False
) -> _Rule:
    compiled = re.compile(pattern, re.IGNORECASE | re.DOTALL)
    return _Rule(compiled, does, sqlite, postgresql or sqlite, is_destructive)


_VOLATILE = r"STORED|IDENTITY|serial|nextval|random|clock_timestamp|uuid_generate"
_ALTER = rf"ALTER TABLE (?:ONLY )?{_NAME} "
# The first that matches says what a statement does.
_RULES = (
    _rule(r'INSERT INTO "?new__([\w$]+)"?', "rewrites {} rows", "rewrite"),
    _rule(r'(?:CREATE TABLE|ALTER TABLE) "?new__', "", "instant"),
    _rule(r"CREATE TABLE", "creates table", "instant"),
    _rule(
        rf"CREATE (?:UNIQUE )?INDEX CONCURRENTLY .*? ON {_NAME}",
        "makes index",
        "index",
        "index-concurrently",
    ),
    _rule(rf"CREATE (?:UNIQUE )?INDEX .*? ON {_NAME}", "makes index", "index"),
    _rule(r"DROP INDEX", "drops index", "instant"),
    _rule(rf"DROP TABLE {_NAME}", "drops table", "drop", is_destructive=True),
    _rule(rf"{_ALTER}DROP COLUMN", "drops column", "drop-column", is_destructive=True),
    _rule(rf"{_ALTER}RENAME", "renames", "instant"),
    _rule(rf"{_ALTER}ADD COLUMN .*(?:{_VOLATILE})", "adds column", "instant", "rewrite"),
    _rule(rf"{_ALTER}ADD COLUMN .*CHECK", "adds column", "scan"),
    _rule(rf"{_ALTER}ADD COLUMN", "adds column", "instant"),
    _rule(rf"{_ALTER}.*ALTER COLUMN .* TYPE", "changes type", "rewrite"),
    _rule(rf"{_ALTER}ADD CONSTRAINT .* (?:UNIQUE|PRIMARY KEY)", "makes index", "index"),
    _rule(rf"{_ALTER}.*(?:ADD CONSTRAINT .* NOT VALID)", "adds constraint", "instant"),
    _rule(
        rf"{_ALTER}.*(?:ADD CONSTRAINT|SET NOT NULL|VALIDATE)", "checks {} rows", "rewrite", "scan"
    ),
    _rule(_ALTER, "alters table", "instant"),
    _rule(r"SET CONSTRAINTS|COMMENT ON", "", "instant"),
    _rule(
        rf"DELETE FROM (?:ONLY )?{_NAME}",  # noqa: S608  # a pattern
        "deletes rows",
        "delete",
        is_destructive=True,
    ),
    # What Django fills before it makes a column NOT NULL: usually few rows.
    _rule(rf"UPDATE {_NAME} SET .* IS NULL", "writes rows", "scan"),  # noqa: S608  # a pattern
    _rule(rf"(?:UPDATE|INSERT INTO) {_NAME}", "writes rows", "write"),
)
_TYPED = re.compile(rf'ALTER COLUMN {_NAME} TYPE ([^;"]+?)(?: USING .*)?;?$', re.IGNORECASE)
_OTHER = _rule("", "runs SQL of another kind", "unknown")
_LOCKS = "instant, once the table's lock is free"
_UNTOLD = "who waits is unknown until it runs"
WAITS = {
    ("sqlite", "rewrite"): "rewrites the table: all writers wait, readers do not",
    ("sqlite", "index"): "writers wait while the index is made",
    ("sqlite", "drop"): "writers wait while the pages are freed",
    ("sqlite", "drop-column"): "rewrites each row: all writers wait, readers do not",
    ("sqlite", "scan"): "reads the whole table: writers wait",
    ("sqlite", "write"): "writers wait as long as it runs",
    ("sqlite", "delete"): "writers wait as long as it runs",
    ("postgresql", "rewrite"): "rewrites the table: readers and writers of it wait",
    ("postgresql", "scan"): (
        "reads the whole table under a lock: NOT VALID, then VALIDATE, would not"
    ),
    ("postgresql", "index"): "writers of the table wait: AddIndexConcurrently would not",
    ("postgresql", "index-concurrently"): "nobody waits; it runs outside the transaction",
    ("postgresql", "instant"): _LOCKS,
    ("postgresql", "drop"): _LOCKS,
    ("postgresql", "drop-column"): _LOCKS,
    ("postgresql", "write"): "locks the rows that it writes",
    ("postgresql", "delete"): "locks the rows that it deletes",
}
# What an operation raises that finds something else than what it was written for.
_SURPRISES = (
    DatabaseError,
    FieldDoesNotExist,
    FieldError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    RuntimeError,
)

Step = tuple[Migration, bool]


def describe(connection: BaseDatabaseWrapper, plan: Sequence[Step] | None = None) -> JSONObject:
    """The document of `migrate --plan --json`, by default of all that is pending; runs nothing."""
    loader = MigrationLoader(connection, ignore_no_migrations=True)
    steps = _pending(loader) if plan is None else plan
    tables = Tables(connection)
    check_s = tables.foreign_keys_s() if steps else 0.0
    migrations = [
        _describe(connection.vendor, tables, check_s, step) for step in _collect(loader, steps)
    ]
    # What has been written is looked at once more before it is committed.
    seconds = check_s + sum(float(str(migration["seconds"])) for migration in migrations)
    return {
        "version": 1,
        "engine": connection.vendor,
        "migrations": [*migrations],
        "seconds": round(seconds, 1),
        "at_least": any(bool(migration["at_least"]) for migration in migrations),
        "disk_bytes": sum(int(str(migration["disk_bytes"])) for migration in migrations),
        "breaking": any(bool(migration["breaking"]) for migration in migrations),
        "destructive": any(bool(migration["destructive"]) for migration in migrations),
    }


def _pending(loader: MigrationLoader) -> list[Step]:
    applied = loader.applied_migrations or {}
    names = dict.fromkeys(
        name for leaf in loader.graph.leaf_nodes() for name in loader.graph.forwards_plan(leaf)
    )
    return [(loader.graph.nodes[name], False) for name in names if name not in applied]


@dataclass(frozen=True, slots=True)
class _Collected:
    migration: Migration
    statements: list[str]
    # Why these are not all; empty where they are.
    unknown: str
    # Whose columns and rows go, as operations tell it: a remade table's statements do not.
    emptied: set[str]


def _collect(loader: MigrationLoader, steps: Iterable[Step]) -> Iterator[_Collected]:
    """The SQL of each step, from the state that those before it lead to."""
    applied = set(loader.applied_migrations or {})
    state: ProjectState | None = None
    before: list[str] = []
    connection = loader.connection
    assert connection is not None
    for migration, backwards in steps:
        name = (migration.app_label, migration.name)
        if backwards:
            applied.discard(name)
        if state is None or backwards:
            state = project_state(loader, applied)
        emptied = set() if backwards else _emptied(migration, state)
        work = migration.unapply if backwards else migration.apply
        unknown = ""

        def edit(editor: BaseDatabaseSchemaEditor, *, work: Any = work, state: Any = state) -> None:
            work(state, editor, collect_sql=True)

        lines: list[str] = []
        try:
            collect_into(lines, connection, edit, atomic=migration.atomic, before=before)
        except _SURPRISES as exc:
            unknown = f"{type(exc).__name__}: {exc}"
            # Left between two operations.
            state = None
        if not backwards:
            applied.add(name)
        before += lines
        yield _Collected(migration, lines, unknown, emptied)


def project_state(loader: MigrationLoader, applied: Iterable[tuple[str, str]]) -> ProjectState:
    """The state after the `applied` migrations; of a chain its end is enough, and 40 times faster."""
    graph = loader.graph
    known = {name for name in applied if name in graph.nodes}
    ends = [
        name
        for name in sorted(known)
        if not any(child.key in known for child in graph.node_map[name].children)
    ]
    return loader.project_state(ends)


def collect_into(
    lines: list[str],
    connection: BaseDatabaseWrapper,
    edit: Callable[[BaseDatabaseSchemaEditor], object],
    *,
    atomic: bool = True,
    before: Iterable[str] = (),
) -> None:
    """Add the SQL of an edit of the schema, without comments; also what was found before it raised.

    Raises `OperationalError` where it depends on what the statements `before` make: Django, finding no
    constraint to drop, would drop none and say nothing.
    """
    editor: Any = connection.schema_editor(collect_sql=True, atomic=atomic)
    find = editor._constraint_names

    def find_or_raise(model: Any, *args: Any, **kwargs: Any) -> list[str]:
        names: list[str] = find(model, *args, **kwargs)
        table = connection.ops.quote_name(model._meta.db_table)
        if not names and any(table in sql for sql in before):
            raise OperationalError(
                f"an earlier migration of this plan makes a constraint of {table}"
            )
        return names

    editor._constraint_names = find_or_raise
    # Not entered: leaving it would look at every row's foreign keys.
    editor.deferred_sql = []
    try:
        edit(editor)
    finally:
        found = [*editor.collected_sql, *(f"{sql};" for sql in editor.deferred_sql)]
        lines += [line for line in map(str.strip, found) if line and not line.startswith("--")]


def _emptied(migration: Migration, state: ProjectState) -> set[str]:
    found = set()
    for operation in files.database_operations(migration.operations):
        if isinstance(operation, ops.RemoveField):
            name = operation.model_name_lower
        elif isinstance(operation, ops.DeleteModel):
            name = operation.name_lower
        else:
            continue
        model = state.models.get((migration.app_label, name))
        if model is not None:
            found.add(model.options.get("db_table") or f"{migration.app_label}_{name}")
    return found


def _describe(vendor: str, tables: Tables, check_s: float, step: _Collected) -> JSONObject:
    migration = step.migration
    statements: list[JSONObject] = []
    remade: set[str] = set()
    for sql in step.statements:
        statements.append(_statement(vendor, tables, remade, sql))
    seconds = sum(float(str(found["seconds"])) for found in statements)
    python = [_doc(op) for op in migration.operations if isinstance(op, RunPython)]
    is_untold = any(found["effect"] == "unknown" for found in statements)
    return {
        "app": migration.app_label,
        "name": migration.name,
        "statements": [*statements],
        "python": [*python],
        "unknown": step.unknown,
        "in_transaction": migration.atomic,
        "breaking": files.is_breaking(migration),
        "reversible": all(operation.reversible for operation in migration.operations),
        "destructive": any(bool(found["destructive"]) for found in statements)
        or any(tables[table].rows for table in step.emptied),
        "seconds": round(seconds + check_s, 2),
        # There is more that only running it would tell.
        "at_least": bool(python or step.unknown or is_untold),
        "disk_bytes": sum(int(str(found["disk_bytes"])) for found in statements),
    }


def _doc(operation: RunPython) -> str:
    return (operation.code.__doc__ or "Python code").strip().split("\n", 1)[0]


def note(step: Mapping[str, Any]) -> str:
    """One of `describe`'s migrations in a few words; with an exclamation mark where others wait."""
    statements = step["statements"]
    does = [found["does"].format(f"{found['rows']:,}") for found in statements if found["does"]]
    does += [f"runs Python ({doc})" for doc in step["python"]]
    if step["unknown"]:
        does.append("the rest is unknown until it runs")
    if step["destructive"]:
        does.append("deletes data")
    words = ", ".join(dict.fromkeys(does)) or "changes no table"
    waited = sum(found["seconds"] for found in statements)
    if waited < _NOTABLE_S:
        is_rewrite = any(found["effect"] in ("rewrite", "drop-column") for found in statements)
        tail = "" if is_rewrite or step["at_least"] else ", no rewrite"
        return f"{'! ' if step['destructive'] else ''}{words}{tail}"
    disk = f", {size(step['disk_bytes'])} of disk" if step["disk_bytes"] else ""
    more = " or more" if step["at_least"] else ""
    return f"! {words}, writers wait ~{waited:.0f} s{more}{disk}"


def script(document: JSONObject) -> Iterator[str]:
    """`describe`'s statements as SQL, each below what it makes wait."""
    for step in cast("list[dict[str, Any]]", document["migrations"]):
        yield f"-- {step['app']}.{step['name']}"
        yield from (f"-- Python, not shown: {python}" for python in step["python"])
        for statement in step["statements"]:
            yield f"-- {statement['waits']}"
            yield statement["sql"]
        if step["unknown"]:
            yield f"-- The rest is unknown until it runs: {step['unknown']}"


def size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _statement(vendor: str, tables: Tables, remade: set[str], sql: str) -> JSONObject:
    matches = ((rule, rule.pattern.match(sql)) for rule in _RULES)
    rule, match = next(((rule, match) for rule, match in matches if match), (_OTHER, None))
    effect = rule.sqlite if vendor == "sqlite" else rule.postgresql
    name = next((group for group in match.groups() if group), "") if match else ""
    does, is_destructive = rule.does, rule.is_destructive
    if name in remade and effect in ("drop", "index"):
        # SQLite: a table is copied, dropped, and the copy takes its name and gets its indexes.
        effect, does, is_destructive = "instant", "", False
    elif effect == "rewrite" and vendor == "sqlite":
        remade.add(name)
    typed = _TYPED.search(sql) if vendor == "postgresql" else None
    if typed and tables.is_widened(name, typed[1], typed[2]):
        effect = "instant"
    renamed = re.match(rf"ALTER TABLE {_NAME} RENAME TO {_NAME}", sql)
    if renamed and not renamed[1].startswith("new__"):
        tables.rename(renamed[1], renamed[2])
    table = tables[name]
    seconds, disk_bytes = table.cost(vendor, effect)
    return {
        "sql": sql,
        "does": does,
        "effect": effect,
        "waits": WAITS.get((vendor, effect), _UNTOLD if effect == "unknown" else effect),
        "table": name,
        "rows": table.rows,
        "bytes": table.bytes,
        "seconds": round(seconds, 2),
        "disk_bytes": disk_bytes,
        "destructive": is_destructive and table.rows > 0,
    }

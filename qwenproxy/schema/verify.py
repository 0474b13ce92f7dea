"""Whether the tables are what the applied migrations say: read from the database, compared, told.

Each difference comes with the statements that would mend it, or with a command. What somebody has
added, an index or a table, is left alone; only added columns are told, because inserts may fail on them.
Data is not looked at, and nothing is written.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import methodcaller
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.loader import MigrationLoader
from django.db.models import Index, Model, UniqueConstraint

from qwenproxy.schema import report
from qwenproxy.schema.plan import collect_into, project_state

# Reading all of a larger file takes minutes.
_QUICK_CHECK_BYTES = 2 * 2**30

Edit = Callable[[BaseDatabaseSchemaEditor], object]


@dataclass(frozen=True, slots=True)
class Difference:
    table: str
    what: str
    # SQL, or a command.
    mend: list[str]


def differences(connection: BaseDatabaseWrapper) -> list[Difference]:
    """Compare the database with the migrated state; call it in `report.read_only`. Blocks."""
    loader = MigrationLoader(connection)
    state = project_state(loader, loader.applied_migrations or {})
    models = state.apps.get_models(include_auto_created=True)
    with connection.cursor() as cursor:
        present = set(connection.introspection.table_names(cursor))
    found = list(_damage(connection))
    for model in sorted(models, key=lambda model: model._meta.db_table):
        if not model._meta.can_migrate(connection):
            continue
        table = model._meta.db_table
        if table in present:
            found += _Table(connection, model).differences()
        else:
            mend = _collect(connection, methodcaller("create_model", model))
            found.append(Difference(table, "the table is missing", mend))
    return found


class _Table:
    def __init__(self, connection: BaseDatabaseWrapper, model: type[Model]) -> None:
        self._connection = connection
        self._model = model
        self._name = model._meta.db_table
        # Many-to-many fields, and keys of several columns, have no column of their own.
        self._fields: list[Any] = [
            field for field in model._meta.local_concrete_fields if field.column
        ]
        introspection = connection.introspection
        with connection.cursor() as cursor:
            description = introspection.get_table_description(cursor, self._name)
            self._columns = {column.name: bool(column.null_ok) for column in description}
            self._constraints: Any = introspection.get_constraints(cursor, self._name)

    def differences(self) -> Iterator[Difference]:
        yield from self._differing_columns()
        yield from self._missing_key()
        for field in self._fields:
            if field.column in self._columns:
                yield from self._missing_of(field)
        yield from self._missing_of_model()

    def _tell(self, what: str, edit: Edit) -> Difference:
        return Difference(self._name, what, _collect(self._connection, edit))

    def _differing_columns(self) -> Iterator[Difference]:
        quote = self._connection.ops.quote_name
        for field in self._fields:
            null = self._columns.get(str(field.column))
            if null is None:
                yield self._tell(
                    f"column {field.column} is missing",
                    methodcaller("add_field", self._model, field),
                )
            elif null != field.null and not field.primary_key and not field.generated:
                what = "takes NULL" if null else "takes no NULL"
                yield self._tell(f"column {field.column} {what}", self._altered(field, null=null))
        for column in self._columns.keys() - {field.column for field in self._fields}:
            drop = f"ALTER TABLE {quote(self._name)} DROP COLUMN {quote(column)};"
            yield Difference(self._name, f"column {column} is not of this version", [drop])

    def _missing_key(self) -> Iterator[Difference]:
        key = [field.column for field in self._model._meta.pk_fields]
        # Introspection gives the columns of SQLite's keys in the table's order.
        if any(found["primary_key"] and set(found["columns"]) == set(key) for found in self._all()):
            return
        quote = self._connection.ops.quote_name
        columns = ", ".join(quote(str(column)) for column in key)
        mend = f"ALTER TABLE {quote(self._name)} ADD PRIMARY KEY ({columns});"
        if self._connection.vendor == "sqlite":
            mend = _way_back(self._connection)
        yield Difference(self._name, f"the primary key is not ({', '.join(map(str, key))})", [mend])

    def _missing_of(self, field: Any) -> Iterator[Difference]:
        columns = [field.column]
        if field.unique and not field.primary_key:
            if not self._has("unique", columns):
                name = f"{self._name}_{field.column}_uniq"
                constraint = UniqueConstraint(fields=[field.name], name=name)
                yield self._tell(
                    f"column {field.column} is not unique",
                    methodcaller("add_constraint", self._model, constraint),
                )
        elif field.db_index and not field.primary_key and not self._has("index", columns):
            index = Index(fields=[field.name])
            index.set_name_with_model(self._model)
            yield self._tell(
                f"column {field.column} has no index",
                methodcaller("add_index", self._model, index),
            )
        remote = field.remote_field
        if remote is not None and getattr(field, "db_constraint", False):
            target = (remote.model._meta.db_table, field.target_field.column)
            if not any(
                found["columns"] == columns and found["foreign_key"] == target
                for found in self._all()
            ):
                yield self._tell(
                    f"column {field.column} has no foreign key to {'.'.join(target)}",
                    self._altered(field, db_constraint=False),
                )

    def _missing_of_model(self) -> Iterator[Difference]:
        options = self._model._meta
        for index in options.indexes:
            if index.name not in self._constraints:
                yield self._tell(
                    f"index {index.name} is missing",
                    methodcaller("add_index", self._model, index),
                )
        wanted = list(options.constraints)
        for names in options.unique_together:
            fields: list[Any] = [options.get_field(name) for name in names]
            columns = [field.column for field in fields]
            if not self._has("unique", columns):
                name = f"{self._name}_{'_'.join(names)}_uniq"
                wanted.append(UniqueConstraint(fields=names, name=name))
        for constraint in wanted:
            if constraint.name not in self._constraints:
                yield self._tell(
                    f"constraint {constraint.name} is missing",
                    methodcaller("add_constraint", self._model, constraint),
                )

    def _altered(self, field: Any, **before: object) -> Edit:
        """From the field as the database has it to the field as it should be."""
        old = copy.copy(field)
        for name, value in before.items():
            setattr(old, name, value)
        return methodcaller("alter_field", self._model, old, field)

    def _has(self, kind: str, columns: list[str | None]) -> bool:
        return any(found[kind] and found["columns"] == columns for found in self._all())

    def _all(self) -> list[dict[str, Any]]:
        return list(self._constraints.values())


def _collect(connection: BaseDatabaseWrapper, edit: Edit) -> list[str]:
    lines: list[str] = []
    collect_into(lines, connection, edit, atomic=False)
    return lines


def _damage(connection: BaseDatabaseWrapper) -> Iterator[Difference]:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT indrelid::regclass::text, indexrelid::regclass::text FROM pg_index "
                "WHERE NOT indisvalid AND pg_table_is_visible(indexrelid)"
            )
            for table, index in cursor.fetchall():
                mend = [f"REINDEX INDEX CONCURRENTLY {index};"]
                yield Difference(table, f"index {index} is not valid", mend)
        elif connection.vendor == "sqlite":
            cursor.execute(
                "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
            )
            if cursor.fetchone()[0] >= _QUICK_CHECK_BYTES:
                return
            cursor.execute("PRAGMA quick_check(1)")
            (answer,) = cursor.fetchone()
            if answer != "ok":
                yield Difference("", f"the file is damaged: {answer}", [_way_back(connection)])


def _way_back(connection: BaseDatabaseWrapper) -> str:
    newest = next(iter(report.backups(connection)), None)
    return f"manage.py dbrestore {newest.path if newest else 'BACKUP'} --yes"

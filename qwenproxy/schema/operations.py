"""Migration operations that do what Django's do, and make fewer wait: a column without writing the
whole table anew (SQLite), an index on either engine without stopping writers (PostgreSQL).
"""

from __future__ import annotations

from django.apps.registry import Apps
from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations import AddField, AddIndex
from django.db.migrations.state import ProjectState
from django.db.models.expressions import Value


class FastAddField(AddField):
    """`AddField` for a plain column with a constant `db_default`: one ADD COLUMN, whatever the rows.

    Django's SQLite editor copies the table for every NOT NULL column, and for a nullable one whose
    `db_default` is a literal. SQLite needs neither. Any other field is added as Django does it.
    """

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        if schema_editor.connection.vendor != "sqlite" or not is_plain(self.field):
            super().database_forwards(app_label, schema_editor, from_state, to_state)
            return
        apps: Apps = to_state.apps
        model = apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            before = from_state.apps.get_model(app_label, self.model_name)
            field = model._meta.get_field(self.name)
            # The part of the SQLite editor that remakes is left out, the statement is the base's.
            BaseDatabaseSchemaEditor.add_field(schema_editor, before, field)


def is_plain(field: models.Field) -> bool:  # type: ignore[type-arg]
    """Whether a column of this field can be added to a table with rows, by ADD COLUMN alone."""
    if not field.has_db_default() or field.is_relation or field.unique or field.generated:
        return False
    default = field.db_default
    # An expression, `Now()` say, has to be computed: SQLite adds no column with one.
    is_constant = isinstance(default, Value) or not hasattr(default, "resolve_expression")
    value = default.value if isinstance(default, Value) else default
    return is_constant and (value is not None or field.null)


class AddIndexOnline(AddIndexConcurrently):
    """`AddIndexConcurrently` on PostgreSQL, `AddIndex` elsewhere; in a migration that is not atomic.

    What an attempt that was killed has left is removed first, so that the next one succeeds.
    """

    def describe(self) -> str:
        return AddIndex.describe(self)

    def database_forwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        # The index is not of the state before, but may be of the database.
        if self._is_there(app_label, schema_editor, to_state):
            self.database_backwards(app_label, schema_editor, to_state, from_state)
        operation = self._operation(schema_editor)
        operation.database_forwards(self, app_label, schema_editor, from_state, to_state)

    def database_backwards(
        self,
        app_label: str,
        schema_editor: BaseDatabaseSchemaEditor,
        from_state: ProjectState,
        to_state: ProjectState,
    ) -> None:
        if schema_editor.collect_sql or self._is_there(app_label, schema_editor, from_state):
            operation = self._operation(schema_editor)
            operation.database_backwards(self, app_label, schema_editor, from_state, to_state)

    @staticmethod
    def _operation(schema_editor: BaseDatabaseSchemaEditor) -> type[AddIndex]:
        is_postgresql = schema_editor.connection.vendor == "postgresql"
        return AddIndexConcurrently if is_postgresql else AddIndex

    def _is_there(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, state: ProjectState
    ) -> bool:
        if schema_editor.collect_sql:
            return False
        connection = schema_editor.connection
        table = state.apps.get_model(app_label, self.model_name)._meta.db_table
        with connection.cursor() as cursor:
            return self.index.name in connection.introspection.get_constraints(cursor, table)

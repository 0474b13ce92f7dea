"""Migration operations that do on SQLite what Django's do, without writing the whole table anew."""

from __future__ import annotations

from django.apps.registry import Apps
from django.db import models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations import AddField
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
        if schema_editor.connection.vendor != "sqlite" or not _is_plain(self.field):
            super().database_forwards(app_label, schema_editor, from_state, to_state)
            return
        apps: Apps = to_state.apps
        model = apps.get_model(app_label, self.model_name)
        if self.allow_migrate_model(schema_editor.connection.alias, model):
            before = from_state.apps.get_model(app_label, self.model_name)
            field = model._meta.get_field(self.name)
            # The part of the SQLite editor that remakes is left out, the statement is the base's.
            BaseDatabaseSchemaEditor.add_field(schema_editor, before, field)


def _is_plain(field: models.Field) -> bool:  # type: ignore[type-arg]
    default = field.db_default
    is_constant = isinstance(default, Value | str | int | float | bool)
    return (
        field.has_db_default()
        and is_constant
        and not field.is_relation
        and not field.unique
        and not field.primary_key
        and not field.generated
    )

"""Django's `makemigrations`; in our own apps with an author, with columns that are added fast, and with
templates for what Django cannot write by itself.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser
from django.core.management.commands import makemigrations
from django.core.management.utils import run_formatters
from django.db.migrations import AddField, Migration
from django.db.migrations.operations.base import Operation
from django.db.migrations.writer import MigrationWriter

from qwenproxy.schema import files
from qwenproxy.schema.commands import SchemaCommand
from qwenproxy.schema.operations import FastAddField, is_plain
from qwenproxy.schema.refusals import WrongUsage
from qwenproxy.schema.runner import actor
from qwenproxy.schema.templates import TEMPLATES, MigrationTemplate

_NOT_WITH_A_TEMPLATE = {"merge": "--merge", "update": "--update", "check_changes": "--check"}


class Command(SchemaCommand, makemigrations.Command):
    _template: MigrationTemplate | None = None

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--template",
            metavar="KIND",
            help=f"Write a migration of one app to be filled in: {', '.join(TEMPLATES)}.",
        )

    def handle(self, *app_labels: str, **options: Any) -> None:
        if options["template"] is not None:
            self._template = _template_for(app_labels, options)
            options["empty"] = True
            options["name"] = options["name"] or self._template.name
        super().handle(*app_labels, **options)

    def write_migration_files(
        self,
        changes: dict[str, list[Migration]],
        update_previous_migration_paths: dict[str, str] | None = None,
    ) -> None:
        if self._template is not None:
            for migrations in changes.values():
                self._write_from_template(self._template, *migrations)
            return
        own = [one for label in changes if files.is_own(label) for one in changes[label]]
        for migration in own:
            fast = [_fast(operation) for operation in migration.operations]
            migration.operations = fast  # type: ignore[misc]  # as its constructor does
        super().write_migration_files(changes, update_previous_migration_paths)
        if not self.dry_run:
            for migration in own:
                _add_author(migration)

    def _write_from_template(self, template: MigrationTemplate, migration: Migration) -> None:
        label = migration.app_label
        if not migration.dependencies:
            raise WrongUsage(f"{label} has no migration yet. First: makemigrations {label}")
        path = MigrationWriter(migration).path
        shown = self.get_relative_path(path)
        text = template.render(label, migration.dependencies, actor())
        if self.verbosity >= 1:
            self.log(self.style.MIGRATE_HEADING(f"Migrations for '{label}':"))
            self.log(f"  {self.style.MIGRATE_LABEL(shown)}")
            self.log("    To be completed where it says FILL IN")
            if self.scriptable:
                self.stdout.write(shown)
        if not self.dry_run:
            Path(path).write_text(text, encoding="utf-8")
            run_formatters([path], stderr=self.stderr)
        elif self.verbosity == 3:
            self.log(text)


def _template_for(app_labels: tuple[str, ...], options: dict[str, Any]) -> MigrationTemplate:
    kind = options["template"]
    if kind not in TEMPLATES:
        raise WrongUsage(f"There is no template {kind!r}. There are: {', '.join(TEMPLATES)}.")
    for name, flag in _NOT_WITH_A_TEMPLATE.items():
        if options[name]:
            raise WrongUsage(f"--template writes a new migration; leave out {flag}.")
    if len(set(app_labels)) != 1:
        raise WrongUsage(f"Name one app: makemigrations APP --template {kind}")
    return TEMPLATES[kind]


def _fast(operation: Operation) -> Operation:
    # A subclass knows best what it does.
    if type(operation) is not AddField or not is_plain(operation.field):
        return operation
    return FastAddField(
        operation.model_name, operation.name, operation.field, operation.preserve_default
    )


def _add_author(migration: Migration) -> None:
    """Say who wrote it, in a file that Django has just written; an updated one keeps its author."""
    path = Path(MigrationWriter(migration).path)
    line = f"    author = {getattr(migration, 'author', None) or actor()!r}\n\n"
    text = path.read_text("utf-8")
    # A function: the name may hold what an expression takes for a reference.
    path.write_text(
        re.sub(r"^ {4}dependencies = ", lambda found: line + found[0], text, count=1, flags=re.M),
        "utf-8",
    )

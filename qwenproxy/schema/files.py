"""The migration files that this version has: their names without importing them, and their checksums.

Names come from the directories, as Django's loader would find them; where there are no plain source
files (a zipped install, bytecode only) the loader itself is asked.
"""

from __future__ import annotations

import ast
import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from django.apps import AppConfig, apps
from django.conf import settings
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration
from django.db.migrations import operations as ops
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation

MigrationName = tuple[str, str]
_FOREIGN = {"site-packages", "dist-packages"}
# Each database of the gateway's has one of them on record, of whatever version it is.
OUR_LABELS = frozenset(("access", "requests_app", "schema", "sessions_app"))


def on_disk(alias: str = "default") -> set[MigrationName]:
    """(app label, name) of every migration file of the installed apps; imports none of them."""
    names: set[MigrationName] = set()
    for config in apps.get_app_configs():
        directory = _directory(config)
        if directory is None:
            continue
        found = _names(directory)
        if found is None:
            return set(MigrationLoader(connections[alias]).disk_migrations)
        names.update((config.label, name) for name in found)
    return names


def _directory(config: AppConfig) -> str | None:
    if config.label not in settings.MIGRATION_MODULES:
        return os.path.join(config.path, "migrations")
    module = settings.MIGRATION_MODULES[config.label]
    # A missing module is a mistake that Django's loader reports.
    spec = find_spec(module) if module else None
    locations = spec.submodule_search_locations if spec else None
    return next(iter(locations), None) if locations else None


def _names(directory: str) -> list[str] | None:
    """The migrations of a package; none where it is no package, None where only the loader can tell."""
    try:
        entries = os.listdir(directory)
    except FileNotFoundError:
        return [] if os.path.isdir(os.path.dirname(directory)) else None
    except NotADirectoryError:
        return None
    if "__init__.py" not in entries:
        return None if "__init__.pyc" in entries else []
    # Django's loader passes over names that begin so.
    return [name[:-3] for name in entries if name.endswith(".py") and name[0] not in "_~"]


def loaded(connection: BaseDatabaseWrapper) -> dict[MigrationName, Migration]:
    """Every migration on disk, imported."""
    return dict(MigrationLoader(connection, ignore_no_migrations=True).disk_migrations)


def is_own(label: str) -> bool:
    """Whether an app came with this code, not from an installed package."""
    try:
        path = apps.get_app_config(label).path
    except LookupError:
        return False
    return _FOREIGN.isdisjoint(Path(path).parts)


def are_foreign(labels: set[str]) -> bool:
    """Whether these apps, on record in a database, are those of another project."""
    return not labels & OUR_LABELS and not labels <= {app.label for app in apps.get_app_configs()}


def source_of(migration: Migration) -> Path | None:
    file = getattr(sys.modules.get(type(migration).__module__), "__file__", None)
    return Path(file) if file and file.endswith(".py") else None


def checksum(migration: Migration) -> str:
    """Hash what the file does: formatting and comments do not count, any code does.

    The same on every version of Python. Empty where there is no source.
    """
    path = source_of(migration)
    if path is None:
        return ""
    facts = path.stat()
    return _checksum(path, facts.st_mtime_ns, facts.st_size)


# A status of 200 files that is asked for again would parse them all again.
@lru_cache(maxsize=4096)
def _checksum(path: Path, _mtime_ns: int, _size_bytes: int) -> str:
    text = "".join(_tokens(ast.parse(path.read_bytes())))
    return f"ast1:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


def _tokens(node: object) -> list[str]:
    # Fields that are empty are left out: newer versions of Python add such ones.
    if isinstance(node, ast.AST):
        found = [f"({type(node).__name__}"]
        for name, value in ast.iter_fields(node):
            if isinstance(node, ast.JoinedStr):
                # Python 3.12 has empty texts around what a format is made of, others have not.
                value = [part for part in value if getattr(part, "value", None) != ""]
            if value is not None and value != [] and name not in ("kind", "type_comment"):
                found.append(f" {name}=")
                found += _tokens(value)
        found.append(")")
    elif isinstance(node, list):
        found = ["["]
        for item in node:
            found += _tokens(item)
            found.append(",")
        found.append("]")
    else:
        found = [repr(node)]
    return found


def database_operations(operations: Iterable[Operation]) -> Iterator[Operation]:
    """What a migration does to the database: also what is wrapped, not what is for the state alone."""
    for operation in operations:
        if isinstance(operation, ops.SeparateDatabaseAndState):
            yield from database_operations(operation.database_operations)
        else:
            yield operation


_HARMLESS = (
    ops.CreateModel,
    ops.AddIndex,
    ops.RemoveIndex,
    ops.RenameIndex,
    ops.RemoveConstraint,
    ops.AlterModelOptions,
    ops.AlterModelManagers,
    ops.AlterModelTableComment,
)


def is_breaking(migration: Migration) -> bool:
    """Whether code from before it may fail on the database after it; `Migration.breaking` decides."""
    declared = getattr(migration, "breaking", None)
    if declared is not None:
        return bool(declared)
    return any(_breaks(operation) for operation in database_operations(migration.operations))


def _breaks(operation: Operation) -> bool:
    if isinstance(operation, ops.AddField):
        field = operation.field
        return not (field.null or field.many_to_many or field.has_db_default())
    return not isinstance(operation, _HARMLESS)

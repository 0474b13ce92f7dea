"""What is refused before a run begins, so that nothing has to be undone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from django.apps.registry import Apps
from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration
from django.db.migrations import operations as ops
from django.utils import timezone

from qwenproxy import __version__
from qwenproxy.schema import backup, engine, files, plan
from qwenproxy.schema.history import History, applied_migrations
from qwenproxy.schema.locking import Write
from qwenproxy.schema.models import MigrationEvent
from qwenproxy.schema.refusals import MigrationFailed, Refused

_FAILURES = 2
_WITHIN = timedelta(hours=1)

Plan = Sequence[tuple[Migration, bool]]


def refuse_failing_again(history: History, events: Sequence[MigrationEvent]) -> None:
    """Stop a supervisor's restarts from repeating, and backing up, what has just failed twice.

    Raises:
        MigrationFailed: the same migrations of the same version failed twice within the hour.
    """
    wanted = {(event.app, event.name, event.checksum) for event in events}
    tried: dict[object, set[tuple[str, str, str]]] = {}
    failed: dict[object, str] = {}
    since = timezone.now() - _WITHIN
    for row in history.rows(at__gte=since, action="apply", app_version=__version__):
        tried.setdefault(row["run"], set()).add((row["app"], row["name"], row["checksum"]))
        if row["status"] == "failed":
            failed[row["run"]] = f"{row['app']}.{row['name']}: {row['error'].splitlines()[0]}"
        elif row["status"] == "ok":
            tried[row["run"]].clear()
    same = [run for run, names in tried.items() if names == wanted and run in failed]
    if len(same) >= _FAILURES:
        raise MigrationFailed(
            f"The same migrations have failed {len(same)} times within the hour "
            f"({failed[same[-1]]}). Not trying again by itself; the database is unchanged. "
            "Start the version before, or try by hand: manage.py migrate."
        )


def refuse_foreign(connection: BaseDatabaseWrapper) -> None:
    """Of SQLite this is seen before the file is opened, `engine.ensure_open`.

    Raises:
        Refused: another project of Django's has its record there, and with it tables of the same names.
    """
    labels = {label for label, _ in applied_migrations(connection)}
    if files.are_foreign(labels):
        raise Refused(
            f"This is the database of another Django project ({', '.join(sorted(labels))}). Nothing "
            "was changed. Name another database or schema: DATABASE_URL."
        )


def refuse_unwritable(connection: BaseDatabaseWrapper) -> None:
    """
    Raises:
        Refused: the database is only there to be read, or this user may make no tables in it.
    """
    why = ""
    if connection.vendor == "sqlite":
        path = Path(str(connection.settings_dict["NAME"])).absolute()
        for needed in (path, path.parent):
            if not os.access(needed, os.W_OK):
                why = f"{needed} cannot be written by this user"
                break
    elif connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT current_setting('transaction_read_only'), current_user, current_schema(), "
                "has_schema_privilege(current_schema(), 'CREATE')"
            )
            read_only, user, schema, may_create = cursor.fetchone()
        if read_only == "on":
            why = "the server lets nothing be written (a standby, or default_transaction_read_only)"
        elif not may_create:
            why = (
                f"the user {user} may make no tables in the schema {schema or 'of its search_path'}"
            )
    if why:
        raise Refused(f"The database cannot be changed: {why}. Nothing was changed.")


def refuse_breaking(
    connection: BaseDatabaseWrapper, events: Sequence[MigrationEvent], write: Write
) -> None:
    """Look for processes that serve and cannot live with what a start is about to do.

    Raises:
        Refused: there are some, and QWENPROXY_MIGRATE_BREAKING says so.
    """
    names = [f"{event.app}.{event.name}" for event in events if event.breaking]
    others = engine.count_serving(connection) if names else 0
    if not others:
        return
    message = (
        f"Other processes use this database ({others} connections), and the version that they run "
        f"may fail after {', '.join(names)}."
    )
    if settings.MIGRATE_BREAKING == "refuse":
        raise Refused(
            f"{message} Nothing was changed. Stop them first, or apply it all the same: "
            "manage.py migrate."
        )
    write(message)


def refuse_data_loss(connection: BaseDatabaseWrapper, steps: Plan, apps: Apps) -> None:
    """
    Raises:
        Refused: an upgrade would drop columns or tables that hold rows; `apps` is from before it.
    """
    losses = []
    renamed: dict[tuple[str, str], str] = {}
    for migration, backwards in steps:
        if backwards:
            # Going back is asked for by name.
            continue
        for operation in files.database_operations(migration.operations):
            label = migration.app_label
            if isinstance(operation, ops.RenameModel):
                new, old = operation.new_name_lower, operation.old_name_lower
                renamed[label, new] = renamed.get((label, old), old)
            elif isinstance(operation, ops.RemoveField | ops.DeleteModel):
                removed = (
                    operation.model_name_lower
                    if isinstance(operation, ops.RemoveField)
                    else operation.name_lower
                )
                if _has_rows(connection, apps, label, renamed.get((label, removed), removed)):
                    losses.append(f"{migration}: {operation.describe()}")
    if losses:
        raise Refused(
            f"This upgrade drops data ({'; '.join(losses)}). Nothing was changed. Make sure that "
            "it is not needed any more, then run: manage.py migrate --allow-unsafe"
        )


def refuse_short_space(connection: BaseDatabaseWrapper, steps: Plan, backup_bytes: int) -> None:
    """Look for the room that rewritten tables and the backup, of `backup_bytes` or 0, will take.

    Raises:
        Refused: SQLite's disk, or that of the backups, has less.
    """
    if connection.vendor != "sqlite":
        # The server's disks cannot be seen from here.
        return
    folder = Path(str(connection.settings_dict["NAME"])).absolute().parent
    free = shutil.disk_usage(folder).free
    operations = sum(len(migration.operations) for migration, _ in steps)
    # Nothing rewrites more than everything each time; the plan's own figure takes longer.
    most = plan.WAL_FACTOR * backup.size_bytes(connection) * operations
    if free >= backup_bytes + most:
        return
    # What cannot be undone has no SQL, and fails by itself.
    known = [
        (migration, backwards)
        for migration, backwards in steps
        if not backwards or all(operation.reversible for operation in migration.operations)
    ]
    rewritten = int(str(plan.describe(connection, known)["disk_bytes"]))
    if backup_bytes and backup.is_beside(connection):
        rewritten += backup_bytes
    if free < rewritten:
        raise Refused(
            f"This takes {plan.size(rewritten)} in {folder} for a time, and {plan.size(free)} are "
            "free. "
            "Nothing was changed. Make room, or let the backup go to another disk: "
            "QWENPROXY_MIGRATE_BACKUP_DIR."
        )


def _has_rows(connection: BaseDatabaseWrapper, apps: Apps, label: str, model: str) -> bool:
    try:
        found = apps.get_model(label, model)
    except LookupError:
        # Made by the same run.
        return False
    if not found._meta.can_migrate(connection):
        return False
    quote = connection.ops.quote_name
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT 1 FROM {quote(found._meta.db_table)} LIMIT 1")  # noqa: S608
        return cursor.fetchone() is not None

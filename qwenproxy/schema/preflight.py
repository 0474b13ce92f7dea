"""What is refused before a run begins, so that nothing has to be undone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from django.apps.registry import Apps
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration
from django.db.migrations import operations as ops
from django.utils import timezone

from qwenproxy import __version__
from qwenproxy.schema.history import History
from qwenproxy.schema.models import MigrationEvent
from qwenproxy.schema.refusals import MigrationFailed, Refused

_FAILURES = 2
_WITHIN = timedelta(hours=1)


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


def refuse_data_loss(
    connection: BaseDatabaseWrapper, plan: Sequence[tuple[Migration, bool]], apps: Apps
) -> None:
    """
    Raises:
        Refused: an upgrade would drop columns or tables that hold rows; `apps` is from before it.
    """
    losses = []
    renamed: dict[tuple[str, str], str] = {}
    for migration, backwards in plan:
        if backwards:
            # Going back is asked for by name.
            continue
        for operation in migration.operations:
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

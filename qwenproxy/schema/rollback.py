"""Going back: which migrations have to go, what their data is, and undoing them as one run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.apps.registry import Apps
from django.core.management.sql import emit_post_migrate_signal, emit_pre_migrate_signal
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration
from django.db.migrations import operations as ops
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.loader import AmbiguityError

from qwenproxy.schema.files import MigrationName
from qwenproxy.schema.history import History, applied_migrations
from qwenproxy.schema.refusals import DatabaseAhead, Refused, WrongUsage
from qwenproxy.schema.runner import Run
from qwenproxy.schema.state import read_state

if TYPE_CHECKING:
    # Django's stubs have it, Django has not.
    from django.db.migrations.executor import _ProgressCallbackT as Observe


@dataclass(frozen=True, slots=True)
class Target:
    """One of: the last migrations, everything of one run, everything after a migration of an app."""

    steps: int = 1
    run: str = ""
    app: str = ""
    name: str = ""


class Rollback:
    """The migrations to undo, newest first; looked up anew where the lock is held."""

    def __init__(
        self, connection: BaseDatabaseWrapper, target: Target, observe: Observe | None = None
    ) -> None:
        """
        Raises:
            WrongUsage: there is no such run, app or migration.
            DatabaseAhead: this version does not know all that is applied.
        """
        self._connection = connection
        unknown = ", ".join(".".join(name) for name in read_state(connection.alias).unknown)
        if unknown:
            raise DatabaseAhead(
                f"A newer version has applied {unknown}, which may build on what would be undone. "
                "Nothing was changed. Roll back with that version: it has the way back."
            )
        self._executor = MigrationExecutor(connection, observe)
        self._applied = applied_migrations(connection)
        wanted = self._closure(self._chosen(target))
        leaves = self._executor.loader.graph.leaf_nodes()
        full = [migration for migration, _ in self._executor.migration_plan(leaves, True)]
        self.plan = [
            (migration, True)
            for migration in reversed(full)
            if (migration.app_label, migration.name) in wanted
        ]
        if not self.plan:
            raise WrongUsage("There is nothing to roll back. Nothing was changed.")

    def _chosen(self, target: Target) -> list[MigrationName]:
        known = self._executor.loader.graph.nodes
        if target.app:
            return self._after(target.app, target.name)
        if target.run:
            rows = History(self._connection).rows(status="ok", action__in=("apply", "fake"))
            found = [
                (row["app"], row["name"]) for row in rows if str(row["run"]).startswith(target.run)
            ]
            if not found:
                raise WrongUsage(
                    f"There is no run {target.run}. Nothing was changed. Those that there are: "
                    "manage.py showmigrations --history 1000"
                )
            return [name for name in found if name in self._applied and name in known]
        # Django's rows are in the order in which they were applied.
        return [name for name in self._applied if name in known][-target.steps :]

    def _after(self, app: str, name: str) -> list[MigrationName]:
        loader = self._executor.loader
        if app not in loader.migrated_apps:
            raise WrongUsage(f"There is no app {app} with migrations. Nothing was changed.")
        if name == "zero":
            target: tuple[str, str | None] = (app, None)
        else:
            try:
                target = (app, loader.get_migration_by_prefix(app, name).name)
            except (AmbiguityError, KeyError) as exc:
                raise WrongUsage(
                    f"There is not one migration {name} in {app}. Nothing was changed. "
                    f"Those that there are: manage.py showmigrations {app}"
                ) from exc
            if target not in loader.applied_migrations:
                raise WrongUsage(f"{app}.{target[1]} is not applied. Nothing was changed.")
        # None is Django's word for "before the first".
        plan = self._executor.migration_plan([target])
        return [(migration.app_label, migration.name) for migration, _ in plan]

    def _closure(self, chosen: Iterable[MigrationName]) -> set[MigrationName]:
        """With everything applied that builds on them."""
        graph = self._executor.loader.graph
        return {
            dependent
            for name in chosen
            for dependent in graph.backwards_plan(name)
            if dependent in self._executor.loader.applied_migrations
        }

    def refuse_irreversible(self) -> None:
        for migration, _ in self.plan:
            for operation in migration.operations:
                if not operation.reversible:
                    backup = self._backup_before(migration)
                    way_out = (
                        f"manage.py dbrestore {backup} --yes" if backup else "restore a backup"
                    )
                    raise Refused(
                        f"{migration} cannot be undone ({operation.describe()}). Nothing was "
                        f"changed. To go back behind it: {way_out}."
                    )

    def _backup_before(self, migration: Migration) -> str:
        row = History(self._connection).newest().get((migration.app_label, migration.name))
        return str(row["backup"]) if row else ""

    def losses(self) -> list[str]:
        """What the tables hold that will go, in words."""
        loader = self._executor.loader
        nodes = [name for name in loader.applied_migrations if name in loader.graph.nodes]
        apps = loader.project_state(nodes).apps
        lost = []
        for migration, _ in self.plan:
            for operation in migration.operations:
                found = self._loss(apps, migration.app_label, operation)
                if found:
                    lost.append(found)
        return lost

    def _loss(self, apps: Apps, label: str, operation: object) -> str:
        quote = self._connection.ops.quote_name
        try:
            if isinstance(operation, ops.CreateModel):
                model = apps.get_model(label, operation.name)
                rows = self._count(model._meta.db_table, "*")
                return f"table {model._meta.db_table}: {rows:,} rows" if rows else ""
            if isinstance(operation, ops.AddField):
                model = apps.get_model(label, operation.model_name)
                column = model._meta.get_field(operation.name).column
                rows = self._count(model._meta.db_table, quote(column)) if column else 0
                return f"column {model._meta.db_table}.{column}: {rows:,} values" if rows else ""
        except LookupError:
            # Renamed or removed since: what went then is not lost now.
            return ""
        return ""

    def _count(self, table: str, what: str) -> int:
        with self._connection.cursor() as cursor:
            sql = f"SELECT count({what}) FROM {self._connection.ops.quote_name(table)}"  # noqa: S608
            cursor.execute(sql)
            return int(cursor.fetchone()[0])

    def execute(self, *, verbosity: int) -> None:
        """Call it in a `Run`, with the lock held and the rollback made there."""
        loader = self._executor.loader
        nodes = [name for name in loader.applied_migrations if name in loader.graph.nodes]
        before = loader.project_state(nodes)
        alias = self._connection.alias
        emit_pre_migrate_signal(verbosity, False, alias, apps=before.apps, plan=self.plan)
        after = self._executor.migrate([], plan=self.plan)
        after.clear_delayed_apps_cache()
        emit_post_migrate_signal(verbosity, False, alias, apps=after.apps, plan=self.plan)


def roll_back(connection: BaseDatabaseWrapper, target: Target, run: Run, observe: Observe) -> None:
    """Undo what `target` names, as one run.

    Raises:
        SchemaRefusal: with the exit code that says what happened.
    """

    def work() -> None:
        rollback = Rollback(connection, target, observe)
        rollback.refuse_irreversible()
        rollback.execute(verbosity=0)

    run.execute(work)

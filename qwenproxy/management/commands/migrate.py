"""Django's `migrate`, made safe: one lock, a backup first, one transaction, a history.

Django's flags and output stay as they are; what is ours goes to stderr.
"""

from __future__ import annotations

import json
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.management.base import CommandParser
from django.core.management.commands import migrate
from django.db import connections
from django.db.migrations import Migration

from qwenproxy.schema import engine, files, plan
from qwenproxy.schema.commands import SchemaCommand
from qwenproxy.schema.history import History
from qwenproxy.schema.locking import is_scratch
from qwenproxy.schema.refusals import WrongUsage
from qwenproxy.schema.report import read_only
from qwenproxy.schema.runner import Options, Run
from qwenproxy.schema.state import read_state, refuse_ahead, refuse_edited


class Command(SchemaCommand, migrate.Command):
    # For `serve`: who asks, and where the progress goes.
    stealth_options = ("source", "progress", "write")

    _run: Run | None = None
    # Django has written "Applying ..." and no end of the line.
    _is_mid_line = False

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--tx",
            choices=("all", "each"),
            default=settings.MIGRATE_TRANSACTIONS,
            help="One transaction for all pending migrations (default), or one for each.",
        )
        parser.add_argument(
            "--backup",
            choices=("auto", "always", "never"),
            default=settings.MIGRATE_BACKUP,
            help="Back the database up first; auto: where it is SQLite. PostgreSQL: by pg_dump.",
        )
        parser.add_argument(
            "--lock-wait",
            type=float,
            metavar="SECONDS",
            default=settings.MIGRATE_LOCK_WAIT_S,
            help="How long to wait for another process that migrates.",
        )
        parser.add_argument(
            "--lock-timeout",
            type=float,
            metavar="SECONDS",
            default=settings.MIGRATE_LOCK_TIMEOUT_S,
            help="PostgreSQL: how long a statement waits for a table that is in use.",
        )
        parser.add_argument(
            "--sql",
            action="store_true",
            help="Print the SQL of all that is pending, and who waits for it; change nothing.",
        )
        parser.add_argument(
            "--json",
            action="store_true",
            help="With --plan: the same as a document, with rows, bytes and estimated seconds.",
        )
        parser.add_argument(
            "--allow-unsafe",
            action="store_true",
            help="Let an upgrade drop columns and tables that hold data.",
        )

    def execute(self, *args: Any, **options: Any) -> str | None:
        # Before the system checks, which open it as well.
        engine.ensure_open(connections[options["database"]])
        return super().execute(*args, **options)

    def handle(self, *args: Any, **options: Any) -> None:
        if options["sql"] or options["json"]:
            self._tell_plan(options)
            return
        is_read_only = options["plan"] or options["check_unapplied"]
        if not is_read_only:
            self._refuse(options)
        if is_read_only or self._has_nothing_to_do(options):
            super().handle(*args, **options)
            return
        self._run = Run(
            connections[options["database"]],
            Options(
                transactions=options["tx"],
                backup=options["backup"],
                lock_wait_s=options["lock_wait"],
                lock_timeout_s=options["lock_timeout"],
                allow_unsafe=options["allow_unsafe"],
                source=options.get("source") or "cli",
            ),
            options.get("write") or self._say,
            options.get("progress"),
        )
        django_handle = super().handle

        def work() -> None:
            # Of replicas that start at once the first has done it while the others waited.
            if options.get("source") != "serve" or not self._has_nothing_to_do(options):
                django_handle(*args, **options)

        try:
            self._run.execute(work)
        finally:
            self._end_line()

    def _tell_plan(self, options: dict[str, Any]) -> None:
        if options["app_label"]:
            raise WrongUsage("--sql and --json tell about the whole plan; name no app.")
        connection = connections[options["database"]]
        with read_only(connection):
            document = plan.describe(connection)
        if options["json"]:
            self.stdout.write(json.dumps(document, indent=2))
            return
        for line in plan.script(document):
            self.stdout.write(line)

    def _refuse(self, options: dict[str, Any]) -> None:
        """As a start does, but for what is held: a hand may apply it."""
        alias, label = options["database"], options["app_label"]
        if label:
            # It may be what mends the others.
            _refuse_unknown(alias, label, options["migration_name"])
            return
        # `serve` has looked; what changes the record alone may be what mends it.
        if options["fake"] or options.get("source") == "serve" or is_scratch(connections[alias]):
            return
        now = read_state(alias)
        refuse_ahead(now, alias)
        if now.pending:
            refuse_edited(self._say, alias)

    def _has_nothing_to_do(self, options: dict[str, Any]) -> bool:
        """Without the lock: replicas that start together do not queue for nothing."""
        if options["migration_name"] or options["prune"] or options["run_syncdb"]:
            return False
        connection = connections[options["database"]]
        if is_scratch(connection) or read_state(options["database"]).pending:
            return False
        return History(connection).is_whole()

    def migration_progress_callback(
        self, action: str, migration: Migration | None = None, fake: bool = False
    ) -> None:
        if self._run is not None:
            self._run.observe(action, migration, fake)
        # A signal may come at any point here.
        self._is_mid_line = self._is_mid_line or self.verbosity >= 1
        super().migration_progress_callback(action, migration, fake)
        self._is_mid_line = self._is_mid_line and action.endswith("_start")

    def _end_line(self) -> None:
        if self._is_mid_line:
            self._is_mid_line = False
            self.stdout.write()
            self.stdout.flush()

    def _say(self, line: str) -> None:
        self._end_line()
        self.stderr.write(line, style_func=str)
        self.stderr.flush()


def _refuse_unknown(alias: str, label: str, name: str | None) -> None:
    if label not in {app.label for app in apps.get_app_configs()}:
        raise WrongUsage(
            f"There is no app {label}. Nothing was changed. Those that there are: "
            "manage.py showmigrations"
        )
    names = [key[1] for key in files.on_disk(alias) if key[0] == label]
    if name and name != "zero" and not any(known.startswith(name) for known in names):
        raise WrongUsage(
            f"There is no migration {name} in {label}. Nothing was changed. Those that there are: "
            f"manage.py showmigrations {label}"
        )

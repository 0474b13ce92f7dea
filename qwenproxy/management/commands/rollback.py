"""Undoes migrations, after a backup, in one transaction; shows what will be lost first."""

from __future__ import annotations

import sys
from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.migrations import Migration

from qwenproxy.schema import engine, plan
from qwenproxy.schema.commands import SchemaCommand
from qwenproxy.schema.refusals import Refused, WrongUsage
from qwenproxy.schema.rollback import Rollback, Target, roll_back
from qwenproxy.schema.runner import Options, Run


class Command(SchemaCommand):
    help = (
        "Undo the last migration, or with an app and a name everything after it. What is undone is "
        "held: the gateway does not apply it again by itself, `migrate` does."
    )
    requires_migrations_checks = False
    # "Undoing ..." is written, and no end of the line.
    _is_mid_line = False

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("app_label", nargs="?", default="")
        parser.add_argument(
            "migration_name", nargs="?", default="", help="the state to go back to, or zero"
        )
        which = parser.add_mutually_exclusive_group()
        which.add_argument("--steps", type=int, default=1, help="the last ones applied (1)")
        which.add_argument("--run", default="", help="everything of one run (or its first letters)")
        parser.add_argument("--sql", action="store_true", help="print the SQL, change nothing")
        parser.add_argument("--yes", action="store_true", help="do not ask")
        parser.add_argument("--noinput", "--no-input", action="store_false", dest="interactive")
        parser.add_argument(
            "--force", action="store_true", help="needed where QWENPROXY_DEBUG is off"
        )
        parser.add_argument(
            "--backup",
            choices=("auto", "always", "never"),
            default="auto",
            help="auto: where it is SQLite (default); always: PostgreSQL as well, by pg_dump",
        )
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, choices=tuple(connections))

    def handle(self, *args: Any, **options: Any) -> None:
        if bool(options["app_label"]) != bool(options["migration_name"]):
            raise WrongUsage("Name an app and the migration to go back to, or zero.")
        if options["steps"] < 1:
            raise WrongUsage("--steps must be at least 1.")
        connection = connections[options["database"]]
        target = Target(
            options["steps"], options["run"], options["app_label"], options["migration_name"]
        )
        engine.ensure_open(connection)
        rollback = Rollback(connection, target)
        rollback.refuse_irreversible()
        if options["sql"]:
            for line in plan.script(plan.describe(connection, rollback.plan)):
                self.stdout.write(line)
            return
        self._show(rollback)
        if not settings.DEBUG and not options["force"]:
            raise Refused("Nothing was changed. To do it on a system in use: --force")
        if not options["yes"] and options["interactive"]:
            self._ask()
        run = Run(
            connection,
            Options(
                transactions="all",
                backup=options["backup"],
                lock_wait_s=settings.MIGRATE_LOCK_WAIT_S,
                lock_timeout_s=settings.MIGRATE_LOCK_TIMEOUT_S,
            ),
            self._say,
        )

        def observe(
            action: str, migration: Migration | None = None, fake: bool | None = False
        ) -> None:
            run.observe(action, migration, fake)
            if action == "unapply_start":
                self._is_mid_line = True
                self.stdout.write(f"  Undoing {migration} ...", ending="")
                self.stdout.flush()
            elif action == "unapply_success":
                self.stdout.write(self.style.SUCCESS(" OK"))
                self._is_mid_line = False

        try:
            roll_back(connection, target, run, observe)
        finally:
            self._end_line()
        self.stdout.write("Held: the gateway will not apply them again by itself; `migrate` does.")
        self.stdout.write("Start the version before them now.")

    def _end_line(self) -> None:
        if self._is_mid_line:
            self._is_mid_line = False
            self.stdout.write()

    def _say(self, line: str) -> None:
        self._end_line()
        self.stdout.write(line)
        self.stdout.flush()

    def _show(self, rollback: Rollback) -> None:
        self.stdout.write("To be undone:")
        for migration, _ in rollback.plan:
            self.stdout.write(f"  {migration}")
        losses = rollback.losses()
        self.stdout.write("To be lost:" if losses else "No data will be lost.")
        for loss in losses:
            self.stdout.write(self.style.WARNING(f"  {loss}"))

    def _ask(self) -> None:
        if not sys.stdin.isatty():
            raise WrongUsage("Nothing was changed. Nobody can be asked here: add --yes.")
        if input("Undo them? [y/N] ").strip().lower() not in ("y", "yes"):
            raise Refused("Nothing was changed.")

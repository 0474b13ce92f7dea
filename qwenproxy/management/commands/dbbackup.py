"""Backs the database up while it is in use, or lists the backups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser
from django.db import connection

from qwenproxy.schema import backup, engine, plan
from qwenproxy.schema.commands import SchemaCommand
from qwenproxy.schema.locking import migration_lock


class Command(SchemaCommand):
    help = "Back the database up while it is in use; the copy is checked before it gets its name."
    requires_migrations_checks = False

    def add_arguments(self, parser: CommandParser) -> None:
        which = parser.add_mutually_exclusive_group()
        which.add_argument("--list", action="store_true", help="list the backups, newest first")
        which.add_argument(
            "--prune", action="store_true", help="remove those beyond QWENPROXY_MIGRATE_BACKUP_KEEP"
        )
        which.add_argument("--to", type=Path, metavar="PATH", help="write this file instead")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["list"]:
            for found in backup.existing(connection):
                size = plan.size(found.size_bytes)
                self.stdout.write(f"{found.at:%Y-%m-%d %H:%M}  {size:>11}  {found.path}")
            return
        engine.ensure_open(connection)
        with migration_lock(connection, settings.MIGRATE_LOCK_WAIT_S, self.stderr.write):
            if options["prune"]:
                for path in backup.prune(connection):
                    self.stdout.write(f"Removed {path}")
                return
            to = options["to"].absolute() if options["to"] else None
            path = backup.make(connection, "by-hand", to=to)
            if to is None:
                backup.prune(connection)
        self.stdout.write(f"Backed up and checked: {path}")

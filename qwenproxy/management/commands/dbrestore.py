"""Puts a backup of the SQLite database back, after a backup of what is there now."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import CommandParser
from django.db import connection

from qwenproxy.schema import backup, dump, engine
from qwenproxy.schema.commands import SchemaCommand
from qwenproxy.schema.history import History
from qwenproxy.schema.locking import migration_lock
from qwenproxy.schema.refusals import WrongUsage
from qwenproxy.schema.runner import make_event
from qwenproxy.schema.state import read_state


class Command(SchemaCommand):
    help = "Put a backup back; what is there now is backed up first."
    requires_migrations_checks = False

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", type=Path, help="as `dbbackup --list` names it")
        parser.add_argument("--yes", action="store_true", help="needed: the data is replaced")

    def handle(self, *args: Any, file: Path, yes: bool, **options: Any) -> None:
        engine.ensure_open(connection)
        if not file.exists() and file == Path(file.name):
            file = backup.directory(connection) / file
        if connection.vendor != "sqlite":
            raise WrongUsage(
                "Nothing was changed. Stop the gateway, then let PostgreSQL's own tool do it: "
                f"{dump.restore_line(connection, file)}"
            )
        backup.check(file)
        if not yes:
            raise WrongUsage(
                f"All data will be as it was in {file}. Nothing was changed; add --yes to do it."
            )
        with migration_lock(connection, settings.MIGRATE_LOCK_WAIT_S, self.stderr.write):
            kept = (
                backup.make(connection, "before-restore") if backup.size_bytes(connection) else ""
            )
            backup.put_back(connection, file)
            connection.check_constraints()
            history = History(connection)
            history.settle_interrupted()
            event = make_event(
                connection, run=uuid.uuid4(), app="", name=file.name, action="restore", status="ok"
            )
            event.backup = str(kept)
            history.insert([event])
            backup.prune(connection)
            backup.log(connection, {"action": "restore", "file": str(file), "before": str(kept)})
        self.stdout.write(f"Restored {file}")
        if kept:
            self.stdout.write(f"The data from before is in {kept}")
        pending = read_state().pending
        if pending:
            self.stdout.write(
                f"It is from before {', '.join('.'.join(name) for name in pending)}: put the version "
                "of that time in place, or the next start applies them again."
            )
        self.stdout.write("Restart the gateway.")

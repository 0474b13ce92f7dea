"""Short verbs for the schema: status, up, down. Each is another command's work."""

from __future__ import annotations

from typing import Any

from django.core.management import call_command
from django.core.management.base import CommandParser

from qwenproxy.schema.commands import SchemaCommand


class Command(SchemaCommand):
    help = "schema status: where the database stands; up: migrate; down: undo the last migration."
    requires_migrations_checks = False

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("verb", choices=("status", "up", "down", "help"))
        parser.add_argument("--yes", action="store_true", help="with down: do not ask")
        parser.add_argument("--force", action="store_true", help="with down: on a system in use")

    def handle(self, *args: Any, verb: str, yes: bool, force: bool, **options: Any) -> None:
        if verb == "status":
            call_command("showmigrations", status=True, stdout=self.stdout)
        elif verb == "up":
            call_command("migrate", interactive=False, stdout=self.stdout)
        elif verb == "down":
            call_command("rollback", yes=yes, force=force, stdout=self.stdout)
        else:
            self.print_help("manage.py", "schema")

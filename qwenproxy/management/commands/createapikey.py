"""`manage.py createapikey NAME`: a new API key, its secret alone on stdout."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from qwenproxy.access import keys
from qwenproxy.access.key_fields import InvalidKey
from qwenproxy.access.models import SCOPES


class Command(BaseCommand):
    help = "Create an API key and print its secret, which is not kept and cannot be shown again."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="what the key is for; shown in the admin")
        parser.add_argument(
            "--scopes",
            default="chat,records",
            help=f"comma-separated, of {', '.join(SCOPES)} (admin implies all); default: %(default)s",
        )

    def handle(self, *args: Any, name: str, scopes: str, **options: Any) -> None:
        wanted = [scope.strip() for scope in scopes.split(",") if scope.strip()]
        try:
            api_key, secret = keys.create_api_key(name=name, scopes=wanted)
        except InvalidKey as exc:
            raise CommandError(str(exc)) from exc
        self.stderr.write(f"{api_key.name}: scopes {api_key.scopes}. Shown this once:")
        self.stdout.write(secret)

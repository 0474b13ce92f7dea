"""`manage.py revokeapikey KEY`: refuse a key from now on, for good."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from qwenproxy.access import keys
from qwenproxy.access.key_fields import InvalidKey


class Command(BaseCommand):
    help = "Revoke an API key for good: it is refused from now on, and its records stay."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("key", help="its id, its first characters as shown, or its name")

    def handle(self, *args: Any, key: str, **options: Any) -> None:
        try:
            api_key = keys.find_api_key(key)
        except InvalidKey as exc:
            raise CommandError(str(exc)) from exc
        is_first = keys.revoke_api_key(api_key)
        when = (
            "revoked" if is_first else f"revoked before, at {api_key.revoked_at:%Y-%m-%d %H:%M} UTC"
        )
        self.stdout.write(f"{api_key}, id {api_key.pk}: {when}.")

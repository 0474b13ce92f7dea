"""`manage.py rotateapikey KEY`: a new secret for a key, alone on stdout."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from qwenproxy.access import keys
from qwenproxy.access.key_fields import InvalidKey, read_span


class Command(BaseCommand):
    help = (
        "Give an API key a new secret and print it; the present one is accepted for the overlap. "
        "The key keeps its records, scopes and limits."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("key", help="its id, its first characters as shown, or its name")
        parser.add_argument(
            "--overlap",
            default="24h",
            metavar="SPAN",
            help="how long the present secret still works, such as 1h, 7d or 0h; default: %(default)s",
        )

    def handle(self, *args: Any, key: str, overlap: str, **options: Any) -> None:
        try:
            span = read_span(overlap)
        except (ValueError, OverflowError) as exc:
            raise CommandError(f"--overlap {overlap!r}: {exc}") from exc
        try:
            api_key = keys.find_api_key(key)
            secret = keys.rotate_api_key(api_key, overlap=span)
        except InvalidKey as exc:
            raise CommandError(str(exc)) from exc
        self.stderr.write(
            f"{api_key.name}: id {api_key.pk}, its secret until now is accepted until "
            f"{api_key.previous_expires_at:%Y-%m-%d %H:%M} UTC. Shown this once:"
        )
        self.stdout.write(secret)

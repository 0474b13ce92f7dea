"""`manage.py createapikey NAME`: a new API key, its secret alone on stdout."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from qwenproxy.access import keys
from qwenproxy.access.key_fields import DAYS, MAX_LIMITS, InvalidKey
from qwenproxy.access.models import SCOPES, Recorded


class Command(BaseCommand):
    help = "Create an API key and print its secret, which is not kept and cannot be shown again."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="what the key is for; shown in the admin")
        parser.add_argument(
            "--scopes",
            default="chat,records",
            help=f"comma-separated, of {', '.join(SCOPES)} (admin implies all); default: %(default)s",
        )
        parser.add_argument(
            "--models",
            default="",
            help="comma-separated patterns of the models it may use, such as qwen3-*; default: all",
        )
        parser.add_argument(
            "--expires",
            metavar="WHEN",
            help="refuse it from then on: a date such as 2027-01-31 (UTC), or a span such as 30d",
        )
        for name in MAX_LIMITS:
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                type=int,
                metavar="N",
                help="0 lets nothing through; default: no limit",
            )
        parser.add_argument(
            "--recorded",
            choices=Recorded.values,
            default=Recorded.EVERYTHING.value,
            help="metadata: counts, times and digests, no content; default: %(default)s",
        )
        for name in DAYS:
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                type=int,
                metavar="N",
                help=f"after a session's last use; default: as QWENPROXY_{name.upper()} says",
            )

    def handle(self, *args: Any, name: str, scopes: str, models: str, **options: Any) -> None:
        numbers = {name: options[name] for name in (*MAX_LIMITS, *DAYS)}
        try:
            api_key, secret = keys.create_api_key(
                name=name,
                scopes=_items(scopes),
                allowed_models=_items(models),
                expires_at=options["expires"],
                recorded=options["recorded"],
                **numbers,
            )
        except InvalidKey as exc:
            raise CommandError(str(exc)) from exc
        self.stderr.write(
            f"{api_key.name}: id {api_key.pk}, scopes {api_key.scopes}. Shown this once:"
        )
        self.stdout.write(secret)


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]

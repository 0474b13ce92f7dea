"""`manage.py listapikeys`: every API key and what it may, newest first."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.utils import timezone

from qwenproxy.access.key_fields import kept_text, limits_text, state_text
from qwenproxy.access.models import ApiKey
from qwenproxy.access.usage import describe_keys
from qwenproxy.wire import json

_HEADINGS = ("ID", "NAME", "PREFIX", "STATE", "SCOPES", "MODELS", "LIMITS", "KEPT")


class Command(BaseCommand):
    help = "List the API keys and what they may; never their secrets."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--all", action="store_true", help="revoked keys as well")
        parser.add_argument(
            "--json", action="store_true", help="a list of what GET /v1/keys/{id} shows"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        rows = ApiKey.objects.order_by("-id")
        if not options["all"]:
            rows = rows.filter(revoked_at=None)
        api_keys, now = list(rows), timezone.now()
        if options["json"]:
            self.stdout.write(json.dumps_text(describe_keys(api_keys)))
            return
        table = [_HEADINGS]
        for row in api_keys:
            models = " ".join(row.allowed_models.splitlines()) or "*"
            scopes = row.scopes.replace(" ", ",")
            state = state_text(row, now)
            limits, kept = limits_text(row) or "-", kept_text(row) or "-"
            table.append((str(row.pk), row.name, row.prefix, state, scopes, models, limits, kept))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for cells in table:
            line = "  ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True))
            self.stdout.write(line.rstrip())

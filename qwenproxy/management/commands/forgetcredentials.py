"""`manage.py forgetcredentials`: the way out when an encryption key is lost for good."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from qwenproxy.access import accounts


class Command(BaseCommand):
    help = (
        "Delete the stored credentials of all upstream accounts and go on with the present "
        "QWENPROXY_ENCRYPTION_KEYS. Accounts, API keys and records stay."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--yes", action="store_true", help="really delete them")

    def handle(self, *args: Any, yes: bool, **options: Any) -> None:
        if not yes:
            raise CommandError(
                "This deletes the credentials of every upstream account. If the encryption key can be "
                "restored, do that instead; else call this again with --yes."
            )
        forgotten = accounts.forget_credentials()
        self.stdout.write(
            f"Credentials deleted, accounts: {forgotten}. Enter them anew in the admin; those from "
            "the environment are taken again at the next start."
        )

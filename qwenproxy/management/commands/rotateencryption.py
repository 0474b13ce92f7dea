"""`manage.py rotateencryption`: everything under the first encryption key, while the gateway serves."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from qwenproxy.access import encryption, first_start, rotation


class Command(BaseCommand):
    help = (
        "Encrypt the stored credentials anew under the first of QWENPROXY_ENCRYPTION_KEYS. May run while "
        "the gateway serves, and again after it was interrupted."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            encryption.check_canary()
        except ImproperlyConfigured as exc:
            raise CommandError(str(exc)) from exc
        renewed, lost = 0, []
        for step in rotation.renew_encryption():
            if step.problem:
                lost.append(step.account)
                self.stderr.write(f"{step.account}: cannot be read. {step.problem}")
            else:
                renewed += 1
                self.stdout.write(f"{step.account}: encrypted under the first key.")
        first_start.renew_seed_digests()
        first, *others = encryption.key_ids()
        self.stdout.write(f"Accounts: {renewed} renewed. The first key is {first}.")
        if others:
            self.stdout.write(
                f"The other keys ({', '.join(others)}) are not needed any more: when every process runs "
                "with the new first key, take them out of QWENPROXY_ENCRYPTION_KEYS and restart."
            )
        if lost:
            raise CommandError(
                f"Not readable with any of the keys: {', '.join(lost)}. Give the missing key back and call "
                "this again, or enter the credentials of these accounts anew."
            )

"""Another encryption key: everything encrypted anew under the first one of QWENPROXY_ENCRYPTION_KEYS.

One account at a time, each in a transaction of its own, so that it may run while the gateway serves and
goes on where it was stopped. The canary comes last: until then a start without the old keys is refused.
What cannot be read is passed over: none of the configured keys is the one it needs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from django.db import transaction

from qwenproxy.access import encryption
from qwenproxy.access.models import UpstreamAccount

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """One account that was not under the first key; `problem` says why it still is not."""

    account: str
    problem: str = ""


def renew_encryption() -> Iterator[Step]:
    """Encrypt everything under the first key that is not yet; afterwards the other keys are not needed."""
    for pk in UpstreamAccount.objects.exclude(secrets="").values_list("pk", flat=True):
        step = _renew(pk)
        if step is not None:
            yield step
    encryption.renew_canary()


def _renew(pk: int) -> Step | None:
    with transaction.atomic():
        account = UpstreamAccount.objects.select_for_update().filter(pk=pk).first()
        if account is None or not account.secrets or encryption.is_current(account.secrets):
            return None
        try:
            secrets = encryption.decrypt(account.secrets)
        except encryption.EncryptionError as exc:
            logger.error("the secrets of upstream account %r are lost: %s", account.name, exc)
            return Step(account.name, str(exc))
        # Neither a change of the account nor a reason to read it anew.
        UpstreamAccount.objects.filter(pk=pk).update(secrets=encryption.encrypt(secrets))
        return Step(account.name)

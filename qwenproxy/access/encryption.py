"""Secrets at rest: texts encrypted under QWENPROXY_ENCRYPTION_KEYS.

The first key encrypts, every key decrypts. A stored text is `v1:<key id>:<Fernet token>` and names its
key, so that a missing key can be told from damage. One canary row, readable by the right keys only, makes
a start with wrong keys fail before anything else does. No secret is ever logged or part of an error.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction

from qwenproxy.access.models import EncryptionCanary

_VERSION = "v1"
_CANARY_TEXT = "qwenproxy"
# A fixed id makes the row unique: two processes that start at once meet in it.
_CANARY_ID = 1


class EncryptionError(ImproperlyConfigured):
    """A stored secret cannot be read; the message says what to do."""


class WrongKey(EncryptionError):
    """A stored secret needs a key that QWENPROXY_ENCRYPTION_KEYS does not hold."""

    def __init__(self, key_id: str) -> None:
        super().__init__(
            f"Stored credentials were encrypted with the key {key_id}, which QWENPROXY_ENCRYPTION_KEYS "
            f"does not hold (it holds: {', '.join(key_ids()) or 'none'}). Either give that key back: add "
            "it to QWENPROXY_ENCRYPTION_KEYS, after the first one, or restore the file encryption_keys "
            "in the data directory from a backup. Or, if it is lost for good, run `manage.py "
            "forgetcredentials` and enter the credentials of the upstream accounts anew; nothing else is "
            "encrypted, the record stays readable."
        )
        self.key_id = key_id


class DamagedSecret(EncryptionError):
    """A stored secret is not what was once encrypted."""


def _derive(key: str, purpose: bytes, length: int) -> bytes:
    derivation = HKDF(algorithm=SHA256(), length=length, salt=None, info=b"qwenproxy " + purpose)
    return derivation.derive(key.encode("utf-8", "surrogateescape"))


@lru_cache(maxsize=32)
def _key_id(key: str) -> str:
    return _derive(key, b"key id", 4).hex()


@lru_cache(maxsize=32)
def _cipher(key: str) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(_derive(key, b"secrets", 32)))


def key_ids() -> list[str]:
    """List the ids of the configured keys in their order; the first encrypts."""
    return [_key_id(key) for key in settings.ENCRYPTION_KEYS]


def encrypt(text: str) -> str:
    if not settings.ENCRYPTION_KEYS:
        raise ImproperlyConfigured("QWENPROXY_ENCRYPTION_KEYS is not set")
    key = settings.ENCRYPTION_KEYS[0]
    token = _cipher(key).encrypt(text.encode("utf-8", "surrogatepass")).decode("ascii")
    return f"{_VERSION}:{_key_id(key)}:{token}"


def decrypt(ciphertext: str) -> str:
    """Read what `encrypt` wrote.

    Raises:
        WrongKey: the key it names is not configured.
        DamagedSecret: it was cut, changed or never ours.
    """
    version, _, rest = ciphertext.partition(":")
    wanted_id, _, token = rest.partition(":")
    if version != _VERSION or not token:
        raise DamagedSecret("a stored secret does not have the form v1:<key id>:<token>")
    for key in settings.ENCRYPTION_KEYS:
        if _key_id(key) == wanted_id:
            try:
                return _cipher(key).decrypt(token).decode("utf-8", "surrogatepass")
            except (InvalidToken, ValueError) as exc:
                raise DamagedSecret("a stored secret was changed or cut") from exc
    # Only the hexadecimal id is shown, whatever stood there.
    raise WrongKey(wanted_id[:8])


def is_current(ciphertext: str) -> bool:
    """Tell whether the text is encrypted under the first key."""
    return ciphertext.startswith(f"{_VERSION}:{key_ids()[0]}:")


def keyed_digests(text: str) -> list[str]:
    """Hash a secret under each configured key, first key first: comparable, but no oracle for guesses."""
    return [
        hmac.new(
            _derive(key, b"digest", 32), text.encode("utf-8", "surrogateescape"), hashlib.sha256
        ).hexdigest()
        for key in settings.ENCRYPTION_KEYS
    ]


def check_canary() -> bool:
    """Refuse wrong encryption keys; returns True where there was no canary and one was written.

    Inside a transaction the row stays locked until its end, which makes it the lock of the first start.

    Raises:
        WrongKey, DamagedSecret: the configured keys are not those of this database.
    """
    with transaction.atomic():
        canary, is_new = EncryptionCanary.objects.select_for_update().get_or_create(
            pk=_CANARY_ID, defaults={"ciphertext": encrypt(_CANARY_TEXT)}
        )
    if decrypt(canary.ciphertext) != _CANARY_TEXT:
        raise DamagedSecret(
            "The row that tells right encryption keys from wrong ones was changed. Restore the database "
            "from a backup, or run `manage.py forgetcredentials` and enter the credentials of the upstream "
            "accounts anew."
        )
    return is_new


def canary_is_current() -> bool:
    """Tell whether the canary is under the first key; where not, the keys were changed since."""
    return is_current(EncryptionCanary.objects.get(pk=_CANARY_ID).ciphertext)


def renew_canary() -> None:
    """Write the canary anew under the first key, whatever it was encrypted with."""
    EncryptionCanary.objects.update_or_create(
        pk=_CANARY_ID, defaults={"ciphertext": encrypt(_CANARY_TEXT)}
    )

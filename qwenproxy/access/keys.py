"""API keys: made, replaced and revoked here.

A key is 256 random bits, so a plain SHA-256 is enough to keep it by; the text itself leaves this module
once, to be shown, and is stored nowhere.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from datetime import timedelta

from django.db import transaction
from django.utils import timezone

from qwenproxy.access.models import SCOPES, ApiKey

_SENDABLE = re.compile(r"[\x21-\x7e]{1,512}")
ROTATION_OVERLAP = timedelta(hours=24)


class InvalidKey(ValueError):
    """The wish for a key cannot be met; the message says why and never holds the secret."""


def new_api_key() -> str:
    return f"qp-{secrets.token_urlsafe(32)}"


def hash_api_key(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def is_sendable(text: str) -> bool:
    """Tell whether the text fits a header as a key: visible ASCII, at most 512 characters."""
    return _SENDABLE.fullmatch(text) is not None


def visible_prefix(secret: str) -> str:
    """The part of a secret that may be shown: ten characters, and never more than a third of it."""
    return secret[: min(10, len(secret) // 3)]


def clean_scopes(scopes: Iterable[str]) -> str:
    """Bring scopes into the form and order in which they are stored.

    Raises:
        InvalidKey: there is none, or one that does not exist.
    """
    wanted = set(scopes)
    unknown = sorted(wanted - set(SCOPES))
    if unknown or not wanted:
        named = f"{', '.join(unknown)}: no such scope" if unknown else "a key needs a scope"
        raise InvalidKey(f"{named}; choose from {', '.join(SCOPES)}")
    return " ".join(scope for scope in SCOPES if scope in wanted)


def assign_secret(api_key: ApiKey, secret: str) -> None:
    """Put the secret's hash and prefix on the row, without saving it.

    Raises:
        InvalidKey: no client could send this secret.
    """
    if not is_sendable(secret):
        raise InvalidKey("a key consists of 1 to 512 visible ASCII characters, without spaces")
    api_key.secret_hash = hash_api_key(secret)
    api_key.prefix = visible_prefix(secret)


def create_api_key(
    *, name: str, scopes: Iterable[str], secret: str | None = None
) -> tuple[ApiKey, str]:
    """Store a new key and return its row and its text, which cannot be had again.

    Raises:
        InvalidKey: name, scopes or secret cannot be used.
    """
    name = name.strip()
    longest = ApiKey._meta.get_field("name").max_length or 0
    if not 0 < len(name) <= longest or not name.isprintable():
        raise InvalidKey(f"a key's name has 1 to {longest} printable characters")
    if secret is None:
        secret = new_api_key()
    api_key = ApiKey(name=name, scopes=clean_scopes(scopes))
    assign_secret(api_key, secret)
    with transaction.atomic():
        if ApiKey.objects.filter(secret_hash=api_key.secret_hash).exists():
            raise InvalidKey("this key exists already")
        api_key.save(force_insert=True)
    return api_key, secret


def rotate_api_key(api_key: ApiKey, *, overlap: timedelta = ROTATION_OVERLAP) -> str:
    """Give the row a new secret and return it; the one before is accepted until the overlap ends.

    Raises:
        InvalidKey: the key is revoked.
    """
    with transaction.atomic():
        row = ApiKey.objects.select_for_update().get(pk=api_key.pk)
        if row.revoked_at is not None:
            raise InvalidKey("a revoked key cannot be rotated; create a new one")
        secret = new_api_key()
        row.previous_hash = row.secret_hash
        row.previous_expires_at = timezone.now() + overlap
        assign_secret(row, secret)
        fields = ["secret_hash", "prefix", "previous_hash", "previous_expires_at"]
        row.save(update_fields=fields)
    api_key.refresh_from_db(fields=fields)
    return secret


def revoke_api_key(api_key: ApiKey) -> None:
    """Refuse the key from now on, its previous secret too; there is no way back."""
    if api_key.revoked_at is None:
        api_key.revoked_at = timezone.now()
        api_key.save(update_fields=["revoked_at"])

"""API keys: made, changed, replaced and revoked here; what their fields may hold is in `key_fields`.

A key is 256 random bits, so a plain SHA-256 is enough to keep it by; the text itself leaves this module
once, to be shown, and is stored nowhere.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from datetime import timedelta

from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from qwenproxy.access import key_fields
from qwenproxy.access.key_fields import InvalidKey
from qwenproxy.access.models import ApiKey

_SENDABLE = re.compile(r"[\x21-\x7e]{1,512}")
ROTATION_OVERLAP = timedelta(hours=24)
MAX_OVERLAP = timedelta(days=30)


class KeyNotInUse(InvalidKey):
    """The key is revoked or expired."""


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


def assign_secret(api_key: ApiKey, secret: str) -> None:
    """Put the secret's hash and prefix on the row, without saving it.

    Raises:
        InvalidKey: no client could send this secret.
    """
    if not is_sendable(secret):
        raise InvalidKey("a key consists of 1 to 512 visible ASCII characters, without spaces")
    api_key.secret_hash = hash_api_key(secret)
    api_key.prefix = visible_prefix(secret)


def create_api_key(*, secret: str | None = None, **fields: object) -> tuple[ApiKey, str]:
    """Store a new key and return its row and its text, which cannot be had again.

    `fields` are those of `key_fields.FIELDS`; a name is needed, scopes are chat and records by default.

    Raises:
        InvalidKey: a field or the secret cannot be used.
    """
    if secret is None:
        secret = new_api_key()
    api_key = ApiKey()
    key_fields.set_fields(api_key, {"name": None, **fields})
    assign_secret(api_key, secret)
    with transaction.atomic():
        same = Q(secret_hash=api_key.secret_hash) | Q(previous_hash=api_key.secret_hash)
        if ApiKey.objects.filter(same).exists():
            raise InvalidKey("this key exists already")
        api_key.save(force_insert=True)
    return api_key, secret


def change_api_key(api_key: ApiKey, fields: Mapping[str, object]) -> None:
    """Set some of `key_fields.FIELDS`; the others stay as other writers left them.

    Raises:
        InvalidKey: a field cannot be used; then nothing is changed.
    """
    key_fields.set_fields(api_key, fields)
    if fields:
        api_key.save(update_fields=list(fields))


def rotate_api_key(api_key: ApiKey, *, overlap: timedelta = ROTATION_OVERLAP) -> str:
    """Give the row a new secret and return it; the one before is accepted until the overlap ends.

    A secret from before an earlier rotation is refused from now on: two are accepted at most.

    Raises:
        InvalidKey: the key is revoked or expired, or the overlap is none.
    """
    if not timedelta(0) <= overlap <= MAX_OVERLAP:
        raise InvalidKey(f"the overlap is at most {MAX_OVERLAP.days} days", field="overlap_seconds")
    with transaction.atomic():
        row = ApiKey.objects.select_for_update().get(pk=api_key.pk)
        now = timezone.now()
        if row.revoked_at is not None:
            raise KeyNotInUse("a revoked key cannot be rotated; create a new one")
        if key_fields.is_expired(row, now):
            raise KeyNotInUse("an expired key cannot be rotated; let it expire later first")
        secret = new_api_key()
        row.previous_hash = row.secret_hash
        row.previous_expires_at = now + overlap
        assign_secret(row, secret)
        fields = ["secret_hash", "prefix", "previous_hash", "previous_expires_at"]
        row.save(update_fields=fields)
    api_key.refresh_from_db(fields=fields)
    return secret


def revoke_api_key(api_key: ApiKey) -> bool:
    """Refuse the key from now on, its previous secret too; there is no way back.

    Returns False where it was revoked before; the first date stays.
    """
    with transaction.atomic():
        row = ApiKey.objects.select_for_update().get(pk=api_key.pk)
        is_first = row.revoked_at is None
        if is_first:
            row.revoked_at = timezone.now()
            row.save(update_fields=["revoked_at"])
    api_key.revoked_at = row.revoked_at
    return is_first


def expire_api_key(api_key: ApiKey) -> bool:
    """Refuse the key from now on, until it is given another end.

    Returns False where it is revoked or has expired already.
    """
    with transaction.atomic():
        row = ApiKey.objects.select_for_update().get(pk=api_key.pk)
        now = timezone.now()
        is_first = key_fields.state_of(row, now) == "active"
        if is_first:
            row.expires_at = now
            row.save(update_fields=["expires_at"])
    api_key.expires_at = row.expires_at
    return is_first


def find_api_key(reference: str) -> ApiKey:
    """Find a key by its id, its visible prefix or its name, as an operator types it.

    Raises:
        InvalidKey: there is none, or several, which are then named by their ids.
    """
    text = reference.strip().removesuffix("…")
    if re.fullmatch("[0-9]{1,18}", text):
        by_id = ApiKey.objects.filter(pk=int(text)).first()
        if by_id is not None:
            return by_id
    # PostgreSQL cannot even be asked for a NUL; the prefix of a very short secret is empty.
    named = Q(prefix=text) | Q(name=text)
    found = list(ApiKey.objects.filter(named).order_by("id")) if text and "\0" not in text else []
    # Who names a key means the one that is in use.
    found = [row for row in found if row.revoked_at is None] or found
    if not found:
        raise InvalidKey(f"there is no key {text[:100]!r}; `listapikeys --all` names them")
    if len(found) > 1:
        ids = ", ".join(f"{row.pk} ({row.prefix}…)" for row in found)
        raise InvalidKey(f"{text[:100]!r} are several keys: give the id of one, {ids}")
    return found[0]

"""The key of a user's playground: one row per user, good for ten minutes, with a new secret each time.

The row is found by the entry of the audit log that its making left, never by its name, so a key that an
operator made is not touched whatever it is called. Limits, models and recording that an operator sets on
the row stay; its scope is always chat. A revoked row stays revoked.
"""

from __future__ import annotations

import secrets
from datetime import timedelta

from django.contrib.admin.models import ADDITION, LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AbstractBaseUser
from django.contrib.contenttypes.models import ContentType
from django.db import transaction
from django.utils import timezone

from qwenproxy.access.key_fields import MAX_NAME_CHARS
from qwenproxy.access.keys import KeyNotInUse, assign_secret
from qwenproxy.access.models import ApiKey

LIFE = timedelta(minutes=10)
# All of it is visible: lists and checks tell these keys by it.
PREFIX = "qp-play-"
_MADE = '[{"added": {"name": "playground key", "object": "for its user"}}]'


def lend_key(user: AbstractBaseUser) -> tuple[ApiKey, str]:
    """Give the user's row a new secret for `LIFE` and return both; another tab's secret ends when it would.

    Raises:
        KeyNotInUse: an operator has revoked the user's key.
    """
    with transaction.atomic():
        # Two tabs at once must not make two rows.
        get_user_model().objects.select_for_update().get(pk=user.pk)
        api_key = _find(user)
        if api_key is not None and api_key.revoked_at is not None:
            raise KeyNotInUse("the key of your playground was revoked; there is no way back")
        secret = PREFIX + secrets.token_urlsafe(32)
        if api_key is None:
            api_key = _make(user, secret)
        else:
            _renew(api_key, secret)
    return api_key, secret


def is_lent(api_key: ApiKey) -> bool:
    """Whether the key is a playground's: its end is near by design."""
    return api_key.prefix.startswith(PREFIX)


def _find(user: AbstractBaseUser) -> ApiKey | None:
    made = LogEntry.objects.filter(
        user_id=user.pk,
        content_type=ContentType.objects.get_for_model(ApiKey),
        action_flag=ADDITION,
        change_message=_MADE,
    )
    ids = [int(pk) for pk in made.values_list("object_id", flat=True) if pk]
    # One that was rotated by hand has another prefix: somebody uses it elsewhere.
    rows = ApiKey.objects.filter(pk__in=ids, prefix__startswith=PREFIX)
    return rows.order_by("-pk").first()


def _make(user: AbstractBaseUser, secret: str) -> ApiKey:
    name = f"Playground: {user.get_username()}"[:MAX_NAME_CHARS]
    api_key = ApiKey(name=name, scopes="chat", expires_at=timezone.now() + LIFE)
    assign_secret(api_key, secret)
    api_key.save(force_insert=True)
    LogEntry.objects.create(
        user_id=user.pk,
        content_type=ContentType.objects.get_for_model(ApiKey),
        object_id=str(api_key.pk),
        object_repr=str(api_key)[:200],
        action_flag=ADDITION,
        change_message=_MADE,
    )
    return api_key


def _renew(api_key: ApiKey, secret: str) -> None:
    latest = timezone.now() + LIFE
    api_key.previous_hash = api_key.secret_hash
    # An operator may have given the row a later end, or none.
    api_key.previous_expires_at = min(api_key.expires_at or latest, latest)
    api_key.expires_at, api_key.scopes = latest, "chat"
    assign_secret(api_key, secret)
    api_key.save(
        update_fields=[
            "secret_hash",
            "prefix",
            "previous_hash",
            "previous_expires_at",
            "expires_at",
            "scopes",
        ]
    )

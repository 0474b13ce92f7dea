"""Upstream accounts as data: their secrets in and out of the encrypted column, their health beside them.

Secrets are one encrypted JSON object of texts per account. They leave the database here alone, in a
`StoredAccount` whose `repr` shows none of them. New secrets begin anew: state ready, no failures. The demo
account ends where a real one begins.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias
from urllib.parse import urlsplit

from django.db import transaction
from django.db.models import Q
from django.db.models.signals import post_save
from django.utils import timezone

from qwenproxy.access import encryption, session_tokens
from qwenproxy.access.account_states import WARN_BEFORE, expiry_warning
from qwenproxy.access.models import UpstreamAccount
from qwenproxy.wire import json

logger = logging.getLogger(__name__)

# api_key; or cookies, token, user_agent, and headers: header name -> value.
Secrets: TypeAlias = dict[str, str | dict[str, str]]
SECRET_NAMES = ("api_key", "cookies", "token", "user_agent", "headers")
SECRETS_OF_KIND = {
    "qwen_web": ("cookies", "token", "user_agent", "headers"),
    "dashscope": ("api_key", "headers"),
    "openai_compatible": ("api_key", "headers"),
    "demo": (),
}

# What an account of this kind talks to where no other base URL is given.
DEFAULT_BASE_URLS = {
    "qwen_web": "https://chat.qwen.ai",
    "dashscope": "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
}


@dataclass(frozen=True, slots=True)
class AccountState:
    """An account's health as traffic shows it; the names are those of `UpstreamAccount`'s columns."""

    # One of `UpstreamAccount.STATES`.
    state: str = "ready"
    reason: str = ""
    # When this state began; null: since ever.
    since: datetime | None = None
    # When it is tried again; null: at once, or not before its credentials are replaced.
    until: datetime | None = None
    # Since the last success.
    failures: int = 0
    last_ok_at: datetime | None = None
    last_error_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class StoredAccount:
    """An enabled account with its secrets in clear; keep it inside the call to the upstream.

    Two are equal where the same calls go out with the same credentials; health is no part of that.
    """

    id: int
    name: str
    kind: str
    base_url: str
    # Lower goes first.
    priority: int
    secrets: Secrets = field(repr=False)
    # Share of new conversations within the priority; 0: none.
    weight: int = 1
    # Null: no limit.
    max_concurrent: int | None = None
    min_interval_ms: int = 0
    state: str = field(default="ready", compare=False)
    state_reason: str = field(default="", compare=False)
    state_since: datetime | None = field(default=None, compare=False)
    state_until: datetime | None = field(default=None, compare=False)
    failures: int = field(default=0, compare=False)


_STATE_COLUMNS = ("state", "state_reason", "state_since", "state_until", "failures")


def set_secrets(account: UpstreamAccount, secrets: Mapping[str, str | dict[str, str]]) -> None:
    """Replace all secrets of the account, which is ready again; empty values are left out.

    A row that is stored already is updated at once, a new one when it is saved.
    """
    _make_ready(account)
    _put_secrets(account, secrets)


def _put_secrets(account: UpstreamAccount, secrets: Mapping[str, str | dict[str, str]]) -> None:
    unknown = set(secrets) - set(SECRET_NAMES)
    if unknown:
        raise ValueError(f"not the name of a secret: {', '.join(sorted(unknown))}")
    kept = {name: value for name, value in secrets.items() if value}
    account.secrets = encryption.encrypt(json.dumps_text(kept)) if kept else ""
    is_web = account.kind == "qwen_web"
    account.secrets_expire_at = session_tokens.session_expiry(kept) if is_web else None
    if account.pk is not None:
        account.save(update_fields=["secrets", "secrets_expire_at", *_STATE_COLUMNS, "updated_at"])


def get_secrets(account: UpstreamAccount) -> Secrets:
    """Decrypt the account's secrets.

    Raises:
        WrongKey, DamagedSecret: they cannot be read.
    """
    if not account.secrets:
        return {}
    try:
        stored = json.loads_text(encryption.decrypt(account.secrets))
    except json.JSONError as exc:
        raise encryption.DamagedSecret("stored secrets are not JSON") from exc
    if not isinstance(stored, dict):
        raise encryption.DamagedSecret("stored secrets are not an object")
    secrets: Secrets = {}
    for name, value in stored.items():
        if isinstance(value, str):
            secrets[name] = value
        elif isinstance(value, dict):
            secrets[name] = {key: text for key, text in value.items() if isinstance(text, str)}
    return secrets


def load_accounts() -> list[StoredAccount]:
    """Read the enabled accounts in the order of their priority; blocks, so call it in `run_in_db`.

    An account whose secrets cannot be read is left out and logged: the others go on.
    """
    loaded = []
    for account in UpstreamAccount.objects.filter(enabled=True):
        try:
            secrets = get_secrets(account)
        except encryption.EncryptionError as exc:
            logger.error("upstream account %r is left out: %s", account.name, exc)
            continue
        loaded.append(_stored(account, secrets))
    return loaded


def load_account(account_id: int) -> StoredAccount | None:
    """Read one account, also a paused one; null: there is none. Blocks.

    Raises:
        WrongKey, DamagedSecret: its secrets cannot be read.
    """
    account = UpstreamAccount.objects.filter(pk=account_id).first()
    return None if account is None else _stored(account, get_secrets(account))


def _stored(account: UpstreamAccount, secrets: Secrets) -> StoredAccount:
    return StoredAccount(
        id=account.pk,
        name=account.name,
        kind=account.kind,
        base_url=account.base_url,
        priority=account.priority,
        secrets=secrets,
        weight=account.weight,
        max_concurrent=account.max_concurrent,
        min_interval_ms=account.min_interval_ms,
        state=account.state,
        state_reason=account.state_reason,
        state_since=account.state_since,
        state_until=account.state_until,
        failures=account.failures,
    )


def record_state(account_id: int, state: AccountState) -> None:
    """Store an account's health, unless a state that began later is stored already; blocks.

    It leaves `updated_at` alone and sends no signal: the account itself has not changed. A null time of
    the last success or error leaves the stored one.
    """
    is_newest = Q(state_since=None)
    if state.since is not None:
        is_newest |= Q(state_since__lte=state.since)
    seen = {"last_ok_at": state.last_ok_at, "last_error_at": state.last_error_at}
    UpstreamAccount.objects.filter(is_newest, pk=account_id).update(
        state=state.state,
        # NUL bytes cannot be stored, and an upstream may have said anything.
        state_reason=state.reason.replace("\0", "\ufffd"),
        state_since=state.since,
        state_until=state.until,
        failures=state.failures,
        **{name: time for name, time in seen.items() if time is not None},
    )


def clean_base_url(text: str) -> str:
    """Check a base URL and bring it into the form without a slash at its end.

    Raises:
        ValueError: it is not an http(s) address; the message says what is wrong.
    """
    base_url = text.strip().rstrip("/")
    try:
        parts = urlsplit(base_url)
        # Reading the port checks it.
        has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError as exc:
        # Without its text, which may quote a password.
        raise ValueError("not an address: its host or port cannot be read") from exc
    if parts.scheme not in ("http", "https") or not has_host or not base_url.isprintable():
        raise ValueError("an address begins with http:// or https://, then a host")
    if parts.username is not None or parts.query or parts.fragment or " " in base_url:
        raise ValueError("an address here has no user name, no '?' and no '#'")
    return base_url


def expiry_warnings(now: datetime) -> list[tuple[str, str]]:
    """Names of the enabled accounts whose credentials end soon or did, and what to do; blocks."""
    ending = UpstreamAccount.objects.filter(enabled=True, secrets_expire_at__lt=now + WARN_BEFORE)
    return [
        (account.name, expiry_warning(account.kind, account.secrets_expire_at, now))
        for account in ending
    ]


# Of credentials for which no configured key is the right one.
UNREADABLE = "give the encryption key back that the stored credentials need, or enter them anew"


def stored_names(account: UpstreamAccount) -> list[str] | None:
    """Which secrets an account has, never their values; null: they cannot be read."""
    try:
        return list(get_secrets(account))
    except encryption.EncryptionError:
        return None


def origin(base_url: str) -> tuple[str, str]:
    """Scheme and host with port: secrets stored for one origin are not sent to another."""
    parts = urlsplit(base_url)
    return parts.scheme, parts.netloc.lower()


def pause(account: UpstreamAccount) -> None:
    """Take an account out by hand; its state stays."""
    account.enabled = False
    account.save(update_fields=["enabled", "updated_at"])


def resume(account: UpstreamAccount) -> None:
    """Let an account be asked again at once, whatever it waits for: its operator says that it may."""
    account.enabled = True
    _make_ready(account)
    account.save(update_fields=["enabled", *_STATE_COLUMNS, "updated_at"])


def _make_ready(account: UpstreamAccount) -> None:
    account.state, account.state_reason, account.failures = "ready", "", 0
    account.state_since, account.state_until = timezone.now(), None


def claim_renewal(account_id: int, *, unchanged_since: datetime) -> bool:
    """Take on the renewal of an account's session; false: another process has, or it was edited.

    A claim ends by itself when the account has been left alone since the next caller's time. Blocks.
    """
    claimed = UpstreamAccount.objects.filter(
        pk=account_id, enabled=True, updated_at__lte=unchanged_since
    ).update(updated_at=timezone.now())
    return claimed == 1


def store_renewed(account_id: int, before: Secrets, cookies: Mapping[str, str]) -> bool:
    """Put a renewed session's cookies in; false where another session was stored meanwhile. Blocks."""
    with transaction.atomic():
        account = UpstreamAccount.objects.select_for_update().filter(pk=account_id).first()
        try:
            stored = {} if account is None else get_secrets(account)
        except encryption.EncryptionError:
            stored = {}
        # The rest of it may have been edited: without its new tokens the session would be lost.
        token = session_tokens.refresh_token(before)
        if account is None or not token or session_tokens.refresh_token(stored) != token:
            return False
        if account.state == "expired":
            _make_ready(account)
        # A quota or a challenge does not end with the token.
        _put_secrets(account, session_tokens.renewed(stored, cookies))
    return True


def forget_credentials() -> int:
    """Delete every account's secrets and accept the present encryption keys; returns how many had some."""
    with transaction.atomic():
        forgotten = UpstreamAccount.objects.exclude(secrets="").update(
            secrets="", secrets_expire_at=None
        )
        # A digest that matches nothing: the next start takes the environment's values again.
        UpstreamAccount.objects.exclude(seed_digest="").update(seed_digest="forgotten")
        encryption.renew_canary()
    return forgotten


def retire_demo() -> None:
    """Switch the demo account off where a real account exists; nothing ever switches it on again."""
    if UpstreamAccount.objects.exclude(kind="demo").exists():
        UpstreamAccount.objects.filter(kind="demo", enabled=True).update(enabled=False)


def _retire_demo_after_save(sender: type[UpstreamAccount], **kwargs: object) -> None:
    retire_demo()


def connect_signals() -> None:
    """Watch for the first real account, whoever creates it; called once, when the app is ready."""
    post_save.connect(
        _retire_demo_after_save, sender=UpstreamAccount, dispatch_uid="access.accounts.demo"
    )

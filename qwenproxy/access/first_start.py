"""What every start makes sure of: an administrator, an API key, and the accounts the environment names.

Each is created where there is none, and what was generated is returned once, to be printed. A changed
value in the environment is taken over by the account that was seeded from it; an unchanged one leaves
the operator's edits alone. All of it is one transaction, and the canary row is its lock, so two processes
that start at once do it once. It prints nothing itself.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction

from qwenproxy.access import accounts, encryption, keys, rotation
from qwenproxy.access.key_fields import InvalidKey
from qwenproxy.access.models import SCOPES, ApiKey, UpstreamAccount
from qwenproxy.wire import json

_NAMES = {
    "qwen_web": "qwen-web",
    "dashscope": "dashscope",
    "openai_compatible": "openai-compatible",
}
DEMO_NAME = "demo"


@dataclass(frozen=True, slots=True)
class FirstStart:
    """What this start created; the secrets are here for the last time."""

    admin_user: str
    # Only where it was generated: one from the environment is known already.
    admin_password: str | None = field(repr=False)
    # The first key, generated or from QWENPROXY_API_KEY; null where keys exist.
    api_key: str | None = field(repr=False)
    # Whether that key was generated here rather than given.
    api_key_is_new: bool
    # Names of the accounts that were created or changed from the environment.
    seeded: list[str]
    # The demo account is the one that answers.
    demo: bool


def prepare() -> FirstStart:
    """Create what is missing; to be called at every start, after the migrations. Blocks.

    Raises:
        ImproperlyConfigured: wrong encryption keys (`EncryptionError`), or a value that cannot be used.
    """
    with transaction.atomic():
        is_first = encryption.check_canary()
        if not encryption.canary_is_current():
            # Those that stay behind are logged.
            deque(rotation.renew_encryption(), maxlen=0)
        renew_seed_digests()
        had_user = get_user_model()._default_manager.exists()
        had_key = ApiKey.objects.exists()
        admin_password = None if had_user else _create_admin()
        api_key = None if had_key else _create_first_key()
        seeded = [name for kind, values in _seeds() if (name := _seed(kind, values))]
        _settle_demo(may_create=is_first or not had_user or not had_key)
        return FirstStart(
            admin_user=settings.ADMIN_USER,
            admin_password=admin_password,
            api_key=api_key,
            api_key_is_new=api_key is not None and not settings.FIRST_API_KEY,
            seeded=seeded,
            demo=UpstreamAccount.objects.filter(kind="demo", enabled=True).exists(),
        )


def _create_admin() -> str | None:
    # No validators: a password from the environment is the operator's choice, a generated one is long.
    password = settings.ADMIN_PASSWORD or secrets.token_urlsafe(15)
    get_user_model()._default_manager.create_superuser(
        username=settings.ADMIN_USER, email="", password=password
    )
    return None if settings.ADMIN_PASSWORD else password


def _create_first_key() -> str:
    try:
        _, secret = keys.create_api_key(
            name="first key", scopes=SCOPES, secret=settings.FIRST_API_KEY or None
        )
    except InvalidKey as exc:
        raise ImproperlyConfigured(f"QWENPROXY_API_KEY: {exc}") from exc
    return secret


def _seeds() -> list[tuple[str, Mapping[str, str]]]:
    qwen = settings.SEED_QWEN
    seeds: list[tuple[str, Mapping[str, str]]] = []
    if qwen["base_url"] or qwen["cookies"] or qwen["token"]:
        seeds.append(("qwen_web", qwen))
    if settings.SEED_DASHSCOPE["api_key"]:
        seeds.append(("dashscope", settings.SEED_DASHSCOPE))
    if settings.SEED_OPENAI_COMPATIBLE["base_url"]:
        seeds.append(("openai_compatible", settings.SEED_OPENAI_COMPATIBLE))
    return seeds


def renew_seed_digests() -> None:
    """Digest the environment's values under the first key where another was used; changes nothing else.

    Without it they would look changed once that other key is gone.
    """
    for kind, values in _seeds():
        account, digests = _seeded(kind), _digests(values)
        if account is not None and account.seed_digest in digests[1:]:
            UpstreamAccount.objects.filter(pk=account.pk).update(seed_digest=digests[0])


def _digests(values: Mapping[str, str]) -> list[str]:
    return encryption.keyed_digests(json.dumps_text(sorted(values.items())))


def _seeded(kind: str) -> UpstreamAccount | None:
    return UpstreamAccount.objects.filter(kind=kind).exclude(seed_digest="").order_by("id").first()


def _seed(kind: str, values: Mapping[str, str]) -> str | None:
    digests, account = _digests(values), _seeded(kind)
    if account is not None and account.seed_digest in digests:
        return None
    if account is None:
        account = UpstreamAccount(kind=kind, name=_free_name(f"{_NAMES[kind]} (environment)"))
    base_url = values["base_url"] or accounts.DEFAULT_BASE_URLS.get(kind, "")
    # What the environment does not name, such as pasted browser headers, stays; but never do the secrets
    # for one address go to another.
    is_same = accounts.origin(base_url) == accounts.origin(account.base_url)
    kept = _readable_secrets(account) if is_same else {}
    given = {name: value for name, value in values.items() if value and name != "base_url"}
    account.base_url = base_url
    account.seed_digest = digests[0]
    accounts.set_secrets(account, {**kept, **given})
    account.save()
    return account.name


def _readable_secrets(account: UpstreamAccount) -> accounts.Secrets:
    try:
        return accounts.get_secrets(account)
    except encryption.EncryptionError:
        # The environment brings new ones.
        return {}


def _free_name(name: str) -> str:
    taken = set(
        UpstreamAccount.objects.filter(name__startswith=name).values_list("name", flat=True)
    )
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name} {number}"
    return candidate


def _settle_demo(*, may_create: bool) -> None:
    # Never later than at the first start: a gateway whose real accounts were deleted must say that it
    # has no upstream, not answer with imitations.
    if may_create and not UpstreamAccount.objects.exists():
        UpstreamAccount.objects.create(name=DEMO_NAME, kind="demo")
    accounts.retire_demo()

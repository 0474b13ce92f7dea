"""System checks of the configuration: each says what to set. Those of `check --deploy` are for an address that
others reach."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from django.apps import AppConfig
from django.conf import settings
from django.contrib.auth.password_validation import validate_password
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured, ValidationError

# Generated keys have 43 characters behind their prefix.
_MIN_KEY_CHARS, _MIN_KEY_VARIETY = 24, 10
# What keys are called while nobody has chosen one.
_GUESSED = (
    *("secret", "password", "passwort", "change", "example", "qwenproxy", "default", "letmein"),
    *("123456", "abcdef", "qwerty"),
)
# Of the keys that the documentation prints.
_PRINTED = ("qp-g9hky2mj", "qp-hLt24wai", "qp-yujckJYH", "qp-Xw0cTCVw", "qp-9aWJwSd")


@register("qwenproxy")
def check_encryption_keys(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[CheckMessage]:
    if settings.ENCRYPTION_KEYS:
        return []
    return [
        Error(
            "No encryption key for the upstream credentials.",
            hint="Set QWENPROXY_ENCRYPTION_KEYS (or _FILE) to a random text of 32 characters or more, "
            "the same for every process that shares this database.",
            id="qwenproxy.E001",
        )
    ]


@register("qwenproxy")
def check_secret_key(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    # Django itself notices only when the first cookie is signed.
    try:
        if settings.SECRET_KEY:
            return []
    except ImproperlyConfigured:
        pass
    return [
        Error(
            "No key to sign the admin's cookies with.",
            hint="Set QWENPROXY_SECRET_KEY (or _FILE) to a random text of 32 characters or more, the "
            "same for every process that shares this database.",
            id="qwenproxy.E002",
        )
    ]


@register("qwenproxy")
def check_reachable(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    everywhere = settings.HOST in ("0.0.0.0", "::", "")  # noqa: S104  # compared, not bound
    if not everywhere or settings.PUBLIC_URL or len(settings.ALLOWED_HOSTS) > 3:
        return []
    return [
        Warning(
            f"QWENPROXY_HOST is {settings.HOST!r}, but only requests to localhost are answered.",
            hint="Set QWENPROXY_PUBLIC_URL to the address clients use, or QWENPROXY_ALLOWED_HOSTS to "
            "its host names, separated by commas.",
            id="qwenproxy.W001",
        )
    ]


@register(Tags.security, deploy=True)
def check_first_api_key(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[CheckMessage]:
    key = settings.FIRST_API_KEY
    wrong = _weakness(key) if key else ""
    if not wrong:
        return []
    return [
        Warning(
            f"QWENPROXY_API_KEY can be guessed: {wrong}.",
            hint="Leave it unset, then the first start makes one and prints it; or set the output of"
            " `openssl rand -hex 32`. A key that exists already is replaced in the admin, or by `manage.py"
            " rotateapikey`.",
            id="qwenproxy.W002",
        )
    ]


def _weakness(key: str) -> str:
    """Why somebody may find out a key; empty where nobody does. Tells nothing of the key itself."""
    if len(key) < _MIN_KEY_CHARS:
        return f"it has fewer than {_MIN_KEY_CHARS} characters"
    if len(set(key)) < _MIN_KEY_VARIETY:
        return f"it has fewer than {_MIN_KEY_VARIETY} different characters"
    if key.startswith(_PRINTED):
        return "the documentation prints it"
    return "it holds a word that is tried first" if _is_guessed(key) else ""


def _is_guessed(key: str) -> bool:
    folded = "".join(filter(str.isalnum, key.casefold()))
    return any(word in folded for word in _GUESSED)


@register(Tags.security, deploy=True)
def check_admin_password(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[CheckMessage]:
    if not settings.ADMIN_PASSWORD:
        return []
    try:
        validate_password(settings.ADMIN_PASSWORD)
    except ValidationError as exc:
        return [
            Warning(
                f"QWENPROXY_ADMIN_PASSWORD can be guessed: {' '.join(exc.messages)}",
                hint="Leave it unset, then the first start makes one and prints it, or set a longer one. The"
                " password of a user who exists already: `manage.py changepassword`.",
                id="qwenproxy.W003",
            )
        ]
    return []


@register(Tags.security, deploy=True)
def check_admin_address(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[CheckMessage]:
    """Its own address is one that was chosen; not if it is all of them."""
    is_apart = settings.ADMIN_BIND is not None and not _is_public(settings.ADMIN_BIND[0])
    if is_apart or _has_tls() or not _is_reached():
        return []
    return [
        Warning(
            "Others reach the admin, and its passwords cross the network readable.",
            hint="Set QWENPROXY_ADMIN_BIND to an address that only you reach, such as 127.0.0.1:8101, or put a"
            " proxy with TLS before it and set QWENPROXY_PUBLIC_URL to its https address.",
            id="qwenproxy.W004",
        )
    ]


@register(Tags.security, deploy=True)
def check_tls(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    if _has_tls() or not _is_reached():
        return []
    return [
        Warning(
            "Others reach the gateway by plain http: keys and conversations cross the network readable.",
            hint="Put a proxy with TLS before it and set QWENPROXY_PUBLIC_URL to its https address, or"
            " QWENPROXY_HOST to 127.0.0.1 where only this machine uses it.",
            id="qwenproxy.W005",
        )
    ]


def _has_tls() -> bool:
    return bool(settings.PUBLIC_URL.startswith("https:"))


def _is_reached() -> bool:
    """Whether other machines reach the gateway: itself, or by a proxy."""
    public_host = urlsplit(settings.PUBLIC_URL).hostname or ""
    return not (_is_loopback(settings.HOST) and _is_loopback(public_host or settings.HOST))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        # A name may be anybody's.
        return False


def _is_public(host: str) -> bool:
    """Whether an address is all of this machine's, or one of the internet."""
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_unspecified or address.is_global

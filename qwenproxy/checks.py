"""System checks of the configuration: each says what to set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register
from django.core.exceptions import ImproperlyConfigured


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

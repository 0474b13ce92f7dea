"""App configurations of the project package itself and of its admin."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.contrib import admin
from django.contrib.admin.apps import SimpleAdminConfig
from django.contrib.admin.checks import check_admin_app, check_dependencies
from django.core import checks


class GatewayConfig(AppConfig):
    """Carries the commands, templates and system checks; it has no models."""

    name = "qwenproxy"
    label = "gateway"

    def ready(self) -> None:
        # Checks register on import, which needs the app registry.
        import qwenproxy.checks  # noqa: F401


class GatewayAdminConfig(SimpleAdminConfig):
    """Its pages are imported with the routes: no command waits for them that shows none (a third of its start)."""

    default_site = "qwenproxy.admin_site.GatewayAdminSite"

    def ready(self) -> None:
        checks.register(check_dependencies, checks.Tags.admin)
        checks.register(_check_pages, checks.Tags.admin)


def _check_pages(**kwargs: Any) -> list[checks.CheckMessage]:
    admin.autodiscover()
    return check_admin_app(**kwargs)

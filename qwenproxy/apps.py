"""App configurations of the project package itself and of its admin."""

from __future__ import annotations

from django.apps import AppConfig
from django.contrib.admin.apps import AdminConfig


class GatewayConfig(AppConfig):
    """Carries the commands, templates and system checks; it has no models."""

    name = "qwenproxy"
    label = "gateway"

    def ready(self) -> None:
        # Checks register on import, which needs the app registry.
        from qwenproxy import checks  # noqa: F401


class GatewayAdminConfig(AdminConfig):
    default_site = "qwenproxy.admin_site.GatewayAdminSite"

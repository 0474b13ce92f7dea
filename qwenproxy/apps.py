"""App configurations of the project package itself and of its admin."""

from __future__ import annotations

from django.apps import AppConfig, apps
from django.contrib.admin.apps import AdminConfig


class GatewayConfig(AppConfig):
    """Carries the commands, templates and system checks; it has no models."""

    name = "qwenproxy"
    label = "gateway"

    def ready(self) -> None:
        # Checks register on import, which needs the app registry.
        from qwenproxy import checks  # noqa: F401

        # Models can be imported only now.
        from qwenproxy.access.staff import connect_groups

        connect_groups(apps.get_app_config("requests_app"))


class GatewayAdminConfig(AdminConfig):
    default_site = "qwenproxy.admin_site.GatewayAdminSite"

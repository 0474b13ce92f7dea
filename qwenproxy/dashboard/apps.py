"""Django app configuration."""

from __future__ import annotations

from django.apps import AppConfig, apps


class DashboardConfig(AppConfig):
    """Carries the pages of the admin that show several parts; it has no models."""

    name = "qwenproxy.dashboard"
    label = "dashboard"

    def ready(self) -> None:
        # Models can be imported only now.
        from qwenproxy.access.staff import connect_groups

        # In the last app: Django makes the permissions in a receiver of its own, which has to be before ours.
        connect_groups(apps.get_app_config("requests_app"))

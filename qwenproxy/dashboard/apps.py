"""Django app configuration."""

from __future__ import annotations

from django.apps import AppConfig


class DashboardConfig(AppConfig):
    """Carries the pages of the admin that show several parts; it has no models."""

    name = "qwenproxy.dashboard"
    label = "dashboard"

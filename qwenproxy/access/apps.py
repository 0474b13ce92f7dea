"""Django app configuration."""

from __future__ import annotations

from django.apps import AppConfig


class AccessConfig(AppConfig):
    name = "qwenproxy.access"
    label = "access"
    verbose_name = "Access"

    def ready(self) -> None:
        # Models can be imported only now.
        from qwenproxy.access import accounts

        accounts.connect_signals()

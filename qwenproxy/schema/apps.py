"""Django app configuration."""

from __future__ import annotations

from django.apps import AppConfig


class SchemaConfig(AppConfig):
    name = "qwenproxy.schema"
    label = "schema"
    verbose_name = "Schema"

    def ready(self) -> None:
        # Registers the checks; they need the settings.
        from qwenproxy.schema import checks  # noqa: F401

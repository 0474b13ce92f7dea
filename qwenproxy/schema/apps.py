"""Django app configuration."""

from __future__ import annotations

from django.apps import AppConfig


class SchemaConfig(AppConfig):
    name = "qwenproxy.schema"
    label = "schema"
    verbose_name = "Schema"

"""Django app configuration."""

from __future__ import annotations

from django.apps import AppConfig


class AccessConfig(AppConfig):
    name = "qwenproxy.access"
    label = "access"
    verbose_name = "Access"

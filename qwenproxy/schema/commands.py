"""What the commands that change or show the schema have in common."""

from __future__ import annotations

from typing import Any

from django.core.checks.registry import registry
from django.core.management.base import BaseCommand


class SchemaCommand(BaseCommand):
    """Runs the system checks without those of URLs: they load the whole gateway, a third of a start."""

    def get_check_kwargs(self, options: dict[str, Any]) -> Any:
        kwargs: Any = super().get_check_kwargs(options)
        return {**kwargs, "tags": sorted(registry.tags_available() - {"urls"})}

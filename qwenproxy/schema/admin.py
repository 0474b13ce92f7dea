"""The history of the schema in the browser: a list with filters, and one page per event; read-only."""

from __future__ import annotations

from datetime import datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin import ShowFacets
from django.db import Error as DatabaseError
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from qwenproxy.schema.history import History
from qwenproxy.schema.models import MigrationEvent

# Generic for the type checker alone.
if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[MigrationEvent]
else:
    ModelAdmin = admin.ModelAdmin


@admin.register(MigrationEvent)
class MigrationEventAdmin(ModelAdmin):
    list_display = ("time", "result", "migration", "took", "who", "of_run")
    list_display_links = ("time", "migration")
    list_filter = ("action", "status", "source", "app")
    date_hierarchy = "at"
    search_fields = ("app", "name", "actor", "host", "error")
    search_help_text = "An app, a migration, a person, a host, or words of an error."
    ordering = ("-id",)
    sortable_by = ()
    list_per_page = 50
    show_full_result_count = False
    show_facets = ShowFacets.NEVER

    @admin.display(description="time (UTC)")
    def time(self, event: MigrationEvent) -> str:
        # What hands have written is perhaps no time.
        at: datetime | None = event.at
        return f"{at:%Y-%m-%d %H:%M}" if at else "–"

    @admin.display(description="result")
    def result(self, event: MigrationEvent) -> SafeString:
        words = event.action if event.status == "ok" else f"{event.action} {event.status}"
        return format_html('<span class="pill pill-{}">{}</span>', event.status, words)

    @admin.display(description="migration or file")
    def migration(self, event: MigrationEvent) -> str:
        return f"{event.app}.{event.name}" if event.app else PurePath(event.name).name

    @admin.display(description="took")
    def took(self, event: MigrationEvent) -> str:
        return "–" if event.ms is None else f"{event.ms:,} ms"

    @admin.display(description="by")
    def who(self, event: MigrationEvent) -> str:
        return f"{event.actor}@{event.host} {event.source}"

    @admin.display(description="run")
    def of_run(self, event: MigrationEvent) -> SafeString:
        return format_html('<a href="?run={}">{}</a>', event.run, str(event.run)[:8])

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        context = {"title": "Migration events", **(extra_context or {})}
        return self._refer(request) or super().changelist_view(request, context)

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        refused = self._refer(request)
        return refused or super().change_view(request, object_id, form_url, extra_context)

    def _refer(self, request: HttpRequest) -> HttpResponse | None:
        """To the page that works without the table, or with fewer columns than this code has."""
        if len(History(connection).columns) == len(MigrationEvent._meta.concrete_fields):
            try:
                # SQLite keeps also what is no UUID and no JSON.
                list(MigrationEvent.objects.values_list("run", "at", "rows"))
            except (DatabaseError, TypeError, ValueError):
                pass
            else:
                return None
        messages.warning(
            request, "The table of the history is missing, damaged, or of another version."
        )
        return redirect(reverse("admin:migrations"))

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

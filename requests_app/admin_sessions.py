"""Sessions in the browser: their list, and the conversation as a conversation.

Read-only but for the deletion of whole sessions, which goes the way of the API.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import Truncator

from qwenproxy import display
from requests_app.admin_pages import PageAdmin
from requests_app.conversation import load_conversation
from requests_app.deletion import delete_session_rows
from sessions_app.admin import RecordAdmin
from sessions_app.chips import Filter, key_filter
from sessions_app.models import Session
from sessions_app.paging import Sort


class SessionAdmin(PageAdmin):
    page_template = "admin/sessions_app/session/conversation.html"
    list_display = ("last_activity", "beginning", "key_name", "message_count", "request_count")
    list_display_links = ("last_activity", "beginning")
    list_columns = (
        "title",
        "api_key__name",
        "message_count",
        "request_count",
        "last_accessed",
    )
    list_select_related = ("api_key",)
    search_fields = ("id",)
    search_help_text = "A session's id, or how it begins."

    def filters(self, request: HttpRequest) -> Sequence[Filter]:
        return [key_filter()]

    def sort(self, request: HttpRequest) -> Sort:
        return Sort("last_accessed", has_text_id=True)

    @admin.display(description="last activity")
    def last_activity(self, session: Session) -> str:
        return display.local_text(session.last_accessed)

    @admin.display(description="session")
    def beginning(self, session: Session) -> SafeString:
        return format_html(
            '{} <code class="quiet">{}</code>',
            Truncator(session.title).chars(80) or "(no user message)",
            session.id[:8],
        )

    def show(self, request: HttpRequest, row: Session) -> HttpResponse:
        line = load_conversation(
            row,
            leaf_id=_number(request, "leaf"),
            start=_number(request, "from") or 0,
            is_whole="full" in request.GET,
        )
        context = {
            "title": Truncator(row.title).chars(80) or "(no user message)",
            "session": row,
            "line": line,
            "requests_url": reverse("admin:requests_app_request_changelist") + f"?session={row.id}",
        }
        return self.page(request, row, context)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        # Past RecordAdmin, which has none.
        return super(RecordAdmin, self).has_delete_permission(request, obj)

    def get_deleted_objects(
        self, objs: Iterable[Session], request: HttpRequest
    ) -> tuple[list[str], dict[str, int], set[str], list[str]]:
        """Tell what goes without loading it, as Django would."""
        sessions = list(objs)
        requests = sum(session.request_count for session in sessions)
        counts = {"sessions": len(sessions), "requests with their responses": requests}
        return [f"Session {session}: {session.title}" for session in sessions], counts, set(), []

    def delete_model(self, request: HttpRequest, obj: Session) -> None:
        delete_session_rows(obj.pk, None)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Session]) -> None:
        for session_id in list(queryset.values_list("pk", flat=True)):
            delete_session_rows(session_id, None)


def _number(request: HttpRequest, name: str) -> int | None:
    text = request.GET.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None

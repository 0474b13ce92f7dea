"""The records in the browser: sessions with their conversations, requests with both sides' bodies.

Read-only but for the deletion of whole sessions, which goes the way of the API. What every list has in
common is in `sessions_app.admin`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import Truncator

from requests_app.conversation import MAX_CHARS, Fold, load_conversation, pretty, show_ms, size
from requests_app.deletion import delete_session_rows
from requests_app.models import Request, Response
from requests_app.records import load_request
from sessions_app.admin import RecordAdmin, SpanFilter
from sessions_app.models import Session
from sessions_app.paging import Sort

_TIME = "%Y-%m-%d %H:%M:%S"


def _pill(status: str) -> SafeString:
    return format_html('<span class="pill pill-{}">{}</span>', status, status.replace("_", " "))


class _PageAdmin(RecordAdmin):
    """A record whose page is our own, not a form."""

    page_template = ""

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        # PostgreSQL cannot even be asked for a text with NUL.
        row = self.get_object(request, unquote(object_id.replace("\0", "\ufffd")))
        if not self.has_view_permission(request, row):
            raise PermissionDenied
        if row is None:
            # Django's own way: a message and the index.
            return super().change_view(request, "-", form_url, extra_context)
        return self.show(request, row)

    def show(self, request: HttpRequest, row: Any) -> HttpResponse:
        raise NotImplementedError

    def page(self, request: HttpRequest, row: Model, context: dict[str, Any]) -> HttpResponse:
        return TemplateResponse(
            request,
            self.page_template,
            {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "original": row,
                "has_delete_permission": self.has_delete_permission(request, row),
                "is_whole": "full" in request.GET,
                **context,
            },
        )


@admin.register(Session)
class SessionAdmin(_PageAdmin):
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

    class LastActivityFilter(SpanFilter):
        def column_of(self, request: HttpRequest) -> str:
            return "last_accessed"

    list_filter = (LastActivityFilter, "api_key")

    def sort(self, request: HttpRequest) -> Sort:
        return Sort("last_accessed", has_text_id=True)

    @admin.display(description="last activity")
    def last_activity(self, session: Session) -> str:
        return session.last_accessed.strftime(_TIME)

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
        return [f"Session {session.id}: {session}" for session in sessions], counts, set(), []

    def delete_model(self, request: HttpRequest, obj: Session) -> None:
        delete_session_rows(obj.pk, None)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Session]) -> None:
        for session_id in list(queryset.values_list("pk", flat=True)):
            delete_session_rows(session_id, None)


class _StatusFilter(admin.SimpleListFilter):
    title = "status"
    parameter_name = "status"
    column = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, name.replace("_", " ").capitalize()) for name, _ in Response.STATUSES]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any] | None:
        return queryset.filter(Q((self.column, self.value()))) if self.value() else None


@admin.register(Request)
class RequestAdmin(_PageAdmin):
    page_template = "admin/requests_app/request/bodies.html"
    list_display = (
        "time",
        "short_id",
        "session_link",
        "key_name",
        "model",
        "status",
        "first_token",
        "total",
        "tokens",
    )
    list_display_links = ("time", "short_id")
    list_columns = (
        "request_id",
        "session_id",
        "api_key__name",
        "model",
        "created_at",
        "response__status",
        "response__ttft_ms",
        "response__duration_ms",
        "response__prompt_tokens",
        "response__completion_tokens",
        "response__created_at",
    )
    deferred = ("parameters", "attempts", "upstream_request")
    list_select_related = ("api_key", "response")
    search_fields = ("request_id",)
    id_prefixes = ("req_", "chatcmpl-", "cmpl-")
    search_help_text = "A request's or a response's id, or how it begins."

    class CreatedFilter(SpanFilter):
        def column_of(self, request: HttpRequest) -> str:
            return "response__created_at" if request.GET.get("status") else "created_at"

    class StatusFilter(_StatusFilter):
        column = "response__status"

    list_filter = (CreatedFilter, StatusFilter, "api_key")

    def searched(self, term: str) -> str:
        return "request_id" if term.startswith("req_") else "response__response_id"

    def sort(self, request: HttpRequest) -> Sort:
        # The index of statuses is the response's.
        if request.GET.get("status"):
            return Sort("response__created_at", "response__id")
        return Sort("created_at")

    @admin.display(description="time")
    def time(self, request_row: Request) -> str:
        return request_row.created_at.strftime(_TIME)

    @admin.display(description="request")
    def short_id(self, request_row: Request) -> SafeString:
        return format_html("<code>{}</code>", request_row.request_id[:12])

    @admin.display(description="session")
    def session_link(self, request_row: Request) -> SafeString:
        url = reverse("admin:sessions_app_session_change", args=[request_row.session_id])
        return format_html('<a href="{}"><code>{}</code></a>', url, request_row.session_id[:8])

    @admin.display(description="status")
    def status(self, request_row: Request) -> SafeString:
        return _pill(request_row.response.status)

    @admin.display(description="first token")
    def first_token(self, request_row: Request) -> str:
        return show_ms(request_row.response.ttft_ms)

    @admin.display(description="total")
    def total(self, request_row: Request) -> str:
        return show_ms(request_row.response.duration_ms)

    @admin.display(description="tokens")
    def tokens(self, request_row: Request) -> str:
        response_row = request_row.response
        return f"{response_row.prompt_tokens:,} → {response_row.completion_tokens:,}"

    def show(self, request: HttpRequest, row: Request) -> HttpResponse:
        record = load_request(row.pk)
        is_whole = "full" in request.GET
        panels = [
            _panel("openai_request", record["openai_request"], is_whole),
            _panel("qwen_request", record["qwen_request"], is_whole),
        ]
        response: Any = record["response"] or {}
        for name in ("openai_response", "qwen_response"):
            panels.append(_panel(name, response.get(name), is_whole))
        context = {
            "title": row.request_id,
            "record": record,
            "response": response,
            "created_at": row.created_at,
            "durations": {name: show_ms(response.get(name)) for name in ("ttft_ms", "duration_ms")},
            "panels": panels,
            "is_cut": any(len(fold.text) > MAX_CHARS for fold in panels),
        }
        return self.page(request, row, context)


def _panel(name: str, body: Any, is_whole: bool) -> Fold:
    if body is None:
        return Fold(name, "")
    text = pretty(body)
    label = f"{name} · {size(text)}"
    if not is_whole and len(text) > MAX_CHARS:
        text = f"{text[:MAX_CHARS]}\n…"
    return Fold(label, text.replace("\0", "\ufffd"))


@admin.register(Response)
class ResponseAdmin(_PageAdmin):
    """The right half of a request: its page is the request's."""

    list_display = ("time", "response_id", "status_pill", "error_code", "usage_source", "tokens")
    list_columns = (
        "response_id",
        "request_id",
        "status",
        "error_code",
        "usage_source",
        "prompt_tokens",
        "completion_tokens",
        "created_at",
    )
    deferred = ("reasoning", "upstream_response", "error_message")
    search_fields = ("response_id",)
    id_prefixes = ("chatcmpl-", "cmpl-")
    search_help_text = "A response's id, or how it begins."
    list_filter = (SpanFilter, _StatusFilter, "api_key")

    @admin.display(description="time")
    def time(self, response_row: Response) -> str:
        return response_row.created_at.strftime(_TIME)

    @admin.display(description="status")
    def status_pill(self, response_row: Response) -> SafeString:
        return _pill(response_row.status)

    @admin.display(description="tokens")
    def tokens(self, response_row: Response) -> str:
        return f"{response_row.prompt_tokens:,} → {response_row.completion_tokens:,}"

    def show(self, request: HttpRequest, row: Response) -> HttpResponse:
        return HttpResponseRedirect(
            reverse("admin:requests_app_request_change", args=[row.request_id])
        )


def _number(request: HttpRequest, name: str) -> int | None:
    text = request.GET.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None

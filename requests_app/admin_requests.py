"""Requests in the browser: their list, and each with both sides' bodies. Read-only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from qwenproxy import display
from requests_app.admin_pages import PageAdmin
from requests_app.conversation import MAX_CHARS, Fold, pretty, size
from requests_app.models import Request, Response
from requests_app.records import load_request
from requests_app.request_filters import DEFAULT_SPAN, request_filters, sort_of
from sessions_app.chips import Filter
from sessions_app.paging import Sort


def _pill(status: str) -> SafeString:
    return format_html('<span class="pill pill-{}">{}</span>', status, status.replace("_", " "))


class RequestAdmin(PageAdmin):
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

    default_span = DEFAULT_SPAN

    def filters(self, request: HttpRequest) -> Sequence[Filter]:
        return request_filters()

    def searched(self, term: str) -> str:
        return "request_id" if term.startswith("req_") else "response__response_id"

    def sort(self, request: HttpRequest) -> Sort:
        return sort_of(request.GET)

    @admin.display(description="time")
    def time(self, request_row: Request) -> str:
        return display.local_text(request_row.created_at)

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
        return display.duration(request_row.response.ttft_ms)

    @admin.display(description="total")
    def total(self, request_row: Request) -> str:
        return display.duration(request_row.response.duration_ms)

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
            "durations": {
                name: display.duration(response.get(name)) for name in ("ttft_ms", "duration_ms")
            },
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


class ResponseAdmin(PageAdmin):
    """The right half of a request: its pages are the requests'."""

    deferred = ("reasoning", "upstream_response", "error_message")

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        return HttpResponseRedirect(reverse("admin:requests_app_request_changelist"))

    def show(self, request: HttpRequest, row: Response) -> HttpResponse:
        return HttpResponseRedirect(
            reverse("admin:requests_app_request_change", args=[row.request_id])
        )

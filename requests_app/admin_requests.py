"""Requests in the browser: their list, and each with its timing and both sides' bodies. Read-only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import Truncator

from qwenproxy import display
from qwenproxy.access import staff
from qwenproxy.wire.redaction import code_of
from requests_app import bodies, waterfall
from requests_app.admin_pages import PageAdmin
from requests_app.arrived import load_arrived
from requests_app.models import Request, Response
from requests_app.records import load_request
from requests_app.request_filters import DEFAULT_SPAN, count_deleted, request_filters, sort_of
from requests_app.rollups import ERRORS
from sessions_app.chips import Chips, Filter
from sessions_app.paging import Sort, milliseconds

_OFF = "Hidden: QWENPROXY_PAYLOADS lets the admin show none of it."
_NOT_ALLOWED = "Hidden: you lack the permission to read what was said."


class RequestAdmin(PageAdmin):
    page_template = "admin/requests_app/request/detail.html"
    list_display = (
        "time",
        "short_id",
        "session_title",
        "key_name",
        "model_name",
        "status",
        "first_token",
        "total",
        "tokens",
        "speed",
    )
    list_display_links = ("short_id",)
    list_columns = (
        "request_id",
        "session_id",
        "session__title",
        "api_key__name",
        "model",
        "created_at",
        "response__status",
        "response__error_code",
        "response__ttft_ms",
        "response__duration_ms",
        "response__prompt_tokens",
        "response__completion_tokens",
        "response__created_at",
        "response__completed_at",
    )
    deferred = ("parameters", "attempts", "upstream_request", "headers")
    list_select_related = ("api_key", "response", "session")
    search_fields = ("request_id",)
    id_prefixes = ("req_", "chatcmpl-", "cmpl-", "msg_")
    search_help_text = "Id of a request or response"
    default_span = DEFAULT_SPAN

    actions = ("export_jsonl", "export_csv")

    def filters(self, request: HttpRequest) -> Sequence[Filter]:
        return request_filters()

    def links(self, request: HttpRequest, chips: Chips) -> Sequence[tuple[str, str]]:
        url = reverse("admin:export_requests")
        forms = ("jsonl", "csv") if self.has_payload_permission(request) else ("csv",)
        return [(f"Export {form.upper()}", url + chips.url(format=form)) for form in forms]

    def note(self, chips: Chips) -> str:
        count = count_deleted(chips)
        if not count:
            return ""
        words = (
            "request that ended in this time was in a session"
            if count == 1
            else ("requests that ended in this time were in sessions")
        )
        return f"{display.number(count)} more {words} deleted since: statistics count them, no list has them."

    def has_payload_permission(self, request: HttpRequest) -> bool:
        """For the actions that need it."""
        return staff.may_read(request, has_failed=True)

    @admin.action(description="Export the selected as JSONL", permissions=["payload"])
    def export_jsonl(self, request: HttpRequest, rows: QuerySet[Request]) -> HttpResponse:
        return _export(rows, "jsonl")

    @admin.action(description="Export the selected as CSV")
    def export_csv(self, request: HttpRequest, rows: QuerySet[Request]) -> HttpResponse:
        return _export(rows, "csv")

    def searched(self, term: str) -> str:
        return "request_id" if term.startswith("req_") else "response__response_id"

    def sort(self, request: HttpRequest) -> Sort:
        return sort_of(request.GET)

    def get_list_display(self, request: HttpRequest) -> tuple[str, ...]:
        if staff.may_read(request):
            return self.list_display
        # A title is the beginning of what was said.
        return tuple(name.replace("session_title", "session_id_link") for name in self.list_display)

    @admin.display(description="time")
    def time(self, request_row: Request) -> SafeString:
        at = request_row.created_at
        # Without the year: eleven columns have to fit.
        return format_html(
            '<time datetime="{}" title="{}">{}</time>',
            at.isoformat(timespec="milliseconds"),
            display.local_text(at),
            display.local_text(at, "%m-%d %H:%M:%S"),
        )

    @admin.display(description="request")
    def short_id(self, request_row: Request) -> SafeString:
        return format_html(
            '<code title="{}">{}</code>', request_row.request_id, request_row.request_id[:12]
        )

    @admin.display(description="session")
    def session_title(self, request_row: Request) -> SafeString:
        title = _one_line(request_row.session.title)
        return _session_link(request_row, Truncator(title).chars(26) or request_row.session_id[:8])

    @admin.display(description="session")
    def session_id_link(self, request_row: Request) -> SafeString:
        return _session_link(request_row, request_row.session_id[:8])

    @admin.display(description="model")
    def model_name(self, request_row: Request) -> SafeString:
        name = _one_line(request_row.model)
        return format_html('<bdi title="{}">{}</bdi>', name, Truncator(name).chars(24))

    @admin.display(description="status")
    def status(self, request_row: Request) -> SafeString:
        response_row = request_row.response
        return _pill(response_row.status, response_row.error_code)

    @admin.display(description="first token")
    def first_token(self, request_row: Request) -> str:
        return display.duration(request_row.response.ttft_ms)

    @admin.display(description="total")
    def total(self, request_row: Request) -> str:
        return display.duration(request_row.response.duration_ms)

    @admin.display(description="tokens in → out")
    def tokens(self, request_row: Request) -> str:
        response_row = request_row.response
        sent, got = (
            display.short(count)
            for count in (response_row.prompt_tokens, response_row.completion_tokens)
        )
        return f"{sent} → {got}"

    @admin.display(description="tok/s")
    def speed(self, request_row: Request) -> str:
        response_row = request_row.response
        return _speed(
            response_row.completion_tokens, response_row.ttft_ms, response_row.duration_ms
        )

    def show(self, request: HttpRequest, row: Request) -> HttpResponse:
        record: Any = load_request(row.pk)
        response = record["response"] or {}
        has_failed = response.get("status") in ERRORS
        hidden = _why_hidden(request, has_failed=has_failed)
        if not hidden:
            staff.audit_view(request, row)
        name = request.GET.get("download", "")
        if name in bodies.LABELS:
            return _download(record, name, hidden)
        return self.page(request, row, self._context(request, row, record, hidden))

    def _context(
        self, request: HttpRequest, row: Request, record: Any, hidden: str
    ) -> dict[str, Any]:
        response = record["response"] or {}
        reply_id = (
            Response.objects.filter(request=row.pk).values_list("reply_id", flat=True).first()
        )
        is_running = response.get("status") == "in_progress" and not hidden
        arrived = load_arrived([response["id"]]) if is_running else {}
        leaf_id = reply_id or row.prompt_id
        transcript = reverse("admin:sessions_app_session_change", args=[row.session_id])
        base_url = settings.PUBLIC_URL or request.build_absolute_uri("/").rstrip("/")
        has_body = not hidden and record["openai_request"] is not None
        return {
            "title": row.request_id,
            "record": record,
            "response": response,
            "row": row,
            "waterfall": _waterfall(row, record, hidden),
            "speed": _speed(
                response.get("completion_tokens", 0),
                response.get("ttft_ms"),
                response.get("duration_ms"),
            ),
            "headers": () if hidden else bodies.masked_headers(record["headers"]),
            "hidden": hidden,
            "panels": bodies.panels(record, hidden=hidden, is_whole="full" in request.GET),
            "turn_url": f"{transcript}?leaf={leaf_id}" if leaf_id else transcript,
            "curl": bodies.curl(base_url, record) if has_body else "",
            "arrived": arrived.get(response.get("id", 0)),
            "may_replay": has_body and request.user.has_perm(staff.USE_PLAYGROUND),
        }


def _export(rows: QuerySet[Request], form: str) -> HttpResponse:
    ids = ",".join(str(pk) for pk in rows.values_list("pk", flat=True))
    query = urlencode({"ids": ids, "format": form})
    return HttpResponseRedirect(f"{reverse('admin:export_requests')}?{query}")


def _why_hidden(request: HttpRequest, *, has_failed: bool) -> str:
    """Why this user sees no content; empty: they do."""
    if staff.may_read(request, has_failed=has_failed):
        return ""
    return _NOT_ALLOWED if not request.user.has_perm(staff.VIEW_PAYLOAD) else _OFF


def _download(record: Mapping[str, Any], name: str, hidden: str) -> HttpResponse:
    if hidden:
        raise PermissionDenied
    return HttpResponse(
        bodies.as_file(bodies.body_of(record, name)),
        content_type="application/json",
        headers={"Content-Disposition": f'attachment; filename="{bodies.file_name(record, name)}"'},
    )


def _waterfall(row: Request, record: Mapping[str, Any], hidden: str) -> waterfall.Waterfall | None:
    response = record["response"] or {}
    attempts = record["attempts"]
    if hidden:
        # Upstreams' messages may quote what they were sent.
        attempts = [{**each, "cause": code_of(each.get("cause"))} for each in attempts]
    return waterfall.draw(
        created_ms=milliseconds(row.created_at),
        attempts=attempts,
        ttft_ms=response.get("ttft_ms"),
        duration_ms=response.get("duration_ms"),
    )


def _pill(status: str, error_code: str | None) -> SafeString:
    words = status.replace("_", " ")
    if error_code and status in ERRORS:
        words = error_code
    return format_html('<span class="pill pill-{}" title="{}">{}</span>', status, status, words)


def _session_link(request_row: Request, text: str) -> SafeString:
    url = reverse("admin:sessions_app_session_change", args=[request_row.session_id])
    return format_html('<a href="{}"><bdi>{}</bdi></a>', url, text)


def _speed(tokens: int, ttft_ms: int | None, duration_ms: int | None) -> str:
    """Tokens a second from the first one on; of answers that came in one piece, in all."""
    if not tokens or not duration_ms:
        return display.NONE
    streamed_ms = duration_ms - (ttft_ms or 0)
    speed = tokens * 1000 / (streamed_ms if streamed_ms > 50 else duration_ms)
    return f"{speed:,.0f}" if speed >= 10 else f"{speed:.1f}"


def _one_line(text: str) -> str:
    return " ".join(text.replace("\0", "\ufffd").split())


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

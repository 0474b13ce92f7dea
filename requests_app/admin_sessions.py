"""Sessions in the browser: their list, and the conversation as a conversation.

Read-only but for the deletion of whole sessions, which goes the way of the API.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import Truncator

from qwenproxy import display
from qwenproxy.access import staff
from qwenproxy.wire import json
from requests_app import session_facts
from requests_app.admin_pages import PageAdmin
from requests_app.conversation import load_conversation
from requests_app.deletion import delete_session_rows
from requests_app.request_filters import ANY_ERROR, DEFAULT_SPAN, model_filter
from sessions_app.admin import KeysetChangeList, RecordAdmin, begins_with
from sessions_app.api import set_pinned
from sessions_app.chips import NOTHING, Chips, Filter, key_filter
from sessions_app.models import Session
from sessions_app.paging import Sort

_ID_BEGINNING = re.compile("[0-9a-f][0-9a-f-]{0,35}")
_MS = timedelta(milliseconds=1)
_NO_TITLE = "(no user message)"


class _SessionList(KeysetChangeList):
    """The list with what each session of the page amounts to."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        facts = session_facts.facts_of_many([row.pk for row in self.result_list])
        for row in self.result_list:
            row.facts = facts[row.pk]


class SessionAdmin(PageAdmin):
    page_template = "admin/sessions_app/session/transcript.html"
    list_display = (
        "last_activity",
        "beginning",
        "key_name",
        "last_model",
        "requests",
        "branches",
        "errors",
        "tokens",
        "duration",
    )
    list_display_links = ("beginning",)
    list_columns = (
        "title", "api_key__name", "created_at", "last_accessed", "content_removed_at", "pinned_at",
    )  # fmt: skip
    actions = ("pin", "unpin")
    list_select_related = ("api_key",)
    search_fields = ("id",)
    search_help_text = "Id, client's id, start of a title"
    default_span = DEFAULT_SPAN

    class Media:
        css: ClassVar = {"all": ("qwenproxy/sessions.css",)}

    def filters(self, request: HttpRequest) -> Sequence[Filter]:
        return [
            key_filter(),
            replace(model_filter(is_indexed=False), condition=session_facts.using, is_dear=True),
            _flag("errors", "Errors", "with errors", session_facts.failed()),
            _flag("branches", "Branches", "with branches", session_facts.branched()),
        ]

    def links(self, request: HttpRequest, chips: Chips) -> Sequence[tuple[str, str]]:
        if not staff.may_read(request):
            return ()
        return [("Export JSONL", reverse("admin:export_sessions") + chips.url())]

    def sort(self, request: HttpRequest) -> Sort:
        return Sort("last_accessed", has_text_id=True)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return _SessionList

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related("api_key")

    def get_list_display(self, request: HttpRequest) -> tuple[str, ...]:
        if staff.may_read(request):
            return self.list_display
        # A title is the beginning of what was said.
        return tuple("short_id" if name == "beginning" else name for name in self.list_display)

    def get_list_display_links(self, request: HttpRequest, list_display: Any) -> tuple[str, ...]:
        return ("beginning", "short_id")

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip().replace("\0", "")
        if not term:
            return queryset, False
        is_id = _ID_BEGINNING.fullmatch(term) is not None
        of_id = begins_with("id", term)
        # An index finds ids; the others may read every session, and are stopped in time.
        if is_id and Session.objects.filter(of_id).exists():
            return queryset.filter(of_id), False
        others = Q(external_id=term)
        if staff.may_read(request):
            others |= Q(title__istartswith=term)
        return queryset.filter(others), False

    @admin.display(description="last activity")
    def last_activity(self, session: Session) -> SafeString:
        return display.ago(session.last_accessed)

    @admin.display(description="session")
    def beginning(self, session: Session) -> SafeString:
        return format_html(
            '<code class="quiet">{}</code> <bdi title="{}">{}</bdi>',
            session.id[:8],
            _title(session),
            _title(session),
        )

    @admin.display(description="session")
    def short_id(self, session: Session) -> SafeString:
        return format_html('<code title="{}">{}</code>', session.id, session.id[:8])

    @admin.display(description="model")
    def last_model(self, session: Any) -> SafeString:
        name = " ".join(json.plain("".join(session.facts.models[:1])).split())
        return format_html('<bdi title="{}">{}</bdi>', name, Truncator(name).chars(22))

    @admin.display(description="requests")
    def requests(self, session: Any) -> SafeString:
        return format_html(
            '<a href="{}">{}</a>', _requests_url(session), display.number(session.facts.requests)
        )

    @admin.display(description="branches")
    def branches(self, session: Any) -> str:
        return display.number(session.facts.branches)

    @admin.display(description="errors")
    def errors(self, session: Any) -> SafeString | str:
        count = session.facts.errors
        if not count:
            return display.NONE
        url = f"{_requests_url(session)}&status={ANY_ERROR}"
        return format_html('<a class="bad" href="{}">{}</a>', url, display.number(count))

    @admin.display(description="tokens")
    def tokens(self, session: Any) -> str:
        facts = session.facts
        return f"{display.short(facts.prompt_tokens)} → {display.short(facts.completion_tokens)}"

    @admin.display(description="duration")
    def duration(self, session: Session) -> str:
        return display.duration((session.last_accessed - session.created_at) / _MS)

    def show(self, request: HttpRequest, row: Session) -> HttpResponse:
        may_read = staff.may_read(request)
        line = None
        if may_read:
            staff.audit_view(request, row)
            line = load_conversation(
                row,
                leaf_id=_number(request, "leaf"),
                start=_number(request, "from"),
                shown=request.GET.get("show", ""),
            )
        facts = session_facts.facts_of(row.pk)
        here = request.build_absolute_uri(request.path)
        context = {
            "title": _title(row) if may_read else f"Session {row.id[:8]}",
            "session": row,
            "facts": facts,
            "line": line,
            "lacks_permission": not request.user.has_perm(staff.VIEW_PAYLOAD),
            "requests_url": _requests_url(row),
            "first_error": _first_error_url(facts),
            "link": f"{here}?leaf={line.leaf_id}" if line and line.leaf_id else here,
        }
        return self.page(request, row, context)

    def has_pin_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(staff.CHANGE_SESSIONS)

    @admin.action(description="Pin the selected sessions: they do not expire", permissions=["pin"])
    def pin(self, request: HttpRequest, queryset: QuerySet[Session]) -> None:
        self._set_pinned(request, queryset, timezone.now())

    @admin.action(
        description="Unpin the selected sessions: they expire as their keys say",
        permissions=["pin"],
    )
    def unpin(self, request: HttpRequest, queryset: QuerySet[Session]) -> None:
        self._set_pinned(request, queryset, None)

    def _set_pinned(
        self, request: HttpRequest, queryset: QuerySet[Session], at: datetime | None
    ) -> None:
        done = "unpinned" if at is None else "pinned"
        changed = [
            session for session in queryset if set_pinned(Session.objects.filter(pk=session.pk), at)
        ]
        for session in changed:
            self.log_change(request, session, f"{done.capitalize()}.")
        self.message_user(request, f"{len(changed)} {done}.", messages.SUCCESS)

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


def _title(session: Session) -> str:
    none = "(content removed)" if session.content_removed_at is not None else _NO_TITLE
    return Truncator(" ".join(json.plain(session.title).split())).chars(80) or none


def _requests_url(session: Session) -> str:
    return reverse("admin:requests_app_request_changelist") + f"?session={session.pk}"


def _first_error_url(facts: session_facts.Facts) -> str:
    if facts.first_error is None:
        return ""
    request_pk, message_id = facts.first_error
    # Without a place it is the page that the message is on.
    return f"?leaf={message_id}#request-{request_pk}" if message_id else f"?#request-{request_pk}"


def _flag(name: str, label: str, text: str, condition: Q) -> Filter:
    return Filter(
        name,
        label,
        lambda value: [("1", text)],
        lambda value: condition if value == "1" else NOTHING,
        is_dear=True,
    )


def _number(request: HttpRequest, name: str) -> int | None:
    text = request.GET.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None

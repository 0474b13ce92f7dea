"""The audit log: who added, changed, deleted, viewed or exported what. Read-only, newest first.

Django's log of the admin, with the views and exports that `staff.audit` notes. Its only order that an index
holds is that of its ids, which grow with time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from django.contrib import admin
from django.contrib.admin.models import ADDITION, CHANGE, DELETION, LogEntry
from django.contrib.admin.views.main import ChangeList
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.db.models import Q
from django.forms import Media
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import NoReverseMatch, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import Truncator

from qwenproxy import display
from qwenproxy.access.admin_keys import MEDIA
from qwenproxy.access.staff import EXPORTED, VIEWED
from sessions_app.admin import KeysetChangeList, RecordAdmin
from sessions_app.chips import MAX_CHOICES, NOTHING, Filter, row_id
from sessions_app.paging import Sort

_ACTIONS = {
    ADDITION: ("added", "completed"),
    CHANGE: ("changed", "pending"),
    DELETION: ("deleted", "failed"),
    VIEWED: ("viewed", "neutral"),
    EXPORTED: ("exported", "neutral"),
}
_MAX_DETAILS_CHARS = 300


_ACTION_OF = {name: flag for flag, (name, _) in _ACTIONS.items()}


def _by_action(value: str) -> Q:
    flag = _ACTION_OF.get(value)
    return NOTHING if flag is None else Q(action_flag=flag)


def _by_user(value: str) -> Q:
    pk = row_id(value)
    return Q(user__username=value) if pk is None else Q(user=pk)


def _users(value: str) -> list[tuple[str, str]]:
    rows = get_user_model().objects.filter(is_staff=True).order_by("username")
    return [(str(pk), name) for pk, name in rows.values_list("pk", "username")[: MAX_CHOICES + 1]]


class AuditList(KeysetChangeList):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.title = "Audit log"


class AuditAdmin(RecordAdmin):
    list_display = ("time", "who", "action", "kind", "what", "details")
    list_display_links = None
    list_columns = (
        "action_time",
        "action_flag",
        "change_message",
        "object_id",
        "object_repr",
        "content_type__app_label",
        "content_type__model",
        "user__username",
    )
    list_select_related = ("user", "content_type")

    @property
    def media(self) -> Media:
        return super().media + MEDIA

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return AuditList

    def filters(self, request: HttpRequest) -> Sequence[Filter]:
        return [
            Filter("action", "Action", lambda _: [(name, name) for name in _ACTION_OF], _by_action),
            Filter("user", "User", _users, _by_user, is_indexed=True, placeholder="Name of a user"),
        ]

    def sort(self, request: HttpRequest) -> Sort:
        return Sort(None)

    def time_column(self, request: HttpRequest) -> str:
        return "action_time"

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        # The list shows all there is.
        return HttpResponseRedirect(reverse("admin:admin_logentry_changelist"))

    @admin.display(description="time")
    def time(self, entry: LogEntry) -> SafeString:
        return display.local(entry.action_time)

    @admin.display(description="who")
    def who(self, entry: LogEntry) -> str:
        return entry.user.get_username()

    @admin.display(description="did")
    def action(self, entry: LogEntry) -> SafeString:
        name, pill = _ACTIONS.get(entry.action_flag, (f"action {entry.action_flag}", "neutral"))
        return format_html('<span class="pill pill-{}">{}</span>', pill, name)

    @admin.display(description="kind")
    def kind(self, entry: LogEntry) -> str:
        kind = entry.content_type
        if kind is None:
            return display.NONE
        model = kind.model_class()
        # Rows of an app that is not installed any more.
        return kind.model if model is None else str(model._meta.verbose_name)

    @admin.display(description="what")
    def what(self, entry: LogEntry) -> SafeString | str:
        text = Truncator(entry.object_repr.strip()).chars(80)
        if not entry.object_id:
            return text or "a list"
        text = text or entry.object_id
        url = None if entry.action_flag == DELETION else _url(entry)
        return text if url is None else format_html('<a href="{}">{}</a>', url, text)

    @admin.display(description="details")
    def details(self, entry: LogEntry) -> str:
        return Truncator(_details(entry)).chars(_MAX_DETAILS_CHARS) or display.NONE


def _url(entry: LogEntry) -> str | None:
    kind = entry.content_type
    if kind is None:
        return None
    try:
        return reverse(f"admin:{kind.app_label}_{kind.model}_change", args=[entry.object_id])
    except NoReverseMatch:
        # It has no page.
        return None


def _details(entry: LogEntry) -> str:
    """The message for a person's eyes: Django's own form of it, a text, or what `staff.audit` was given."""
    try:
        found = json.loads(entry.change_message)
    except ValueError:
        return str(entry.change_message)
    if isinstance(found, dict):
        return ", ".join(_pairs(found))
    # "Added." and "Deleted." say no more than the pill.
    if found in ([{"added": {}}], [{"deleted": {}}]):
        return ""
    try:
        return str(entry.get_change_message())
    except (AttributeError, KeyError, TypeError):
        # JSON of another form.
        return str(entry.change_message)


def _pairs(details: dict[str, Any], above: str = "") -> Iterator[str]:
    for name, value in details.items():
        if isinstance(value, dict):
            yield from _pairs(value, f"{above}{name} ")
        else:
            yield f"{above}{name}: {value}"

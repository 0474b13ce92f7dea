"""Errors grouped by their code, model and account: how many, since when, and what to do about them.

Failed and interrupted requests are read by the index of statuses, the newest so many of the time; the page
says so where there were more. What share of the traffic they are is known from the roll-ups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone

from qwenproxy import display
from qwenproxy.access import staff
from qwenproxy.access.models import UpstreamAccount
from requests_app.figures import RANGES, Reader
from requests_app.models import Response
from requests_app.rollups import ERRORS
from requests_app.ways_out import WAYS_OUT
from requests_app.windows import Window

DEFAULT_RANGE = "24h"
MAX_ROWS = 10_000
MAX_GROUPS = 200
SLOTS = 24
_OTHER = "Open a request to see what happened."


@dataclass(slots=True)
class ErrorGroup:
    code: str
    model: str
    account_id: int | None
    account: str = ""
    count: int = 0
    # Of all requests of the time; null: there are none in the statistics.
    share: float | None = None
    first: datetime | None = None
    last: datetime | None = None
    # The newest of them.
    sample_id: int = 0
    slots: list[int] = field(default_factory=lambda: [0] * SLOTS)
    what_to_do: str = ""
    url: str = ""

    @property
    def bars(self) -> str:
        """The path of the drawing, bars 3 wide from 0 to 20; one path, as pages hold a hundred of them."""
        highest = max(self.slots)
        return "".join(
            f"M{index * 4} 0h3v{max(2, round(20 * count / highest))}h-3z"
            for index, count in enumerate(self.slots)
            if count
        )


@dataclass(frozen=True, slots=True)
class Found:
    groups: Sequence[ErrorGroup]
    rows: int
    # There were more than are read.
    is_capped: bool


def read_groups(start: datetime, end: datetime) -> Found:
    """Group the errors of requests that came in the time, most frequent first; two queries."""
    groups: dict[tuple[str, str, int | None], ErrorGroup] = {}
    rows: list[tuple[str | None, str | None, str, int | None, datetime, int]] = []
    for status in ERRORS:
        found = Response.objects.filter(
            status=status, created_at__gte=start, created_at__lt=end
        ).order_by("-created_at", "-id")
        columns = ("request__model", "request__account_id", "created_at", "request_id")
        rows += found.values_list("error_code", "error_type", *columns)[: MAX_ROWS + 1]
    # Of both, the newest so many.
    rows.sort(key=lambda row: row[4], reverse=True)
    length = (end - start) / SLOTS
    for code, kind, model, account_id, at, request_id in rows[:MAX_ROWS]:
        name = code or kind or ""
        group = groups.get((name, model, account_id))
        if group is None:
            group = groups[name, model, account_id] = ErrorGroup(name, model, account_id)
            group.last, group.sample_id = at, request_id
        group.count += 1
        group.first = at
        group.slots[min(int((at - start) / length), SLOTS - 1)] += 1
    ordered = sorted(groups.values(), key=lambda group: (-group.count, group.code, group.model))
    return Found(ordered[:MAX_GROUPS], min(len(rows), MAX_ROWS), len(rows) > MAX_ROWS)


@staff.gateway_view(staff.VIEW_REQUESTS)
def errors(request: HttpRequest) -> HttpResponse:
    """What fails, grouped, with the time as `range`."""
    # The site is not there when this module is loaded.
    from django.contrib import admin

    name = request.GET.get("range", DEFAULT_RANGE)
    if name not in RANGES:
        name = DEFAULT_RANGE
    now = timezone.now()
    start = now - RANGES[name]
    found = read_groups(start, now + timedelta(seconds=1))
    reader = Reader(now)
    total = reader.totals(Window.last(RANGES[name], now))
    # Statistics that are behind know only a part of the time.
    requests = 0 if reader.is_behind else max(total.requests, found.rows)
    _complete(found.groups, name, requests)
    context = {
        **admin.site.each_context(request),
        "title": "Errors",
        "found": found,
        "range": name,
        "ranges": list(RANGES),
        "total": total,
        "as_of": reader.as_of if reader.is_behind else None,
        "max_rows": MAX_ROWS,
    }
    return TemplateResponse(request, "admin/errors.html", context)


def _complete(groups: Sequence[ErrorGroup], span: str, requests: int) -> None:
    ids = {group.account_id for group in groups if group.account_id is not None}
    accounts = {row.pk: row for row in UpstreamAccount.objects.filter(pk__in=ids).defer("secrets")}
    list_url = reverse("admin:requests_app_request_changelist")
    for group in groups:
        group.share = group.count / requests if requests else None
        account = accounts.get(group.account_id) if group.account_id is not None else None
        group.account = account.name if account else ""
        group.what_to_do = _what_to_do(group.code, account)
        query: dict[str, object] = {"span": span, "model": group.model}
        if group.code:
            query["error"] = group.code
        query["status"] = "interrupted" if group.code == "interrupted" else "failed"
        if group.account_id is not None:
            query["account"] = group.account_id
        group.url = f"{list_url}?{urlencode(query)}"


def _what_to_do(code: str, account: UpstreamAccount | None) -> str:
    text = WAYS_OUT.get(code, _OTHER)
    if account is None or account.state == "ready":
        return text
    until = account.state_until
    when = f" until {display.local_text(until)}" if until and until > timezone.now() else ""
    return f"{text} The account is {account.state}{when}."

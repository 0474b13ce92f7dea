"""Errors grouped by their code, model and account: how many, since when, and what to do about them.

Failed and interrupted requests are read by the index of statuses, the newest so many of the time; the page
says so where there were more. What share of the traffic they are is known from the roll-ups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils import timezone

from qwenproxy import display
from qwenproxy.access import staff
from qwenproxy.access.models import UpstreamAccount
from requests_app.figures import RANGE_LABELS, RANGES, Reader
from requests_app.rollups import ERRORS
from requests_app.ways_out import WAYS_OUT
from requests_app.windows import Window

DEFAULT_RANGE = "24h"
MAX_ROWS = 10_000
MAX_GROUPS = 200
SLOTS = 24
_OTHER = "Open a request to see what happened."
# Failures that keep an account out, or come of it; others are the client's, the model's or the gateway's.
_OF_ACCOUNTS = frozenset(
    {
        "upstream_rate_limited",
        "upstream_auth_expired",
        "upstream_challenge",
        "upstream_timeout",
        "upstream_error",
        "upstream_protocol_error",
    }
)
# Which of so many parts of the time, from 0.
_SLOT = {
    "sqlite": "CAST((julianday(counted.created_at) - julianday(%s)) * 86400 / %s AS INTEGER)",
    "postgresql": "CAST(FLOOR(EXTRACT(EPOCH FROM counted.created_at - %s) / %s) AS INTEGER)",
}
# Counted by the database: of ten thousand rows Python made times and tuples for longer than they were read.
_GROUPS = """
WITH newest AS (
    SELECT * FROM (
        SELECT request_id, created_at, COALESCE(error_code, error_type, '') AS code
        FROM requests_app_response WHERE status = %s AND created_at >= %s AND created_at < %s
        ORDER BY created_at DESC, id DESC LIMIT %s
    ) failed UNION ALL SELECT * FROM (
        SELECT request_id, created_at, COALESCE(error_code, error_type, '') AS code
        FROM requests_app_response WHERE status = %s AND created_at >= %s AND created_at < %s
        ORDER BY created_at DESC, id DESC LIMIT %s
    ) interrupted
), counted AS (
    SELECT * FROM newest ORDER BY created_at DESC LIMIT %s
)
SELECT counted.code, q.model, q.account_id, {slot}, COUNT(*), MIN(counted.created_at),
    MAX(counted.created_at), MAX(q.id), (SELECT COUNT(*) FROM newest)
FROM counted JOIN requests_app_request q ON q.id = counted.request_id
GROUP BY 1, 2, 3, 4
"""


@dataclass(slots=True)
class ErrorGroup:
    code: str
    model: str
    account_id: int | None
    first: datetime
    last: datetime
    account: str = ""
    count: int = 0
    # Of all requests of the time; null: there are none in the statistics.
    share: float | None = None
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
    """Group the errors of requests that came in the time, most frequent first; one query."""
    groups: dict[tuple[str, str, int | None], ErrorGroup] = {}
    adapt = connection.ops.adapt_datetimefield_value
    span = (adapt(start), adapt(end))
    sql = _GROUPS.format(slot=_SLOT[connection.vendor])
    newest = [each for status in ERRORS for each in (status, *span, MAX_ROWS + 1)]
    length_s = (end - start).total_seconds() / SLOTS
    with connection.cursor() as cursor:
        cursor.execute(sql, [*newest, MAX_ROWS, span[0], length_s])
        rows = cursor.fetchall()
    for code, model, account_id, at, count, first, last, sample_id, _ in rows:
        place = (code, model, account_id)
        group = groups.get(place)
        if group is None:
            group = groups[place] = ErrorGroup(*place, first=first, last=last)
        group.count += count
        group.slots[max(0, min(at, SLOTS - 1))] += count
        group.first, group.last = min(group.first, first), max(group.last, last)
        group.sample_id = max(group.sample_id, sample_id)
    for group in groups.values():
        group.first, group.last = _moment(group.first), _moment(group.last)
    in_all = rows[0][-1] if rows else 0
    ordered = sorted(groups.values(), key=lambda group: (-group.count, group.code, group.model))
    return Found(ordered[:MAX_GROUPS], min(in_all, MAX_ROWS), in_all > MAX_ROWS)


def _moment(value: datetime | str) -> datetime:
    """A time as the drivers give it: SQLite's is a text, of UTC."""
    return datetime.fromisoformat(value).replace(tzinfo=UTC) if isinstance(value, str) else value


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
        "ranges": list(RANGE_LABELS.items()),
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
    if account is None or account.state == "ready" or code not in _OF_ACCOUNTS:
        return text
    until = account.state_until
    when = f" until {display.local_text(until)}" if until and until > timezone.now() else ""
    return f"{text} The account is {account.state}{when}."

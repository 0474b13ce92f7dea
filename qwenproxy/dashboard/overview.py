"""The first page: is it broken, how much, how fast, who. Statistics come from the roll-ups, so that its
cost does not grow with the record; each number links to the list that explains it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.db.models import Q, QuerySet
from django.db.models.expressions import RawSQL
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from qwenproxy import display
from qwenproxy.access import staff
from qwenproxy.access.account_states import PAUSED, expiry_warning, way_out
from qwenproxy.access.models import UpstreamAccount
from qwenproxy.dashboard.charts import Sparkline, shares, sparkline
from requests_app.figures import RANGE_LABELS, RANGES, Counts, Latency, Point, Reader, names_of
from requests_app.models import Response
from requests_app.request_filters import ANY_ERROR, BY, ENDED
from requests_app.windows import Interval, Window, slot_of, slot_start
from sessions_app.paging import milliseconds

_INTERVALS: Mapping[str, Interval] = {"1h": "slot", "24h": "slot", "7d": "hour", "30d": "day"}
_POINTS = {"slot": "quarter of an hour", "hour": "hour", "day": "day"}
_DEFAULT = "24h"
_ROWS = 8
_ROW = (
    '<tr><th scope="row">{}</th><td class="quiet">{}</td>'
    + '<td class="figure">{}</td>' * 5
    + "</tr>"
)
_NEWEST = 5
# Among so many of the newest requests the slowest are looked for: no index has their order.
_LOOKED_AT = 2000
# What the latest and the slowest show; columns with long texts come after them in the row.
_COLUMNS = (
    "request__model",
    "request_id",
    "request__request_id",
    "status",
    "error_code",
    "http_status",
    "ttft_ms",
    "duration_ms",
    "created_at",
)


@dataclass(frozen=True, slots=True)
class Delta:
    """Against the time of the same length before."""

    sign: str
    text: str
    # better, worse; empty: neither.
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Card:
    label: str
    value: str
    url: str
    note: str
    delta: Delta | None
    spark: Sparkline | None


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    url: str
    share: float
    cells: Sequence[str]


@dataclass(slots=True)
class Overview:
    """What the page shows of one range; parts that the user may not see are empty."""

    range: str
    # What the lists behind the figures are asked for: the same requests, by when they ended.
    window: Mapping[str, str]
    # What one point of the charts stands for.
    point: str
    ranges: list[tuple[str, str]]
    cards: list[Card] = field(default_factory=list)
    chart: dict[str, Any] = field(default_factory=dict)
    table: SafeString = SafeString()
    models: list[Bar] = field(default_factory=list)
    errors: list[Bar] = field(default_factory=list)
    keys: list[Bar] = field(default_factory=list)
    accounts: list[dict[str, Any]] = field(default_factory=list)
    latest_errors: list[dict[str, Any]] = field(default_factory=list)
    slowest: list[dict[str, Any]] = field(default_factory=list)
    looked_at: int = _LOOKED_AT
    # Nothing ended in this range.
    is_empty: bool = True
    # Up to when statistics go, where they are behind.
    as_of: datetime | None = None
    took_ms: float = 0.0


def read_overview(
    request: HttpRequest, now: datetime, accounts: Sequence[UpstreamAccount]
) -> Overview:
    """Everything below the banners; `accounts` are those that this user may see. Blocks."""
    began = time.perf_counter()
    name = request.GET.get("range", _DEFAULT)
    if name not in RANGES:
        name = _DEFAULT
    reader = Reader(now)
    window = Window.last(RANGES[name], now)
    found = Overview(
        name, _counted(reader, window), _POINTS[_INTERVALS[name]], list(RANGE_LABELS.items())
    )
    _read_traffic(found, reader, window)
    may = request.user.has_perm
    may_follow = may(staff.VIEW_REQUESTS)
    if may(staff.VIEW_KEYS):
        _read_keys(found, reader, window)
    if accounts:
        _read_accounts(found, reader, window, accounts, may_follow=may_follow)
    if may_follow:
        found.chart["requests_url"] = reverse("admin:requests_app_request_changelist")
        _read_requests(found, now - RANGES[name])
    found.as_of = reader.as_of if reader.is_behind else None
    found.took_ms = (time.perf_counter() - began) * 1000
    return found


def _read_traffic(found: Overview, reader: Reader, window: Window) -> None:
    interval, zone = _INTERVALS[found.range], settings.REPORTING_ZONE
    points = reader.series(window, interval, zone)
    latency, ttft = reader.latency_points(window, interval, zone, "ttft")
    # Volumes of a point that is not over are compared with nothing; how fast answers were does not need it.
    over = points[:-1] if points and points[-1].end > reader.now else points
    compared = Window(window.start, slot_of(over[-1].end) if over else window.start)
    now, before = _sum(over), reader.totals(compared.previous())
    latency_before = reader.latency(window.previous(), "ttft")
    total = _sum(points)
    found.is_empty = not total.requests
    found.cards = [
        _requests_card(found, points, total, now, before),
        _errors_card(found, points, total, now, before),
        _latency_card(found, ttft, latency, latency_before),
        _tokens_card(found, points, total, now, before),
    ]
    found.chart, found.table = _chart(points, ttft), _table(points, ttft)
    _read_models(found, reader, window)
    groups = reader.groups(window, "error")
    found.errors = _bars(
        groups,
        lambda code: code or "no code",
        # Without a code there is no list of just these.
        lambda code: _list(found, status=ANY_ERROR, error=code) if code else "",
        [lambda counts: display.number(counts.requests)],
    )


def _sum(points: Sequence[Point]) -> Counts:
    total = Counts()
    for point in points:
        for status in ("completed", "failed", "cancelled", "interrupted"):
            setattr(total, status, getattr(total, status) + getattr(point.counts, status))
        total.prompt_tokens += point.counts.prompt_tokens
        total.completion_tokens += point.counts.completion_tokens
    return total


def _requests_card(
    found: Overview, points: Sequence[Point], total: Counts, now: Counts, before: Counts
) -> Card:
    return Card(
        "Requests",
        display.number(total.requests),
        _list(found),
        f"{display.number(total.cancelled)} cancelled" if total.cancelled else "",
        _change(now.requests, before.requests),
        sparkline([one.counts.requests for one in points if one.is_complete]),
    )


def _errors_card(
    found: Overview, points: Sequence[Point], total: Counts, now: Counts, before: Counts
) -> Card:
    delta = None
    if now.error_rate is not None and before.error_rate is not None:
        by = (now.error_rate - before.error_rate) * 100
        delta = _delta(by, f"{abs(by):.1f} points", lower_is_better=True)
    return Card(
        "Error rate",
        display.percent(total.error_rate),
        _list(found, status=ANY_ERROR),
        f"{display.number(total.errors)} failed or interrupted",
        delta,
        sparkline([one.counts.error_rate for one in points if one.is_complete]),
    )


def _latency_card(
    found: Overview, series: Sequence[Latency], latency: Latency, before: Latency
) -> Card:
    delta = None
    if latency.p95_ms and before.p95_ms:
        by = (latency.p95_ms / before.p95_ms - 1) * 100
        delta = _delta(by, f"{abs(by):.0f} %", lower_is_better=True)
    note = f"p50 {display.duration(latency.p50_ms)}" if latency.p50_ms else "too few answers"
    return Card(
        "First token p95",
        display.duration(latency.p95_ms),
        _list(found, slower="5"),
        note,
        delta,
        sparkline([one.p95_ms for one in series[:-1]]),
    )


def _tokens_card(
    found: Overview, points: Sequence[Point], total: Counts, now: Counts, before: Counts
) -> Card:
    return Card(
        "Tokens",
        display.short(total.prompt_tokens + total.completion_tokens),
        _list(found),
        f"{display.short(total.prompt_tokens)} in → {display.short(total.completion_tokens)} out",
        _change(
            now.prompt_tokens + now.completion_tokens,
            before.prompt_tokens + before.completion_tokens,
        ),
        sparkline(
            [
                one.counts.prompt_tokens + one.counts.completion_tokens
                for one in points
                if one.is_complete
            ]
        ),
    )


def _change(now: int, before: int) -> Delta | None:
    if not before:
        return None
    by = (now / before - 1) * 100
    if now > 10 * before:
        return Delta("▲", f"{now / before:,.0f} times as many")
    return _delta(by, f"{abs(by):,.1f} %")


def _delta(by: float, text: str, *, lower_is_better: bool = False) -> Delta:
    # As it is written: what rounds to nothing has no direction.
    if not any(digit in "123456789" for digit in text):
        return Delta("=", "as before")
    tone = ("worse" if by > 0 else "better") if lower_is_better else ""
    return Delta("▲" if by > 0 else "▼", f"{text} {'more' if by > 0 else 'less'}", tone)


def _chart(points: Sequence[Point], ttft: Sequence[Latency]) -> dict[str, Any]:
    """Columns for charts.js; times in milliseconds since 1970."""
    return {
        "zone": str(settings.REPORTING_ZONE),
        "start": [milliseconds(one.start) for one in points],
        "end": [milliseconds(one.end) for one in points],
        "is_complete": [one.is_complete for one in points],
        "completed": [one.counts.completed for one in points],
        "failed": [one.counts.errors for one in points],
        "cancelled": [one.counts.cancelled for one in points],
        "p50_ms": [one.p50_ms for one in ttft],
        "p95_ms": [one.p95_ms for one in ttft],
    }


def _table(points: Sequence[Point], ttft: Sequence[Latency]) -> SafeString:
    """The same for people as rows of a table, newest first; what had no requests is left out."""
    rows = (
        (
            display.local_text(point.start, "%Y-%m-%d %H:%M"),
            "" if point.is_complete else "not over",
            display.number(point.counts.completed),
            display.number(point.counts.errors),
            display.number(point.counts.cancelled),
            display.duration(latency.p50_ms),
            display.duration(latency.p95_ms),
        )
        for point, latency in zip(reversed(points), reversed(ttft), strict=True)
        if point.counts.requests
    )
    # A hundred rows: by the template they took as long as all the statistics.
    return format_html_join("\n", _ROW, rows)


def _read_models(found: Overview, reader: Reader, window: Window) -> None:
    groups = reader.groups(window, "model")
    latencies = reader.latency_by_model(window, "ttft")

    def p95(model: str) -> str:
        latency = latencies.get(model)
        return display.duration(latency.p95_ms if latency else None)

    found.models = _bars(
        groups,
        lambda model: model or "(none named)",
        lambda model: _list(found, model=model) if model else "",
        [
            lambda counts: display.number(counts.requests),
            lambda counts: display.short(counts.prompt_tokens + counts.completion_tokens),
            lambda counts: display.percent(counts.error_rate),
        ],
        extra=p95,
    )


def _read_keys(found: Overview, reader: Reader, window: Window) -> None:
    groups = reader.groups(window, "key")
    names = names_of("key", list(groups)[:_ROWS])
    found.keys = _bars(
        groups,
        lambda ref: names.get(ref, f"key {ref}"),
        lambda ref: _list(found, key=ref),
        [
            lambda counts: display.number(counts.requests),
            lambda counts: display.short(counts.prompt_tokens + counts.completion_tokens),
            lambda counts: display.percent(counts.error_rate),
        ],
    )


def _bars(
    groups: Mapping[str, Counts],
    label: Callable[[str], str],
    url: Callable[[str], str],
    cells: Sequence[Callable[[Counts], str]],
    *,
    extra: Callable[[str], str] | None = None,
) -> list[Bar]:
    chosen = list(groups.items())[:_ROWS]
    lengths = shares([counts.requests for _, counts in chosen])
    return [
        Bar(
            label(ref),
            url(ref),
            length,
            [*(cell(counts) for cell in cells), *([extra(ref)] if extra else [])],
        )
        for (ref, counts), length in zip(chosen, lengths, strict=True)
    ]


def _read_accounts(
    found: Overview,
    reader: Reader,
    window: Window,
    rows: Sequence[UpstreamAccount],
    *,
    may_follow: bool,
) -> None:
    groups = reader.groups(window, "account")
    now = reader.now
    for row in rows:
        counts = groups.get(str(row.pk), Counts())
        state = row.state if row.enabled else PAUSED
        todo = way_out(row.kind, state, row.state_until)
        found.accounts.append(
            {
                "row": row,
                "state": state,
                "expires": display.relative(row.secrets_expire_at, now),
                "todo": todo or expiry_warning(row.kind, row.secrets_expire_at, now),
                "requests": display.number(counts.requests),
                "requests_url": _list(found, account=str(row.pk)) if may_follow else "",
                "errors": display.percent(counts.error_rate),
            }
        )


def _read_requests(found: Overview, since: datetime) -> None:
    errors = Q(id__in=_newest("failed", since)) | Q(id__in=_newest("interrupted", since))
    latest = Response.objects.filter(errors).order_by("-created_at", "-id")
    found.latest_errors = list(latest.values(*_COLUMNS)[:_NEWEST])
    newest = _ended(since).order_by("-created_at", "-id").values("id", "duration_ms")[:_LOOKED_AT]
    # Django orders no subquery twice; with one order alone all of the newest would be joined to their requests.
    sql, params = newest.query.sql_with_params()
    outer = "SELECT id FROM ({}) newest WHERE duration_ms IS NOT NULL ORDER BY duration_ms DESC LIMIT {}"
    slowest = RawSQL(outer.format(sql, _NEWEST), params)  # noqa: S611  # Django's own statement
    rows = Response.objects.filter(id__in=slowest).order_by("-duration_ms")
    found.slowest = list(rows.values(*_COLUMNS))


def _newest(status: str, since: datetime) -> Any:
    """Ids, by the index of statuses; for one query with those of another status."""
    rows = _ended(since).filter(status=status).order_by("-created_at", "-id")
    return rows.values("id")[:_NEWEST]


def _ended(since: datetime) -> QuerySet[Response]:
    return Response.objects.filter(created_at__gte=since)


def _counted(reader: Reader, window: Window) -> Mapping[str, str]:
    """The time in which the counted requests ended, to the millisecond."""
    until = milliseconds(reader.as_of) + (0 if reader.is_behind else 1)
    return {"from": str(milliseconds(slot_start(window.start))), "to": str(until), BY: ENDED}


def _list(found: Overview, **filters: str) -> str:
    query = urlencode({**found.window, **filters})
    return f"{reverse('admin:requests_app_request_changelist')}?{query}"


def account_banners(rows: Sequence[UpstreamAccount], now: datetime) -> list[str]:
    """What is wrong with accounts, or soon will be, and what to do."""
    banners = []
    for row in rows:
        if not row.enabled:
            continue
        if row.state in ("challenged", "expired"):
            todo = way_out(row.kind, row.state, row.state_until)
            banners.append(f"Account {row.name} is {row.state}: {todo}.")
        elif row.secrets_expire_at and row.secrets_expire_at - now < timedelta(days=1):
            todo = expiry_warning(row.kind, row.secrets_expire_at, now)
            banners.append(f"Account {row.name}: {todo}.")
    return banners

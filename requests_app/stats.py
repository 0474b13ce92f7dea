"""Statistics as REST gives them: sums over the responses of a session or key, and `GET /stats`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any

from django.db.models import Avg, Count, QuerySet, Sum
from django.http import QueryDict

from qwenproxy.errors import InvalidRequest
from qwenproxy.wire import json
from qwenproxy.wire.json import JSONObject
from requests_app.figures import (
    GROUPS,
    RANGES,
    Counts,
    Group,
    Latency,
    NotOfKey,
    Point,
    Reader,
    names_of,
)
from requests_app.models import Response
from requests_app.windows import (
    INTERVALS,
    MAX_POINTS,
    Interval,
    TooManyPoints,
    Window,
    read_moment,
    slot_start,
)
from sessions_app.paging import milliseconds, read_choice

# With eight models, each takes a third of a millisecond.
_FEW_POINTS = 200


def usage_totals(responses: QuerySet[Response]) -> JSONObject:
    """Count responses and add up their tokens; all integers, 0 where there is nothing.

    The average is over the answers that have a duration: running ones have none yet.
    """
    sums = responses.aggregate(
        total_responses=Count("id"),
        total_completion_tokens=Sum("completion_tokens"),
        total_prompt_tokens=Sum("prompt_tokens"),
        total_tokens=Sum("total_tokens"),
        avg_duration_ms=Avg("duration_ms"),
    )
    return {name: round(value or 0) for name, value in sums.items()}


@dataclass(frozen=True, slots=True)
class StatsQuery:
    """What a client of `GET /stats` asks for."""

    window: Window
    now: datetime
    zone: tzinfo
    group: Group | None = None
    interval: Interval | None = None

    @property
    def is_long(self) -> bool:
        """Whether its answer is too much work to be done beside chats."""
        return self.interval is not None and self.window.points(self.interval) > _FEW_POINTS


def read_stats_query(query: QueryDict, now: datetime, zone: tzinfo) -> StatsQuery:
    """Read what a client asks for.

    Raises:
        InvalidRequest: naming the parameter that is wrong.
    """
    group = read_choice(query, "group", GROUPS)
    interval = read_choice(query, "interval", INTERVALS)
    return StatsQuery(
        _read_window(query, now, zone),
        now,
        zone,
        group=next((one for one in GROUPS if one == group), None),
        interval=next((one for one in INTERVALS if one == interval), None),
    )


def _read_window(query: QueryDict, now: datetime, zone: tzinfo) -> Window:
    span = read_choice(query, "range", RANGES)
    start, end = (_read_time(query, name, zone) for name in ("from", "to"))
    if start is None:
        if end is not None:
            raise InvalidRequest("to needs from", param="to", code="invalid_to")
        return Window.last(RANGES[span or "24h"], now)
    if span is not None:
        raise InvalidRequest(
            "range and from exclude each other", param="range", code="invalid_range"
        )
    end = now if end is None else end
    if start >= end:
        raise InvalidRequest("from is not before to", param="from", code="invalid_date_range")
    return Window.between(start, end)


def _read_time(query: QueryDict, name: str, zone: tzinfo) -> datetime | None:
    text = query.get(name)
    if text is None:
        return None
    try:
        return read_moment(text, zone)
    except (ValueError, OverflowError) as exc:
        raise InvalidRequest(
            f"{name} must be milliseconds since 1970, or a date or time as 2026-11-22T12:15Z",
            param=name,
            code=f"invalid_{name}",
        ) from exc


def stats_object(api_key_id: int | None, query: StatsQuery) -> JSONObject:
    """Answer a query, of one key or (null) of all.

    Raises:
        InvalidRequest: too many points, or a group that one key's roll-ups do not know.
    """
    reader, window = Reader(query.now, api_key_id=api_key_id), query.window
    try:
        answer: dict[str, Any] = {
            "object": "stats",
            "start": milliseconds(slot_start(window.start)),
            "end": milliseconds(slot_start(window.end)),
            "time_zone": str(query.zone),
            "as_of": milliseconds(reader.as_of),
            "group": query.group,
            "interval": query.interval,
            "total": {**_counts(reader.totals(window)), **_latencies(reader, window)},
        }
        if query.group is not None:
            answer["groups"] = _groups(reader, window, query.group)
        if query.interval is not None:
            answer["series"] = _series(reader, query, query.interval)
    except TooManyPoints as exc:
        raise InvalidRequest(
            f"that would be more than {MAX_POINTS} points: ask for longer intervals or less time",
            param="interval",
            code="invalid_interval",
        ) from exc
    except NotOfKey as exc:
        raise InvalidRequest(
            f"by {query.group} one key's statistics go over a day at most; more needs the scope admin",
            param="group",
            code="invalid_group",
        ) from exc
    return answer


def stats_json(api_key_id: int | None, query: StatsQuery) -> bytes:
    """`stats_object` as it is sent."""
    return json.dumps(stats_object(api_key_id, query))


def _counts(counts: Counts) -> dict[str, Any]:
    return {
        "requests": counts.requests,
        "completed": counts.completed,
        "failed": counts.failed,
        "cancelled": counts.cancelled,
        "interrupted": counts.interrupted,
        "prompt_tokens": counts.prompt_tokens,
        "completion_tokens": counts.completion_tokens,
        "total_tokens": counts.prompt_tokens + counts.completion_tokens,
    }


def _percentiles(latency: Latency | None) -> dict[str, Any]:
    if latency is None:
        return {"samples": None, "p50": None, "p95": None}
    return {"samples": latency.samples, "p50": latency.p50_ms, "p95": latency.p95_ms}


def _latencies(reader: Reader, window: Window) -> dict[str, Any]:
    try:
        ttft, total = reader.latency(window, "ttft"), reader.latency(window, "total")
    except NotOfKey:
        return {"ttft_ms": _percentiles(None), "duration_ms": _percentiles(None)}
    return {"ttft_ms": _percentiles(ttft), "duration_ms": _percentiles(total)}


def _groups(reader: Reader, window: Window, group: Group) -> list[dict[str, Any]]:
    groups = reader.groups(window, group)
    names = names_of(group, groups)
    ttft: Mapping[str, Latency] = {}
    total: Mapping[str, Latency] = {}
    if group == "model":
        ttft = reader.latency_by_model(window, "ttft")
        total = reader.latency_by_model(window, "total")
    return [
        {
            "ref": ref,
            "name": names.get(ref),
            **_counts(counts),
            "ttft_ms": _percentiles(ttft.get(ref)),
            "duration_ms": _percentiles(total.get(ref)),
        }
        for ref, counts in groups.items()
    ]


def _series(reader: Reader, query: StatsQuery, interval: Interval) -> list[dict[str, Any]]:
    window, zone = query.window, query.zone
    points = reader.series(window, interval, zone, query.group)
    ttft: list[Latency | None] = [None] * len(points)
    total: list[Latency | None] = [None] * len(points)
    try:
        ttft[:] = reader.latency_series(window, interval, zone, "ttft")
        total[:] = reader.latency_series(window, interval, zone, "total")
    except NotOfKey:
        # The counts are known all the same.
        pass
    return [
        _point(point, _percentiles(first), _percentiles(whole), query.group is not None)
        for point, first, whole in zip(points, ttft, total, strict=True)
    ]


def _point(
    point: Point, ttft: dict[str, Any], total: dict[str, Any], is_grouped: bool
) -> dict[str, Any]:
    shown = {
        "start": milliseconds(point.start),
        "end": milliseconds(point.end),
        "complete": point.is_complete,
        **_counts(point.counts),
        "ttft_ms": ttft,
        "duration_ms": total,
    }
    if is_grouped:
        shown["groups"] = [
            {"ref": ref, **_counts(counts)} for ref, counts in sorted(point.groups.items())
        ]
    return shown

"""Reads statistics: sums, breakdowns, lines and percentiles of a window of quarter-hour slots.

`Reader` stands for one moment: what is rolled comes from the roll-ups, what ended since is counted from
the record, once, and shared by all that is read. Where rolling is far behind, the record is not read
instead (it may be all of it): `as_of` then says up to when the figures go. Answers are counted where they
finished; running ones are not. Everything blocks, and reads without locks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Literal

from django.db import connection

from qwenproxy.access.models import ApiKey, UpstreamAccount
from requests_app.histogram import percentile
from requests_app.rollups import CELLS, Cells, Dimension, Metric, count, next_used, rolled_to
from requests_app.windows import Grid, Interval, Span, Window, slot_of, slot_start

Group = Literal["model", "key", "account", "status", "error"]
GROUPS: tuple[Group, ...] = ("model", "key", "account", "status", "error")
RANGES = {
    "1h": timedelta(hours=1),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
    "30d": timedelta(days=30),
}
RANGE_LABELS = {"1h": "1 hour", "24h": "24 hours", "7d": "7 days", "30d": "30 days"}
# Of fewer, a percentile says little.
MIN_SAMPLES = 20
# So much of the record is counted for one reading, not more.
_LONGEST_TAIL = timedelta(hours=2)
_LONGEST_OF_KEY = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class _Select:
    """Sums of cells of several sizes."""

    sums: str
    cells: str

    def over(self, parts: int) -> str:
        return self.sums.format(" UNION ALL ".join([self.cells] * parts))


_USAGE = _Select(
    "SELECT point, status, ref, CAST(SUM(n) AS bigint), CAST(SUM(tokens_in) AS bigint),"
    " CAST(SUM(tokens_out) AS bigint), CAST(SUM(ms_sum) AS bigint)"
    " FROM ({}) cells GROUP BY point, status, ref",
    "SELECT (slot + %s) / %s AS point, status, ref, n, tokens_in, tokens_out, ms_sum"
    " FROM requests_app_usageslot WHERE dim = %s AND slot >= %s AND slot < %s",
)
_OWN_USAGE = replace(_USAGE, cells=_USAGE.cells + " AND ref = %s")
_LATENCY = _Select(
    "SELECT point, ref, bucket, CAST(SUM(n) AS bigint) FROM ({}) cells GROUP BY point, ref, bucket",
    "SELECT (slot + %s) / %s AS point, ref, bucket, n"
    " FROM requests_app_latencyslot WHERE dim = %s AND slot >= %s AND slot < %s AND metric = %s",
)

# Number of the point, ref, status -> requests, tokens in, tokens out, ms.
_Usage = dict[tuple[int, str, str], list[int]]
# Number of the point, model -> buckets.
_Buckets = dict[tuple[int, str], dict[int, int]]


class NotOfKey(LookupError):
    """One key's figures are not known by this for so long a window."""


@dataclass(slots=True)
class Counts:
    """What ended."""

    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    interrupted: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    # Of all answers together.
    duration_ms: int = 0

    @property
    def requests(self) -> int:
        return self.completed + self.failed + self.cancelled + self.interrupted

    @property
    def errors(self) -> int:
        return self.failed + self.interrupted

    @property
    def error_rate(self) -> float | None:
        """0 to 1; null where there were no requests."""
        return self.errors / self.requests if self.requests else None

    def add(self, status: str, sums: Sequence[int]) -> None:
        setattr(self, status, getattr(self, status) + sums[0])
        self.prompt_tokens += sums[1]
        self.completion_tokens += sums[2]
        self.duration_ms += sums[3]


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles in milliseconds, to within 5 %; null below `MIN_SAMPLES`."""

    samples: int
    p50_ms: float | None
    p95_ms: float | None

    @classmethod
    def of(cls, buckets: Mapping[int, int]) -> Latency:
        samples = sum(buckets.values())
        if samples < MIN_SAMPLES:
            return cls(samples, None, None)
        return cls(samples, percentile(buckets, 0.5), percentile(buckets, 0.95))


@dataclass(slots=True)
class Point:
    """One point of a line: a slot, hour or day, or the part of it that is in the window."""

    start: datetime
    end: datetime
    # False where it is not over, or the window cuts it: not to be compared with others.
    is_complete: bool
    counts: Counts = field(default_factory=Counts)
    # By ref, where the line was read by a group; only refs that have something here.
    groups: dict[str, Counts] = field(default_factory=dict)


class Reader:
    """Statistics as they are at one moment; of one key, or of all.

    The first use of what is not rolled yet counts it from the record.
    """

    def __init__(self, now: datetime, *, api_key_id: int | None = None) -> None:
        self.now = now
        self._key = None if api_key_id is None else str(api_key_id)
        border = rolled_to()
        # A clock may have been set back: from the present slot on only the record is believed.
        newest = slot_of(now)
        self._tail_start = newest if border is None else min(border, newest)
        first = next_used(0 if border is None else self._tail_start)
        if border is None and first is not None:
            self._tail_start = min(first, newest)
        self.is_behind = first is not None and now - slot_start(first) > _LONGEST_TAIL
        # Everything that ended before is counted.
        self.as_of = slot_start(first) if self.is_behind and first is not None else now
        self._tail: Cells | None = None
        self._of_key: tuple[Window, Cells] | None = None

    # What pages and REST ask for.

    def totals(self, window: Window) -> Counts:
        """All requests of the window."""
        counts = Counts()
        for (_, _, status), sums in self._usage(_whole(window), "total").items():
            counts.add(status, sums)
        return counts

    def groups(self, window: Window, group: Group) -> dict[str, Counts]:
        """The window's requests by a group, most requests first.

        Refs are model names as clients wrote them, ids of keys and accounts ("" for no account), statuses,
        or codes of errors; with `error` only requests that ended in one.

        Raises:
            NotOfKey: the reader is of one key, and the window longer than a day.
        """
        found: defaultdict[str, Counts] = defaultdict(Counts)
        for (_, ref, status), sums in self._grouped(_whole(window), group).items():
            found[ref].add(status, sums)
        return dict(sorted(found.items(), key=lambda item: (-item[1].requests, item[0])))

    def series(
        self, window: Window, interval: Interval, zone: tzinfo, group: Group | None = None
    ) -> list[Point]:
        """The window's requests in time, without gaps; days and hours are the zone's.

        Raises:
            TooManyPoints: the window is too long for the interval.
            NotOfKey: as for `groups`.
        """
        grid = Grid(window, interval, zone)
        points = [self._point(span) for span in grid.spans]
        for (index, _, status), sums in self._usage(grid, "total").items():
            points[index].counts.add(status, sums)
        if group is not None:
            for (index, ref, status), sums in self._grouped(grid, group).items():
                points[index].groups.setdefault(ref, Counts()).add(status, sums)
        return points

    def latency(self, window: Window, metric: Metric) -> Latency:
        """Percentiles of the whole window.

        Raises:
            NotOfKey: as for `groups`.
        """
        return Latency.of(self._buckets(_whole(window), metric, "total").get((0, ""), {}))

    def latency_by_model(self, window: Window, metric: Metric) -> dict[str, Latency]:
        """Percentiles of the window for each model; raises as `latency`."""
        found = self._buckets(_whole(window), metric, "model")
        return {model: Latency.of(buckets) for (_, model), buckets in found.items()}

    def latency_series(
        self, window: Window, interval: Interval, zone: tzinfo, metric: Metric
    ) -> list[Latency]:
        """Percentiles of each point that `series` gives for the same arguments; raises as it."""
        return self.latency_points(window, interval, zone, metric)[1]

    def latency_points(
        self, window: Window, interval: Interval, zone: tzinfo, metric: Metric
    ) -> tuple[Latency, list[Latency]]:
        """`latency` and `latency_series` at once; raises as they do."""
        grid = Grid(window, interval, zone)
        found = self._buckets(grid, metric, "total")
        whole: defaultdict[int, int] = defaultdict(int)
        for buckets in found.values():
            for bucket, n in buckets.items():
                whole[bucket] += n
        points = [Latency.of(found.get((index, ""), {})) for index in range(len(grid.spans))]
        return Latency.of(whole), points

    # How they are read.

    def _point(self, span: Span) -> Point:
        return Point(slot_start(span.start), slot_start(span.end), span.is_complete(self.now))

    def _grouped(self, grid: Grid, group: Group) -> _Usage:
        if group != "status":
            return self._usage(grid, group, by_ref=True)
        totals = self._usage(grid, "total")
        return {(index, status, status): sums for (index, _, status), sums in totals.items()}

    def _usage(self, grid: Grid, dim: Dimension, *, by_ref: bool = False) -> _Usage:
        found: _Usage = defaultdict(lambda: [0, 0, 0, 0])
        own = None
        if self._key is not None:
            if dim not in ("total", "key"):
                return _add_usage(found, grid, dim, self._cells_of_key(grid.window))
            dim, own = "key", self._key
        rows = self._rolled(grid, _OWN_USAGE if own else _USAGE, dim, [own] if own else [])
        for indexes, cells in rows:
            for point, status, ref, n, *sums in cells:
                # A later count may have left nothing of a cell.
                if n:
                    _add(found[indexes[point], ref if by_ref else "", status], (n, *sums))
        return _add_usage(found, grid, dim, self._counted(), by_ref=by_ref, own=own)

    def _buckets(self, grid: Grid, metric: Metric, dim: Literal["total", "model"]) -> _Buckets:
        found: _Buckets = defaultdict(lambda: defaultdict(int))
        if self._key is not None:
            return _add_latency(found, grid, metric, dim, self._cells_of_key(grid.window))
        for indexes, cells in self._rolled(grid, _LATENCY, dim, [metric]):
            for point, ref, bucket, n in cells:
                found[indexes[point], ref][bucket] += n
        return _add_latency(found, grid, metric, dim, self._counted())

    def _rolled(
        self, grid: Grid, select: _Select, dim: Dimension, params: Sequence[Any]
    ) -> Iterator[tuple[Mapping[int, int], Sequence[tuple[Any, ...]]]]:
        """Roll-ups, with the numbers of the points that their first column names.

        One query for each stretch with one offset from UTC.
        """
        for stretch in grid.stretches:
            # Cells that do not lie within points are of no use.
            sizes = [
                (prefix, size)
                for prefix, size in CELLS.items()
                if grid.slots % size == 0 and stretch.offset % size == 0
            ]
            parts = list(_parts(stretch.start, min(stretch.end, self._tail_start), sizes))
            if not parts:
                continue
            values: list[Any] = []
            for prefix, start, end in parts:
                values += [stretch.offset, grid.slots, prefix + dim, start, end, *params]
            with connection.cursor() as cursor:
                cursor.execute(select.over(len(parts)), values)
                rows = cursor.fetchall()
            # Few points, and many rows of each.
            points = {row[0] for row in rows}
            yield {point: grid.index(stretch, point) for point in points}, rows

    def _counted(self) -> Cells:
        """What is not rolled yet, from the record."""
        if self._tail is None:
            self._tail = (
                Cells() if self.is_behind else count(self._tail_start, slot_of(self.now) + 1)
            )
        return self._tail

    def _cells_of_key(self, window: Window) -> Cells:
        """All of a window, from the record: roll-ups know one dimension at a time."""
        if slot_start(window.end) - slot_start(window.start) > _LONGEST_OF_KEY:
            raise NotOfKey
        if self._of_key is None or self._of_key[0] != window:
            assert self._key is not None
            cells = count(window.start, window.end, api_key_id=int(self._key))
            self._of_key = (window, cells)
        return self._of_key[1]


def _parts(
    start: int, end: int, sizes: Sequence[tuple[str, int]]
) -> Iterator[tuple[str, int, int]]:
    """Cut slots into cells, the largest ones that fit: what is before their dimension, start, end."""
    if start >= end:
        return
    (prefix, size), *smaller = sizes
    first, last = -(-start // size) * size, end // size * size
    if first >= last:
        yield from _parts(start, end, smaller)
        return
    yield from _parts(start, first, smaller)
    yield (prefix, first, last)
    yield from _parts(last, end, smaller)


def _whole(window: Window) -> Grid:
    return Grid(window, None, UTC)


def _add(into: list[int], sums: Iterable[int]) -> None:
    for index, value in enumerate(sums):
        into[index] += value


def _add_usage(
    found: _Usage,
    grid: Grid,
    dim: Dimension,
    cells: Cells,
    *,
    by_ref: bool = True,
    own: str | None = None,
) -> _Usage:
    for (cell_dim, slot, ref, status), sums in cells.usage.items():
        if cell_dim == dim and slot in grid.window and own in (None, ref):
            _add(found[grid.index_of(slot), ref if by_ref else "", status], sums)
    return found


def _add_latency(
    found: _Buckets, grid: Grid, metric: Metric, dim: Dimension, cells: Cells
) -> _Buckets:
    for (cell_dim, cell_metric, slot, ref, bucket), n in cells.latency.items():
        if cell_dim == dim and cell_metric == metric and slot in grid.window:
            found[grid.index_of(slot), ref][bucket] += n
    return found


def count_deleted(
    dim: Dimension, ref: str, statuses: Sequence[str], window: Window | None = None
) -> int:
    """Requests that statistics count and no list shows: their sessions were deleted. Null: of all time.

    Of one ref of a dimension ("" for `total`) and, unless it is empty, of some statuses. One query.
    """
    sql = "SELECT SUM(n) FROM requests_app_usageslot WHERE dim = %s AND ref = %s"
    params: list[str | int] = [f"-{dim}", ref]
    if window is not None:
        sql += " AND slot >= %s AND slot < %s"
        params += [window.start, window.end]
    if statuses:
        sql += f" AND status IN ({', '.join(['%s'] * len(statuses))})"
        params += statuses
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return int(cursor.fetchone()[0] or 0)


def names_of(group: Group, refs: Iterable[str]) -> dict[str, str]:
    """What people call the refs of a group: names of keys and accounts that are still there."""
    ids = [int(ref) for ref in refs if ref] if group in ("key", "account") else []
    if group == "key":
        return {
            str(pk): name
            for pk, name in ApiKey.objects.filter(pk__in=ids).values_list("pk", "name")
        }
    if group == "account":
        rows = UpstreamAccount.objects.filter(pk__in=ids)
        return {str(pk): name for pk, name in rows.values_list("pk", "name")}
    return {}

"""Where the time of a request went, as rows of bars: waiting, each try at an upstream, the answer's text.

Only what is recorded is drawn: the times of tries are the wall clock's to the millisecond, the others
are measured from the arrival of the request. All is geometry in the units of the drawing's width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH = 1000
_NARROWEST = 3


@dataclass(frozen=True, slots=True)
class Segment:
    # queue, wait, stream, failed.
    kind: str
    x: int
    width: int


@dataclass(frozen=True, slots=True)
class Row:
    label: str
    segments: Sequence[Segment]
    start_ms: int
    took_ms: int | None
    note: str
    has_failed: bool = False


@dataclass(frozen=True, slots=True)
class Waterfall:
    rows: Sequence[Row]
    total_ms: int
    # Where the first token came; null: none did.
    first_token_x: int | None
    ttft_ms: int | None


@dataclass(frozen=True, slots=True)
class _Try:
    account: str
    start_ms: int
    end_ms: int
    is_over: bool
    cause: str


def draw(
    *,
    created_ms: int,
    attempts: Sequence[Mapping[str, Any]],
    ttft_ms: int | None,
    duration_ms: int | None,
) -> Waterfall | None:
    """Draw a request from its recorded times; null where none is known.

    `created_ms` and the tries' `started` are milliseconds since 1970; the others are durations.
    """
    tries = [_read(attempt, created_ms, duration_ms) for attempt in attempts]
    total_ms = max([duration_ms or 0, ttft_ms or 0, *(each.end_ms for each in tries)])
    if total_ms <= 0:
        return None
    rows = []
    if tries and tries[0].start_ms > 0:
        first = tries[0].start_ms
        rows.append(
            Row("Before the upstream", [_segment("queue", 0, first, total_ms)], 0, first, "")
        )
    for number, each in enumerate(tries, start=1):
        is_last = number == len(tries)
        rows.append(_row(each, total_ms, ttft_ms if is_last else None))
    if not tries:
        rows.append(Row("In all", _split(0, total_ms, ttft_ms, total_ms), 0, total_ms, ""))
    mark = None if ttft_ms is None else ttft_ms * WIDTH // total_ms
    return Waterfall(rows, total_ms, mark, ttft_ms)


def _read(attempt: Mapping[str, Any], created_ms: int, duration_ms: int | None) -> _Try:
    started, took = attempt.get("started"), attempt.get("ms")
    # Clocks may be set between the two.
    start = max(0, started - created_ms) if isinstance(started, int) else 0
    if duration_ms is not None:
        start = min(start, duration_ms)
    end = start + took if isinstance(took, int) else max(start, duration_ms or 0)
    cause = attempt.get("cause")
    return _Try(
        str(attempt.get("account") or "–"),
        start,
        end,
        isinstance(took, int),
        cause if isinstance(cause, str) else "",
    )


def _row(each: _Try, total_ms: int, ttft_ms: int | None) -> Row:
    took = each.end_ms - each.start_ms if each.is_over else None
    if each.cause:
        segments = [_segment("failed", each.start_ms, each.end_ms, total_ms)]
        return Row(each.account, segments, each.start_ms, took, each.cause, has_failed=True)
    segments = _split(each.start_ms, each.end_ms, ttft_ms, total_ms)
    return Row(each.account, segments, each.start_ms, took, "answered" if each.is_over else "")


def _split(start: int, end: int, ttft_ms: int | None, total_ms: int) -> list[Segment]:
    if ttft_ms is None or not start <= ttft_ms <= end:
        return [_segment("wait", start, end, total_ms)]
    return [
        _segment("wait", start, ttft_ms, total_ms),
        _segment("stream", ttft_ms, end, total_ms),
    ]


def _segment(kind: str, start: int, end: int, total_ms: int) -> Segment:
    x = min(start * WIDTH // total_ms, WIDTH - _NARROWEST)
    width = max(_NARROWEST, (end - start) * WIDTH // total_ms)
    return Segment(kind, x, min(width, WIDTH - x))

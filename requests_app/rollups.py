"""Fills `UsageSlot` and `LatencySlot`: what finished in each quarter of an hour, per dimension.

A slot is rolled a minute after its end: counted anew from the record and replaced, in one transaction.
So it may be done twice, interrupted anywhere, or done by several processes. Slots are rolled in their
order; those before `rolled_to` are. What a roll changes is added to the hour and the day (of UTC) around it
in the same transaction: dimensions with `h` and `d` before them, for long windows.

Two kinds of rows say what the record does not:

- `stale`: an end came into this slot late (it could not be written before); it is rolled again. The mark
  is written with the end itself, and removed with the roll.
- dimensions with a minus sign: what was counted of deleted sessions. A slot is the rows of the record
  and these, so figures of the past stay as they were, however often they are rolled.

An answer is counted in the slot in which it finished. `completed` and errors (`failed`, `interrupted`)
have their causes in the dimension `error`. The time to the first token is of all answers that had one,
the time in all of completed ones. Reading is `requests_app.figures`.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper

from qwenproxy.transaction import Transaction
from requests_app.histogram import bucket_of
from requests_app.windows import slot_of, slot_start

Dimension = Literal["total", "model", "key", "account", "error"]
Metric = Literal["ttft", "total"]
ERRORS = ("failed", "interrupted")
# What is written before a dimension, and how many slots its rows stand for.
CELLS = {"d": 96, "h": 4, "": 1}

# After its end a slot is left alone for so long: ends of it may be on their way into the record.
_GRACE = timedelta(seconds=60)
# On SQLite nobody else writes meanwhile; but slots of little are not worth a transaction each.
_LONGEST_TRANSACTION_S = 0.005
# "rollups" in ASCII, beside the keys of migrations and workers.
_ADVISORY_KEY = 0x726F6C6C757073

# Of the whole seconds: SQLite rounds what is behind them.
_SLOT_OF_TIME = {
    "sqlite": "CAST(ROUND((julianday(substr(r.completed_at, 1, 19)) - 2440587.5) * 86400)"
    " AS INTEGER) / 900",
    "postgresql": "CAST(FLOOR(EXTRACT(EPOCH FROM r.completed_at) / 900) AS INTEGER)",
}
_RECORD = """
WITH ended AS (
 SELECT {slot} AS slot, q.model AS model, r.api_key_id AS api_key, q.account_id AS account,
  r.status AS status, COALESCE(r.error_code, r.error_type, '') AS error, r.prompt_tokens AS sent,
  r.completion_tokens AS got, r.duration_ms AS ms, r.ttft_ms AS ttft
 FROM requests_app_response r JOIN requests_app_request q ON q.id = r.request_id WHERE {where}
)
SELECT 'usage', slot, model, status, error, api_key, account, COUNT(*), SUM(sent), SUM(got),
 SUM(COALESCE(ms, 0))
FROM ended GROUP BY slot, model, status, error, api_key, account
UNION ALL SELECT 'ttft', slot, model, '', '', ttft, NULL, COUNT(*), 0, 0, 0
FROM ended WHERE ttft IS NOT NULL GROUP BY slot, model, ttft
UNION ALL SELECT 'total', slot, model, '', '', ms, NULL, COUNT(*), 0, 0, 0
FROM ended WHERE ms IS NOT NULL AND status = 'completed' GROUP BY slot, model, ms
"""
# In the same statement, and so of the same moment: a deletion moves rows from the one to the other.
_DELETED = """
UNION ALL SELECT dim, slot, ref, status, '', NULL, NULL, n, tokens_in, tokens_out, ms_sum
FROM requests_app_usageslot
WHERE dim IN ('-total', '-model', '-key', '-account', '-error') AND slot >= %s AND slot < %s
UNION ALL SELECT dim, slot, ref, '', metric, bucket, NULL, n, 0, 0, 0
FROM requests_app_latencyslot
WHERE dim IN ('-total', '-model') AND metric IN ('ttft', 'total') AND slot >= %s AND slot < %s
"""
_BETWEEN = "r.completed_at >= %s AND r.completed_at < %s"
_INSERT_USAGE = (
    "INSERT INTO requests_app_usageslot (dim, slot, ref, status, n, tokens_in, tokens_out, ms_sum)"
    " VALUES (%s, %s, %s, %s, %s, %s, %s, %s)"
)
_INSERT_LATENCY = (
    "INSERT INTO requests_app_latencyslot (dim, metric, slot, ref, bucket, n)"
    " VALUES (%s, %s, %s, %s, %s, %s)"
)
_ADD_USAGE = (
    " ON CONFLICT (dim, slot, ref, status) DO UPDATE SET"
    " n = requests_app_usageslot.n + excluded.n,"
    " tokens_in = requests_app_usageslot.tokens_in + excluded.tokens_in,"
    " tokens_out = requests_app_usageslot.tokens_out + excluded.tokens_out,"
    " ms_sum = requests_app_usageslot.ms_sum + excluded.ms_sum"
)
_ADD_LATENCY = (
    " ON CONFLICT (dim, metric, slot, ref, bucket) DO UPDATE SET"
    " n = requests_app_latencyslot.n + excluded.n"
)
_USAGE_DIMS = ("total", "model", "key", "account", "error")
_LATENCY_DIMS = ("total", "model")
_READ_USAGE = (
    "SELECT dim, slot, ref, status, n, tokens_in, tokens_out, ms_sum FROM requests_app_usageslot"
    " WHERE dim IN (%s, %s, %s, %s, %s) AND slot = %s"
)
_READ_LATENCY = (
    "SELECT dim, metric, slot, ref, bucket, n FROM requests_app_latencyslot"
    " WHERE dim IN (%s, %s) AND metric IN ('ttft', 'total') AND slot = %s"
)
_DELETE_USAGE = "DELETE FROM requests_app_usageslot WHERE dim IN (%s, %s, %s, %s, %s) AND slot = %s"
_DELETE_LATENCY = (
    "DELETE FROM requests_app_latencyslot WHERE dim IN (%s, %s) AND metric IN ('ttft', 'total')"
    " AND slot = %s"
)
_MERGE_USAGE = (
    "INSERT INTO requests_app_usageslot (dim, slot, ref, status, n, tokens_in, tokens_out, ms_sum)"
    " SELECT %s, %s, ref, status, SUM(n), SUM(tokens_in), SUM(tokens_out), SUM(ms_sum)"
    " FROM requests_app_usageslot WHERE dim = %s AND slot >= %s AND slot < %s GROUP BY ref, status"
)
_MERGE_LATENCY = (
    "INSERT INTO requests_app_latencyslot (dim, metric, slot, ref, bucket, n)"
    " SELECT %s, metric, %s, ref, bucket, SUM(n) FROM requests_app_latencyslot"
    " WHERE dim = %s AND metric IN ('ttft', 'total') AND slot >= %s AND slot < %s"
    " GROUP BY metric, ref, bucket"
)
# What is rolled, and what is marked to be rolled again.
_STANDING = (
    "SELECT (SELECT MAX(slot) FROM requests_app_usageslot WHERE dim = 'total'),"
    " (SELECT MIN(slot) FROM requests_app_usageslot WHERE dim = 'stale')"
)
# What has something to count: of deleted sessions, and of the record.
_USED = (
    "SELECT (SELECT MIN(slot) FROM requests_app_usageslot WHERE dim = '-total' AND slot >= %s),"
    " (SELECT {slot} FROM requests_app_response r WHERE r.completed_at >= %s"
    " ORDER BY r.completed_at LIMIT 1)"
)
# An upsert even where the mark is there: it makes a roll that removes the mark wait for this end.
_MARK = _INSERT_USAGE + " ON CONFLICT (dim, slot, ref, status) DO UPDATE SET n = excluded.n"

UsageKey = tuple[str, int, str, str]
LatencyKey = tuple[str, str, int, str, int]


@dataclass(slots=True)
class Cells:
    """Rows of both tables, counted."""

    # (dim, slot, ref, status) -> requests, tokens in, tokens out, ms.
    usage: defaultdict[UsageKey, list[int]] = field(
        default_factory=lambda: defaultdict(lambda: [0, 0, 0, 0])
    )
    # (dim, metric, slot, ref, bucket) -> answers.
    latency: defaultdict[LatencyKey, int] = field(default_factory=lambda: defaultdict(int))

    def add_usage(self, key: UsageKey, sums: Sequence[int]) -> None:
        cell = self.usage[key]
        for index, value in enumerate(sums):
            cell[index] += value

    def minus(self, other: Cells) -> Cells:
        """What is to be added to `other` to make it this; without what is the same."""
        changes = Cells()
        for key in self.usage.keys() | other.usage.keys():
            new, old = self.usage.get(key, _NOTHING), other.usage.get(key, _NOTHING)
            if new != old:
                changes.usage[key] = [a - b for a, b in zip(new, old, strict=True)]
        for bucket in self.latency.keys() | other.latency.keys():
            n = self.latency.get(bucket, 0) - other.latency.get(bucket, 0)
            if n:
                changes.latency[bucket] = n
        return changes

    # In one order for all who write them, so that nobody waits for each other in a circle.

    def usage_rows(self, prefix: str = "", size: int = 1) -> list[tuple[Any, ...]]:
        """Rows of `UsageSlot`; with a size of the larger cells that the slots belong to."""
        return sorted(
            (prefix + dim, slot - slot % size, ref, status, *sums)
            for (dim, slot, ref, status), sums in self.usage.items()
        )

    def latency_rows(self, prefix: str = "", size: int = 1) -> list[tuple[Any, ...]]:
        return sorted(
            (prefix + dim, metric, slot - slot % size, ref, bucket, n)
            for (dim, metric, slot, ref, bucket), n in self.latency.items()
        )


_NOTHING = [0, 0, 0, 0]


# Counting.


def count(start: int, end: int, *, api_key_id: int | None = None) -> Cells:
    """Count what finished in the slots from `start` to before `end`, deleted sessions included.

    With `api_key_id` only of that key, and without what was deleted: that is not known per key and model.
    One statement; blocks; reads the whole record of that time.
    """
    with connection.cursor() as cursor:
        return _count(cursor, start, end, api_key_id)


def _count(cursor: CursorWrapper, start: int, end: int, api_key_id: int | None = None) -> Cells:
    adapt = connection.ops.adapt_datetimefield_value
    params: list[Any] = [adapt(slot_start(start)), adapt(slot_start(end))]
    if api_key_id is None:
        sql = _record(_BETWEEN) + _DELETED
        params += [start, end, start, end]
    else:
        sql = _record(f"{_BETWEEN} AND r.api_key_id = %s")
        params.append(api_key_id)
    cursor.execute(sql, params)
    return _cells(cursor.fetchall())


def _record(where: str) -> str:
    return _RECORD.format(slot=_SLOT_OF_TIME[connection.vendor], where=where)


def _cells(rows: Iterable[Sequence[Any]]) -> Cells:
    cells = Cells()
    for kind, slot, ref, status, text, number, account, n, sent, got, ms in rows:
        sums = (n, sent, got, ms)
        if kind == "usage":
            refs = {"total": "", "model": ref, "key": str(number), "account": str(account or "")}
            for dim, value in refs.items():
                cells.add_usage((dim, slot, value, status), sums)
            if status in ERRORS:
                cells.add_usage(("error", slot, text, status), sums)
        elif kind in ("ttft", "total"):
            bucket = bucket_of(number)
            cells.latency["total", kind, slot, "", bucket] += n
            cells.latency["model", kind, slot, ref, bucket] += n
        elif text:
            cells.latency[kind[1:], text, slot, ref, number] += n
        else:
            cells.add_usage((kind[1:], slot, ref, status), sums)
    return cells


# Filling.


def rolled_to() -> int | None:
    """The slot before which all are rolled; null where none is."""
    with connection.cursor() as cursor:
        return _standing(cursor)[0]


def _standing(cursor: CursorWrapper) -> tuple[int | None, int | None]:
    """`rolled_to`, and the first slot that is marked."""
    cursor.execute(_STANDING)
    newest, stale = cursor.fetchone()
    return None if newest is None else newest + 1, stale


def next_used(slot: int) -> int | None:
    """The first slot from `slot` on that has something to count, of the record or of deleted sessions."""
    with connection.cursor() as cursor:
        return _next_used(cursor, slot)


def _next_used(cursor: CursorWrapper, slot: int) -> int | None:
    start = connection.ops.adapt_datetimefield_value(slot_start(slot))
    cursor.execute(_USED.format(slot=_SLOT_OF_TIME[connection.vendor]), [slot, start])
    return min((found for found in cursor.fetchone() if found is not None), default=None)


def roll_next(now: datetime) -> int | None:
    """Roll the next slots that are due, in a transaction of some milliseconds; return the last of them.

    Blocks. To be called until it returns null, or the same slot again: one into which ends come late all
    the time. Where another process rolls just now, it returns null as well: that one goes on.
    """
    rolled, started = None, time.monotonic()
    with connection.cursor() as cursor:
        # Asked before the transaction: on SQLite it takes the write lock at once.
        if _due(cursor, now) is None:
            return None
        with transaction.atomic():
            if connection.vendor == "postgresql":
                cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [_ADVISORY_KEY])
                if not cursor.fetchone()[0]:
                    return None
            while (slot := _due(cursor, now)) is not None:
                _roll(cursor, slot)
                rolled = slot
                if time.monotonic() - started > _LONGEST_TRANSACTION_S:
                    break
    return rolled


def _due(cursor: CursorWrapper, now: datetime) -> int | None:
    border, stale = _standing(cursor)
    # A mark on what was never rolled would leave a gap behind it.
    if border is not None and stale is not None and stale < border:
        return stale
    slot = _next_used(cursor, border or 0)
    return slot if slot is not None and slot < slot_of(now - _GRACE) else None


def _roll(cursor: CursorWrapper, slot: int) -> None:
    """Count a slot anew and replace its rows; within a transaction."""
    # First: on PostgreSQL it waits for an end that is being written late, so that it is counted.
    cursor.execute("DELETE FROM requests_app_usageslot WHERE dim = 'stale' AND slot = %s", [slot])
    cells = _count(cursor, slot, slot + 1)
    changes = cells.minus(_read(cursor, slot))
    if not changes.usage and not changes.latency:
        return
    _delete(cursor, "", slot)
    _write(cursor, cells)
    for prefix, size in CELLS.items():
        if prefix:
            _add(cursor, changes, prefix, size)


def _read(cursor: CursorWrapper, slot: int) -> Cells:
    cells = Cells()
    cursor.execute(_READ_USAGE, [*_USAGE_DIMS, slot])
    for dim, _, ref, status, *sums in cursor.fetchall():
        cells.add_usage((dim, slot, ref, status), sums)
    cursor.execute(_READ_LATENCY, [*_LATENCY_DIMS, slot])
    for dim, metric, _, ref, bucket, n in cursor.fetchall():
        cells.latency[dim, metric, slot, ref, bucket] = n
    return cells


def _delete(cursor: CursorWrapper, prefix: str, slot: int) -> None:
    cursor.execute(_DELETE_USAGE, [*(prefix + dim for dim in _USAGE_DIMS), slot])
    cursor.execute(_DELETE_LATENCY, [*(prefix + dim for dim in _LATENCY_DIMS), slot])


def _write(cursor: CursorWrapper, cells: Cells) -> None:
    if cells.usage:
        cursor.executemany(_INSERT_USAGE, cells.usage_rows())
    if cells.latency:
        cursor.executemany(_INSERT_LATENCY, cells.latency_rows())


def _add(cursor: CursorWrapper, cells: Cells, prefix: str, size: int = 1) -> None:
    if cells.usage:
        cursor.executemany(_INSERT_USAGE + _ADD_USAGE, cells.usage_rows(prefix, size))
    if cells.latency:
        cursor.executemany(_INSERT_LATENCY + _ADD_LATENCY, cells.latency_rows(prefix, size))


def rebuild(start: int, end: int, now: datetime) -> Iterator[int]:
    """Roll all slots of a range that have ended anew, yielding each when it is committed.

    What there is nothing to count for stays as it is. The range is extended to where rolling stands, so that
    no gap is left behind it. Safe while the gateway serves; may be ended after any slot. Rests after each
    transaction as long as it took, so that on SQLite others come to write.
    """
    end = min(end, slot_of(now - _GRACE))
    border = rolled_to()
    position = min(start, 0 if border is None else border)
    day: int | None = None
    while slots := _rebuild_some(position, end):
        for slot in slots:
            first = slot - slot % CELLS["d"]
            if day is not None and day != first:
                _rebuild_day(day)
            day = first
            yield slot
        position = slots[-1] + 1
    if day is not None:
        _rebuild_day(day)


@contextmanager
def _in_turn() -> Iterator[CursorWrapper]:
    started = time.monotonic()
    with transaction.atomic(), connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_ADVISORY_KEY])
        yield cursor
    time.sleep(time.monotonic() - started)


def _rebuild_some(position: int, end: int) -> list[int]:
    slots: list[int] = []
    started = time.monotonic()
    with _in_turn() as cursor:
        while (slot := _next_used(cursor, position)) is not None and slot < end:
            _roll(cursor, slot)
            slots.append(slot)
            position = slot + 1
            if time.monotonic() - started > _LONGEST_TRANSACTION_S:
                break
    return slots


def _rebuild_day(day: int) -> None:
    """Add the hours and the day up anew: rolls keep them right, but mend nothing in them."""
    for hour in range(day, day + CELLS["d"], CELLS["h"]):
        with _in_turn() as cursor:
            _merge(cursor, "", "h", hour)
    with _in_turn() as cursor:
        _merge(cursor, "h", "d", day)


def _merge(cursor: CursorWrapper, smaller: str, larger: str, slot: int) -> None:
    _delete(cursor, larger, slot)
    span = (slot, slot + CELLS[larger])
    for dim in _USAGE_DIMS:
        cursor.execute(_MERGE_USAGE, [larger + dim, slot, smaller + dim, *span])
    for dim in _LATENCY_DIMS:
        cursor.execute(_MERGE_LATENCY, [larger + dim, slot, smaller + dim, *span])


def add_rows(cursor: CursorWrapper, rows: Sequence[tuple[Any, ...]]) -> None:
    """Add to rows of `UsageSlot`, in the order of its columns."""
    cursor.executemany(_INSERT_USAGE + _ADD_USAGE, rows)


# What comes late, and what goes.


def mark_late(
    tx: Transaction, ended: Iterable[datetime], *, now: datetime, border: int | None
) -> None:
    """Mark the slots of ends that are written when their slot may be rolled already.

    To be called at the end of the transaction that writes them: sessions are locked before marks.
    `border` is what this process knows of `rolled_to`; with it a clock that was set back loses nothing.
    """
    current = max(slot_of(now), border or 0)
    late = {slot for slot in map(slot_of, ended) if slot < current}
    if late:
        tx.executemany(_MARK, [("stale", slot, "", "", 1, 0, 0, 0) for slot in sorted(late)])


def mark_behind(now: datetime) -> int | None:
    """Mark the slots that others, whose clocks are ahead, rolled while they are not over here.

    Returns:
        `rolled_to`, for `mark_late`.
    """
    border, end = rolled_to(), slot_of(now - _GRACE)
    if border is not None and border > end:
        rows = [
            ("stale", slot, "", "", 1, 0, 0, 0)
            for slot in range(end, min(border, slot_of(now) + 1))
        ]
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.executemany(_MARK, rows)
    return border


def keep_counts(cursor: CursorWrapper, session_id: str) -> None:
    """Keep what a session's ended answers count; to be called before they are deleted.

    Within the transaction of the deletion, the session being locked.
    """
    cursor.execute(_record("r.session_id = %s AND r.completed_at IS NOT NULL"), [session_id])
    _add(cursor, _cells(cursor.fetchall()), "-")

"""What retention did, and how the database grew: a few rows of `UsageSlot`, of dimensions of their own.

| dim | slot | ref | n | tokens_in | tokens_out | ms_sum |
| --- | --- | --- | --- | --- | --- | --- |
| removed | first of a day (UTC) | content, record | sessions | bytes | | |
| pruned | 0 | | when the last run ended, in ms since 1970 | sessions: content | sessions: record | ms it took |
| size | first of a day (UTC) | | bytes in use when the day was first looked at | when that was, in s of the day | | |

What was removed is counted in the transaction that removes it. Bytes are those of texts and files, without
the database's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from django.db import connection
from django.db.backends.utils import CursorWrapper
from django.db.models import Sum

from requests_app.models import UsageSlot
from requests_app.rollups import CELLS, add_rows
from requests_app.windows import slot_of, slot_start

Kind = Literal["content", "record"]
KINDS: tuple[Kind, ...] = ("content", "record")

# A disk that is full sooner is warned of.
FULL_SOON_DAYS = 30

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
# Growth is that of so many days at most, and of so long at least.
_GROWTH_DAYS = 14
_GROWTH_FROM = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class Removed:
    sessions: int = 0
    bytes: int = 0

    def __add__(self, other: Removed) -> Removed:
        return Removed(self.sessions + other.sessions, self.bytes + other.bytes)


@dataclass(frozen=True, slots=True)
class LastRun:
    ended_at: datetime
    took: timedelta
    content_sessions: int
    record_sessions: int


def count_removed(cursor: CursorWrapper, removed: Mapping[Kind, Removed], now: datetime) -> None:
    """Add what a transaction removes to the day's counts, within it."""
    rows = [
        ("removed", _day(now), kind, "", one.sessions, one.bytes, 0, 0)
        for kind, one in sorted(removed.items())
        if one != Removed()
    ]
    if rows:
        add_rows(cursor, rows)


def read_removed(since: datetime) -> dict[Kind, Removed]:
    """What was removed from the day of `since` on."""
    rows = UsageSlot.objects.filter(dim="removed", slot__gte=_day(since)).values("ref")
    sums = {row["ref"]: row for row in rows.annotate(Sum("n"), Sum("tokens_in"))}
    return {
        kind: Removed(sums[kind]["n__sum"], sums[kind]["tokens_in__sum"])
        if kind in sums
        else Removed()
        for kind in KINDS
    }


def note_run(removed: Mapping[Kind, Removed], *, ended_at: datetime, took: timedelta) -> None:
    """Note that a run came to its end, in the place of the one before."""
    sessions = {kind: removed.get(kind, Removed()).sessions for kind in KINDS}
    figures = {
        "n": (ended_at - _EPOCH) // _MS,
        "tokens_in": sessions["content"],
        "tokens_out": sessions["record"],
        "ms_sum": took // _MS,
    }
    UsageSlot.objects.update_or_create(dim="pruned", slot=0, ref="", status="", defaults=figures)


def last_run() -> LastRun | None:
    row = UsageSlot.objects.filter(dim="pruned", slot=0).first()
    if row is None:
        return None
    return LastRun(_EPOCH + row.n * _MS, row.ms_sum * _MS, row.tokens_in, row.tokens_out)


# Growth.


@dataclass(frozen=True, slots=True)
class Growth:
    """Of the database, as it was measured from one day to another."""

    # Negative: it shrank.
    bytes_a_day: float
    days: float


def days_until_full(grown: Growth, disk_free: int) -> float | None:
    """In how many days the disk of SQLite's file is full if it grows on so; null: it does not grow."""
    if grown.bytes_a_day <= 0:
        return None
    with connection.cursor() as cursor:
        free = disk_free
        if connection.vendor == "sqlite":
            # Its free pages are filled first.
            cursor.execute("PRAGMA freelist_count")
            (pages,) = cursor.fetchone()
            cursor.execute("PRAGMA page_size")
            free += pages * cursor.fetchone()[0]
    return free / grown.bytes_a_day


def bytes_in_use() -> int:
    """What the database holds, without the pages of its file that are free; blocks."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT pg_database_size(current_database())")
            return int(cursor.fetchone()[0])
        used = 0
        for pragma, sign in (("page_count", 1), ("freelist_count", -1)):
            cursor.execute(f"PRAGMA {pragma}")
            used += sign * cursor.fetchone()[0]
        cursor.execute("PRAGMA page_size")
        return int(used * cursor.fetchone()[0])


def measure(now: datetime) -> None:
    """Note the size of the database, once a day; several processes may do it."""
    day = _day(now)
    if UsageSlot.objects.filter(dim="size", slot=day).exists():
        return
    figures = {
        "n": bytes_in_use(),
        # Two days may be looked at an hour apart.
        "tokens_in": (now - slot_start(day)) // timedelta(seconds=1),
        "tokens_out": 0,
        "ms_sum": 0,
    }
    UsageSlot.objects.get_or_create(dim="size", slot=day, ref="", status="", defaults=figures)


def growth(now: datetime) -> Growth | None:
    """How the database grew of late; null: it has not been measured for long enough."""
    since = _day(now - timedelta(days=_GROWTH_DAYS))
    rows = UsageSlot.objects.filter(dim="size", slot__gte=since).order_by("slot")
    measured = [
        (slot_start(slot) + timedelta(seconds=seconds), n)
        for slot, seconds, n in rows.values_list("slot", "tokens_in", "n")
    ]
    if not measured:
        return None
    began, before = measured[0]
    if now - began < _GROWTH_FROM:
        return None
    days = (now - began) / timedelta(days=1)
    return Growth((bytes_in_use() - before) / days, days)


def _day(at: datetime) -> int:
    slot = slot_of(at)
    return slot - slot % CELLS["d"]

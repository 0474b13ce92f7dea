"""Stretches of time in slots of a quarter of an hour, and how they are cut into points of a line.

A slot is a whole number: the seconds since 1970 divided by 900, rounded down. Every time zone in use is a
multiple of a quarter of an hour away from UTC, so hours and days of any zone are made of whole slots.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Literal

Interval = Literal["slot", "hour", "day"]
INTERVALS: tuple[Interval, ...] = ("slot", "hour", "day")

SLOT = timedelta(minutes=15)
SLOTS_PER_DAY = 96
MAX_POINTS = 3000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SLOTS_PER: dict[Interval, int] = {"slot": 1, "hour": 4, "day": SLOTS_PER_DAY}
# The first slot of the year 9999: beyond it datetimes end.
_LAST_SLOT = (datetime(9999, 1, 1, tzinfo=UTC) - _EPOCH) // SLOT


def slot_of(moment: datetime) -> int:
    return (moment - _EPOCH) // SLOT


def slot_start(slot: int) -> datetime:
    return _EPOCH + slot * SLOT


def read_moment(text: str, zone: tzinfo) -> datetime:
    """Read milliseconds since 1970, or a date or time in ISO 8601; without an offset it is the zone's.

    Raises:
        ValueError, OverflowError: it is neither, or beyond what a datetime holds.
    """
    if text.isascii() and text.removeprefix("-").isdigit():
        return _EPOCH + timedelta(milliseconds=int(text))
    moment = datetime.fromisoformat(text)
    # Far enough from the ends of what a datetime holds for any zone.
    if not 1900 <= moment.year < 9999:
        raise ValueError(text)
    return moment.replace(tzinfo=moment.tzinfo or zone).astimezone(UTC)


@dataclass(frozen=True, slots=True)
class Window:
    """The slots from `start` up to, but not including, `end`."""

    start: int
    end: int

    @classmethod
    def last(cls, span: timedelta, now: datetime) -> Window:
        """The last slots that make up `span`; the newest one is not over yet."""
        end = slot_of(now) + 1
        return cls(end - span // SLOT, end)

    @classmethod
    def between(cls, start: datetime, end: datetime) -> Window:
        """The slots that a stretch of time touches, from 1970 on."""
        first, last = slot_of(start), -((_EPOCH - end) // SLOT)
        return cls(min(max(first, 0), _LAST_SLOT), min(max(last, 0), _LAST_SLOT))

    def __len__(self) -> int:
        return max(self.end - self.start, 0)

    def __contains__(self, slot: int) -> bool:
        return self.start <= slot < self.end

    def points(self, interval: Interval) -> int:
        """How many points a line over it has, about."""
        return len(self) // _SLOTS_PER[interval] + 1

    def before(self, slot: int) -> Window:
        """The part before a slot."""
        return Window(self.start, max(self.start, min(self.end, slot)))

    def finished(self, now: datetime) -> Window:
        """The part whose slots are over, for comparisons."""
        return self.before(slot_of(now))

    def previous(self) -> Window:
        """The window of the same length just before."""
        return Window(max(self.start - len(self), 0), self.start)


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a window that one point stands for."""

    start: int
    end: int
    # The window begins and ends with it or outside of it: nothing of its time is cut off.
    is_whole: bool = True

    def is_complete(self, now: datetime) -> bool:
        """Whether its figures are final: all of it is in the window, and over."""
        return self.is_whole and self.end <= slot_of(now)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Slots with one offset from UTC; `offset` is in slots."""

    start: int
    end: int
    offset: int


class TooManyPoints(ValueError):
    """The window is too long for its interval."""


class Grid:
    """A window cut into points; one point for all of it where no interval is given.

    SQL gives `(slot + stretch.offset) / slots` for each stretch; `index` turns it into a point's number.
    """

    def __init__(self, window: Window, interval: Interval | None, zone: tzinfo) -> None:
        """Cut a window.

        Raises:
            TooManyPoints: it would be more than `MAX_POINTS`.
        """
        self.window = window
        self._interval = interval
        # Of the whole window: beyond any slot, and a multiple of all others.
        self.slots = _SLOTS_PER[interval] if interval else SLOTS_PER_DAY * 2**22
        if interval and len(window) > MAX_POINTS * self.slots:
            raise TooManyPoints
        # Slots and the whole window are the same in every zone.
        needs_zone = interval not in (None, "slot")
        self.stretches = (
            list(_stretches(window, zone)) if needs_zone else [Stretch(window.start, window.end, 0)]
        )
        self.spans: list[Span] = []
        self._indexes: dict[int, int] = {}
        for stretch in self.stretches:
            self._add_spans(stretch)

    def index(self, stretch: Stretch, quotient: int) -> int:
        return self._indexes[self._key(stretch, quotient)]

    def index_of(self, slot: int) -> int:
        """The number of the point that a slot of the window belongs to."""
        stretch = next(one for one in self.stretches if slot < one.end)
        return self.index(stretch, (slot + stretch.offset) // self.slots)

    def _key(self, stretch: Stretch, quotient: int) -> int:
        # A day is one although its clocks change; an hour that the clocks go through twice is two.
        if self._interval == "day":
            return quotient
        return quotient * self.slots - stretch.offset

    def _add_spans(self, stretch: Stretch) -> None:
        if stretch.start >= stretch.end:
            return
        window, per = self.window, self.slots
        first = (stretch.start + stretch.offset) // per
        last = (stretch.end - 1 + stretch.offset) // per
        for quotient in range(first, last + 1):
            natural = quotient * per - stretch.offset
            start, end = max(stretch.start, natural), min(stretch.end, natural + per)
            is_whole = self._interval is None or not (
                (natural < window.start and start == window.start)
                or (natural + per > window.end and end == window.end)
            )
            key = self._key(stretch, quotient)
            if key in self._indexes:
                before = self.spans[-1]
                self.spans[-1] = Span(before.start, end, before.is_whole and is_whole)
            else:
                self._indexes[key] = len(self.spans)
                self.spans.append(Span(start, end, is_whole))


def _stretches(window: Window, zone: tzinfo) -> Iterator[Stretch]:
    start = window.start
    while start < window.end:
        offset = _offset(start, zone)
        end = start
        while end < window.end and _offset(end, zone) == offset:
            end += SLOTS_PER_DAY
        if end >= window.end and _offset(window.end - 1, zone) == offset:
            end = window.end
        else:
            # Clocks changed within the last day: the first slot after it, by halves.
            low, high = end - SLOTS_PER_DAY, min(end, window.end - 1)
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if _offset(middle, zone) == offset else (low, middle)
            end = high
        yield Stretch(start, end, offset)
        start = end


def _offset(slot: int, zone: tzinfo) -> int:
    offset = slot_start(slot).astimezone(zone).utcoffset()
    return 0 if offset is None else offset // SLOT

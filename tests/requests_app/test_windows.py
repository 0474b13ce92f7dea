from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from requests_app.windows import (
    MAX_POINTS,
    SLOTS_PER_DAY,
    Grid,
    TooManyPoints,
    Window,
    read_moment,
    slot_of,
    slot_start,
)

NOW = datetime(2026, 11, 22, 12, 5, tzinfo=UTC)
ZONES = [
    ZoneInfo(name)
    for name in (
        *("UTC", "Asia/Shanghai", "Asia/Kolkata", "Asia/Kathmandu", "Europe/Berlin"),
        *("America/New_York", "Africa/Cairo", "Australia/Lord_Howe", "Pacific/Chatham"),
    )
]


def test_slots_begin_at_quarters_of_an_hour():
    assert slot_start(slot_of(NOW)) == datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
    assert slot_of(slot_start(7)) == 7
    assert slot_of(slot_start(7) - timedelta(microseconds=1)) == 6


def test_the_last_day_ends_with_the_present_slot():
    window = Window.last(timedelta(hours=24), NOW)
    assert len(window) == SLOTS_PER_DAY
    assert slot_of(NOW) in window
    assert slot_of(NOW) + 1 not in window
    assert window.finished(NOW) == Window(window.start, window.end - 1)
    assert window.previous() == Window(window.start - SLOTS_PER_DAY, window.start)


def test_a_stretch_of_time_takes_all_slots_that_it_touches():
    start, end = NOW.replace(minute=14), NOW.replace(minute=31)
    assert len(Window.between(start, end)) == 3
    assert len(Window.between(NOW.replace(minute=15), NOW.replace(minute=30))) == 1
    far = Window.between(datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC))
    assert slot_start(far.start).year == 1970
    assert slot_start(far.end).year == 9999


def test_what_comes_before_a_slot():
    assert Window(5, 9).before(7) == Window(5, 7)
    assert Window(5, 9).before(3) == Window(5, 5)
    assert Window(5, 9).before(30) == Window(5, 9)
    assert Window(2, 9).previous() == Window(0, 2)


@pytest.mark.parametrize("zone", ZONES, ids=str)
def test_each_slot_is_in_the_day_and_hour_that_a_clock_there_shows(zone):
    # All of a year: every change of clocks.
    window = Window.between(datetime(2026, 1, 3, 5, tzinfo=UTC), datetime(2027, 1, 2, tzinfo=UTC))
    days = Grid(window, "day", zone)
    dates = {}
    for slot in range(window.start, window.end):
        local = slot_start(slot).astimezone(zone)
        dates.setdefault(days.index_of(slot), set()).add(local.date())
    assert all(len(shown) == 1 for shown in dates.values())
    assert len(set().union(*dates.values())) == len(days.spans) == len(dates)
    part = Window(window.start, window.start + 2880)
    hours = Grid(part, "hour", zone)
    for slot in range(part.start, part.end):
        span = hours.spans[hours.index_of(slot)]
        assert span.start <= slot < span.end
        first, local = (slot_start(one).astimezone(zone) for one in (span.start, slot))
        assert (first.date(), first.hour) == (local.date(), local.hour)


@pytest.mark.parametrize("interval", ["slot", "hour", "day", None])
@pytest.mark.parametrize("zone", ZONES, ids=str)
def test_points_follow_each_other_without_gaps(zone, interval):
    window = Window.between(
        datetime(2026, 10, 20, 3, 15, tzinfo=UTC), datetime(2026, 11, 10, 7, 45, tzinfo=UTC)
    )
    spans = Grid(window, interval, zone).spans
    assert spans[0].start == window.start
    assert spans[-1].end == window.end
    assert all(before.end == after.start for before, after in zip(spans, spans[1:], strict=False))


def test_a_day_of_changing_clocks_is_one_point_of_its_own_length():
    window = Window.between(datetime(2026, 3, 27, tzinfo=UTC), datetime(2026, 10, 28, tzinfo=UTC))
    spans = Grid(window, "day", ZoneInfo("Europe/Berlin")).spans
    lengths = [span.end - span.start for span in spans[1:-1]]
    assert sorted(set(lengths)) == [92, 96, 100]
    assert all(span.is_whole for span in spans[1:-1])


def test_an_hour_that_comes_twice_is_two_points():
    window = Window.between(
        datetime(2026, 10, 24, 23, tzinfo=UTC), datetime(2026, 10, 25, 3, tzinfo=UTC)
    )
    spans = Grid(window, "hour", ZoneInfo("Europe/Berlin")).spans
    shown = [slot_start(span.start).astimezone(ZoneInfo("Europe/Berlin")).hour for span in spans]
    assert shown == [1, 2, 2, 3]


def test_points_that_are_cut_or_not_over_are_told():
    window = Window.between(NOW - timedelta(days=2), NOW)
    first, *middle, last = Grid(window, "day", UTC).spans
    assert [span.is_complete(NOW) for span in (first, *middle, last)] == [False, True, False]
    assert (first.is_whole, last.is_whole) == (False, False)
    today = Window.between(NOW.replace(hour=0, minute=0), NOW.replace(hour=0) + timedelta(days=1))
    (span, *_) = Grid(today, "day", UTC).spans
    assert span.is_whole
    assert not span.is_complete(NOW)


def test_too_many_points_are_refused_before_they_are_made():
    Grid(Window(0, MAX_POINTS), "slot", UTC)
    with pytest.raises(TooManyPoints):
        Grid(Window(0, MAX_POINTS + 1), "slot", UTC)
    with pytest.raises(TooManyPoints):
        Grid(Window(0, 10**8), "day", UTC)
    assert len(Grid(Window(0, 10**8), None, UTC).spans) == 1


def test_an_empty_window_has_no_points():
    assert Grid(Window(5, 5), "hour", ZoneInfo("Asia/Kolkata")).spans == []


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        pytest.param("1795348800123", datetime(2026, 11, 22, 12, 0, 0, 123000, UTC), id="ms"),
        pytest.param("-1000", datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC), id="before 1970"),
        pytest.param("2026-11-22", datetime(2026, 11, 21, 18, 15, tzinfo=UTC), id="date"),
        pytest.param("2026-11-22T12:15Z", datetime(2026, 11, 22, 12, 15, tzinfo=UTC), id="utc"),
        pytest.param("2026-11-22T12:15+05:30", datetime(2026, 11, 22, 6, 45, tzinfo=UTC), id="+"),
        pytest.param("2026-11-22 06:00", datetime(2026, 11, 22, 0, 15, tzinfo=UTC), id="local"),
    ],
)
def test_moments_are_read(text, moment):
    assert read_moment(text, ZoneInfo("Asia/Kathmandu")) == moment


@pytest.mark.parametrize(
    "text", ["", "-", "now", "9" * 30, "9" * 5000, "1 000", "٣", "2026-13-01", "9999-12-31", "\0"]
)
def test_other_texts_are_no_moments(text):
    with pytest.raises((ValueError, OverflowError)):
        read_moment(text, UTC)

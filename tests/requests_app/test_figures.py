"""Reading: equal to the record, wherever it is rolled up to and whatever clocks people use."""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from requests_app import rollups
from requests_app.deletion import delete_session_rows
from requests_app.figures import GROUPS, MIN_SAMPLES, NotOfKey, Reader, names_of
from requests_app.models import LatencySlot, Response, UsageSlot
from requests_app.rollups import roll_next
from requests_app.windows import Window, slot_of, slot_start
from tests.factories import make_account, make_api_key, make_session
from tests.requests_app.ended import ended_rows, expected, make_ended, make_random, seen
from tests.requests_app.test_rollups import roll_all

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 11, 22, 12, 5, tzinfo=UTC)
DAY = timedelta(days=1)


def bounds(window):
    return slot_start(window.start), slot_start(window.end)


@pytest.mark.parametrize("rolled", ["all", "some", "none"])
@pytest.mark.parametrize("group", [None, *GROUPS])
def test_figures_are_what_the_record_says(group, rolled):
    hours = 1.5 if rolled == "none" else 12
    make_random(1, 300, NOW - timedelta(hours=hours), timedelta(hours=hours))
    if rolled == "all":
        roll_all(NOW)
    elif rolled == "some":
        roll_all(NOW - timedelta(hours=1))
    window = Window.last(timedelta(hours=10), NOW)
    reader = Reader(NOW)
    found = {"": reader.totals(window)} if group is None else reader.groups(window, group)
    assert {ref: seen(counts) for ref, counts in found.items()} == expected(
        ended_rows(), *bounds(window), group
    )
    assert reader.as_of == NOW


@pytest.mark.parametrize("interval", ["slot", "hour", "day"])
def test_lines_add_up_to_their_window(interval):
    make_random(2, 100, NOW - 2 * DAY, 2 * DAY)
    roll_all(NOW)
    window = Window.last(2 * DAY, NOW)
    reader = Reader(NOW)
    points = reader.series(window, interval, ZoneInfo("Asia/Kathmandu"), "model")
    assert sum((seen(p.counts) for p in points), Counter()) == seen(reader.totals(window))
    rows = ended_rows()
    for point in points:
        assert seen(point.counts) == sum((seen(c) for c in point.groups.values()), Counter())
        assert seen(point.counts) == expected(rows, point.start, point.end).get("", Counter())
    assert points[-1].end == slot_start(slot_of(NOW) + 1)
    assert not points[-1].is_complete


@pytest.mark.parametrize(
    "zone", ["UTC", "Asia/Shanghai", "Asia/Kolkata", "Asia/Kathmandu", "America/New_York"]
)
def test_days_are_those_of_the_zone(zone):
    zone = ZoneInfo(zone)
    # Over the end of New York's summer time, on the first of November.
    now = datetime(2026, 11, 3, 20, 0, tzinfo=UTC)
    make_random(3, 120, now - 5 * DAY, 5 * DAY)
    roll_all(now)
    window = Window.last(6 * DAY, now)
    points = Reader(now).series(window, "day", zone)
    days = Counter(row.completed_at.astimezone(zone).date() for row in Response.objects.all())
    shown = {point.start.astimezone(zone).date(): point.counts.requests for point in points}
    assert {day: n for day, n in shown.items() if n} == dict(days)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai", "Asia/Kathmandu"])
def test_windows_of_any_borders_are_the_same_by_slots_hours_and_days(zone):
    zone = ZoneInfo(zone)
    make_random(8, 200, NOW - 4 * DAY, 4 * DAY)
    roll_all(NOW)
    rows, reader = ended_rows(), Reader(NOW)
    end = slot_of(NOW)
    for window in (
        Window(end - 96 * 4, end),
        Window(end - 96 * 3 - 7, end - 96 - 2),
        Window(end - 9, end - 1),
        Window(end - 96 * 2, end + 96),
    ):
        start, stop = bounds(window)
        assert seen(reader.totals(window)) == expected(rows, start, stop).get("", Counter())
        ttft = sum(row.ttft_ms is not None for row in rows if start <= row.completed_at < stop)
        assert reader.latency(window, "ttft").samples == ttft
        for interval in ("hour", "day"):
            for point in reader.series(window, interval, zone):
                shown = expected(rows, point.start, point.end).get("", Counter())
                assert seen(point.counts) == shown


def test_lines_have_no_gaps():
    make_ended([make_session()], [NOW - 5 * DAY, NOW])
    points = Reader(NOW).series(Window.last(7 * DAY, NOW), "hour", UTC)
    assert len(points) in (168, 169)
    # The older one is not rolled, and too old to be counted from the record.
    assert sum(point.counts.requests for point in points) == 0


def test_percentiles_of_a_window_come_from_all_of_it():
    make_random(4, 400, NOW - DAY, DAY)
    roll_all(NOW)
    window = Window.last(DAY, NOW)
    start, end = bounds(window)
    rows = Response.objects.filter(completed_at__gte=start, completed_at__lt=end)
    reader = Reader(NOW)
    for metric, values in (
        ("ttft", rows.filter(ttft_ms__isnull=False).values_list("ttft_ms", flat=True)),
        ("total", rows.filter(status="completed").values_list("duration_ms", flat=True)),
    ):
        exact = sorted(values)
        latency = reader.latency(window, metric)
        assert latency.samples == len(exact) > 100
        for share, found in ((0.5, latency.p50_ms), (0.95, latency.p95_ms)):
            true = max(1, exact[math.ceil(share * len(exact)) - 1])
            assert found == pytest.approx(true, rel=0.05)
        models = reader.latency_by_model(window, metric)
        assert sum(one.samples for one in models.values()) == len(exact)
        line = reader.latency_series(window, "hour", UTC, metric)
        assert len(line) == len(reader.series(window, "hour", UTC))
        assert sum(one.samples for one in line) == len(exact)


@pytest.mark.parametrize(("samples", "is_known"), [(MIN_SAMPLES - 1, False), (MIN_SAMPLES, True)])
def test_a_percentile_needs_samples(samples, is_known):
    make_ended([make_session()], [NOW] * samples)
    latency = Reader(NOW).latency(Window.last(DAY, NOW), "ttft")
    assert latency.samples == samples
    assert (latency.p50_ms is not None) == (latency.p95_ms is not None) == is_known


def test_nothing_recorded():
    reader, window = Reader(NOW), Window.last(DAY, NOW)
    counts = reader.totals(window)
    assert (counts.requests, counts.error_rate, reader.as_of) == (0, None, NOW)
    assert reader.groups(window, "model") == {}
    assert reader.latency(window, "ttft").p50_ms is None
    assert not reader.is_behind


def test_how_far_figures_go_where_rolling_is_behind(monkeypatch):
    monkeypatch.setattr(rollups, "_LONGEST_TRANSACTION_S", 0)
    session = make_session()
    make_ended([session], [NOW - timedelta(hours=n) for n in (8, 7, 6, 5, 1)])
    for _ in range(2):
        roll_next(NOW)
    reader = Reader(NOW)
    assert reader.is_behind
    assert reader.as_of == slot_start(slot_of(NOW - timedelta(hours=6)))
    assert reader.totals(Window.last(DAY, NOW)).requests == 2
    roll_all(NOW)
    assert Reader(NOW).totals(Window.last(DAY, NOW)).requests == 5


def test_an_idle_day_is_not_behind():
    make_ended([make_session()], [NOW - 3 * DAY, NOW - timedelta(minutes=1)])
    roll_all(NOW - timedelta(minutes=5))
    reader = Reader(NOW)
    assert not reader.is_behind
    assert reader.totals(Window.last(7 * DAY, NOW)).requests == 2


def test_absent_rollups_of_a_young_record_are_no_matter():
    make_random(5, 50, NOW - timedelta(hours=1), timedelta(hours=1))
    assert Reader(NOW).totals(Window.last(DAY, NOW)).requests == 50


def test_a_clock_that_was_set_back_hides_nothing():
    session = make_session()
    make_ended([session], [NOW + timedelta(hours=1)])
    roll_all(NOW + timedelta(hours=2))
    make_ended([session], [NOW])
    assert Reader(NOW).totals(Window.last(DAY, NOW)).requests == 1


def test_deleted_sessions_stay_counted_before_and_after_they_are_rolled():
    session = make_session()
    make_ended([session], [NOW - timedelta(hours=3), NOW])
    window = Window.last(DAY, NOW)
    roll_all(NOW)
    before = Reader(NOW)
    latency = before.latency(window, "ttft")
    delete_session_rows(session.id, None)
    after = Reader(NOW)
    assert seen(after.totals(window)) == seen(before.totals(window))
    assert after.totals(window).requests == 2
    assert after.latency(window, "ttft") == latency


def test_one_key_sees_its_own():
    responses = make_random(6, 200, NOW - 2 * DAY, 2 * DAY)
    roll_all(NOW)
    key = responses[0].api_key_id
    reader = Reader(NOW, api_key_id=key)
    week, day = Window.last(7 * DAY, NOW), Window.last(DAY, NOW)
    own = [row for row in responses if row.api_key_id == key]
    assert reader.totals(week).requests == len(own)
    assert list(reader.groups(week, "key")) == [str(key)]
    assert sum(c.requests for c in reader.groups(week, "status").values()) == len(own)
    line = reader.series(week, "day", UTC, "status")
    assert sum(point.counts.requests for point in line) == len(own)
    start, end = bounds(day)
    recent = [row for row in own if start <= row.completed_at < end]
    for group in ("model", "account"):
        found = reader.groups(day, group)
        assert sum(counts.requests for counts in found.values()) == len(recent)
    codes = reader.groups(day, "error")
    assert sum(c.requests for c in codes.values()) == sum(
        row.status in ("failed", "interrupted") for row in recent
    )
    assert reader.latency(day, "ttft").samples == sum(row.ttft_ms is not None for row in recent)
    for read in (
        lambda: reader.groups(week, "model"),
        lambda: reader.series(week, "day", UTC, "error"),
        lambda: reader.latency(week, "ttft"),
        lambda: reader.latency_series(week, "day", UTC, "total"),
    ):
        with pytest.raises(NotOfKey):
            read()


def test_the_record_is_read_once_and_roll_ups_once_a_question(django_assert_num_queries):
    make_random(7, 50, NOW - DAY, DAY)
    roll_all(NOW)
    window = Window.last(DAY, NOW)
    with django_assert_num_queries(2):
        reader = Reader(NOW)
    with django_assert_num_queries(2):
        reader.totals(window)
    with django_assert_num_queries(7):
        reader.totals(window.previous())
        reader.series(window, "hour", UTC, "status")
        reader.groups(window, "model")
        reader.groups(window, "key")
        reader.latency(window, "ttft")
        reader.latency_series(window, "hour", UTC, "ttft")


def test_groups_come_with_the_most_requests_first():
    session = make_session()
    make_ended([session], [NOW] * 6, model=["b", "a", "c", "c", "c", "a"])
    assert list(Reader(NOW).groups(Window.last(DAY, NOW), "model")) == ["c", "a", "b"]


def test_names_of_keys_and_accounts():
    key, account = make_api_key("front end"), make_account("web")
    assert names_of("key", [str(key.pk), "999"]) == {str(key.pk): "front end"}
    assert names_of("account", ["", str(account.pk)]) == {str(account.pk): "web"}
    assert names_of("model", ["qwen3-max"]) == {}


def test_a_broken_roll_up_is_read_as_it_is_and_mended_by_rolling():
    make_ended([make_session()], [NOW - timedelta(hours=1)])
    roll_all(NOW)
    UsageSlot.objects.all().delete()
    LatencySlot.objects.all().delete()
    assert Reader(NOW).totals(Window.last(DAY, NOW)).requests == 1

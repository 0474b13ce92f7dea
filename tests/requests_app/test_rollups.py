"""Filling the roll-ups: the same however often, by however many, and whatever comes late or goes."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from django.db import Error, connection, connections
from django.db import transaction as django_transaction

from qwenproxy.database import close_pool
from qwenproxy.transaction import transaction
from requests_app import recorder as recorder_module
from requests_app import rollups
from requests_app.deletion import delete_session_rows
from requests_app.models import LatencySlot, Response, UsageSlot
from requests_app.rollups import (
    count,
    mark_behind,
    mark_late,
    rebuild,
    roll_next,
    rolled_to,
)
from requests_app.windows import slot_of, slot_start
from tests.factories import make_api_key, make_session
from tests.requests_app.ended import make_ended, make_random
from tests.turns import make_closing, make_opening, running_recorder, user

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 11, 22, 12, 5, tzinfo=UTC)
QUARTER = timedelta(minutes=15)


def roll_all(now=NOW):
    rolled = []
    while (slot := roll_next(now)) is not None:
        rolled.append(slot)
    return rolled


def table():
    """All of both tables but the marks."""
    usage = UsageSlot.objects.exclude(dim="stale").values_list(
        "dim", "slot", "ref", "status", "n", "tokens_in", "tokens_out", "ms_sum"
    )
    latency = LatencySlot.objects.values_list("dim", "metric", "slot", "ref", "bucket", "n")
    return sorted(usage), sorted(latency)


def slots():
    """The slots themselves, without what is kept of deleted sessions."""
    return tuple([row for row in rows if row[0] in rollups._USAGE_DIMS] for rows in table())


def assert_larger_cells_add_up():
    for rows, key in zip(table(), (slice(1, 4), slice(1, 5)), strict=True):
        for prefix, size in (("h", 4), ("d", 96)):
            expected, found = Counter(), Counter()
            for row in rows:
                place = list(row[key])
                # The slot comes second in the one table, third in the other.
                at = 0 if len(row) == 8 else 1
                place[at] -= place[at] % size
                if row[0] in rollups._USAGE_DIMS:
                    expected[(row[0], *place)] += row[-4 if len(row) == 8 else -1]
                elif row[0][0] == prefix:
                    found[(row[0][1:], *place)] += row[-4 if len(row) == 8 else -1]
            assert +found == +expected


def counted(start, end):
    cells = count(start, end)
    return cells.usage_rows(), cells.latency_rows()


@pytest.fixture(autouse=True)
def _each_slot_in_its_own_transaction(monkeypatch):
    monkeypatch.setattr(rollups, "_LONGEST_TRANSACTION_S", 0)


def requests_in(slot):
    return sum(UsageSlot.objects.filter(dim="total", slot=slot, ref="").values_list("n", flat=True))


def commit_late(session, moment, *, now, border=None):
    """Write an end as the recorder does."""
    make_ended([session], [moment])
    with connection.cursor() as cursor:
        # It has what of a transaction is needed here.
        mark_late(cursor, [moment], now=now, border=border)


def test_what_is_rolled_is_what_was_recorded():
    make_random(1, 300, NOW - timedelta(hours=8), timedelta(hours=8))
    rolled = roll_all()
    assert rolled == sorted(set(rolled))
    end = slot_of(NOW)
    assert slots() == counted(0, end)
    assert_larger_cells_add_up()
    totals = UsageSlot.objects.filter(dim="total").values_list("n", flat=True)
    ended = Response.objects.filter(completed_at__lt=slot_start(end))
    assert sum(totals) == ended.count() > 200
    with_ttft = ended.filter(ttft_ms__isnull=False).count()
    for dim in ("total", "model"):
        rows = LatencySlot.objects.filter(dim=dim, metric="ttft").values_list("n", flat=True)
        assert sum(rows) == with_ttft
    assert rolled_to() == end


def test_rolling_again_changes_nothing():
    make_random(2, 120, NOW - timedelta(hours=3), timedelta(hours=3))
    roll_all()
    before = table()
    assert roll_all() == []
    assert len(list(rebuild(0, slot_of(NOW), NOW))) > 5
    assert table() == before


def test_a_slot_is_rolled_a_minute_after_its_end():
    session = make_session()
    make_ended([session], [slot_start(slot_of(NOW)) - timedelta(seconds=1)])
    border = slot_start(slot_of(NOW))
    assert roll_all(border + timedelta(seconds=59)) == []
    assert roll_all(border + timedelta(seconds=60)) == [slot_of(NOW) - 1]


def test_running_answers_are_not_counted():
    make_ended([make_session()], [NOW - QUARTER] * 2, status=["completed", "in_progress"],
               completed_at=[NOW - QUARTER, None])  # fmt: skip
    assert roll_all() == [slot_of(NOW - QUARTER)]
    assert requests_in(slot_of(NOW - QUARTER)) == 1


def test_an_answer_counts_where_it_ended():
    began = NOW - timedelta(hours=5)
    make_ended([make_session()], [NOW - QUARTER], created_at=[began])
    assert roll_all() == [slot_of(NOW - QUARTER)]


@pytest.mark.parametrize("fails_at", range(0, 12, 3))
def test_a_crash_between_or_within_slots_loses_and_doubles_nothing(monkeypatch, fails_at):
    make_random(3, 150, NOW - timedelta(hours=3), timedelta(hours=3))
    real, calls = rollups._write, []

    def write(cursor, cells):
        calls.append(cells)
        real(cursor, cells)
        if len(calls) == fails_at + 1:
            raise Error("the plug was pulled")

    monkeypatch.setattr(rollups, "_write", write)
    with pytest.raises(Error):
        roll_all()
    assert len({row[1] for row in slots()[0]}) == fails_at
    roll_all()
    assert slots() == counted(0, slot_of(NOW))
    assert_larger_cells_add_up()


def test_an_end_that_is_written_late_is_counted():
    session = make_session()
    old = NOW - timedelta(hours=6)
    make_ended([session], [old, NOW - QUARTER])
    roll_all()
    commit_late(session, old, now=NOW)
    assert requests_in(slot_of(old)) == 1
    assert roll_all() == [slot_of(old)]
    assert requests_in(slot_of(old)) == 2
    assert_larger_cells_add_up()
    assert not UsageSlot.objects.filter(dim="stale").exists()


def test_slots_of_little_share_a_transaction(monkeypatch):
    monkeypatch.setattr(rollups, "_LONGEST_TRANSACTION_S", 60)
    moments = [NOW - QUARTER * n for n in (9, 5, 2)]
    make_ended([make_session()], moments)
    assert roll_next(NOW) == slot_of(moments[-1])
    assert roll_next(NOW) is None
    assert list(rebuild(0, slot_of(NOW), NOW)) == [slot_of(moment) for moment in moments]


def test_an_end_in_time_leaves_no_mark():
    commit_late(make_session(), NOW, now=NOW)
    commit_late(make_session(), NOW, now=NOW, border=slot_of(NOW))
    assert not UsageSlot.objects.filter(dim="stale").exists()


def test_a_mark_before_the_first_roll_skips_no_slot():
    session = make_session()
    moments = [NOW - QUARTER * n for n in (9, 7, 5, 3)]
    make_ended([session], moments)
    commit_late(session, moments[2], now=NOW)
    assert roll_all() == [slot_of(moment) for moment in moments]
    assert [requests_in(slot_of(moment)) for moment in moments] == [1, 1, 2, 1]
    assert not UsageSlot.objects.filter(dim="stale").exists()


def test_a_clock_that_was_set_back_loses_nothing():
    session = make_session()
    make_ended([session], [NOW - QUARTER * 2, NOW + timedelta(hours=1)])
    # An hour ahead, everything up to then was rolled.
    roll_all(NOW + timedelta(hours=2))
    border = mark_behind(NOW)
    assert border == slot_of(NOW + timedelta(hours=1)) + 1
    commit_late(session, NOW, now=NOW, border=border)
    roll_all()
    assert requests_in(slot_of(NOW)) == 1


def test_what_a_process_with_a_slow_clock_ended_is_counted_by_its_next_round():
    session = make_session()
    slow = NOW - timedelta(minutes=7)
    make_ended([session], [slow])
    roll_all(NOW)
    # Of the same slot, unmarked: this process did not know that it was rolled.
    make_ended([session], [slow])
    mark_behind(slow)
    roll_all(slow)
    assert requests_in(slot_of(slow)) == 2


def test_deleted_sessions_stay_counted():
    responses = make_random(4, 200, NOW - timedelta(hours=4), timedelta(hours=4))
    roll_all()
    before, cells = slots(), counted(0, slot_of(NOW) + 1)
    for session_id in {response.session_id for response in responses[:2]}:
        assert delete_session_rows(session_id, None)
    assert slots() == before
    assert Response.objects.count() < 100
    assert counted(0, slot_of(NOW) + 1) == cells
    list(rebuild(0, slot_of(NOW), NOW))
    assert slots() == before
    assert_larger_cells_add_up()


def test_a_session_that_is_deleted_before_its_slot_is_rolled_is_counted():
    session = make_session()
    make_ended([session], [NOW - QUARTER] * 3)
    delete_session_rows(session.id, None)
    assert roll_all() == [slot_of(NOW - QUARTER)]
    assert requests_in(slot_of(NOW - QUARTER)) == 3


def test_deleting_two_sessions_of_one_slot_adds_up():
    sessions = [make_session() for _ in range(2)]
    make_ended(sessions, [NOW - QUARTER] * 4)
    for session in sessions:
        delete_session_rows(session.id, None)
    roll_all()
    assert requests_in(slot_of(NOW - QUARTER)) == 4


def test_rebuilding_gives_what_filling_gave():
    make_random(5, 100, NOW - timedelta(hours=8), timedelta(hours=8))
    roll_all()
    before = table()
    UsageSlot.objects.all().delete()
    LatencySlot.objects.all().delete()
    assert list(rebuild(0, 2**31, NOW)) == sorted(
        {row[1] for row in before[0] if row[0] == "total"}
    )
    assert table() == before


def test_rebuilding_a_part_leaves_no_gap_before_it():
    make_random(6, 60, NOW - timedelta(hours=6), timedelta(hours=6))
    rebuilt = list(rebuild(slot_of(NOW - timedelta(hours=1)), slot_of(NOW), NOW))
    assert rebuilt[0] == slot_of(Response.objects.earliest("completed_at").completed_at)
    assert slots() == counted(0, slot_of(NOW))


def test_rebuilding_mends_hours_and_days():
    make_random(12, 60, NOW - timedelta(hours=20), timedelta(hours=20))
    roll_all()
    before = table()
    for model in (UsageSlot, LatencySlot):
        model.objects.filter(dim__in=("htotal", "dmodel")).update(n=99)
        model.objects.filter(dim__in=("hmodel", "dtotal")).delete()
    list(rebuild(0, slot_of(NOW), NOW))
    assert table() == before


def test_rebuilding_mends_what_is_wrong_in_its_range_alone():
    session = make_session()
    hours = [NOW - timedelta(hours=n) for n in (3, 2, 1)]
    make_ended([session], hours)
    roll_all()
    UsageSlot.objects.update(n=99)
    middle = slot_of(hours[1])
    assert list(rebuild(middle, middle + 1, NOW)) == [middle]
    assert [requests_in(slot_of(moment)) for moment in hours] == [99, 1, 99]


def test_a_rebuild_that_is_ended_keeps_what_it_did():
    make_random(7, 60, NOW - timedelta(hours=6), timedelta(hours=6))
    rebuilding = rebuild(0, slot_of(NOW), NOW)
    done = [next(rebuilding) for _ in range(3)]
    rebuilding.close()
    assert rolled_to() == done[-1] + 1
    roll_all()
    assert slots() == counted(0, slot_of(NOW))
    assert_larger_cells_add_up()


def test_nothing_to_do_costs_few_reads_and_no_lock(django_assert_max_num_queries):
    make_ended([make_session()], [NOW - QUARTER])
    roll_all()
    with django_assert_max_num_queries(4) as captured:
        assert roll_next(NOW) is None
    assert all(query["sql"].startswith("SELECT") for query in captured)


def test_the_end_is_found_by_its_index():
    make_random(3, 300, NOW - timedelta(days=2), timedelta(days=2))
    with connection.cursor() as cursor:
        # PostgreSQL plans by what it knows of the rows, which is what other tests left.
        if connection.vendor == "postgresql":
            cursor.execute("ANALYZE requests_app_request, requests_app_response")
            cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(
            ("EXPLAIN " if connection.vendor == "postgresql" else "EXPLAIN QUERY PLAN ")
            + rollups._record(rollups._BETWEEN),
            [connection.ops.adapt_datetimefield_value(NOW)] * 2,
        )
        plan = str(cursor.fetchall())
    assert "response_completed" in plan


class TestConcurrently:
    pytestmark = pytest.mark.django_db(transaction=True)

    @staticmethod
    def at_once(*functions):
        """Run functions in threads of their own connections; return what they return."""
        outcomes = [None] * len(functions)
        barrier = threading.Barrier(len(functions))

        def run(index):
            try:
                barrier.wait()
                outcomes[index] = functions[index]()
            except Error as exc:
                outcomes[index] = exc
            finally:
                connections.close_all()

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return outcomes

    def test_several_processes_roll_at_the_same_time(self):
        make_random(8, 300, NOW - timedelta(hours=6), timedelta(hours=6))

        def rebuild_all():
            return list(rebuild(0, slot_of(NOW), NOW))

        outcomes = self.at_once(roll_all, roll_all, rebuild_all)
        assert not [outcome for outcome in outcomes if isinstance(outcome, Error)]
        roll_all()
        assert slots() == counted(0, slot_of(NOW))
        assert_larger_cells_add_up()

    def test_sessions_are_deleted_while_slots_are_rolled(self):
        responses = make_random(9, 300, NOW - timedelta(hours=3), timedelta(hours=3))
        cells = counted(0, slot_of(NOW))
        sessions = sorted({response.session_id for response in responses})

        def delete(session_id):
            return lambda: delete_session_rows(session_id, None)

        def rebuild_all():
            return [list(rebuild(0, slot_of(NOW), NOW)) for _ in range(3)]

        outcomes = self.at_once(rebuild_all, *map(delete, sessions))
        assert outcomes[1:] == [True] * len(sessions)
        assert not isinstance(outcomes[0], Error)
        assert not Response.objects.exists()
        assert slots() == cells
        assert_larger_cells_add_up()

    def test_a_roll_waits_for_an_end_that_is_being_written_late(self):
        if connection.vendor != "postgresql":
            pytest.skip("SQLite has one writer at a time")
        session = make_session()
        old = NOW - timedelta(hours=2)
        make_ended([session], [old, NOW - QUARTER])
        roll_all()
        with transaction(lock_wait_s=5) as tx:
            mark_late(tx, [old], now=NOW, border=None)
        rolling = threading.Thread(target=lambda: (roll_all(), connections.close_all()))
        with django_transaction.atomic():
            # The mark is there already, and is to be waited for all the same.
            commit_late(session, old, now=NOW)
            rolling.start()
            rolling.join(0.3)
            assert rolling.is_alive()
        rolling.join(30)
        assert requests_in(slot_of(old)) == 2

    def test_the_recorder_marks_rolls_and_goes_on_after_an_error(self, tmp_path, monkeypatch):
        key = make_api_key()
        ended = datetime.now(UTC) - timedelta(hours=3)
        rolled = []

        async def main():
            async with running_recorder(tmp_path / "workers") as recorder:
                for moment in (ended, ended, datetime.now(UTC)):
                    opening = make_opening(key, user("hi"))
                    opened = await recorder.open(opening)
                    await recorder.commit(make_closing(opening, opened, "ok", completed_at=moment))
                monkeypatch.setattr(recorder_module, "roll_next", fail)
                await recorder.roll()
                monkeypatch.undo()
                await recorder.roll()
                rolled.append(await asyncio.to_thread(in_thread, slot_of(ended)))

        def fail(now):
            raise Error("away")

        def in_thread(slot):
            try:
                return requests_in(slot)
            finally:
                connections.close_all()

        try:
            asyncio.run(main())
        finally:
            close_pool()
        assert rolled == [2]
        assert list(UsageSlot.objects.filter(dim="stale")) == []

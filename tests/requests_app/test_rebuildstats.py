from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError

from qwenproxy.management.commands import rebuildstats
from requests_app.models import UsageSlot
from requests_app.rollups import rebuild
from requests_app.windows import slot_of
from tests.factories import make_session
from tests.requests_app.ended import make_ended
from tests.requests_app.test_rollups import requests_in

pytestmark = pytest.mark.django_db

HOURS = [datetime(2026, 11, 1, hour, 20, tzinfo=UTC) for hour in (1, 2, 3, 23)]


@pytest.fixture(autouse=True)
def _ended(db):
    make_ended([make_session()], HOURS)


def run(*arguments, tty=False):
    out, err = io.StringIO(), io.StringIO()
    err.isatty = lambda: tty
    call_command("rebuildstats", *arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def counted():
    return [requests_in(slot_of(hour)) for hour in HOURS]


def test_all_is_counted_anew():
    UsageSlot.objects.create(
        dim="total", slot=slot_of(HOURS[1]), ref="", status="completed",
        n=99, tokens_in=0, tokens_out=0, ms_sum=0,
    )  # fmt: skip
    out, err = run()
    assert counted() == [1, 1, 1, 1]
    assert out.startswith("Counted anew: 4 quarters of an hour in ")
    assert err == ""


def test_a_part_is_counted_anew():
    run()
    UsageSlot.objects.update(n=99)
    run("--from", "2026-11-01T02:00Z", "--to", "2026-11-01T03:00Z")
    assert counted() == [99, 1, 99, 99]


def test_days_are_those_of_the_reporting_zone(settings):
    run()
    UsageSlot.objects.update(n=99)
    settings.REPORTING_ZONE = ZoneInfo("Asia/Kolkata")
    # The second of November begins at 18:30.
    run("--from", "2026-11-02")
    assert counted() == [99, 99, 99, 1]


def test_a_terminal_sees_how_far_it_is():
    _, err = run(tty=True)
    assert err.count("\r") == 4
    assert "2026-11-01 23:30 UTC" in err
    assert err.endswith("\n")


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), 130), (OperationalError("locked"), 1)]
)
def test_what_was_broken_off_goes_on_where_it_says(monkeypatch, error, status):
    def broken(*args):
        for number, slot in enumerate(rebuild(*args)):
            if number == 2:
                raise error
            yield slot

    monkeypatch.setattr(rebuildstats, "rebuild", broken)
    with pytest.raises(CommandError) as caught:
        run("--to", "2026-11-02")
    assert caught.value.returncode == status
    command = "rebuildstats --from 2026-11-01T02:30Z --to 2026-11-02"
    assert str(caught.value).endswith(command)
    monkeypatch.undo()
    UsageSlot.objects.filter(slot=slot_of(HOURS[2])).delete()
    run(*command.split()[1:])
    assert counted() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "soon"], "--from: 'soon' is no time"),
        (["--to", "9" * 30], "--to: "),
        (["--from", "2026-11-02", "--to", "2026-11-01"], "--from is not before --to"),
    ],
)
def test_wrong_times_are_refused(arguments, message):
    with pytest.raises(CommandError, match=message):
        run(*arguments)


def test_nothing_recorded():
    make_session()
    out, _ = run("--from", "2026-11-05")
    # To where rolling stands: nothing was rolled, so the past comes as well.
    assert out.startswith("Counted anew: 4 ")
    out, _ = run("--from", str(int((HOURS[3] + timedelta(days=1)).timestamp() * 1000)))
    assert out.startswith("Counted anew: 0 ")

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from qwenproxy import display


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (None, "–"),
        (0, "0 ms"),
        (999.4, "999 ms"),
        (999.6, "1.0 s"),
        (119_900, "119.9 s"),
        (120_000, "2.0 min"),
        (7_200_000, "2.0 h"),
    ],
)
def test_durations(ms, text):
    assert display.duration(ms) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (9_999, "9,999"),
        (12_345, "12.3k"),
        (999_960, "1.0M"),
        (4.5e6, "4.5M"),
    ],
)
def test_short_numbers(value, text):
    assert display.short(value) == text


@pytest.mark.parametrize(
    ("count", "text"), [(None, "–"), (999, "999 B"), (1000, "1.0 kB"), (64_000_000, "64.0 MB")]
)
def test_sizes(count, text):
    assert display.size(count) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(None, "–"), (0, "0.0 %"), (0.0001, "<0.1 %"), (0.031, "3.1 %"), (1, "100.0 %")],
)
def test_shares(share, text):
    assert display.percent(share) == text


def test_times(settings):
    settings.REPORTING_ZONE = ZoneInfo("Asia/Kolkata")
    at = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
    assert display.local(at) == (
        '<time datetime="2026-11-23T12:00:00.000Z" title="2026-11-23T12:00:00.000Z">2026-11-23 17:30:00</time>'
    )
    assert ">2 days ago<" in display.ago(at, at + timedelta(days=2, hours=3))
    assert ">in 5 min<" in display.ago(at, at - timedelta(minutes=5))
    assert display.local(None) == "–"

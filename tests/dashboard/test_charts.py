from __future__ import annotations

import pytest

from qwenproxy.dashboard.charts import shares, sparkline


def test_a_line_fills_its_box():
    assert sparkline([0, 5, 10]).lines == ["0.0,27.0 60.0,14.0 120.0,1.0"]


def test_a_gap_ends_a_line_and_single_points_are_none():
    assert sparkline([10, 10, None, 5, None, 0, 10]).lines == [
        "0.0,1.0 20.0,1.0",
        "100.0,27.0 120.0,1.0",
    ]


@pytest.mark.parametrize("values", [[], [1], [None, None], [0, 0], [1, None, 1]])
def test_what_connects_nothing_is_no_line(values):
    assert sparkline(values) is None


def test_bars_are_as_long_as_their_share_of_the_longest():
    assert shares([200, 100, 0.1, 0]) == [100, 50, 0.5, 0]
    assert shares([]) == []

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from requests_app.histogram import bucket_of, percentile


@pytest.mark.parametrize("share", [0.01, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("scale", [1, 2, 5, 8, 12])
def test_a_percentile_is_at_most_5_percent_off(share, scale):
    chance = random.Random(scale)
    values = sorted(max(1, int(chance.lognormvariate(scale, 1))) for _ in range(1000))
    found = percentile(Counter(map(bucket_of, values)), share)
    assert found == pytest.approx(values[math.ceil(share * 1000) - 1], rel=0.05)


def test_each_number_of_milliseconds_is_at_most_5_percent_off():
    for ms in [*range(1, 20_000), 10**6, 10**7, 2**31 - 1]:
        assert percentile({bucket_of(ms): 1}, 0.5) == pytest.approx(ms, rel=0.05)


def test_what_took_no_time_counts_as_the_shortest():
    assert bucket_of(0) == bucket_of(-5) == bucket_of(1) == 0


def test_of_nothing_there_is_none():
    assert percentile({}, 0.5) is None
    assert percentile({3: 0}, 0.5) is None

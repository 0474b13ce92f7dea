"""`python -m benchmarks endurance`, in short: what wears out fast enough to be seen in minutes."""

from __future__ import annotations

import os

import pytest

from benchmarks import endurance, native
from benchmarks.systems import scratch
from benchmarks.targets import Lab

REQUESTS = 5_000


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="THE LOAD NEEDS A CORE OF ITS OWN")
def test_5000_requests_leave_nothing_behind_that_grows_with_them():
    try:
        native.build("loadgen")
    except native.NoCompiler:
        pytest.skip("NO C COMPILER: memory over requests is not measured")
    with scratch() as directory:
        lab = Lab(directory, 3, 1)
        endurance.memory_over_requests(lab, REQUESTS)
    [figure] = lab.figures
    # Pools and caches still fill here: a quarter of a request's own text and rows (4 kB) is the bound;
    # `python -m benchmarks memory` has the small one.
    assert figure.value is not None
    assert figure.value < 1000, figure.note

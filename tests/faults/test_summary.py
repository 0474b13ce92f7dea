"""The table of `make faults` tells what failed, and what could not run."""

from __future__ import annotations

import json
import sys

import pytest

from tests.faults import __main__ as faults

KILLS = {
    "rounds": 1000,
    "findings": {"whole": 2000, "partial": 3, "longest_loss_s": 0.5, "differences": ["one"]},
}


@pytest.mark.parametrize(
    ("ends", "result"), [("0", "passed"), ("1", "FAILED"), ("69", "NOT RUN"), ("-9", "FAILED")]
)
def test_a_step_is_a_row_with_its_last_line(tmp_path, ends, result):
    end = f"sys.exit({ends})" if ends[0] != "-" else "os.kill(os.getpid(), 9)"
    code = f"import os, sys; print('first'); print('= last ='); sys.stdout.flush(); {end}"
    status, row = faults._run(faults.Step("a, B", [sys.executable, "-c", code]), tmp_path)
    assert status == int(ends)
    what, found, _, seen = row.strip("| ").split(" | ")
    assert (what, found, seen) == ("a, B", result, "last")
    assert "first" in (tmp_path / "a-b.log").read_text()


def test_kills_are_summed_up():
    told = faults._of_kills(json.dumps(KILLS))
    assert told == (
        "1,000 rounds: 2,000 answers received whole, 3 broken off, 0.50 s lost at most; 1 differences"
    )
    assert faults._of_kills("it broke") == "it broke"


def test_what_it_runs_exists():
    for path in faults._FAULTS:
        assert (faults.ROOT / path).exists(), path

"""The table of `make faults` tells what failed, and what could not run."""

from __future__ import annotations

import sys

import pytest

from tests.faults import __main__ as faults
from tests.faults.load import Findings
from tests.faults.torture import Summary, table


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


def test_a_table_is_summed_up_by_the_rows_that_count():
    found = Findings(differences=["one"], whole=2000, partial=3, longest_loss_s=0.5)
    told = faults._of_table(table(Summary("sqlite", 1, rounds=1000, findings=found)))
    assert told == (
        "1,000 rounds; 2,000 answers received whole; 3 answers broken off;"
        " 0.50 s longest loss of a broken one; 1 differences"
    )
    assert faults._of_table("it broke") == "it broke"


def test_what_it_runs_exists():
    for path in faults._FAULTS:
        assert (faults.ROOT / path).exists(), path

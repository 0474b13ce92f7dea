"""Whatever moment a process is killed at, running the same command again finishes the work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UP = {"operation": ["migrate"]}
ONE_BACK = {"before": [["migrate"]], "operation": ["migrate", "auth", "0011"]}
ALL_BACK = {"before": [["migrate"]], "operation": ["migrate", "auth", "zero"]}


def kill_at_points(task: dict[str, object]) -> dict[str, object]:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.schema.kill_points", json.dumps(task)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return json.loads(ended.stdout)


def assert_recovers(task: dict[str, object]) -> None:
    found = kill_at_points(task)
    assert found["lost"] == {}
    assert found["expected"] == {"twice": False, "started": 0, "disagreements": []}


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(UP, id="up"),
        pytest.param(ONE_BACK, id="one step back"),
    ],
)
def test_a_killed_change_is_finished_by_the_next(task):
    assert_recovers({**task, "sample": 4})


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "task",
    [
        pytest.param(UP, id="up"),
        pytest.param({**UP, "operation": ["migrate", "--tx", "each"]}, id="up, each"),
        pytest.param(ONE_BACK, id="one step back"),
        pytest.param(ALL_BACK, id="all back"),
    ],
)
def test_a_change_killed_anywhere_is_finished_by_the_next(task):
    assert_recovers(task)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_points_can_kill():
    """Django's own command does not recover at some of them, or this would prove nothing."""
    found = kill_at_points({**UP, "plain": True, "sample": 200})
    assert found["lost"]

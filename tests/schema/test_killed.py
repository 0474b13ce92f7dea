"""Whatever moment a process is killed at, running the same command again finishes the work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UP = {"operation": ["migrate"]}
EACH = {"operation": ["migrate", "--tx", "each"]}
ONE_BACK = {"before": [["migrate"]], "operation": ["rollback", "auth", "0011"]}
ALL_BACK = {"before": [["migrate"]], "operation": ["rollback", "auth", "zero"]}
# Django's own; around COMMITs is where it can be wrong.
PLAIN_UP = {**UP, "plain": True, "commits": True}
PLAIN_BACK = {**PLAIN_UP, "before": [["migrate"]], "operation": ["migrate", "auth", "zero"]}
# All points of all ways, and the command is run again at each.
THOROUGH = bool(os.environ.get("QWENPROXY_TESTS_THOROUGH"))


def run_module(name: str, task: dict[str, object]) -> dict:
    ended = subprocess.run(
        [sys.executable, "-m", name, json.dumps(task)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return json.loads(ended.stdout)


def kill_at_points(task: dict[str, object]) -> dict:
    return run_module("tests.schema.kill_points", task)


def assert_recovers(task: dict[str, object]) -> None:
    found = kill_at_points({**task, "thorough": THOROUGH})
    assert found["lost"] == {}
    assert found["expected"] == {"twice": False, "started": 0, "disagreements": []}
    assert found["tried"] > 3


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(UP, id="up"),
        pytest.param(ONE_BACK, id="one step back"),
    ],
)
def test_a_killed_change_is_finished_by_the_next(task):
    assert_recovers({**task, "sample": 8})


def shards(task: dict[str, object], name: str, count: int):
    return [
        pytest.param({**task, "shard": [shard, count]}, id=f"{name}, {shard + 1} of {count}")
        for shard in range(count)
    ]


def rotated(task: dict[str, object], name: str, count: int):
    """One part each day."""
    today = datetime.now(UTC).toordinal() % count
    return [pytest.param({**task, "shard": [today, count]}, id=f"{name}, today's of {count}")]


# Every part with QWENPROXY_TESTS_THOROUGH=1, one of each way without: within days all are walked.
PARTS = shards if THOROUGH else rotated


@pytest.mark.slow
@pytest.mark.timeout(7200 if THOROUGH else 1800)
@pytest.mark.parametrize(
    "task",
    [
        *PARTS(UP, "up", 3),
        *PARTS(EACH, "up in a transaction each", 6),
        *PARTS(ONE_BACK, "one step back", 1),
        *PARTS(ALL_BACK, "all back", 2),
    ],
)
def test_a_change_killed_anywhere_is_finished_by_the_next(task):
    assert_recovers(task)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "task", [pytest.param(PLAIN_UP, id="up"), pytest.param(PLAIN_BACK, id="all back")]
)
def test_the_points_can_kill(task):
    """Django's own command does not recover at some of them, or this would prove nothing."""
    assert kill_at_points(task)["lost"]

"""`make faults`: everything that tries to break the promises, one after the other, and one table of what it saw.

Kills on both engines, agents through two processes, the single faults on both engines, what wears out, and
the fuzzer. What each says goes to a file of its own. Exit status 0 where all that could run has passed, else 1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.warm import ROOT

_PYTHON = [sys.executable, "-m"]
_POSTGRESQL = [".ci/postgresql"]
_FAULTS = [
    "tests/faults",
    "tests/test_serve.py",
    "tests/test_health.py",
    "tests/test_asgi_limits.py",
    *(f"tests/proxy/test_{part}.py" for part in ("shutdown", "upstream_failures", "clients_leave")),
    *(f"tests/requests_app/test_{part}.py" for part in ("recorder", "settling", "verifying")),
]
_PYTEST = [*_PYTHON, "pytest", "-m", "slow or not slow", "-p", "no:cacheprovider", *_FAULTS]
_COUNTS = (
    "rounds",
    "conversations at the same time",
    "answers received whole",
    "answers broken off",
    "broken off or refused",
    "longest loss of a broken one",
    "histories mixed or not whole",
    "differences",
)
# Of .ci/postgresql: there is no server, and it cannot be installed.
_NOT_HERE = 69


def _last_line(said: str) -> str:
    lines = said.strip().splitlines()
    return lines[-1].strip("= ") if lines else ""


def _of_table(said: str) -> str:
    """The rows that count of a table of two columns."""
    rows = [line.strip("| ").partition(" | ") for line in said.splitlines()]
    told = [f"{value} {name}" for name, _, value in rows if name in _COUNTS]
    return "; ".join(told) or _last_line(said)


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    command: Sequence[str]
    # From what it wrote to stdout.
    sum_up: Callable[[str], str] = _last_line


def steps(rounds: int) -> list[Step]:
    kills = [*_PYTHON, "tests.faults.torture", "--rounds", str(rounds)]
    return [
        Step("kills, SQLite", kills, _of_table),
        Step("kills, PostgreSQL", [*_POSTGRESQL, *kills, "--engine", "postgresql"], _of_table),
        Step("two processes", [*_POSTGRESQL, *_PYTHON, "tests.faults.replicas"], _of_table),
        Step("single faults, SQLite", _PYTEST),
        Step("single faults, PostgreSQL", [*_POSTGRESQL, *_PYTEST]),
        Step("endurance", [*_PYTHON, "benchmarks", "endurance"]),
        # What this was called with is not for the next.
        Step("fuzz", ["make", "--no-print-directory", "fuzz", "ARGS="]),
    ]


def _run(step: Step, directory: Path) -> tuple[int, str]:
    """One step; its exit status and its row of the table."""
    log = directory / f"{step.name.replace(', ', '-').replace(' ', '-').lower()}.log"
    sys.stderr.write(f"{step.name} ... ({log})\n")
    began = time.monotonic()
    environ = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    with log.open("w", encoding="utf-8") as written:
        ran = subprocess.run(
            step.command,
            cwd=ROOT,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=written,
            text=True,
            check=False,
        )
        written.write(ran.stdout)
    result = {0: "passed", _NOT_HERE: "NOT RUN"}.get(ran.returncode, "FAILED")
    seconds = time.monotonic() - began
    return (
        ran.returncode,
        f"| {step.name} | {result} | {seconds:,.0f} s | {step.sum_up(ran.stdout)} |",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Try to break all that is promised.")
    parser.add_argument("--rounds", type=int, default=500, help="kills, on each engine")
    parser.add_argument("--only", default="", help="steps whose name begins so")
    given = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="qwenproxy-faults."))
    ran = [
        _run(step, directory) for step in steps(given.rounds) if step.name.startswith(given.only)
    ]
    rows = ["| what | result | time | seen |", "|---|---|---|---|", *(row for _, row in ran)]
    sys.stdout.write("\n".join(rows) + "\n")
    return int(any(status not in (0, _NOT_HERE) for status, _ in ran))


if __name__ == "__main__":
    sys.exit(main())

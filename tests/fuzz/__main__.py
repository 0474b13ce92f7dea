"""`make fuzz`: requests and upstream answers that nobody should send, thousands of them, and a table.

`--seed` and `--cases` say which; the same seed gives the same cases, `--only 17,203` some of them again. On SQLite, or on
the PostgreSQL that QWENPROXY_TEST_DATABASE_URL names.
Exit status 0 where nothing was found, else 1.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import django

from tests.fuzz.rig import running
from tests.fuzz.run import Report, Run
from tests.fuzz.schema import by_schema

_TOLD = 30


def _progress(cases: int) -> Callable[[int, int], None]:
    began = time.monotonic()

    def show(done: int, failed: int) -> None:
        if done % max(1, cases // 20) == 0 or done == cases:
            rate = done / (time.monotonic() - began)
            sys.stderr.write(f"{done:,} of {cases:,}, {failed} failed, {rate:.0f} a second\n")

    return show


def table(report: Report, seed: int) -> str:
    lines = ["| area | cases | statuses | slowest |", "|---|---|---|---|"]
    for name, area in sorted(report.areas.items()):
        statuses = ", ".join(
            f"{status or 'closed'}: {n}" for status, n in sorted(area.statuses.items())
        )
        lines.append(
            f"| {name} | {area.cases:,} | {statuses} | {area.slowest_s:.2f} s (case {area.slowest}) |"
        )
    cases = sum(area.cases for area in report.areas.values())
    errors = sum(area.statuses[500] for area in report.areas.values())
    before, after = report.rss_mb
    lines.append(
        f"\nSeed {seed}: {cases:,} cases, {errors} answers 500, {len(report.failures)} failures;"
        f" the process held {before:.0f} MB after 200 cases, {after:.0f} MB at the end."
    )
    return "\n".join(lines)


def _tell(report: Report, seed: int, directory: Path, *, shows_params: bool) -> None:
    for index, wrong in report.failures[:_TOLD]:
        again = (
            f" (again: --seed {seed} --only {index}; {directory}/{seed}-{index}.request)"
            if index >= 0
            else ""
        )
        sys.stdout.write(f"FAILED {wrong}{again}\n")
    if shows_params:
        for message, count in report.without_param.most_common():
            sys.stdout.write(f"without param, {count}: {message}\n")
    sys.stdout.write(table(report, seed) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Send what nobody should, and look at every answer."
    )
    parser.add_argument(
        "--seed", type=int, default=None, help="default: a new one, which is printed"
    )
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument(
        "--first", type=int, default=0, help="index of the first case: go on where a run ended"
    )
    parser.add_argument("--only", default="", help="indexes of cases, a list")
    parser.add_argument("--params", action="store_true", help="show refusals that name no field")
    parser.add_argument(
        "--schema",
        type=int,
        default=20,
        help="examples of Schemathesis for each operation; 0: none",
    )
    given = parser.parse_args(arguments)
    seed = secrets.randbelow(10**6) if given.seed is None else given.seed
    indexes: Sequence[int] = range(given.first, given.first + given.cases)
    if given.only:
        indexes = [int(index) for index in given.only.split(",")]
    directory = Path(tempfile.mkdtemp(prefix="qwenproxy-fuzz."))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    sys.stderr.write(f"seed {seed}, files in {directory}\n")
    with running(directory) as rig:
        report = Run(rig, seed, directory).run(indexes, _progress(len(indexes)))
        ran = by_schema(rig, given.schema, seed) if given.schema and not given.only else 0
    _tell(report, seed, directory, shows_params=given.params)
    return int(bool(report.failures) or ran != 0)


if __name__ == "__main__":
    sys.exit(main())

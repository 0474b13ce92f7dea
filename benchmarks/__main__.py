"""`python -m benchmarks [names]`: measures the targets of docs/performance.md and prints them as a table."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time

from benchmarks import native, systems
from benchmarks.endurance import ENDURANCE
from benchmarks.load import Failed
from benchmarks.processes import LOAD_CORE, raise_file_limit
from benchmarks.targets import BY_DEFAULT, TARGETS, Figure, Lab

_ALL = {**TARGETS, **ENDURANCE}


def main() -> int:
    listed = "\n".join(f"  {name:<10} {run.__doc__}" for name, run in _ALL.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"Names of benchmarks (none: all but profile, endurance and its parts):\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--pairs", type=int, default=5, help="rounds of each comparison, 3 to 20")
    parser.add_argument("--seconds", type=float, default=3, help="length of one reading, 1 to 20")
    args = parser.parse_args()
    if unknown := set(args.names) - set(_ALL):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    try:
        for program in ("double", "loadgen"):
            native.build(program)
    except (native.NoCompiler, subprocess.CalledProcessError) as exc:
        print(f"CANNOT MEASURE: {exc}", file=sys.stderr)
        return 2
    files = raise_file_limit()
    # This process only waits; it must not do so on the core of the system under test.
    os.sched_setaffinity(0, {LOAD_CORE})
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} cores, {files} open files,"
        f" load average {os.getloadavg()[0]:.1f}, {time.strftime('%Y-%m-%d %H:%M')}"
    )
    failed = False
    with systems.scratch() as directory:
        lab = Lab(directory, min(max(args.pairs, 3), 20), min(max(args.seconds, 1), 20))
        for name in args.names or BY_DEFAULT:
            print(f"\n{name}: {_ALL[name].__doc__}", flush=True)
            try:
                _ALL[name](lab)
            except (Failed, RuntimeError, subprocess.SubprocessError) as exc:
                print(f"  FAILED: {exc}", flush=True)
                failed = True
    print("\n| target | what | figure | limit | | readings |\n|---|---|---|---|---|---|")
    for figure in lab.figures:
        print(_row(figure))
    return 1 if failed or any(figure.value is None for figure in lab.figures) else 0


def _row(figure: Figure) -> str:
    value = "-" if figure.value is None else f"{figure.value:.3g}{figure.unit}"
    cells = (
        figure.target, figure.what, value, f"<= {figure.limit:.3g}{figure.unit}", figure.verdict,
        figure.note,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())

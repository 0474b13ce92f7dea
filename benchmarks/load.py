"""One run of the load generator against one system, and what both cost meanwhile."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from benchmarks import native
from benchmarks.processes import LOAD_CORE, SYSTEM_CORE, busy_s
from benchmarks.systems import KEY, System

# Beyond this share of its core the generator, with the double, may be what is measured.
_MAX_LOAD_SHARE = 0.8
_RSS_INTERVAL_S = 0.5
_LONGEST_S = 180


class Failed(Exception):
    """A run in which a request failed: it has no figure."""


@dataclass(frozen=True, slots=True)
class Reading:
    system: str
    completed: int
    events: int
    wall_s: float
    cpu_s: float
    # Of the core of generator and double, used by these two.
    load_share: float
    # Of the core of the system under test, used by other programs.
    foreign_share: float
    slowed: int
    peak_rss_bytes: int
    # Of `latency_us`, `first_us` and `gap_us`: their `p50`, `p90`, `p99` and `max`.
    times: dict[str, Any]

    @property
    def is_valid(self) -> bool:
        return self.load_share <= _MAX_LOAD_SHARE

    @property
    def cpu_us(self) -> float:
        """CPU per request."""
        return self.cpu_s / self.completed * 1e6


def run(
    system: System, double: System, *, watch_rss: bool = False, **arguments: str | float
) -> Reading:
    """Run the generator (arguments: loadgen.c) and check that the record has what was answered.

    Raises:
        Failed: an answer other than 200, a broken connection, or one that took too long.
    """
    given = {"port": system.port, "key": KEY, **arguments}
    command = ["taskset", "--cpu-list", str(LOAD_CORE), str(native.build("loadgen"))]
    command += [f"{name}={value}" for name, value in given.items()]
    processes = (system.process, double.process)
    cpu_before, double_before = (process.cpu_s() for process in processes)
    busy_before, began = busy_s(SYSTEM_CORE), time.monotonic()
    peak_rss = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as generator:
        try:
            while watch_rss and generator.poll() is None:
                peak_rss = max(peak_rss, system.process.rss_bytes())
                time.sleep(_RSS_INTERVAL_S)
            output, _ = generator.communicate(timeout=_LONGEST_S)
        finally:
            generator.kill()
    wall_s = time.monotonic() - began
    cpu_s, double_s = (
        process.cpu_s() - before
        for process, before in zip(processes, (cpu_before, double_before), strict=True)
    )
    if not output:
        tail = system.process.log.read_text(errors="replace")[-2000:]
        raise Failed(f"{system.name}: the load generator could not run; the system said:\n{tail}")
    told = json.loads(output)
    wrong = {name: told[name] for name in ("non_200", "errors", "unfinished") if told[name]}
    if wrong or not told["completed"]:
        raise Failed(f"{system.name}: {wrong or 'no request was answered'} ({arguments})")
    system.answered += told["completed"]
    system.check_rows()
    foreign_s = busy_s(SYSTEM_CORE) - busy_before - cpu_s
    return Reading(
        system=system.name,
        completed=told["completed"],
        events=told["events"],
        wall_s=told["wall_s"],
        cpu_s=cpu_s,
        load_share=(told["cpu_s"] + (0 if double is system else double_s)) / wall_s,
        foreign_share=max(0.0, foreign_s / wall_s),
        slowed=told["slowed"],
        peak_rss_bytes=peak_rss,
        times={name: told[name] for name in ("latency_us", "first_us", "gap_us")},
    )

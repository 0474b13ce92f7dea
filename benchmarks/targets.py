"""The targets: each function measures one and returns its figures.

Two sides that are compared run in turn, A B A B, on the same machine within seconds; the figure is the
median of the pairs' ratios, and every reading is printed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import load, systems
from benchmarks.load import Reading
from benchmarks.processes import ROOT, SYSTEM_CORE
from benchmarks.profiled import report
from benchmarks.systems import System

_JSON_MODEL = "bench-4-0"
_PACED_CHUNKS, _PACE_MS = 200, 20
_PACED_MODEL = f"bench-{_PACED_CHUNKS}-{_PACE_MS}"
_FIRST_MODEL = "bench-20-20"
_HELD, _HELD_CHUNKS, _HELD_PACE_MS = 2500, 60, 200
_HELD_MODEL = f"bench-{_HELD_CHUNKS}-{_HELD_PACE_MS}"
MODELS = (_JSON_MODEL, _PACED_MODEL, _FIRST_MODEL, _HELD_MODEL)


@dataclass(frozen=True, slots=True)
class Figure:
    target: str
    what: str
    # Null where there is no valid figure; `note` then says why.
    value: float | None
    limit: float
    unit: str = "x"
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "no figure"
        return "met" if self.value <= self.limit else "not met"


@dataclass
class Lab:
    directory: Path
    pairs: int
    seconds: float
    figures: list[Figure] = field(default_factory=list)

    def open(self, stack: ExitStack) -> System:
        """Start the upstream double."""
        return stack.enter_context(systems.double(self.directory, MODELS))


Side = Callable[[], Reading]


def _say(reading: Reading, detail: str) -> None:
    flag = "" if reading.is_valid else "  REFUSED: the generator's core was above 80 %"
    print(
        f"  {reading.system:<12} {detail}  (generator and double {reading.load_share:.0%} of their"
        f" core, other programs {reading.foreign_share:.0%} of the system's){flag}",
        flush=True,
    )


def alternate(
    sides: Mapping[str, Side], pairs: int, describe: Callable[[Reading], str]
) -> dict[str, list[Reading]]:
    """Run all sides in turn; a round with a refused reading has no ratio and is left out."""
    rounds: dict[str, list[Reading]] = {name: [] for name in sides}
    for _ in range(pairs):
        readings = {name: side() for name, side in sides.items()}
        for reading in readings.values():
            _say(reading, describe(reading))
        if all(reading.is_valid for reading in readings.values()):
            for name, reading in readings.items():
                rounds[name].append(reading)
    return rounds


def _ratio(
    target: str, what: str, limit: float, above: list[float], below: list[float], note: str = ""
) -> Figure:
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    print("  ratios", *(f"{ratio:.2f}" for ratio in ratios), flush=True)
    if not ratios:
        return Figure(target, what, None, limit, note="refused: the generator was the bottleneck")
    readings = f"{median(above):.0f} / {median(below):.0f} us"
    return Figure(target, what, median(ratios), limit, note=f"{readings}{note}")


def _describe_requests(reading: Reading) -> str:
    return (
        f"{reading.cpu_us:7.0f} us CPU per request, {reading.completed / reading.wall_s:6.0f}/s, "
        f"p50 {reading.times['latency_us']['p50'] / 1000:.1f} ms"
    )


def _json_load(lab: Lab, system: System, double: System, clients: int) -> Reading:
    return load.run(system, double, model=_JSON_MODEL, clients=clients, seconds=lab.seconds)


def _warm(system: System, double: System) -> None:
    load.run(system, double, model=_JSON_MODEL, clients=64, seconds=1.5)


def json_requests(lab: Lab) -> None:
    """Target 1: CPU per JSON request at 64 clients, over the floor F."""
    with ExitStack() as stack:
        double = lab.open(stack)
        gateway = stack.enter_context(systems.gateway(lab.directory, double))
        floor = stack.enter_context(systems.relay(lab.directory, double))
        constant = stack.enter_context(systems.constant(lab.directory))
        sides = {"gateway": gateway, "F": floor, "R": constant}
        for system in sides.values():
            _warm(system, double)
        rounds = alternate(
            {name: partial(_json_load, lab, system, double, 64) for name, system in sides.items()},
            lab.pairs,
            _describe_requests,
        )
    cpu = {name: [reading.cpu_us for reading in rounds[name]] for name in rounds}
    lab.figures.append(
        _ratio(
            "1",
            "CPU per JSON request, 64 clients, over F",
            3.5,
            cpu["gateway"],
            cpu["F"],
            f"; R {median(cpu['R']):.0f} us" if cpu["R"] else "",
        )
    )


def recording(lab: Lab) -> None:
    """Target 8: CPU per JSON request with the recorder, over that without."""
    with ExitStack() as stack:
        double = lab.open(stack)
        sides = {
            "recorded": stack.enter_context(systems.gateway(lab.directory, double)),
            "unrecorded": stack.enter_context(systems.unrecorded(lab.directory, double)),
        }
        for system in sides.values():
            _warm(system, double)
        rounds = alternate(
            {name: partial(_json_load, lab, system, double, 64) for name, system in sides.items()},
            lab.pairs,
            _describe_requests,
        )
    on, off = ([reading.cpu_us for reading in rounds[name]] for name in sides)
    lab.figures.append(_ratio("8", "recording on, over off, 64 clients", 1.35, on, off))


def clients(lab: Lab) -> None:
    """Target 9: CPU per JSON request at 256 clients, over that at 16."""
    with ExitStack() as stack:
        double = lab.open(stack)
        gateway = stack.enter_context(systems.gateway(lab.directory, double))
        _warm(gateway, double)
        rounds = alternate(
            {str(count): partial(_json_load, lab, gateway, double, count) for count in (256, 16)},
            lab.pairs,
            _describe_requests,
        )
    many, few = ([reading.cpu_us for reading in rounds[count]] for count in ("256", "16"))
    lab.figures.append(_ratio("9", "CPU per JSON request, 256 clients over 16", 1.3, many, few))


def _chunk_us(reading: Reading) -> float:
    return reading.cpu_s / (reading.completed * _PACED_CHUNKS) * 1e6


def _describe_chunks(reading: Reading) -> str:
    gap = reading.times["gap_us"]
    return (
        f"{_chunk_us(reading):6.1f} us CPU per chunk, gaps p50 {gap['p50'] / 1000:.1f}"
        f" p99 {gap['p99'] / 1000:.1f} ms, {reading.events / reading.completed:.0f} events a stream"
    )


def chunks(lab: Lab) -> None:
    """Target 5: CPU per relayed chunk, 64 streams at 20 ms, over R's."""
    with ExitStack() as stack:
        double = lab.open(stack)
        sides = {
            "gateway": stack.enter_context(systems.gateway(lab.directory, double)),
            "R": stack.enter_context(
                systems.constant(lab.directory, chunks=_PACED_CHUNKS, pace_ms=_PACE_MS)
            ),
            "F": stack.enter_context(systems.relay(lab.directory, double)),
        }

        def stream(system: System) -> Reading:
            # Spread over a second: streams of real clients are not in step.
            return load.run(
                system, double, model=_PACED_MODEL, clients=64, rounds=1, stream=1, ramp_ms=1000
            )

        for system in sides.values():
            stream(system)
        rounds = alternate(
            {name: partial(stream, system) for name, system in sides.items()},
            lab.pairs,
            _describe_chunks,
        )
    cpu = {name: [_chunk_us(reading) for reading in rounds[name]] for name in rounds}
    lab.figures.append(
        _ratio(
            "5",
            "CPU per relayed chunk, 64 streams at 20 ms, over R's",
            2.0,
            cpu["gateway"],
            cpu["R"],
            f"; F {median(cpu['F']):.0f} us" if cpu["F"] else "",
        )
    )


def _first_ms(reading: Reading) -> float:
    return float(reading.times["first_us"]["p50"]) / 1000


def first_token(lab: Lab) -> None:
    """Target 6: time to first token of 64 streams starting at once, less direct, over nginx's."""
    what = "time to first token, 64 streams at once, p50 less direct, over nginx's"
    if systems.nginx_program() is None:
        print("  SKIPPED: nginx is not installed (Debian, Ubuntu: apt install nginx-light)")
        lab.figures.append(Figure("6", what, None, 5.0, note="skipped: nginx is not installed"))
        return
    with ExitStack() as stack:
        double = lab.open(stack)
        sides = {
            "gateway": stack.enter_context(systems.gateway(lab.directory, double)),
            "nginx": stack.enter_context(systems.nginx(lab.directory, double)),
            "F": stack.enter_context(systems.relay(lab.directory, double)),
            "direct": double,
        }

        def stream(system: System) -> Reading:
            return load.run(system, double, model=_FIRST_MODEL, clients=64, rounds=1, stream=1)

        for system in sides.values():
            stream(system)
        rounds = alternate(
            {name: partial(stream, system) for name, system in sides.items()},
            lab.pairs * 3,
            lambda reading: (
                f"first token p50 {_first_ms(reading):6.2f} ms,"
                f" p99 {reading.times['first_us']['p99'] / 1000:6.2f} ms"
            ),
        )
    p50 = {name: median(map(_first_ms, rounds[name])) for name in rounds if rounds[name]}
    added = {name: p50[name] - p50["direct"] for name in p50}
    note = ", ".join(f"{name} {value:.1f} ms" for name, value in p50.items())
    print(f"  medians: {note}")
    value = added["gateway"] / added["nginx"] if added.get("nginx", 0) > 0 else None
    lab.figures.append(Figure("6", what, value, 5.0, note=note))


def held(lab: Lab) -> None:
    """Target 7: 2,500 streams at 5 chunks a second in one process: how many are slowed, and their memory."""
    ideal_ms = (_HELD_CHUNKS - 1) * _HELD_PACE_MS

    def hold(system: System, double: System) -> Reading:
        return load.run(
            system, double, watch_rss=True, model=_HELD_MODEL, clients=_HELD, rounds=1,
            stream=1, ramp_ms=4000, ideal_ms=ideal_ms, grace_s=90,
        )  # fmt: skip

    slowed, each_kb, notes = [], [], []
    with ExitStack() as stack:
        double = lab.open(stack)
        readings = [hold(double, double)]
        for _ in range(min(lab.pairs, 3)):
            # A process of its own each: memory that was once taken is not given back.
            with systems.gateway(lab.directory, double) as gateway:
                _warm(gateway, double)
                idle = gateway.process.rss_bytes()
                readings.append(hold(gateway, double))
                each_kb.append((readings[-1].peak_rss_bytes - idle) / _HELD / 1000)
            slowed.append(readings[-1].slowed)
    for reading in readings:
        took = reading.times["latency_us"]
        notes.append(f"{took['p50'] / 1e6:.2f}/{took['max'] / 1e6:.2f}")
        busy = reading.cpu_s / reading.wall_s
        _say(reading, f"{reading.slowed} slowed, p50/max {notes[-1]} s, {busy:.0%} of a core")
    valid = all(reading.is_valid for reading in readings)
    note = f"p50/max of {ideal_ms / 1000:.1f} s ideal: direct {notes[0]}; {', '.join(notes[1:])} s"
    worst = max(slowed) / _HELD * 100 if valid else None
    lab.figures += [
        Figure("7", f"of {_HELD} held streams, slowed by more than 5 %", worst, 0, "%", note),
        Figure("7", "memory of a held stream", max(each_kb), 60, " kB"),
    ]


def _in_process(lab: Lab, scenario: str) -> dict[str, Any]:
    data = lab.directory / scenario
    if scenario != "startup":
        shutil.rmtree(data, ignore_errors=True)
    command = ["taskset", "--cpu-list", str(SYSTEM_CORE), sys.executable]
    output = subprocess.run(
        [*command, "-m", "benchmarks.in_process", scenario],
        env=systems.environment(data),
        cwd=ROOT,
        check=True,
        timeout=300,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    found = json.loads(output.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def agent_request(lab: Lab) -> None:
    """Target 10: parse, resolve and record a large agent request, over `json.loads` of its bytes."""
    medians, imported, turn_us, loads_us, size = [], [], [], [], 0
    for number in range(lab.pairs):
        found = _in_process(lab, "agent_request")
        medians.append(median(found["ratios"]))
        imported.append(found["imported_ratio"])
        turn_us.append(found["turn_us"])
        loads_us.append(found["loads_us"])
        size = found["body_bytes"]
        print(
            f"  run {number}: {size} bytes, turn {turn_us[-1]:.0f} us, json.loads"
            f" {loads_us[-1]:.0f} us, ratio {medians[-1]:.2f}, first seen {imported[-1]:.2f}",
            flush=True,
        )
    note = (
        f"{size / 1000:.0f} kB, {median(turn_us):.0f} / {median(loads_us):.0f} us;"
        f" a history never seen before: {median(imported):.2f}"
    )
    what = "a large agent request: parse, resolve, record, over json.loads"
    lab.figures.append(Figure("10", what, median(medians), 3.0, note=note))


def storage(lab: Lab) -> None:
    """Target 12: bytes on disk for what repeats."""
    for scenario, what in (
        ("agent", "100 agent turns"),
        ("agent_parameters", "the same, temperature and metadata changing"),
        ("agent_date", "the same, a date line in the system prompt"),
    ):
        found = _in_process(lab, scenario)
        stored, naive = found["stored_bytes"] / 1e6, found["naive_bytes"] / 1e6
        print(f"  {what}: {stored:.2f} MB, naive {naive:.1f} MB", flush=True)
        if scenario != "agent_date":
            lab.figures.append(
                Figure(
                    "12", f"{what}: on disk, of naive", stored / naive, 1 / 30, "",
                    f"1/{naive / stored:.0f}: {stored:.2f} of {naive:.1f} MB",
                )
            )  # fmt: skip
        # A system text that changes is stored again each turn.
        limit = 2.0 if scenario != "agent_date" else 2.0 + 100 * 0.008
        lab.figures.append(Figure("12", f"{what}: on disk", stored, limit, " MB"))
    found = _in_process(lab, "one_shots")
    stored = found["stored_bytes"] / 1e6
    note = f"{stored:.1f} of {found['naive_bytes'] / 1e6:.0f} MB"
    what = "system texts stored for 10,000 one-shot calls with one of 8 kB"
    print(f"  {what}: {found['blobs']} ({note})", flush=True)
    lab.figures.append(Figure("12", what, found["blobs"], 1, "", note))


def startup(lab: Lab) -> None:
    """What a start pays where there is nothing to migrate."""
    _in_process(lab, "startup")
    first, again = [], []
    for _ in range(max(lab.pairs, 5)):
        found = _in_process(lab, "startup")
        first.append(found["first_ms"])
        again.append(found["median_ms"])
    print("  first calls", *(f"{ms:.2f}" for ms in first), "ms", flush=True)
    note = f"first call, opening its connection; later ones {median(again):.2f} ms"
    what = "nothing to migrate: added to the start"
    lab.figures.append(Figure("start", what, median(first), 10, " ms", note))


def profile(lab: Lab) -> None:
    """No target: where the time goes, for JSON requests and for streams; runs only when named."""
    launcher = ("-m", "benchmarks.profiled")
    loads: tuple[tuple[str, int, dict[str, Any]], ...] = (
        ("JSON request", 1, {"model": _JSON_MODEL, "seconds": lab.seconds}),
        (
            "relayed chunk",
            _PACED_CHUNKS,
            {"model": _PACED_MODEL, "rounds": 1, "stream": 1, "ramp_ms": 1000},
        ),
    )
    for unit, per_request, arguments in loads:
        with ExitStack() as stack:
            double = lab.open(stack)
            with systems.gateway(lab.directory, double, launcher=launcher) as gateway:
                reading = load.run(gateway, double, clients=64, **arguments)
            for name in ("loop", "recorder"):
                path = lab.directory / "profile" / f"{name}.pstats"
                report(path, count=reading.completed * per_request, unit=unit)


TARGETS: Mapping[str, Callable[[Lab], None]] = {
    "json": json_requests,
    "chunks": chunks,
    "first": first_token,
    "held": held,
    "recording": recording,
    "clients": clients,
    "agent": agent_request,
    "storage": storage,
    "startup": startup,
    "profile": profile,
}
BY_DEFAULT = tuple(name for name in TARGETS if name != "profile")

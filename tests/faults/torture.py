"""`make torture`: gateways are killed and stopped at random moments under load, round after round.

A round: load runs, one process gets SIGKILL or SIGTERM, starts again on the same data, and every answer that
ended since the last round is compared with the record. On PostgreSQL two processes share the database, and
the other one goes on meanwhile. At the end nothing may run, all rows are looked at, and `verifyrecords`
derives every digest and count again. Exit status 0 where nothing differs, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg

from tests.doubles.server import serve_in_thread
from tests.faults.gateway import Gateway
from tests.faults.load import Answer, EchoDouble, Findings, Load, check, compare

SERVER = os.environ.get("QWENPROXY_TEST_DATABASE_URL", "")
_KILLS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
# Of the rounds: all processes are hit at once. Of the starts: it is broken off and begun again; it is
# `python manage.py serve` from the very beginning, and no fork of a process that has loaded the code.
_ALL = 0.2
_AGAIN = 0.15
_COLD = 0.03
# Promised are 15 s; the rest is for a busy machine.
_SETTLED_S = 30.0
# What is wrong is told, but not ten thousand times.
_TOLD = 20


@dataclass
class Summary:
    engine: str
    seed: int
    lane: int = 0
    rounds: int = 0
    killed: int = 0
    terminated: int = 0
    broken_starts: int = 0
    questions: int = 0
    seconds: float = 0.0
    verified: str = ""
    findings: Findings = field(default_factory=Findings)


@contextlib.contextmanager
def new_database(engine: str) -> Iterator[str]:
    """A database of the run's own; empty stands for a file in the data directory."""
    if engine == "sqlite":
        yield ""
        return
    name = f"torture_{uuid4().hex[:12]}"
    with psycopg.connect(SERVER, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        try:
            yield f"{SERVER.rpartition('/')[0]}/{name}"
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")


class Torture:
    """One run; `gateways` are started, share one database and are left ended."""

    def __init__(
        self, gateways: Sequence[Gateway], load: Load, summary: Summary, *, seconds: float
    ) -> None:
        self._gateways = gateways
        self._load = load
        self._summary = summary
        self._seconds = seconds
        self._chance = random.Random(summary.seed)
        self._told = 0
        # Answers whose process has died and was not settled yet.
        self._later: list[Answer] = []

    async def run(self, rounds: int, *, until: float, stopped: asyncio.Event) -> None:
        """Break things so many times, or until a time of the monotonic clock, or until it is stopped."""
        running = asyncio.create_task(self._load.run())
        try:
            while self._summary.rounds < rounds and time.monotonic() < until:
                if stopped.is_set():
                    break
                await self._round()
                self._summary.rounds += 1
                await self._compare()
                self._show()
                if running.done():
                    break
        finally:
            self._load.stop()
        await running
        deadline = time.monotonic() + _SETTLED_S
        await self._compare()
        while self._later and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
            await self._compare()
        for gateway in self._gateways:
            await self._end(gateway, signal.SIGTERM)
        url = self._gateways[0].database_url
        self._summary.findings.add(await asyncio.to_thread(compare, url, self._later))

    async def _round(self) -> None:
        await asyncio.sleep(self._chance.uniform(0.05, self._seconds))
        # Mostly one of them; now and then nobody is left to go on, or to settle what others left.
        hit = [self._chance.choice(self._gateways)]
        if self._chance.random() < _ALL:
            hit = list(self._gateways)
        await asyncio.gather(*(self._break(gateway) for gateway in hit))

    async def _break(self, gateway: Gateway) -> None:
        number = self._chance.choice(_KILLS)
        if number == signal.SIGKILL:
            self._summary.killed += 1
        else:
            self._summary.terminated += 1
        await self._end(gateway, number)
        while self._chance.random() < _AGAIN:
            # In the middle of a start, with what was left of the last one.
            self._summary.broken_starts += 1
            gateway.launch()
            await asyncio.sleep(self._chance.uniform(0, 1.2 * gateway.started_s))
            await self._end(gateway, self._chance.choice(_KILLS), is_starting=True)
        await gateway.start(is_cold=self._chance.random() < _COLD)

    async def _end(
        self, gateway: Gateway, number: signal.Signals, *, is_starting: bool = False
    ) -> None:
        if number == signal.SIGKILL:
            self._load.note_kill(gateway.url)
        gateway.signal(number)
        status = await gateway.wait()
        # One that does not serve yet has nothing to end in order; while it looks at the schema it ends
        # with 128 + the signal.
        fits = {0, -signal.SIGTERM, 128 + signal.SIGTERM} if is_starting else {0}
        if number == signal.SIGTERM and status not in fits:
            self._summary.findings.differences.append(
                f"exit status {status} after SIGTERM ({is_starting=}): {gateway.tail()}"
            )

    async def _compare(self) -> None:
        answers, later = self._load.take(), list[Answer]()
        self._summary.questions += len(answers)
        url = self._gateways[0].database_url
        # In a thread: pieces that come meanwhile would seem younger than they are.
        found = await asyncio.to_thread(compare, url, [*self._later, *answers], later=later)
        self._summary.findings.add(found)
        self._later = later

    def _show(self) -> None:
        found = self._summary.findings
        lane = self._summary.lane
        sys.stderr.write(
            f"{self._summary.engine} {lane} round {self._summary.rounds}: {found.whole} whole,"
            f" {found.partial} partial, {found.longest_loss_s:.2f} s lost at most,"
            f" {len(found.differences)} differences\n"
        )
        for difference in found.differences[self._told : _TOLD]:
            sys.stderr.write(f"DIFFERENT: {difference}\n")
        self._told = len(found.differences)
        sys.stderr.flush()


async def torture(
    directory: Path,
    engine: str,
    *,
    rounds: int,
    seconds: float = 1.5,
    conversations: int = 16,
    limit_s: float = float("inf"),
    seed: int | None = None,
    lane: int = 0,
    stopped: asyncio.Event | None = None,
) -> Summary:
    """Run it in a directory that is empty; on PostgreSQL with two processes."""
    until, stopped = time.monotonic() + limit_s, stopped or asyncio.Event()
    chosen = random.randrange(2**32) if seed is None else seed + lane
    summary, began = Summary(engine, chosen, lane), time.monotonic()
    # Some are longer than what may be lost, all are of few pieces: the time is to go into kills.
    double = EchoDouble(words=(3, 40), delay_s=0.05, quick=0.6)
    with serve_in_thread(double) as upstream_url, new_database(engine) as database_url:
        names = ("first", "second") if database_url else ("first",)
        gateways = [
            Gateway(
                directory / name, upstream_url=upstream_url, database_url=database_url, is_warm=True
            )
            for name in names
        ]
        try:
            for gateway in gateways:
                gateway.key = gateways[0].key
                await gateway.start()
            load = Load(
                [gateway.url for gateway in gateways],
                gateways[0].key,
                conversations=conversations,
            )
            await Torture(gateways, load, summary, seconds=seconds).run(
                rounds, until=until, stopped=stopped
            )
            found = summary.findings
            found.differences += [*load.complaints, *double.mixed]
            found.add(await asyncio.to_thread(check, gateways[0].database_url, []))
            verified = await asyncio.to_thread(gateways[0].manage, "verifyrecords")
            summary.verified = verified.stdout.strip().rpartition("\n")[2]
            if verified.returncode:
                found.differences.append(f"verifyrecords: {verified.stdout}{verified.stderr}")
        finally:
            for gateway in gateways:
                gateway.close()
    summary.seconds = round(time.monotonic() - began, 1)
    return summary


async def in_lanes(directory: Path, engine: str, lanes: int, rounds: int, **given: Any) -> Summary:
    """So many runs side by side, each with gateways, a database and load of its own; their sum.

    Ctrl-C and SIGTERM end it in order, with what was seen until then.
    """
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    shares = [rounds // lanes + (lane < rounds % lanes) for lane in range(lanes)]
    runs = await asyncio.gather(
        *(
            torture(
                directory / str(lane), engine, rounds=share, lane=lane, stopped=stopped, **given
            )
            for lane, share in enumerate(shares)
        )
    )
    total = Summary(engine, runs[0].seed)
    for run in runs:
        for name in ("rounds", "killed", "terminated", "broken_starts", "questions"):
            setattr(total, name, getattr(total, name) + getattr(run, name))
        total.findings.add(run.findings)
    total.seconds = max(run.seconds for run in runs)
    total.verified = " ".join(run.verified for run in runs)
    return total


def table(summary: Summary) -> str:
    found = summary.findings
    rows = (
        ("engine", summary.engine),
        ("rounds", f"{summary.rounds:,}"),
        ("killed (SIGKILL)", f"{summary.killed:,}"),
        ("stopped (SIGTERM)", f"{summary.terminated:,}"),
        ("starts broken off", f"{summary.broken_starts:,}"),
        ("tries to ask", f"{summary.questions:,}"),
        ("answers received whole", f"{found.whole:,}"),
        ("answers broken off", f"{found.partial:,}"),
        ("longest loss of a broken one", f"{found.longest_loss_s:.2f} s"),
        ("verifyrecords", summary.verified),
        ("time", f"{summary.seconds:,.0f} s"),
        ("seed", str(summary.seed)),
        ("differences", f"{len(found.differences):,}"),
    )
    return "\n".join(f"| {name} | {value} |" for name, value in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill gateways under load; compare the record.")
    parser.add_argument("--engine", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=1.5, help="at most between two kills")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds for all of it")
    parser.add_argument("--conversations", type=int, default=16)
    parser.add_argument("--lanes", type=int, default=1, help="runs side by side")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--keep", help="a new directory for data and logs that stay")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.engine == "postgresql" and not SERVER:
        parser.error("QWENPROXY_TEST_DATABASE_URL names no server: use .ci/postgresql")
    with contextlib.ExitStack() as stack:
        directory = given.keep or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="qwenproxy-torture.")
        )
        summary = asyncio.run(
            in_lanes(
                Path(directory),
                given.engine,
                given.lanes,
                given.rounds,
                seconds=given.seconds,
                conversations=given.conversations,
                limit_s=given.limit,
                seed=given.seed,
            )
        )
    differences = summary.findings.differences
    text = json.dumps(asdict(summary), indent=2) if given.json else table(summary)
    sys.stdout.write(text + "\n")
    for difference in differences[:_TOLD]:
        sys.stderr.write(f"DIFFERENT: {difference}\n")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())

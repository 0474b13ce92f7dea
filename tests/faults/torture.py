"""`make torture`: gateways are killed and stopped at random moments under load, round after round.

A round: load runs, one process gets SIGKILL or SIGTERM, starts again on the same data, and every answer that
ended since the last round is compared with the record. On PostgreSQL two processes share the database, and
the other one goes on meanwhile. At the end nothing may run, all rows are looked at, and `verifyrecords`
derives every digest and count again. Exit status 0 where nothing differs, else 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from uuid import uuid4

import psycopg

from tests.doubles.server import serve_in_thread
from tests.faults.gateway import Gateway
from tests.faults.load import EchoDouble, Findings, Load, check, compare

SERVER = os.environ.get("QWENPROXY_TEST_DATABASE_URL", "")
_KILLS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)
# What is wrong is told, but not ten thousand times.
_TOLD = 20


@dataclass
class Summary:
    engine: str
    seed: int
    rounds: int = 0
    killed: int = 0
    terminated: int = 0
    killed_at_start: int = 0
    questions: int = 0
    seconds: float = 0.0
    verified: str = ""
    findings: Findings = field(default_factory=Findings)


@contextmanager
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

    async def run(self, rounds: int, *, until: float = float("inf")) -> None:
        """Break things so many times, or until a time of the monotonic clock."""
        running = asyncio.create_task(self._load.run())
        try:
            while self._summary.rounds < rounds and time.monotonic() < until:
                await self._round(self._chance.choice(self._gateways))
                self._summary.rounds += 1
                self._compare()
                self._show()
                if running.done():
                    break
        finally:
            self._load.stop()
        await running
        self._compare()
        for gateway in self._gateways:
            await self._end(gateway, signal.SIGTERM)

    async def _round(self, gateway: Gateway) -> None:
        await asyncio.sleep(self._chance.uniform(0.1, self._seconds))
        number = self._chance.choice(_KILLS)
        if number == signal.SIGKILL:
            self._summary.killed += 1
        else:
            self._summary.terminated += 1
        await self._end(gateway, number)
        if self._chance.random() < 0.1:
            # In the middle of a start, with what was left of the last one.
            gateway.launch()
            await asyncio.sleep(self._chance.uniform(0, 2))
            await self._end(gateway, signal.SIGKILL)
            self._summary.killed_at_start += 1
        await gateway.start()

    async def _end(self, gateway: Gateway, number: signal.Signals) -> None:
        self._load.note_kill(gateway.url)
        gateway.signal(number)
        status = await gateway.wait()
        if number == signal.SIGTERM and status != 0:
            self._summary.findings.differences.append(f"exit status {status} after SIGTERM")

    def _compare(self) -> None:
        answers = self._load.take()
        self._summary.questions += len(answers)
        self._summary.findings.add(compare(self._gateways[0].database_url, answers))

    def _show(self) -> None:
        found = self._summary.findings
        sys.stderr.write(
            f"\r{self._summary.engine} round {self._summary.rounds}: {found.whole} whole,"
            f" {found.partial} partial, {len(found.differences)} differences "
        )
        sys.stderr.flush()


async def torture(
    directory: Path,
    engine: str,
    *,
    rounds: int,
    seconds: float = 2.5,
    conversations: int = 12,
    limit_s: float = float("inf"),
    seed: int | None = None,
) -> Summary:
    """Run it in a directory that is empty; on PostgreSQL with two processes."""
    until = time.monotonic() + limit_s
    chosen = random.randrange(2**32) if seed is None else seed
    summary, began = Summary(engine, chosen), time.monotonic()
    double = EchoDouble()
    with serve_in_thread(double) as upstream_url, new_database(engine) as database_url:
        names = ("first", "second") if database_url else ("first",)
        gateways = [
            Gateway(directory / name, upstream_url=upstream_url, database_url=database_url)
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
            await Torture(gateways, load, summary, seconds=seconds).run(rounds, until=until)
            found = summary.findings
            found.differences += [*load.complaints, *double.mixed]
            found.add(check(gateways[0].database_url, []))
            verified = gateways[0].manage("verifyrecords")
            summary.verified = verified.stdout.strip().rpartition("\n")[2]
            if verified.returncode:
                found.differences.append(f"verifyrecords: {verified.stdout}{verified.stderr}")
        finally:
            for gateway in gateways:
                gateway.close()
    summary.seconds = round(time.monotonic() - began, 1)
    return summary


def table(summary: Summary) -> str:
    found = summary.findings
    rows = (
        ("engine", summary.engine),
        ("rounds", f"{summary.rounds:,}"),
        ("killed (SIGKILL)", f"{summary.killed:,}"),
        ("stopped (SIGTERM)", f"{summary.terminated:,}"),
        ("killed again while starting", f"{summary.killed_at_start:,}"),
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
    parser.add_argument("--seconds", type=float, default=2.5, help="at most between two kills")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds for all of it")
    parser.add_argument("--conversations", type=int, default=12)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.engine == "postgresql" and not SERVER:
        parser.error("QWENPROXY_TEST_DATABASE_URL names no server: use .ci/postgresql")
    with tempfile.TemporaryDirectory(prefix="qwenproxy-torture.") as directory:
        summary = asyncio.run(
            torture(
                Path(directory),
                given.engine,
                rounds=given.rounds,
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

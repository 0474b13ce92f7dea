"""What must not wear out, and who must not cost others: memory over requests and chunks, clients that hardly
read, heavy statistics and removal beside chats.

Memory is the resident size of the serving process; its slope is that of the least squares, after a third of
the load as warm-up. The others compare two sides in turn, as benchmarks/targets.py does.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import linear_regression, median

from benchmarks import load, systems
from benchmarks.aged import OLD_ID, SESSIONS
from benchmarks.load import Reading
from benchmarks.processes import LOAD_CORE, ROOT, SYSTEM_CORE
from benchmarks.systems import KEY, System, environment
from benchmarks.targets import Figure, Lab, alternate

REQUESTS, CHUNKS = 200_000, 100_000
_STEPS = 20
_CLIENTS = 32
_JSON_MODEL, _LONG_MODEL, _SLOW_MODEL = "bench-4-0", f"bench-{CHUNKS}-1", "bench-4096-0"
_MODELS = (_JSON_MODEL, _LONG_MODEL, _SLOW_MODEL)
# Less than the smallest object that could be left behind by each.
_BYTES_PER_REQUEST = 32
# The text (11 characters a chunk) has to be held until its end, and is in pieces until it is written.
_BYTES_PER_CHUNK = 128
_SLOW_CLIENTS = 20
_STATISTICS_CLIENTS = 20
_STATISTICS = "/v1/stats?range=30d&group=model&interval=slot"
_ROWS = 100_000
_PRUNE_START_S = 120
_OLD_SESSIONS = "SELECT COUNT(*) FROM sessions_app_session WHERE id LIKE ? || '%'"
# Twenty wait for one another, each a second of the processor.
_LATEST_S = 300


def _slope(at: list[int], sizes: list[int]) -> float:
    """Bytes for each, after the warm-up."""
    start = len(at) // 3
    return linear_regression(at[start:], sizes[start:]).slope


def memory_over_requests(lab: Lab, count: int = REQUESTS) -> None:
    """Memory of a process over 200,000 requests."""
    at, sizes = [], []
    with ExitStack() as stack:
        double = stack.enter_context(systems.double(lab.directory, _MODELS))
        gateway = stack.enter_context(systems.gateway(lab.directory, double))
        rounds = max(1, count // _STEPS // _CLIENTS)
        for _ in range(_STEPS):
            load.run(
                gateway, double, model=_JSON_MODEL, clients=_CLIENTS, rounds=rounds, grace_s=170
            )
            at.append(gateway.answered)
            sizes.append(gateway.process.rss_bytes())
            print(f"  {at[-1]:7} requests: {sizes[-1] / 1e6:.1f} MB", flush=True)
    note = f"{sizes[len(at) // 3] / 1e6:.1f} MB after {at[len(at) // 3]}, {sizes[-1] / 1e6:.1f} MB after {at[-1]}"
    slope = _slope(at, sizes)
    what = "memory that stays of a request"
    lab.figures.append(Figure("memory", what, slope, _BYTES_PER_REQUEST, " B", note))


def memory_over_chunks(lab: Lab) -> None:
    """Memory of a process over one stream of 100,000 chunks."""
    sizes: list[int] = []
    with ExitStack() as stack:
        double = stack.enter_context(systems.double(lab.directory, _MODELS))
        gateway = stack.enter_context(systems.gateway(lab.directory, double))
        load.run(gateway, double, model=_JSON_MODEL, clients=_CLIENTS, seconds=2)
        with _beside(lambda: sizes.append(gateway.process.rss_bytes()), every_s=1):
            reading = load.run(
                gateway, double, model=_LONG_MODEL, clients=1, rounds=1, stream=1, grace_s=170
            )
    at = [int(reading.events * (index + 1) / len(sizes)) for index in range(len(sizes))]
    note = f"{sizes[0] / 1e6:.1f} to {max(sizes) / 1e6:.1f} MB, {reading.events} events in {reading.wall_s:.0f} s"
    print(f"  {note}", flush=True)
    what = "memory that a chunk of a long stream takes"
    lab.figures.append(Figure("chunks", what, _slope(at, sizes), _BYTES_PER_CHUNK, " B", note))


@contextlib.contextmanager
def _beside(function: Callable[[], object], *, every_s: float, threads: int = 1) -> Iterator[None]:
    """Call it again and again until the end, which raises what it raised."""
    ended, failures = threading.Event(), []

    def run() -> None:
        while not ended.wait(every_s):
            try:
                function()
            except (OSError, ValueError) as exc:
                failures.append(exc)
                return

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in running:
            thread.join()
    if failures:
        raise RuntimeError(f"beside the load: {failures[0]}")


@contextlib.contextmanager
def _slow_clients(gateway: System) -> Iterator[None]:
    """Clients that have asked for long streams, and read one byte a second each."""
    body = (
        f'{{"model":"{_SLOW_MODEL}","stream":true,"messages":[{{"role":"user","content":"slow"}}]}}'
    )
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{gateway.port}\r\n"
    head += f"Authorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    with ExitStack() as stack:
        clients = []
        for _ in range(_SLOW_CLIENTS):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.settimeout(30)
            client.connect(("127.0.0.1", gateway.port))
            client.sendall((head + body).encode())
            clients.append(client)
        for client in clients:
            client.recv(1)
        gateway.answered += _SLOW_CLIENTS

        def read() -> None:
            for client in clients:
                if not client.recv(1):
                    raise OSError("a slow client was sent away")

        with _beside(read, every_s=1):
            # Their answers come to their end, held for them.
            time.sleep(2)
            yield


def slow_clients(lab: Lab) -> None:
    """What 20 clients that read a byte a second cost the others."""
    with ExitStack() as stack:
        double = stack.enter_context(systems.double(lab.directory, _MODELS))
        gateway = stack.enter_context(systems.gateway(lab.directory, double))
        chats = partial(_chats, lab, gateway, double)

        def beside_slow() -> Reading:
            with _slow_clients(gateway):
                return chats()

        chats()
        found = alternate({"with": beside_slow, "without": chats}, lab.pairs, _describe)
    _compare(
        lab, "slow", "others beside 20 clients that read 1 byte/s", found, {"p50": 1.1, "p99": 1.25}
    )


def statistics(lab: Lab) -> None:
    """Chats beside 20 heavy statistics queries at a time, on a record of 100,000 requests."""
    with ExitStack() as stack:
        double = stack.enter_context(systems.double(lab.directory, _MODELS))
        with systems.gateway(lab.directory, double) as empty:
            data = empty.database.parent if empty.database else None
        assert data is not None
        subprocess.run(
            [sys.executable, "-m", "benchmarks.rollups", "--rows", str(_ROWS), "--fill", str(data)],
            cwd=ROOT, check=True, timeout=600, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        gateway = stack.enter_context(systems.gateway(lab.directory, double, filled=data))
        chats = partial(_chats, lab, gateway, double)
        asked = [0]

        def beside_statistics() -> Reading:
            ask = partial(_ask, gateway, asked)
            # Starts the process that makes them.
            ask()
            with _beside(ask, every_s=0, threads=_STATISTICS_CLIENTS):
                return chats()

        chats()
        found = alternate({"with": beside_statistics, "without": chats}, lab.pairs, _describe)
    print(f"  {asked[0]} statistics were answered", flush=True)
    _compare(lab, "statistics", "chats beside 20 statistics queries", found, {"p99": 1.5})
    shutil.rmtree(data)


def _ask(gateway: System, asked: list[int]) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{gateway.port}{_STATISTICS}", headers={"Authorization": f"Bearer {KEY}"}
    )
    with urllib.request.urlopen(request, timeout=_LATEST_S) as answer:
        answer.read()
    asked[0] += 1


def prune(lab: Lab) -> None:
    """Chats beside `manage.py prune` over a record of 131,072 old sessions; `verifyrecords` of it."""
    with ExitStack() as stack:
        double = stack.enter_context(systems.double(lab.directory, _MODELS))
        with systems.gateway(lab.directory, double) as empty:
            data = empty.database.parent if empty.database else None
        assert data is not None
        run = partial(subprocess.run, cwd=ROOT, check=True, timeout=900, stdout=subprocess.DEVNULL)
        run([sys.executable, "-m", "benchmarks.aged", str(data)])
        command = [sys.executable, "manage.py"]
        began = time.monotonic()
        run([*command, "verifyrecords"], env=environment(data))
        taken_s = time.monotonic() - began
        gateway = stack.enter_context(systems.gateway(lab.directory, double, filled=data))
        chats = partial(_chats, lab, gateway, double)
        chats()
        found = alternate(
            {"with": partial(_beside_prune, data, chats), "without": chats}, lab.pairs, _describe
        )
    print(f"  verifyrecords: {2 * SESSIONS / taken_s:,.0f} messages/s, its start included")
    _compare(lab, "prune", "chats beside prune", found, {"p50": 1.25, "p99": 1.5})
    shutil.rmtree(data)


def _wait_for_removal(database: Path, pruning: subprocess.Popen[bytes]) -> None:
    """Return when the first sessions are gone.

    Raises:
        RuntimeError: none were for long, or it ended.
    """
    until = time.monotonic() + _PRUNE_START_S
    with contextlib.closing(sqlite3.connect(database)) as connection:

        def count() -> int:
            return int(connection.execute(_OLD_SESSIONS, [OLD_ID]).fetchone()[0])

        before = count()
        while pruning.poll() is None and time.monotonic() < until:
            if count() < before:
                return
            time.sleep(0.2)
    raise RuntimeError("prune removed nothing")


def _beside_prune(data: Path, chats: Callable[[], Reading]) -> Reading:
    # Wherever there is room: with this process it would stay on the generator's core.
    command = ["taskset", "--cpu-list", f"{SYSTEM_CORE},{LOAD_CORE}", sys.executable, "manage.py"]
    command += ["prune", "--record-days", "30"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(data), stdout=subprocess.DEVNULL
    ) as pruning:
        try:
            _wait_for_removal(data / "qwenproxy.sqlite3", pruning)
            reading = chats()
            if pruning.poll() is not None:
                raise RuntimeError(f"prune ended with {pruning.returncode} before the reading did")
        finally:
            # Not by SIGINT: what a shell runs in the background is deaf to it.
            pruning.terminate()
            pruning.wait(60)
    return reading


def _chats(lab: Lab, gateway: System, double: System) -> Reading:
    # Not at the limit of the process: there each request waits for all others.
    return load.run(gateway, double, model="bench-4-0", clients=8, seconds=lab.seconds)


def _describe(reading: Reading) -> str:
    times = reading.times["latency_us"]
    return f"p50 {times['p50'] / 1000:6.2f} ms, p99 {times['p99'] / 1000:6.2f} ms"


def _compare(
    lab: Lab,
    target: str,
    what: str,
    found: Mapping[str, list[Reading]],
    limits: Mapping[str, float],
) -> None:
    for which, limit in limits.items():
        above, below = (
            [reading.times["latency_us"][which] for reading in found[side]]
            for side in ("with", "without")
        )
        ratios = [a / b for a, b in zip(above, below, strict=True)]
        value = median(ratios) if ratios else None
        note = f"{median(above):.0f} / {median(below):.0f} us" if ratios else "refused"
        lab.figures.append(Figure(target, f"{which} of {what}", value, limit, note=note))


def endurance(lab: Lab) -> None:
    """All of these, one after the other; takes a quarter of an hour."""
    for part in (slow_clients, statistics, prune, memory_over_chunks, memory_over_requests):
        print(f" {part.__name__}: {part.__doc__}", flush=True)
        part(lab)


ENDURANCE: Mapping[str, Callable[[Lab], None]] = {
    "endurance": endurance,
    "memory": memory_over_requests,
    "longstream": memory_over_chunks,
    "slowclient": slow_clients,
    "statistics": statistics,
    "prune": prune,
}

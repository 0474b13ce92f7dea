"""PostgreSQL is restarted, or away for a while, below two running gateways: they recover by themselves."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.conftest import NO_TLS
from tests.doubles.server import serve_in_thread
from tests.faults.gateway import Gateway
from tests.faults.load import MODEL, EchoDouble, Load, check
from tests.faults.torture import SERVER
from tests.faults.warm import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not SERVER, reason="NO POSTGRESQL: run it with .ci/postgresql"),
]
_CONVERSATIONS = 12
_ANSWER_S = 120


class Server:
    """A PostgreSQL server of the test's own, which it may end and start."""

    def __init__(self, url: str) -> None:
        self.url = url
        with psycopg.connect(url) as connection:
            row = connection.execute("SHOW data_directory").fetchone()
        assert row is not None
        self._data = Path(row[0])
        pid = (self._data / "postmaster.pid").read_text().splitlines()[0]
        self._program = Path(f"/proc/{pid}/exe").resolve().with_name("pg_ctl")
        _, *options = shlex.split((self._data / "postmaster.opts").read_text())
        del options[: options.index("-D") + 2]
        self._options = shlex.join(options)
        self._owner = self._data.stat()

    def control(self, *arguments: str) -> None:
        """Run `pg_ctl` as the server's user and wait until it is done."""
        subprocess.run(
            [self._program, "-D", self._data, "-w", "-t", "60", *arguments],
            user=self._owner.st_uid,
            group=self._owner.st_gid,
            extra_groups=[],
            cwd=self._data,
            stdout=subprocess.DEVNULL,
            check=True,
        )

    def start(self) -> None:
        self.control("start", "-l", str(self._data / "server.log"), "-o", self._options)

    def stop(self, mode: str) -> None:
        self.control("stop", "-m", mode)


@contextlib.contextmanager
def own_server() -> Iterator[Server]:
    """One that `.ci/postgresql` starts and removes; it lives until its input ends."""
    process = subprocess.Popen(
        [".ci/postgresql", "sh", "-c", 'echo "$QWENPROXY_TEST_DATABASE_URL"; exec cat'],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield Server(process.stdout.readline().strip())
    finally:
        process.communicate()


@contextlib.contextmanager
def gateways(
    directory: Path, server: Server, count: int, **settings: str
) -> Iterator[list[Gateway]]:
    with serve_in_thread(EchoDouble()) as upstream_url:
        made = [
            Gateway(
                directory / str(number),
                upstream_url=upstream_url,
                database_url=server.url,
                settings=settings,
            )
            for number in range(count)
        ]
        try:
            yield made
        finally:
            for gateway in made:
                gateway.close()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_under_load_loses_nothing(tmp_path, mode):
    """`immediate` is as a crash: the server has to recover from its log."""

    async def scenario(server: Server, pair: list[Gateway]) -> Load:
        for gateway in pair:
            gateway.key = pair[0].key
            await gateway.start()
        load = Load([gateway.url for gateway in pair], pair[0].key, conversations=_CONVERSATIONS)
        running = asyncio.create_task(load.run())
        for _ in range(3):
            await load.more(_CONVERSATIONS)
            await asyncio.to_thread(server.stop, mode)
            await asyncio.to_thread(server.start)
        await load.more(2 * _CONVERSATIONS)
        load.stop()
        await running
        for gateway in pair:
            await gateway.wait_until_ready()
            gateway.signal(signal.SIGTERM)
            assert await gateway.wait() == 0, gateway.tail()
        return load

    with own_server() as server, gateways(tmp_path, server, 2) as pair:
        load = asyncio.run(scenario(server, pair))
        found = check(server.url, load.answers)
        verified = pair[0].manage("verifyrecords")
    assert found.differences == []
    assert load.complaints == []
    assert found.whole > 3 * _CONVERSATIONS
    # None was broken off: they go on without a database, and their ends wait for it.
    assert found.partial == 0
    assert verified.returncode == 0, verified.stdout


def test_while_the_server_is_away_it_is_said_and_then_gone_on(tmp_path):
    """Answers that run then come to their end; what is owed to the record is written afterwards."""

    async def ask(client: httpx.AsyncClient, text: str) -> httpx.Response:
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
        return await client.post("/v1/chat/completions", json=body)

    async def scenario(server: Server, gateway: Gateway) -> Load:
        await gateway.start()
        load = Load([gateway.url], gateway.key, conversations=_CONVERSATIONS)
        running = asyncio.create_task(load.run())
        await load.more(_CONVERSATIONS)
        await asyncio.to_thread(server.stop, "fast")
        headers = {"Authorization": f"Bearer {gateway.key}"}
        async with httpx.AsyncClient(
            base_url=gateway.url, headers=headers, verify=NO_TLS, timeout=60
        ) as client:
            began = time.monotonic()
            answer = await ask(client, "secret-" + "0" * 16)
            assert answer.status_code == 503, answer.text
            assert time.monotonic() - began < _ANSWER_S / 4
            ready = await client.get("/readyz")
            assert ready.status_code == 503
            assert ready.json()["checks"]["schema"] != "ok"
            assert (await client.get("/healthz")).status_code == 200
        await asyncio.to_thread(server.start)
        await gateway.wait_until_ready()
        await load.more(2 * _CONVERSATIONS)
        load.stop()
        await running
        gateway.signal(signal.SIGTERM)
        assert await gateway.wait() == 0, gateway.tail()
        return load

    deadline = {"QWENPROXY_RECORDER_DEADLINE_S": "1"}
    with own_server() as server, gateways(tmp_path, server, 1, **deadline) as [gateway]:
        load = asyncio.run(scenario(server, gateway))
        found = check(server.url, load.answers)
    assert found.differences == []
    assert load.complaints == []

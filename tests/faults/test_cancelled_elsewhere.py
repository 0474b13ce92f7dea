"""Two serving processes on one database: what the one answers is cancelled through the other."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import NO_TLS
from tests.doubles.openai_compatible import OpenAICompatibleDouble
from tests.doubles.server import Reply, serve_in_thread
from tests.faults.gateway import Gateway
from tests.faults.torture import SERVER, new_database

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
_TEXT = "one two three four five six"


@pytest.fixture
def double() -> OpenAICompatibleDouble:
    return OpenAICompatibleDouble()


@pytest.fixture
def gateways(tmp_path, double) -> Iterator[list[Gateway]]:
    engine = "postgresql" if SERVER else "sqlite"
    with new_database(engine) as database_url, serve_in_thread(double) as upstream_url:
        # The file of SQLite, and the locks beside it, are of both.
        directory: Path = tmp_path / "data"
        gateways = [
            Gateway(directory, upstream_url=upstream_url, database_url=database_url)
            for _ in range(2)
        ]
        yield gateways
        for gateway in gateways:
            gateway.close()


class _Client:
    def __init__(self, gateways: list[Gateway]) -> None:
        self._one, self._other = (gateway.url for gateway in gateways)
        headers = {"Authorization": f"Bearer {gateways[0].key}"}
        self.http = httpx.AsyncClient(headers=headers, timeout=60, verify=NO_TLS)

    async def begin(self) -> str:
        body = {"model": "qwen3-8b", "input": "Hello", "background": True}
        answer = await self.http.post(f"{self._one}/v1/responses", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def cancel(self, response_id: str) -> httpx.Response:
        return await self.http.post(f"{self._other}/v1/responses/{response_id}/cancel")

    async def read(self, response_id: str) -> Any:
        return (await self.http.get(f"{self._other}/v1/responses/{response_id}")).json()


async def _until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110  # another process's rows
            await asyncio.sleep(0.05)


def test_it_ends_wherever_it_runs_and_whatever_became_of_its_process(gateways, double):
    async def scenario() -> None:
        for gateway in gateways:
            await gateway.start()
        client = _Client(gateways)
        owner = gateways[0]

        paused = Reply(text=_TEXT, pause_after=4)
        double.enqueue(paused)
        running = await client.begin()
        await asyncio.to_thread(paused.paused.wait, 60)
        answer = await client.cancel(running)
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled"), answer.text
        assert "one" in answer.text
        assert (await client.cancel(running)).json() == answer.json()

        double.enqueue(Reply(silent=True))
        silent = await client.begin()
        assert (await client.cancel(silent)).json()["status"] == "cancelled"

        double.enqueue(Reply(silent=True))
        stalled = await client.begin()
        owner.signal(signal.SIGSTOP)
        answer = await client.cancel(stalled)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "response_cancelling")
        owner.signal(signal.SIGCONT)

        async def is_cancelled() -> bool:
            return bool((await client.read(stalled))["status"] == "cancelled")

        await _until(is_cancelled)

        double.enqueue(Reply(silent=True))
        left = await client.begin()
        owner.signal(signal.SIGKILL)
        await owner.wait()
        answer = await client.cancel(left)
        assert (answer.status_code, answer.json()["status"]) == (200, "incomplete"), answer.text
        await client.http.aclose()

    asyncio.run(scenario())
    checked = gateways[1].manage("verifyrecords")
    assert checked.returncode == 0, checked.stdout + checked.stderr

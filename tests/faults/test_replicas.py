"""Two serving processes on one PostgreSQL: conversations that hop between them, one restarted, one killed."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import NO_TLS
from tests.doubles.server import serve_in_thread
from tests.faults.gateway import Gateway
from tests.faults.load import EchoDouble, Load, check, read_rows
from tests.faults.torture import SERVER, new_database

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not SERVER, reason="several processes share a PostgreSQL"),
]
_CONVERSATIONS = 60
_SETTLED_S = 120
_RUNNING = "SELECT COUNT(*) FROM requests_app_response WHERE status = 'in_progress'"
_CONNECTIONS = (
    "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name = 'qwenproxy'"
)


class Replicas:
    """Two gateways of one database, and the upstream of both."""

    def __init__(self, directory: Path, upstream_url: str, database_url: str) -> None:
        self.database_url = database_url
        self.gateways = [
            Gateway(directory / name, upstream_url=upstream_url, database_url=database_url)
            for name in ("one", "two")
        ]

    async def start(self) -> str:
        """Start both at once on the empty database; return the API key that one of them has made."""
        for gateway in self.gateways:
            gateway.launch()
        await asyncio.gather(*(gateway.wait_until_ready() for gateway in self.gateways))
        keys = [gateway.key for gateway in self.gateways if gateway.key]
        assert len(keys) == 1
        return keys[0]

    @property
    def urls(self) -> list[str]:
        return [gateway.url for gateway in self.gateways]

    def count(self, sql: str) -> int:
        return int(read_rows(self.database_url, sql)[0][0])


@pytest.fixture
def double() -> EchoDouble:
    return EchoDouble()


@pytest.fixture
def replicas(tmp_path, double) -> Iterator[Replicas]:
    with new_database("postgresql") as database_url, serve_in_thread(double) as upstream_url:
        replicas = Replicas(tmp_path, upstream_url, database_url)
        yield replicas
        for gateway in replicas.gateways:
            gateway.close()


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(_SETTLED_S):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110  # another process's rows
            await asyncio.sleep(0.1)


def test_conversations_survive_a_rolling_restart_and_a_kill(replicas, double):
    async def scenario() -> Load:
        key = await replicas.start()
        load = Load(replicas.urls, key, conversations=_CONVERSATIONS)
        running = asyncio.create_task(load.run())
        await wait_until(lambda: len(load.answers) > _CONVERSATIONS)
        # docs/scaling.md says so.
        assert replicas.count(_CONNECTIONS) <= 2 * 5
        for gateway in replicas.gateways:
            gateway.signal(signal.SIGTERM)
            assert await gateway.wait() == 0, gateway.tail()
            await gateway.start()
        one = replicas.gateways[0]
        load.note_kill(one.url)
        one.signal(signal.SIGKILL)
        load.stop()
        await running
        # The other one finds its lock free.
        await wait_until(lambda: replicas.count(_RUNNING) == 0)
        return load

    load = asyncio.run(scenario())
    found = check(replicas.database_url, load.answers)
    assert found.differences == []
    assert load.complaints == []
    assert double.mixed == []
    assert found.whole > _CONVERSATIONS
    assert replicas.count("SELECT COUNT(*) FROM requests_app_worker") == 1


def test_a_limit_holds_over_both_to_the_last_request(replicas):
    limit, asked = 20, 60

    async def scenario() -> Counter[int]:
        await replicas.start()
        made = replicas.gateways[0].manage(
            "createapikey", "limited", "--requests-per-minute", str(limit)
        )
        assert made.returncode == 0, made.stderr
        body = {
            "model": "qwen3-8b",
            "messages": [{"role": "user", "content": "secret-" + "0" * 16}],
        }
        headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
        async with httpx.AsyncClient(headers=headers, verify=NO_TLS, timeout=60) as client:
            answers = await asyncio.gather(
                *(
                    client.post(f"{replicas.urls[number % 2]}/v1/chat/completions", json=body)
                    for number in range(asked)
                )
            )
        return Counter(answer.status_code for answer in answers)

    assert asyncio.run(scenario()) == {200: limit, 429: asked - limit}

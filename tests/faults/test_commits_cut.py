"""The connection to PostgreSQL is cut during COMMIT, below a running server: no turn is lost or written twice."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.doubles.server import serve_in_thread
from tests.faults.cutting import Cutting
from tests.faults.gateway import Gateway
from tests.faults.load import EchoDouble, Load, check
from tests.faults.torture import SERVER, new_database

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not SERVER, reason="SQLite has no connection to lose"),
]
_CONVERSATIONS = 12
_EVERY = 5
_CUTS = 10


def test_commits_whose_answer_never_comes_are_neither_lost_nor_repeated(tmp_path):
    async def scenario(cutting: Cutting, upstream_url: str) -> tuple[Gateway, Load]:
        async with cutting.listening():
            gateway = Gateway(
                tmp_path / "data", upstream_url=upstream_url, database_url=cutting.url
            )
            try:
                await gateway.start()
                load = Load([gateway.url], gateway.key, conversations=_CONVERSATIONS)
                running = asyncio.create_task(load.run())
                cutting.every = _EVERY
                while min(cutting.before, cutting.after) < _CUTS:
                    await load.more(1)
                cutting.every = 0
                await load.more(_CONVERSATIONS)
                load.stop()
                await running
                gateway.signal(signal.SIGTERM)
                assert await gateway.wait() == 0, gateway.tail()
            finally:
                gateway.close()
        return gateway, load

    with (
        serve_in_thread(EchoDouble(words=(3, 10))) as upstream_url,
        new_database("postgresql") as database_url,
    ):
        gateway, load = asyncio.run(scenario(Cutting(database_url), upstream_url))
        found = check(database_url, load.answers)
        gateway.environ["DATABASE_URL"] = database_url
        verified = gateway.manage("verifyrecords")
    assert found.differences == []
    assert load.complaints == []
    assert found.whole == len(load.answers)
    assert verified.returncode == 0, verified.stdout

"""The database of a running server is locked by another program for ten seconds: all wait, nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
from collections.abc import Iterator

import httpx
import psycopg
import pytest

from tests.conftest import NO_TLS
from tests.doubles.server import serve_in_thread
from tests.faults.gateway import Gateway
from tests.faults.load import EchoDouble, Load, check
from tests.faults.torture import SERVER, new_database

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
_LOCKED_S = 10.0
_CONVERSATIONS = 12
# One alone: whoever waits for the second of two may stand in another's way, and a deadlock ends one of them.
_TABLE = "requests_app_response"


@contextlib.contextmanager
def locked(database_url: str) -> Iterator[None]:
    """As a backup or a schema change by hand does it."""
    if database_url.startswith("sqlite:///"):
        path = database_url.removeprefix("sqlite:///")
        other = sqlite3.connect(path, isolation_level=None, timeout=30)
        try:
            other.execute("BEGIN IMMEDIATE")
            yield
        finally:
            other.close()
        return
    with psycopg.connect(database_url) as server:
        server.execute(f"LOCK TABLE {_TABLE} IN ACCESS EXCLUSIVE MODE")
        yield


def test_ten_seconds_of_a_locked_database_delay_and_lose_nothing(tmp_path):
    engine = "postgresql" if SERVER else "sqlite"

    async def scenario(gateway: Gateway) -> Load:
        await gateway.start()
        load = Load([gateway.url], gateway.key, conversations=_CONVERSATIONS)
        running = asyncio.create_task(load.run())
        await load.more(_CONVERSATIONS)
        with locked(gateway.database_url):
            ended = len(load.answers)
            await asyncio.sleep(_LOCKED_S)
            async with httpx.AsyncClient(verify=NO_TLS, timeout=5) as client:
                assert (await client.get(f"{gateway.url}/healthz")).status_code == 200
            # What was being written when the lock came may have ended; nothing else did.
            assert len(load.answers) - ended <= _CONVERSATIONS
        await load.more(2 * _CONVERSATIONS)
        load.stop()
        await running
        gateway.signal(signal.SIGTERM)
        assert await gateway.wait() == 0, gateway.tail()
        return load

    with serve_in_thread(EchoDouble()) as url, new_database(engine) as database_url:
        gateway = Gateway(tmp_path / "data", upstream_url=url, database_url=database_url)
        try:
            load = asyncio.run(scenario(gateway))
            found = check(gateway.database_url, load.answers)
        finally:
            gateway.close()
    assert found.differences == []
    assert load.complaints == []
    # The deadline is beyond ten seconds: nobody was even refused.
    assert found.whole == len(load.answers)

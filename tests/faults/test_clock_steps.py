"""The wall clock of a running server jumps by an hour, forth and back: nothing ends, nothing is lost."""

from __future__ import annotations

import asyncio
import shutil
import signal
import struct
import subprocess
from datetime import datetime, timedelta
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
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("cc") is None, reason="NO C COMPILER: no clock to step"),
]
HOUR_S = 3600
_CONVERSATIONS = 8
_MOMENTS = (
    "SELECT MIN(CAST(created_at AS TEXT)), MAX(CAST(created_at AS TEXT)) FROM requests_app_request"
)
# No answer takes longer, on any machine.
_SPANS = """
SELECT response_id, duration_ms, ttft_ms FROM requests_app_response
WHERE duration_ms NOT BETWEEN 0 AND 600000 OR ttft_ms NOT BETWEEN 0 AND 600000"""


class Clock:
    """The wall clock of processes that have `environ`."""

    def __init__(self, directory: Path) -> None:
        library = directory / "clock.so"
        source = Path(__file__).with_name("clock.c")
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        self._file = directory / "offset"
        self.step(0)
        self.environ = {"LD_PRELOAD": str(library), "FAULTS_CLOCK": str(self._file)}

    def step(self, seconds: int) -> None:
        """Let it be so far from the true time."""
        self._file.touch()
        with self._file.open("r+b") as file:
            file.write(struct.pack("q", seconds))


def test_the_wall_clock_jumps_by_an_hour_while_it_serves(tmp_path):
    clock = Clock(tmp_path)

    async def scenario(gateway: Gateway) -> Load:
        await gateway.start()
        load = Load([gateway.url], gateway.key, conversations=_CONVERSATIONS)
        running = asyncio.create_task(load.run())
        async with httpx.AsyncClient(verify=NO_TLS, timeout=30) as client:
            for seconds in (HOUR_S, 0, -HOUR_S, HOUR_S, 0):
                await load.more(2 * _CONVERSATIONS)
                clock.step(seconds)
                ready = await client.get(f"{gateway.url}/readyz")
                assert ready.status_code == 200, ready.text
        await load.more(2 * _CONVERSATIONS)
        load.stop()
        await running
        gateway.signal(signal.SIGTERM)
        assert await gateway.wait() == 0, gateway.tail()
        return load

    engine = "postgresql" if SERVER else "sqlite"
    with (
        serve_in_thread(EchoDouble(words=(3, 20))) as upstream_url,
        new_database(engine) as database_url,
    ):
        gateway = Gateway(
            tmp_path / "data",
            upstream_url=upstream_url,
            database_url=database_url,
            settings=clock.environ,
        )
        try:
            load = asyncio.run(scenario(gateway))
        finally:
            gateway.close()
        found = check(gateway.database_url, load.answers)
        verified = gateway.manage("verifyrecords")
        [moments] = read_rows(gateway.database_url, _MOMENTS)
        spans = read_rows(gateway.database_url, _SPANS)
    first, last = (datetime.fromisoformat(moment) for moment in moments)
    # The steps did reach it.
    assert last - first > timedelta(seconds=2 * HOUR_S - 60)
    assert found.differences == []
    assert load.complaints == []
    assert found.whole == len(load.answers)
    assert spans == []
    assert verified.returncode == 0, verified.stdout

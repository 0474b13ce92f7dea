"""`manage.py serve` as a process that is killed and started again on the same data."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from tests.conftest import NO_TLS
from tests.doubles.server import unused_port
from tests.faults.warm import ROOT, Forked, Warm

# A start takes a second or two; other work of the machine makes it longer.
_START_S = 120.0
_OWN = ("QWEN", "DASHSCOPE_", "OPENAI_", "DJANGO_", "DATABASE_")


def clean_environment() -> dict[str, str]:
    """Ours without any setting of a gateway."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OWN)}


class Gateway:
    """One serving process; several may share `database_url`, and then need the `key` of the first.

    `data` is its data directory; an empty `database_url` stands for the SQLite file in it. One that
    `is_warm` starts by forks of a process that has loaded the code, but for those that are asked to be cold.
    """

    def __init__(
        self,
        data: Path,
        *,
        upstream_url: str,
        database_url: str = "",
        key: str = "",
        settings: Mapping[str, str] | None = None,
        is_warm: bool = False,
    ) -> None:
        self.data = data
        self.database_url = database_url or f"sqlite:///{data / 'qwenproxy.sqlite3'}"
        self.key = key
        self.port = unused_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | Forked | None = None
        # What the last start took until it was ready.
        self.started_s = 1.0
        self.environ = clean_environment() | {
            "QWENPROXY_DATA_DIR": str(data),
            "QWENPROXY_DISCOVER": "false",
            "DATABASE_URL": database_url,
            "OPENAI_COMPATIBLE_BASE_URL": f"{upstream_url}/v1",
            "QWENPROXY_SECRET_KEY": "k" * 50,
            "QWENPROXY_ENCRYPTION_KEYS": "e" * 50,
            **(settings or {}),
        }
        data.mkdir(parents=True, exist_ok=True)
        self.log = data.parent / f"{data.name}.log"
        self._warm = Warm(self.environ) if is_warm else None

    def launch(self, *, is_cold: bool = False) -> None:
        """Start the process and go on at once."""
        if self._warm and not is_cold:
            self.process = self._warm.launch(self.port, self.log)
            return
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "serve", "--port", str(self.port)],
                cwd=ROOT,
                env=self.environ,
                stdout=log,
                stderr=log,
                # Ctrl-C is for who runs the load.
                start_new_session=True,
            )

    async def start(self, *, is_cold: bool = False) -> None:
        """Start the process and wait until it may be given traffic."""
        began = time.monotonic()
        self.launch(is_cold=is_cold)
        await self.wait_until_ready()
        self.started_s = time.monotonic() - began

    async def wait_until_ready(self) -> None:
        """Wait for 200 of `/readyz`.

        Raises:
            AssertionError: it ended, or was not ready for too long; with the end of its log.
        """
        deadline = time.monotonic() + _START_S
        async with httpx.AsyncClient(verify=NO_TLS, timeout=10) as client:
            while await self._status(client) != 200:
                assert self.process is not None
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"it is not ready: {self.tail()}")
                await asyncio.sleep(0.02)
        found = re.search(r"API key +(qp-\S+)", self.log.read_text("utf-8", "replace"))
        self.key = self.key or (found[1] if found else "")

    async def _status(self, client: httpx.AsyncClient) -> int:
        try:
            return (await client.get(f"{self.url}/readyz")).status_code
        except httpx.TransportError:
            return 0

    def tail(self) -> str:
        return self.log.read_text("utf-8", "replace")[-2000:]

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def wait(self) -> int:
        """Wait for the process to end; return its exit status."""
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, _START_S)

    def close(self) -> None:
        """End the process, whatever it does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(_START_S)
        if self._warm:
            self._warm.close()

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command on the same data."""
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

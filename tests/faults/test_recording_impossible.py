"""While nothing can be recorded the server refuses at once, says what is wrong, and recovers by itself."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
from contextlib import contextmanager

import httpx
import pytest

from tests.conftest import NO_TLS
from tests.doubles.server import serve_in_thread
from tests.faults.gateway import Gateway
from tests.faults.load import MODEL, SECRET, EchoDouble, Load, check
from tests.faults.torture import SERVER

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(SERVER), reason="faults of a file"),
]
DEADLINE_S = 1.0


@contextmanager
def locked(gateway):
    """Another program holds the write lock."""
    other = sqlite3.connect(gateway.data / "qwenproxy.sqlite3", isolation_level=None, timeout=30)
    try:
        other.execute("BEGIN IMMEDIATE")
        yield
    finally:
        other.close()


@contextmanager
def full(gateway):
    """No file of the process can be written, as on a full disk."""
    pid = gateway.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def ask(client):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "secret-" + "0" * 16}]}
    return client.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize("fault", [locked, full])
def test_a_database_that_cannot_be_written_is_refused_told_and_survived(tmp_path, fault):
    with serve_in_thread(EchoDouble(words=(3, 5), delay_s=0)) as url:
        settings = {"QWENPROXY_RECORDER_DEADLINE_S": str(DEADLINE_S)}
        gateway = Gateway(tmp_path / "data", upstream_url=url, settings=settings)
        try:
            asyncio.run(gateway.start())
            headers = {"Authorization": f"Bearer {gateway.key}"}
            with httpx.Client(
                base_url=gateway.url, headers=headers, verify=NO_TLS, timeout=60
            ) as client:
                assert ask(client).status_code == 200
                with fault(gateway):
                    answer = ask(client)
                    assert answer.status_code == 503, answer.text
                    ready = client.get("/readyz")
                    assert ready.status_code == 503
                    assert ready.json()["checks"]["recording"] != "ok"
                asyncio.run(gateway.wait_until_ready())
                assert ask(client).status_code == 200
            load = Load([gateway.url], gateway.key, conversations=2, max_conversations=2, turns=2)
            asyncio.run(load.run())
        finally:
            gateway.close()
        found = check(gateway.database_url, load.answers)
        verified = gateway.manage("verifyrecords")
    assert found.whole == 4
    # The question above was asked of one session twice: it is no double row.
    assert [d for d in found.differences if SECRET.search(d) is None] == []
    assert verified.returncode == 0, verified.stdout

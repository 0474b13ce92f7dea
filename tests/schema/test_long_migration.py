"""A start that migrates for a minute: nobody who asks meets a closed port, and a stop rolls everything back."""

from __future__ import annotations

import http.client
import json
import signal
import threading
import time
from collections import Counter

import pytest

from tests.schema.conftest import CREATE
from tests.schema.test_startup import SLOW, free_port, wait_for_port

SECONDS = 60
# Not what SQLite counts to: a minute is one on every machine.
WAIT = f"migrations.RunPython(lambda apps, editor: __import__('time').sleep({SECONDS}))"
CLIENTS = (
    ("GET", "/healthz", b""),
    ("GET", "/readyz", b""),
    ("GET", "/v1/models", b""),
    ("POST", "/v1/chat/completions", b"x" * 100_000),
)


class Client(threading.Thread):
    """Asks without a pause, each time on a new connection, until it is told to stop."""

    def __init__(self, port: int, method: str, path: str, body: bytes) -> None:
        super().__init__()
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.errors: list[str] = []
        self.longest_s = 0.0
        self.last: dict = {}
        self._request = (method, path, body)
        self._port = port
        self._ended = threading.Event()

    def run(self) -> None:
        method, path, body = self._request
        while not self._ended.wait(0.02):
            begun = time.monotonic()
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
            try:
                connection.request(method, path, body)
                answer = connection.getresponse()
                self.last = json.loads(answer.read())
                self.statuses[path, answer.status] += 1
            except (OSError, http.client.HTTPException) as exc:
                self.errors.append(repr(exc))
            finally:
                connection.close()
            self.longest_s = max(self.longest_s, time.monotonic() - begun)

    def stop(self) -> None:
        self._ended.set()
        self.join()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_everybody_is_answered_all_the_time(migrated):
    migrated.add_migration("0001_step", CREATE.format(number=1))
    migrated.add_migration("0002_wait", WAIT)
    migrated.add_migration("0003_slow", SLOW.format(rows=4_000_000))
    port = free_port()
    process = migrated.start("serve", "--port", str(port))
    wait_for_port(port)
    clients = [Client(port, *request) for request in CLIENTS]
    begun = time.monotonic()
    for client in clients:
        client.start()
    health, ready, models, chat = clients
    told = []
    while ready.last.get("status") != "ready":
        assert process.poll() is None
        assert time.monotonic() - begun < 400, ready.last
        told.append(ready.last.get("done"))
        time.sleep(0.1)
    lasted = time.monotonic() - begun
    time.sleep(1)
    for client in clients:
        client.stop()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert lasted >= SECONDS
    assert [client.errors for client in clients] == [[]] * 4
    assert set(health.statuses) == {("/healthz", 200)}
    assert set(ready.statuses) == {("/readyz", 503), ("/readyz", 200)}
    # Nobody's key: once it serves.
    assert set(models.statuses) == {("/v1/models", 503), ("/v1/models", 401)}
    assert {status for _, status in chat.statuses} == {503, 401}
    assert {1, 2} <= set(told)
    assert max(client.longest_s for client in clients) < 5


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_stop_in_the_middle_leaves_what_was(migrated):
    migrated.add_migration("0001_step", CREATE.format(number=1))
    migrated.add_migration("0002_wait", WAIT)
    before = migrated.schema(), migrated.query("SELECT app, name FROM django_migrations")
    port = free_port()
    process = migrated.start("serve", "--port", str(port))
    wait_for_port(port)
    client = Client(port, "GET", "/readyz", b"")
    client.start()
    while client.last.get("done") != 1:
        assert process.poll() is None
        time.sleep(0.05)
    client.stop()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors
    assert (migrated.schema(), migrated.query("SELECT app, name FROM django_migrations")) == before
    assert migrated.events("name", "status") == [
        ("0001_step", "interrupted"),
        ("0002_wait", "interrupted"),
    ]

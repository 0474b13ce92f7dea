"""Locks that die with their process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from uuid import uuid4

import pytest
from django.db import connection, connections

from qwenproxy.transaction import transaction
from requests_app.liveness import WorkerLock

pytestmark = pytest.mark.django_db(transaction=True)

# A process that holds a lock and says so, until it is killed.
HOLDER = """
import sys, time, django
from pathlib import Path
django.setup()
from django.conf import settings
settings.DATABASES["default"]["NAME"] = sys.argv[3]
from requests_app.liveness import WorkerLock
WorkerLock(sys.argv[1], Path(sys.argv[2]), wait_s=5).hold()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def make_lock(tmp_path):
    def make_lock(worker_id=None, wait_s=5.0):
        return WorkerLock(worker_id or str(uuid4()), tmp_path / "workers", wait_s=wait_s)

    return make_lock


def is_free(lock, worker_id):
    with transaction(lock_wait_s=5):
        return lock.is_free(worker_id)


def in_thread(function):
    """Run in a thread, and with that on a connection of its own."""
    outcome = []

    def call():
        try:
            outcome.append(function())
        finally:
            connections.close_all()

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return outcome[0]


def test_a_lock_that_nobody_took_is_free(make_lock):
    assert is_free(make_lock(), str(uuid4()))


def test_a_held_lock_is_not_free_until_it_is_given_back(make_lock):
    held = make_lock()
    assert held.hold() is True
    assert held.hold() is False
    assert not in_thread(lambda: is_free(make_lock(), held.worker_id))
    held.release()
    if connection.vendor == "postgresql":
        connections.close_all()
    assert in_thread(lambda: is_free(make_lock(), held.worker_id))


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGKILL, id="killed"), pytest.param(signal.SIGTERM, id="ended")]
)
def test_a_lock_is_free_once_its_process_is_gone(make_lock, tmp_path, number):
    lock, worker_id = make_lock(), str(uuid4())
    arguments = [worker_id, str(tmp_path / "workers"), connection.settings_dict["NAME"]]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, *arguments], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "held\n"
        assert not is_free(lock, worker_id)
        # A stopped process is alive: no clock is asked.
        process.send_signal(signal.SIGSTOP)
        assert not is_free(lock, worker_id)
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        process.wait(10)
        for _ in range(100):
            # The server notices a closed connection a moment later.
            if is_free(lock, worker_id) or connection.vendor == "sqlite":
                break
        assert is_free(lock, worker_id)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_lock_is_taken_again_on_a_new_connection(make_lock):
    if connection.vendor != "postgresql":
        pytest.skip("a file stays open")
    lock = make_lock()
    assert lock.hold()
    connection.close()
    assert in_thread(lambda: is_free(make_lock(), lock.worker_id))
    assert lock.hold()
    assert not in_thread(lambda: is_free(make_lock(), lock.worker_id))


def test_what_a_dead_worker_left_is_removed(make_lock, tmp_path):
    lock = make_lock()
    path = tmp_path / "workers" / "00000000-0000-4000-8000-000000000009.lock"
    path.parent.mkdir()
    path.write_bytes(b"")
    lock.forget("00000000-0000-4000-8000-000000000009")
    lock.forget("00000000-0000-4000-8000-000000000009")
    assert not path.exists()

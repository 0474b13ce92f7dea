"""A change of the schema is told while it runs, and a signal breaks it off at once."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from django.db import connection

from qwenproxy.schema import watch
from qwenproxy.schema.watch import Progress, Watch
from tests.schema.conftest import CREATE
from tests.schema.test_startup import SLOW

SLEEP = "migrations.RunSQL('SELECT pg_sleep(600)', '')"


def slow(project) -> str:
    return SLEEP if project.is_postgresql else SLOW.format(rows=2_000_000_000)


def until_it_applies(process, name: str) -> str:
    """What it has written; Django writes the name, and no end of the line, before it begins."""
    written = ""
    while name not in written:
        piece = process.stdout.read(1)
        assert piece, process.communicate()[1]
        written += piece
    return written


def ended(process) -> tuple[str, str]:
    # `communicate` would pass over what has been read ahead of it.
    process.wait(60)
    with process.stdout, process.stderr:
        return process.stdout.read(), process.stderr.read()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_running_statement_and_rolls_back(any_project, number):
    any_project.add_migration("0001_item", CREATE.format(number=1))
    any_project.add_migration("0002_slow", slow(any_project))
    process = any_project.start("migrate", "--no-color")
    until_it_applies(process, "0002_slow...")
    sent = time.monotonic()
    process.send_signal(number)
    out, err = ended(process)
    assert time.monotonic() - sent < 20
    assert process.returncode == 128 + number, err
    assert err == "Stopped. The database is unchanged; the version before can be started.\n"
    assert out == "\n"
    # It was a first run: its history went with it.
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    if not any_project.is_postgresql:
        tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
    assert any_project.query(tables) == [("django_migrations",)]


def test_a_rollback_is_broken_off_as_well(migrated):
    undo = SLOW.format(rows=2_000_000_000).replace("RunSQL('", "RunSQL('', '").replace(", '')", ")")
    migrated.add_migration("0001_slow", undo)
    assert migrated.run("migrate", "-v0").returncode == 0
    process = migrated.start("rollback", "--yes", "--force")
    until_it_applies(process, "Undoing shop.0001_slow ...")
    process.send_signal(signal.SIGTERM)
    out, err = ended(process)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "Stopped. The database is unchanged" in out
    assert migrated.events("action", "status") == [("apply", "ok"), ("unapply", "interrupted")]


def test_it_tells_what_runs(monkeypatch):
    monkeypatch.setattr(watch, "_TELL_EVERY_S", 0.01)
    lines, told = [], threading.Event()

    def write(line: str) -> None:
        lines.append(line)
        told.set()

    progress = Progress(1, 3, "shop.0002_slow", "CREATE  TABLE\n slow", time.monotonic() - 40)
    with Watch(connection, progress, write):
        assert told.wait(10)
    assert lines[0] == "Migrating, 1 of 3 done, at shop.0002_slow: CREATE TABLE slow (40 s)"


def test_it_is_silent_when_nothing_runs(monkeypatch):
    monkeypatch.setattr(watch, "_TELL_EVERY_S", 0.001)
    looked = threading.Event()

    class Idle(Progress):
        @property
        def of(self) -> int:
            looked.set()
            return 0

        @of.setter
        def of(self, value: int) -> None: ...

    with Watch(connection, Idle(), pytest.fail):
        assert looked.wait(10)


def test_signals_are_as_before_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Watch(connection, Progress(), pytest.fail):
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1

"""CREATE INDEX CONCURRENTLY in the middle of an upgrade: outside its transaction, and waiting for others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from tests.schema.conftest import CREATE, Project
from tests.schema.test_killed import assert_recovers, kill_at_points

INDEX = (
    "__import__('django.contrib.postgres.operations', fromlist=['x']).AddIndexConcurrently("
    "'item1', models.Index(fields=['name'], name='shop_name'))"
)
PLAIN = """\
from django.core.management import call_command
from django.core.management.commands import migrate
call_command(migrate.Command(), verbosity=0)
"""
BUILDING = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%' "
BUILDING += "AND state = 'active' AND wait_event_type = 'Lock' AND datname = current_database()"
POLLING = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'SELECT pg_try_advisory_lock%' "
POLLING += "AND state = 'idle' AND datname = current_database()"
VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'shop_name'::regclass"


@pytest.fixture
def upgrade(postgresql_project) -> Project:
    """A table, and an index on it pending between two steps."""
    postgresql_project.add_migration("0001_step", CREATE.format(number=1))
    assert postgresql_project.run("migrate", "-v0").returncode == 0
    postgresql_project.add_migration("0002_index", INDEX, head="atomic = False")
    postgresql_project.add_migration("0003_step", CREATE.format(number=2))
    return postgresql_project


@contextmanager
def open_writer(project: Project) -> Iterator[None]:
    """The index is not made while a transaction that has written is open."""
    with psycopg.connect(project.environ["DATABASE_URL"]) as writer:
        writer.execute("INSERT INTO shop_item1 (name) VALUES ('written')")
        yield
        writer.rollback()


def wait_until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_what_a_killed_one_leaves_is_replaced(upgrade):
    with open_writer(upgrade):
        process = upgrade.start("migrate")
        wait_until(lambda: upgrade.query(BUILDING), "the index waits")
        process.kill()
        process.communicate()
        died = time.monotonic()
        wait_until(lambda: not upgrade.query(BUILDING), "the server sees that the client is gone")
        assert time.monotonic() - died < 4
    assert upgrade.query(VALID) == [(False,)]
    plain = upgrade.run("shell", "-v0", "-c", PLAIN)
    assert 'relation "shop_name" already exists' in plain.stderr
    ended = upgrade.run("migrate")
    assert ended.returncode == 0, ended.stderr
    assert upgrade.query(VALID) == [(True,)]
    assert upgrade.events("name", "status", where="app = 'shop' AND name > '0001_step'") == [
        ("0002_index", "interrupted"),
        ("0003_step", "interrupted"),
        ("0002_index", "ok"),
        ("0003_step", "ok"),
    ]


def test_who_waits_for_the_lock_does_not_stand_in_its_way(upgrade):
    with open_writer(upgrade):
        processes = [upgrade.start("migrate")]
        wait_until(lambda: upgrade.query(BUILDING), "the index waits")
        processes.append(upgrade.start("migrate"))
        wait_until(lambda: upgrade.query(POLLING), "the other waits for the lock")
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert upgrade.query(VALID) == [(True,)]
    assert len(upgrade.events("id", where="name = '0002_index' AND status = 'ok'")) == 1


def test_who_waits_inside_postgresql_would(upgrade):
    """Why the lock is polled: a session that waits in pg_advisory_lock is one that the index waits for."""
    url = upgrade.environ["DATABASE_URL"]
    with psycopg.connect(url, autocommit=True) as holder, psycopg.connect(url) as waiter:
        holder.execute("SELECT pg_advisory_lock(1)")
        waiter.pgconn.send_query(b"SELECT pg_advisory_lock(1)")
        wait_until(
            lambda: upgrade.query(
                "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            ),
            "the other waits in the server",
        )
        victim = ""
        try:
            holder.execute("CREATE INDEX CONCURRENTLY deadly ON shop_item1 (name)")
        except psycopg.errors.DeadlockDetected:
            victim = "holder"
        else:
            ended = waiter.pgconn.get_result()
            if ended and ended.error_field(psycopg.pq.DiagnosticField.SQLSTATE) == b"40P01":
                victim = "waiter"
        holder.execute("SELECT pg_advisory_unlock_all()")
        waiter.pgconn.finish()
    assert victim


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("plain", [pytest.param(False, id="ours"), pytest.param(True, id="plain")])
def test_a_kill_anywhere_around_it_is_finished_by_the_next(upgrade, plain):
    task = {
        "before": [["migrate"], ["migrate", "shop", "0001"]],
        "operation": ["migrate"],
        "settings": "project_settings",
        "path": [str(upgrade.directory)],
    }
    if plain:
        # The index is there and not recorded: "already exists", for ever.
        assert kill_at_points({**task, "plain": True})["lost"]
    else:
        assert_recovers(task)

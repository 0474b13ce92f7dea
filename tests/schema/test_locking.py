"""The lock is refused where it would not hold, with a way out that exists."""

from __future__ import annotations

import re
import zlib
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.db import connection

from qwenproxy.schema import locking
from qwenproxy.schema.refusals import Refused
from tests.schema.conftest import CREATE

ROOT = Path(__file__).resolve().parents[2]


class PooledCursor:
    """Each statement may reach another server process, as behind PgBouncer in transaction mode."""

    def __init__(self) -> None:
        self.pids = count(100)
        self.statements: list[str] = []

    def execute(self, sql, params=None):
        self.statements.append(sql)

    def fetchone(self):
        return (next(self.pids),)


def test_a_pool_that_changes_servers_is_refused():
    cursor = PooledCursor()
    pooled = SimpleNamespace(
        vendor="postgresql",
        alias="other",
        settings_dict={"NAME": "qwenproxy"},
        connection=None,
        cursor=lambda: nullcontext(cursor),
        copy=lambda: pooled,
        close=lambda: None,
    )
    with pytest.raises(Refused) as refused, locking.migration_lock(pooled, 1, str):
        raise AssertionError("it migrates without a lock")
    assert refused.value.returncode == 9
    assert not [sql for sql in cursor.statements if "lock" in sql]
    named = re.findall(r"QWENPROXY_\w+|DATABASE_URL", str(refused.value))
    settings = (ROOT / "qwenproxy" / "settings.py").read_text()
    assert named
    assert all(f'"{name}"' in settings for name in named)


@pytest.mark.django_db(transaction=True)
def test_a_connection_that_was_lost_meanwhile_hides_nothing(monkeypatch):
    if connection.vendor != "postgresql":
        pytest.skip("the lock of a SQLite file is on a connection of its own")
    # That of the tests is one otherwise.
    monkeypatch.setattr(locking, "is_scratch", lambda _: False)

    def lose() -> None:
        connection.close()
        # What writes the failure down opens another.
        connection.ensure_connection()
        raise SystemExit(130)

    with pytest.raises(SystemExit, match="130"), locking.migration_lock(connection, 1, str):
        lose()


UP = "from qwenproxy.schema.startup import bring_up_to_date as up; up(print)"
SEEN = """migrations.RunSQL("CREATE TABLE seen AS SELECT current_setting('way.is', true) AS way", "")"""


@pytest.fixture
def on_server(any_project):
    if not any_project.is_postgresql:
        pytest.skip("of PostgreSQL alone")
    return any_project


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["migrate", "-v0"], id="migrate"),
        pytest.param(["shell", "-v0", "-c", UP], id="serve"),
    ],
)
def test_the_schema_is_changed_past_the_pool(on_server, command):
    on_server.add_migration("0001_seen", SEEN)
    past = f"{on_server.environ['DATABASE_URL']}?options=-c%20way.is%3Dpast"
    ended = on_server.run(*command, QWENPROXY_MIGRATE_DATABASE_URL=past)
    assert ended.returncode == 0, ended.stderr
    assert on_server.query("SELECT way FROM seen") == [("past",)]
    # Nobody else goes there, and nothing is there to be done.
    nowhere = "postgres://nobody@127.0.0.1:1/nothing"
    for command in (["showmigrations", "--check"], ["migrate", "-v0"]):
        ended = on_server.run(*command, QWENPROXY_MIGRATE_DATABASE_URL=nowhere)
        assert ended.returncode == 0, ended.stderr
    ended = on_server.run("rollback", "--yes", "--force", QWENPROXY_MIGRATE_DATABASE_URL=nowhere)
    assert ended.returncode == 9
    assert ended.stderr.startswith("Refused: The database cannot be opened: ")
    assert ended.stderr.count("\n") == 1


def test_a_way_past_no_pool_is_a_mistake(project):
    ended = project.run("check", QWENPROXY_MIGRATE_DATABASE_URL="postgres://host/name")
    assert ended.returncode == 1
    assert "QWENPROXY_MIGRATE_DATABASE_URL is for PostgreSQL" in ended.stderr


def test_who_waits_is_told_for_whom(on_server):
    """Also before there is a history to ask."""
    import psycopg

    with psycopg.connect(on_server.environ["DATABASE_URL"], autocommit=True) as other:
        key = zlib.crc32(b'"$user", public')
        other.execute(
            "SELECT pg_advisory_lock(%s::int, %s::int)",
            [int.from_bytes(b"qwen", "big"), key - 2**32 if key >= 2**31 else key],
        )
        ended = on_server.run("migrate", "--lock-wait", "0.3")
        [(pid,)] = other.execute("SELECT pg_backend_pid()").fetchall()
    assert ended.returncode == 8
    first, last = ended.stderr.splitlines()
    assert first.startswith(
        f"Waiting for another process that migrates this database (backend {pid} of 127.0.0.1, since "
    )
    assert f"backend {pid}" in last


BREAKING = "migrations.RunSQL('SELECT 1', 'SELECT 1')"


def test_who_still_serves_is_told_before_it_breaks(on_server):
    import psycopg

    assert on_server.run("migrate", "-v0").returncode == 0
    on_server.add_migration("0001_new", CREATE.format(number=1))
    with psycopg.connect(on_server.environ["DATABASE_URL"], application_name="qwenproxy"):
        harmless = on_server.run("shell", "-v0", "-c", UP, QWENPROXY_MIGRATE_BREAKING="refuse")
        assert harmless.returncode == 0, harmless.stderr
        assert "Other processes" not in harmless.stdout
        on_server.add_migration("0002_breaking", BREAKING)
        refused = on_server.run("serve", "--port", "0", QWENPROXY_MIGRATE_BREAKING="refuse")
        assert refused.returncode == 9
        assert "(1 connections)" in refused.stderr
        assert "shop.0002_breaking. Nothing was changed" in refused.stderr
        warned = on_server.run("shell", "-v0", "-c", UP)
        assert warned.returncode == 0, warned.stderr
        assert "may fail after shop.0002_breaking" in warned.stdout
    on_server.add_migration("0003_alone", BREAKING)
    alone = on_server.run("shell", "-v0", "-c", UP, QWENPROXY_MIGRATE_BREAKING="refuse")
    assert alone.returncode == 0, alone.stderr


@pytest.mark.parametrize(
    ("name", "is_scratch"),
    [("pooled", False), ("direct", False), ("test_pooled", True)],
)
def test_a_database_of_tests_is_told_from_the_gateway_s_by_its_name(settings, name, is_scratch):
    settings.DATABASE_NAMES = {"pooled", "direct"}
    found = SimpleNamespace(vendor="postgresql", alias="default", settings_dict={"NAME": name})
    assert locking.is_scratch(found) == is_scratch

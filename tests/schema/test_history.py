"""The history is a record beside Django's own: lost or damaged, it is made anew and keeps nobody waiting."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing

import pytest

from tests.schema.conftest import CREATE

UP = "from qwenproxy.schema.startup import bring_up_to_date as up; up(print)"
TOLD = (
    "SELECT m.name FROM django_migrations m LEFT JOIN schema_migrationevent e "
    "ON e.app = m.app AND e.name = m.name AND e.status = 'ok' "
    "AND e.action IN ('apply', 'fake', 'adopt') WHERE e.id IS NULL"
)
COLUMN_LOST = ["ALTER TABLE schema_migrationevent DROP COLUMN checksum"]
TABLE_LOST = ["DROP TABLE schema_migrationevent"]


@pytest.fixture
def stood(request):
    """Migrated, on the engine that the tests run on."""
    if not os.environ.get("QWENPROXY_TEST_DATABASE_URL"):
        return request.getfixturevalue("migrated")
    project = request.getfixturevalue("any_project")
    assert project.run("migrate", "-v0").returncode == 0
    return project


def form(project) -> list[tuple]:
    """The table's columns and indexes."""
    if project.is_postgresql:
        return project.query(
            "SELECT column_name, data_type, is_nullable FROM information_schema.columns "
            "WHERE table_name = 'schema_migrationevent' UNION ALL SELECT indexdef, '', '' "
            "FROM pg_indexes WHERE tablename = 'schema_migrationevent' ORDER BY 1"
        )
    return project.query(
        "SELECT sql FROM sqlite_master WHERE tbl_name = 'schema_migrationevent' ORDER BY name"
    )


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(TABLE_LOST, id="table-lost"),
        pytest.param(COLUMN_LOST, id="column-lost"),
        pytest.param(
            [
                "DROP INDEX schema_migrationevent_run_7915f671",
                "ALTER TABLE schema_migrationevent DROP COLUMN run",
                "ALTER TABLE schema_migrationevent DROP COLUMN action",
            ],
            id="needed-columns-lost",
        ),
        pytest.param(["DELETE FROM schema_migrationevent WHERE seq > 3"], id="rows-lost"),
        pytest.param(["UPDATE schema_migrationevent SET app = 'x', status = '?'"], id="garbled"),
    ],
)
def test_it_is_made_anew_also_where_nothing_is_pending(stood, damage):
    before = form(stood)
    for statement in damage:
        stood.query(statement)
    ended = stood.run("migrate", "-v0")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert stood.query(TOLD) == []
    assert form(stood) == before


def test_what_is_left_of_it_stays(stood):
    [(events,)] = stood.query("SELECT count(*) FROM schema_migrationevent")
    stood.query(COLUMN_LOST[0])
    stood.add_migration("0001_step", CREATE.format(number=1))
    assert stood.run("migrate", "-v0").returncode == 0
    [(adopted,)] = stood.query("SELECT count(*) FROM schema_migrationevent WHERE action = 'adopt'")
    assert adopted == 0
    assert stood.events("action", "status") == [("apply", "ok")]
    assert stood.query("SELECT count(*) FROM schema_migrationevent WHERE action = 'apply'") == [
        (events + 1,)
    ]


def test_a_start_makes_it_anew(stood):
    stood.query(TABLE_LOST[0])
    ended = stood.run("shell", "-v0", "-c", UP)
    assert ended.returncode == 0, ended.stderr
    assert "The history of the schema is not whole" in ended.stdout
    assert stood.query(TOLD) == []
    again = stood.run("shell", "-v0", "-c", UP)
    assert (again.returncode, again.stdout) == (0, "")


def test_a_start_does_not_wait_for_it(migrated):
    migrated.query(COLUMN_LOST[0])
    path = f"{migrated.database}.migrate.lock"
    with closing(sqlite3.connect(path, isolation_level=None)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        ended = migrated.run("shell", "-v0", "-c", UP, QWENPROXY_MIGRATE_LOCK_WAIT_S="0.1")
    assert ended.returncode == 0, ended.stderr
    assert "That failed: Another process" in ended.stdout


def test_what_cannot_be_read_is_passed_over(migrated):
    migrated.query("UPDATE schema_migrationevent SET run = 'no id', at = 'never' WHERE seq > 2")
    migrated.add_migration("0001_step", CREATE.format(number=1))
    shown = migrated.run("showmigrations", "--history")
    assert shown.returncode == 0, shown.stderr
    ended = migrated.run("migrate", "-v0")
    assert ended.returncode == 0, ended.stderr
    assert migrated.query(TOLD) == []
    [(adopted,)] = migrated.query(
        "SELECT count(*) FROM schema_migrationevent WHERE action = 'adopt'"
    )
    assert adopted > 10

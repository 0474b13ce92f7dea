"""`migrate` as a user meets it: whole or not at all, one at a time, and told."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from contextlib import closing

import pytest

from tests.schema.conftest import CREATE

FAILS = "migrations.RunSQL('INSERT INTO nowhere VALUES (1)', '')"


def digest(project) -> str:
    return hashlib.sha256(project.database.read_bytes()).hexdigest()


def test_a_fresh_database_has_a_history_from_the_first_migration(project):
    ended = project.run("migrate")
    assert ended.returncode == 0
    assert ended.stderr == ""
    rows = project.query("SELECT app, name FROM django_migrations ORDER BY id")
    events = project.events("app", "name", "action", "status", where="app <> ''")
    assert [event[:2] for event in events] == rows
    assert {event[2:] for event in events} == {("apply", "ok")}


def test_a_failure_leaves_the_database_as_it_was(migrated):
    before = migrated.schema(), migrated.query("SELECT app, name FROM django_migrations")
    for number in range(1, 6):
        operation = FAILS if number == 3 else CREATE.format(number=number)
        migrated.add_migration(f"000{number}_step", operation)
    ended = migrated.run("migrate", "--no-color")
    assert ended.returncode == 6
    assert "shop.0003_step failed: OperationalError: no such table: nowhere." in ended.stderr
    assert "unchanged" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert (migrated.schema(), migrated.query("SELECT app, name FROM django_migrations")) == before
    assert migrated.events("name", "status") == [
        ("0001_step", "interrupted"),
        ("0002_step", "interrupted"),
        ("0003_step", "failed"),
        ("0004_step", "interrupted"),
        ("0005_step", "interrupted"),
    ]
    [(error,)] = migrated.events("error", where="status = 'failed'")
    assert "INSERT INTO nowhere" in error


def test_a_failure_behind_a_step_that_cannot_be_undone_says_so(migrated):
    migrated.add_migration("0001_alone", CREATE.format(number=1), head="atomic = False")
    migrated.add_migration("0002_bad", FAILS)
    ended = migrated.run("migrate")
    assert ended.returncode == 7
    [(backup,)] = migrated.events("backup", where="action = 'backup'")
    assert f"dbrestore {backup} --yes" in ended.stderr
    assert migrated.events("name", "status") == [("0001_alone", "ok"), ("0002_bad", "failed")]
    assert migrated.run("dbrestore", backup, "--yes").returncode == 0
    assert migrated.query("SELECT * FROM django_migrations WHERE app = 'shop'") == []


def test_a_failing_post_migrate_rolls_everything_back(migrated):
    before = migrated.schema()
    migrated.add_migration("0001_step", CREATE.format(number=1))
    (migrated.directory / "shop" / "apps.py").write_text(
        "from django.apps import AppConfig\n"
        "from django.db.models.signals import post_migrate\n\n"
        "def fail(**kwargs):\n    raise RuntimeError('after')\n\n"
        "class ShopConfig(AppConfig):\n    name = 'shop'\n\n"
        "    def ready(self):\n        post_migrate.connect(fail)\n"
    )
    ended = migrated.run("migrate")
    assert ended.returncode == 6
    assert "RuntimeError: after" in ended.stderr
    assert migrated.schema() == before


def test_children_of_a_remade_table_survive(migrated):
    migrated.add_migration("0001_parent", CREATE.format(number=1))
    assert migrated.run("migrate", "-v0").returncode == 0
    migrated.query("INSERT INTO shop_item1 (id, name) VALUES (1, 'parent')")
    migrated.query(
        "CREATE TABLE child (id INTEGER PRIMARY KEY, "
        "parent INTEGER REFERENCES shop_item1 (id) ON DELETE CASCADE)"
    )
    migrated.query("INSERT INTO child VALUES (1, 1)")
    migrated.add_migration(
        "0002_remake", "migrations.AlterField('item1', 'name', models.CharField(max_length=9))"
    )
    assert migrated.run("migrate", "-v0").returncode == 0
    assert migrated.query("SELECT * FROM child") == [(1, 1)]


def test_what_plain_django_did_meanwhile_is_adopted(migrated):
    migrated.add_migration("0001_step", CREATE.format(number=1))
    plain = "from django.core.management import call_command; import django; django.setup()\n"
    plain += "from django.core.management.commands import migrate\n"
    plain += "call_command(migrate.Command(), verbosity=0)"
    (migrated.directory / "plain.py").write_text(plain)
    assert migrated.run("shell", "-v0", "-c", plain).returncode == 0
    assert migrated.events("name") == []
    migrated.add_migration("0002_step", CREATE.format(number=2))
    assert migrated.run("migrate", "-v0").returncode == 0
    assert migrated.events("name", "action", "status") == [
        ("0001_step", "adopt", "ok"),
        ("0002_step", "apply", "ok"),
    ]


def test_data_is_not_dropped_unasked(migrated):
    migrated.add_migration("0001_step", CREATE.format(number=1))
    migrated.run("migrate", "-v0")
    migrated.query("INSERT INTO shop_item1 (id, name) VALUES (1, 'kept')")
    migrated.add_migration("0002_drop", "migrations.DeleteModel('Item1')")
    before = digest(migrated)
    ended = migrated.run("migrate")
    assert ended.returncode == 9
    assert "--allow-unsafe" in ended.stderr
    assert digest(migrated) == before
    assert migrated.run("migrate", "--allow-unsafe").returncode == 0


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["migrate", "--plan"], id="plan"),
        pytest.param(["migrate", "--check"], id="check"),
        pytest.param(["showmigrations"], id="showmigrations"),
        pytest.param(["rollback", "--sql"], id="rollback --sql"),
        pytest.param(["migrate", "--sql"], id="migrate --sql"),
        pytest.param(["migrate", "--plan", "--json"], id="plan as a document"),
        pytest.param(["showmigrations", "--status"], id="status"),
        pytest.param(["showmigrations", "--deps", "--json"], id="status as a document"),
    ],
)
def test_looking_changes_nothing(migrated, command):
    migrated.add_migration("0001_step", CREATE.format(number=1))
    before = digest(migrated)
    assert migrated.run(*command).returncode == (1 if "--check" in command else 0)
    assert digest(migrated) == before


def test_a_large_wal_is_given_back(migrated):
    """While others have the database open: the last to close it would remove the WAL."""
    migrated.add_migration(
        "0001_big", "migrations.RunSQL('CREATE TABLE big AS SELECT zeroblob(40000000) AS b', '')"
    )
    with closing(sqlite3.connect(migrated.database)) as keeper:
        keeper.execute("PRAGMA journal_mode = WAL").fetchall()
        keeper.execute("SELECT count(*) FROM sqlite_master").fetchall()
        assert migrated.run("migrate", "-v0").returncode == 0
        assert os.path.getsize(f"{migrated.database}-wal") < 2**20
    assert os.path.getsize(migrated.database) > 40_000_000

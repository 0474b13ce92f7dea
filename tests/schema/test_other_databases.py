"""Databases that are not the gateway's own: a test runner's, in memory, a second one; migrations kept elsewhere."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.schema.conftest import CREATE, Project

# Each starts many processes.
pytestmark = pytest.mark.slow

TESTS = """\
from django.db import connection
from django.test import TestCase
from qwenproxy.schema.models import MigrationEvent

class ItemTest(TestCase):
    def test_it_is_migrated(self):
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM shop_item1")
            assert cursor.fetchone() == (0,)
        events = MigrationEvent.objects.filter(status="ok", action="apply")
        assert events.count() > 20
        if connection.vendor == "sqlite":
            assert set(events.values_list("source", flat=True)) == {"test"}
"""
IN_A_FILE = """
DATABASES["default"]["TEST"] = {"NAME": "in_a_file.sqlite3"}
"""
OTHER = """
DATABASES["other"] = {"ENGINE": "django.db.backends.sqlite3", "NAME": "other.sqlite3"}
"""


def left(project: Project) -> set[str]:
    """The files that migrations leave."""
    found = project.directory.rglob("*")
    return {path.name for path in found if path.is_file() and path.suffix != ".py"}


def add_settings(project: Project, text: str) -> None:
    path = project.directory / "project_settings.py"
    path.write_text(path.read_text() + text)


@pytest.mark.parametrize(
    "settings", [pytest.param("", id="usual"), pytest.param(IN_A_FILE, id="file")]
)
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["django", "test", "shop", "-v0"], id="django"),
        pytest.param(
            ["pytest", "-q", "-c", os.devnull, "--ds=project_settings", "-p", "no:cacheprovider", "shop/tests.py"],
            id="pytest",
        ),
    ],
)  # fmt: skip
def test_test_runners_migrate_and_leave_nothing(any_project, command, settings):
    any_project.add_migration("0001_step", CREATE.format(number=1))
    (any_project.directory / "shop" / "tests.py").write_text(TESTS)
    if not any_project.is_postgresql:
        add_settings(any_project, settings)
    before = left(any_project)
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", *command],
        cwd=any_project.directory,
        env=any_project.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert left(any_project) == before


def test_a_database_in_memory_has_no_lock_and_no_backup(project):
    project.add_migration("0001_step", CREATE.format(number=1))
    before = left(project)
    ended = project.run("migrate", DATABASE_URL="sqlite://:memory:")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Applying shop.0001_step... OK" in ended.stdout
    assert left(project) == before


def test_migrations_kept_elsewhere_are_found(migrated):
    path = migrated.add_migration("0001_moved", CREATE.format(number=1))
    migrated.add_migration("0002_left", CREATE.format(number=2))
    elsewhere = migrated.directory / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "__init__.py").touch()
    path.rename(elsewhere / path.name)
    add_settings(migrated, 'MIGRATION_MODULES = {"shop": "elsewhere"}\n')
    assert migrated.run("showmigrations", "--check").returncode == 3
    assert migrated.run("migrate", "-v0").returncode == 0
    assert migrated.run("showmigrations", "--check").returncode == 0
    assert migrated.events("name", "status") == [("0001_moved", "ok")]


def test_an_app_whose_migrations_are_turned_off_has_none(migrated):
    migrated.add_migration("0001_step", CREATE.format(number=1))
    add_settings(migrated, 'MIGRATION_MODULES = {"shop": None}\n')
    assert migrated.run("showmigrations", "--check").returncode == 0
    assert migrated.run("migrate", "-v0").returncode == 0
    assert migrated.events("name") == []


class Other:
    def __init__(self, path: Path) -> None:
        self.path = path

    def query(self, sql: str) -> list[tuple]:
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(sql).fetchall()


def test_a_second_database_has_all_of_its_own(migrated):
    add_settings(migrated, OTHER)
    migrated.add_migration("0001_step", CREATE.format(number=1))
    before = migrated.database.read_bytes()
    other = Other(migrated.directory / "other.sqlite3")
    assert migrated.run("migrate", "-v0", "--database", "other").returncode == 0
    migrated.add_migration("0002_step", CREATE.format(number=2))
    assert migrated.run("migrate", "-v0", "--database", "other").returncode == 0
    done = "SELECT name, action FROM schema_migrationevent WHERE app = 'shop' AND status = 'ok' "
    done += "ORDER BY id"
    assert other.query(done) == [("0001_step", "apply"), ("0002_step", "apply")]
    assert Path(f"{other.path}.migrate.lock").exists()
    assert len(list((migrated.directory / "backups").glob("*.sqlite3"))) == 1
    ended = migrated.run("rollback", "--database", "other", "--yes", "--force")
    assert ended.returncode == 0, ended.stderr
    assert other.query(done)[-1] == ("0002_step", "unapply")
    migrated.add_migration("0003_bad", "migrations.RunSQL('INSERT INTO nowhere VALUES (1)', '')")
    schema = other.query("SELECT sql FROM sqlite_master")
    assert migrated.run("migrate", "--database", "other").returncode == 6
    assert other.query("SELECT sql FROM sqlite_master") == schema
    assert migrated.database.read_bytes() == before
    assert not Path(f"{migrated.database}.migrate.lock").exists()

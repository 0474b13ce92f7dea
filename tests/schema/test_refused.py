"""What cannot be undone, or is not known, is refused and changes no byte; what does no harm is told."""

from __future__ import annotations

import signal
import sqlite3
import urllib.request
from contextlib import closing

import pytest

from tests.schema.conftest import CREATE, Project


@pytest.fixture
def stood(migrated) -> Project:
    """Something applied that can be undone, and on top something that cannot."""
    migrated.add_migration("0001_step", CREATE.format(number=1))
    migrated.add_migration("0002_oneway", "migrations.RunSQL('SELECT 1')")
    assert migrated.run("migrate", "-v0").returncode == 0
    return migrated


@pytest.mark.parametrize(
    ("target", "code"),
    [
        pytest.param(["shop", "0009"], 2, id="unknown migration"),
        pytest.param(["nothing", "zero"], 2, id="unknown app"),
        pytest.param(["--run", "00000000"], 2, id="unknown run"),
        pytest.param(["shop", "0002"], 2, id="nothing to undo"),
        pytest.param([], 9, id="irreversible"),
        pytest.param(["shop", "zero"], 9, id="irreversible in the way"),
    ],
)
def test_a_rollback_that_cannot_be_done(stood, target, code):
    before = stood.database.read_bytes()
    backups = sorted((stood.database.parent / "backups").iterdir())
    ended = stood.run("rollback", *target, "--yes", "--force")
    assert ended.returncode == code, ended.stderr
    assert "othing was changed" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert stood.database.read_bytes() == before
    assert sorted((stood.database.parent / "backups").iterdir()) == backups


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["migrate"], id="migrate"),
        pytest.param(["rollback", "--yes", "--force"], id="rollback"),
    ],
)
def test_what_a_newer_version_has_applied_is_for_that_version_to_build_on_and_to_undo(
    migrated, command
):
    migrated.add_migration("0001_step", CREATE.format(number=1))
    newer = migrated.add_migration("0002_newer", "migrations.RunSQL('SELECT 1', 'SELECT 1')")
    assert migrated.run("migrate", "-v0").returncode == 0
    newer.unlink()
    before = migrated.schema(), migrated.events("name", "status")
    ended = migrated.run(*command)
    assert ended.returncode == 4, ended.stderr
    assert "shop.0002_newer" in ended.stderr
    assert "Nothing was changed" in ended.stderr
    assert (migrated.schema(), migrated.events("name", "status")) == before


def test_an_edited_file_stops_what_would_be_applied_by_hand(migrated):
    path = migrated.add_migration("0001_step", CREATE.format(number=1))
    assert migrated.run("migrate", "-v0").returncode == 0
    path.write_text(path.read_text().replace("TextField()", "TextField(null=True)"))
    migrated.add_migration("0002_step", CREATE.format(number=2))
    before = migrated.schema(), migrated.events("name", "status")
    ended = migrated.run("migrate")
    assert ended.returncode == 5, ended.stderr
    assert "shop.0001_step" in ended.stderr
    assert (migrated.schema(), migrated.events("name", "status")) == before
    assert migrated.run("migrate", QWENPROXY_MIGRATE_DRIFT="warn").returncode == 0


FOREIGN = {
    "tables": "CREATE TABLE recipe (name text)",
    "another project": (
        "CREATE TABLE django_migrations (id integer PRIMARY KEY, app text, name text, applied text);"
        "INSERT INTO django_migrations VALUES (1, 'blog', '0001_initial', '2026-01-01')"
    ),
}


@pytest.mark.parametrize("script", FOREIGN.values(), ids=FOREIGN)
def test_the_database_of_something_else_is_not_touched(project, script):
    project.database.parent.mkdir()
    with closing(sqlite3.connect(project.database)) as connection:
        connection.executescript(script)
    before = project.database.read_bytes()
    ended = project.run("migrate")
    assert ended.returncode == 9, ended.stderr
    assert "something else" in ended.stderr
    assert project.database.read_bytes() == before


def test_another_projects_database_on_a_server_is_not_touched(postgresql_project):
    postgresql_project.query(
        "CREATE TABLE django_migrations (id serial, app text, name text, applied timestamptz)"
    )
    postgresql_project.query(
        "INSERT INTO django_migrations (app, name, applied) VALUES ('blog', '0001', now())"
    )
    ended = postgresql_project.run("migrate")
    assert ended.returncode == 9, ended.stderr
    assert "another Django project" in ended.stderr
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    assert postgresql_project.query(tables) == [(1,)]


@pytest.mark.parametrize(
    ("head", "code"),
    [pytest.param("breaking = True", 4, id="breaking"), pytest.param("", 0, id="harmless")],
)
def test_a_database_ahead_of_the_code(migrated, head, code):
    path = migrated.add_migration("0001_newer", CREATE.format(number=1), head=head)
    assert migrated.run("migrate", "-v0").returncode == 0
    path.unlink()
    before = migrated.schema(), migrated.events("name", "status")
    process = migrated.start("serve", "--port", "0")
    assert process.stdout is not None
    told = []
    for line in process.stdout:
        told.append(line)
        if line.startswith("Serving on "):
            urllib.request.urlopen(f"{line.split()[2]}/readyz", timeout=20).close()
            process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "shop.0001_newer" in ("".join(told) if code == 0 else errors)
    assert (migrated.schema(), migrated.events("name", "status")) == before


def test_the_sql_of_going_back_over_several_steps(migrated):
    ended = migrated.run("rollback", "--steps", "99", "--sql")
    assert ended.returncode == 0, ended.stderr
    assert 'DROP TABLE "requests_app_request";' in ended.stdout
    assert 'DROP TABLE "auth_user";' in ended.stdout

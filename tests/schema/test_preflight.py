"""An upgrade that cannot end well does not begin: no room, no right to write."""

from __future__ import annotations

import hashlib

import pytest

from tests.schema.conftest import CREATE

REMAKE = "migrations.AlterField('item1', 'name', models.CharField(max_length=9))"
FREE = """
import shutil
shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**12, 10**12, {free})
"""


@pytest.mark.parametrize(
    ("rewrites", "code"),
    [pytest.param(1.0, 9, id="short"), pytest.param(3.5, 0, id="enough")],
)
def test_room_is_needed_for_the_backup_and_what_is_rewritten(migrated, rewrites, code):
    migrated.add_migration("0001_step", CREATE.format(number=1))
    assert migrated.run("migrate", "-v0").returncode == 0
    migrated.query(
        "INSERT INTO shop_item1 (name) WITH RECURSIVE n(i) AS "
        "(SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 20000) SELECT 'name' || i FROM n"
    )
    migrated.add_migration("0002_remake", REMAKE)
    [(table,)] = migrated.query(
        "SELECT pgsize FROM dbstat WHERE name = 'shop_item1' AND aggregate = TRUE"
    )
    size = migrated.database.stat().st_size
    free = size + round(table * rewrites)
    settings = migrated.directory / "project_settings.py"
    settings.write_text(settings.read_text() + FREE.format(free=free))
    before = hashlib.sha256(migrated.database.read_bytes()).digest()
    backups = sorted((migrated.database.parent / "backups").iterdir())
    ended = migrated.run("migrate")
    assert ended.returncode == code, ended.stderr
    if code:
        assert "Nothing was changed. Make room" in ended.stderr
        assert hashlib.sha256(migrated.database.read_bytes()).digest() == before
        assert sorted((migrated.database.parent / "backups").iterdir()) == backups


READ_ONLY = """
import os
access = os.access
os.access = lambda path, mode: str(path) != {path!r} and access(path, mode)
"""


@pytest.mark.parametrize("what", ["qwenproxy.sqlite3", ""])
def test_what_cannot_be_written_is_refused_before_anything(migrated, what):
    path = migrated.database.parent / what
    settings = migrated.directory / "project_settings.py"
    # Of the superuser the rights are not asked, a read-only volume is.
    settings.write_text(settings.read_text() + READ_ONLY.format(path=str(path)))
    migrated.add_migration("0001_step", CREATE.format(number=1))
    before = hashlib.sha256(migrated.database.read_bytes()).digest()
    for command in (["migrate"], ["serve", "--port", "0"]):
        ended = migrated.run(*command)
        assert ended.returncode == 9, ended.stderr
        assert ended.stderr == (
            f"Refused: The database cannot be changed: {path} cannot be written by this user. "
            "Nothing was changed.\n"
        )
    assert hashlib.sha256(migrated.database.read_bytes()).digest() == before
    assert not (migrated.database.parent / "backups").exists()


@pytest.mark.parametrize("command", [["migrate"], ["rollback"], ["serve", "--port", "0"]])
def test_a_place_that_is_not_there_is_told_in_a_line(project, command):
    url = f"sqlite:///{project.directory}/nowhere/database.sqlite3"
    ended = project.run(*command, DATABASE_URL=url)
    assert ended.returncode == 9
    assert ended.stderr == (
        f"Refused: The database {project.directory}/nowhere/database.sqlite3 cannot be opened: "
        "unable to open database file. Nothing was changed. "
        "DATABASE_URL or QWENPROXY_DATA_DIR says where it is.\n"
    )


def test_a_server_that_lets_nothing_be_written_is_refused(any_project):
    if not any_project.is_postgresql:
        pytest.skip("of PostgreSQL alone")
    url = any_project.environ["DATABASE_URL"]
    standby = f"{url}?options=-c%20default_transaction_read_only%3Don"
    ended = any_project.run("migrate", "-v0", DATABASE_URL=standby)
    assert ended.returncode == 9
    assert "the server lets nothing be written" in ended.stderr
    name = f"reader_{any_project.directory.name[:20].strip('_')}".lower()
    any_project.query(f"CREATE ROLE {name} LOGIN")
    try:
        ended = any_project.run(
            "migrate", "-v0", DATABASE_URL=url.replace("qwenproxy@", f"{name}@")
        )
    finally:
        any_project.query(f"DROP ROLE {name}")
    assert ended.returncode == 9
    assert ended.stderr == (
        f"Refused: The database cannot be changed: the user {name} may make no tables in the "
        "schema public. Nothing was changed.\n"
    )

"""A disk that fills up, wherever: the database is as before, and goes on once there is room."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.schema.conftest import CREATE, Project

DISK_BYTES = 24 * 2**20
FULL = "database or disk is full"
REMAKE = "migrations.AlterField('item1', 'name', models.CharField(max_length=9))"
# Less than SQLite's cache holds: nothing of it is written before the COMMIT.
WRITE = (
    'migrations.RunSQL("CREATE TABLE written AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT '
    'i + 1 FROM n LIMIT 120) SELECT i, randomblob(10000) AS bytes FROM n", "DROP TABLE written")'
)
# What is refused before it begins is another test's.
ENOUGH = """
import shutil
shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**12, 10**12, 10**12)
"""


@pytest.fixture
def small_disk(migrated) -> Iterator[Project]:
    """The project's database is on a disk of its own, with a table of 4 MB."""
    directory = migrated.database.parent
    content = migrated.database.read_bytes()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "qwenproxy-tests", directory],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"NO TMPFS CAN BE MOUNTED, full disks are not tested: {mounted.stderr.strip()}")
    try:
        migrated.database.write_bytes(content)
        migrated.add_migration("0001_step", CREATE.format(number=1))
        settings = migrated.directory / "project_settings.py"
        settings.write_text(settings.read_text() + ENOUGH)
        assert migrated.run("migrate", "-v0", "--backup", "never").returncode == 0
        migrated.query(
            "INSERT INTO shop_item1 (name) WITH RECURSIVE n(i) AS "
            "(SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 4000) "
            "SELECT printf('%.*c', 1000, 'x') FROM n"
        )
        yield migrated
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def fill(project: Project, leave: int) -> Path:
    """Take all of the disk but so many bytes."""
    ballast = project.database.parent / "ballast"
    room = os.statvfs(ballast.parent)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - leave)
    return ballast


def state(project: Project) -> tuple:
    with closing(sqlite3.connect(project.database)) as connection:
        assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
    rows = "SELECT count(*), sum(length(name)) FROM shop_item1"
    record = "SELECT app, name FROM django_migrations ORDER BY id"
    return project.schema(), project.query(rows), project.query(record)


@pytest.mark.parametrize(
    ("operation", "leave", "backup", "code"),
    [
        pytest.param(WRITE, 2_000_000, "auto", 9, id="at the backup"),
        pytest.param(REMAKE, 1_000_000, "never", 6, id="at the remake"),
        pytest.param(WRITE, 600_000, "never", 6, id="at the commit"),
    ],
)
def test_the_database_is_as_before(small_disk, operation, leave, backup, code):
    small_disk.add_migration("0002_change", operation)
    before = state(small_disk)
    ballast = fill(small_disk, leave)
    ended = small_disk.run("migrate", "--backup", backup)
    assert ended.returncode == code, ended.stderr
    assert "unchanged" in ended.stderr
    assert FULL in ended.stderr
    assert "Traceback" not in ended.stderr
    assert state(small_disk) == before
    # What it took is free again, without anybody's help: others can write at once.
    small_disk.query("CREATE TABLE other AS SELECT zeroblob(100000) AS bytes")
    small_disk.query("DROP TABLE other")
    assert not list(small_disk.database.parent.glob("backups/.tmp-*"))
    errors = small_disk.events("error", where="status = 'failed'")
    if code == 6:
        [(error,)] = errors
        # A statement is told; a COMMIT is none.
        assert ("INSERT INTO" in error) == (operation == REMAKE)
    ballast.unlink()
    assert small_disk.run("migrate", "-v0", "--backup", "never").returncode == 0

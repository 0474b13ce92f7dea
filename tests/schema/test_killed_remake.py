"""A process that is killed while SQLite copies a table of a million rows leaves the table as it was."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
from contextlib import closing, suppress

import pytest

from tests.schema.conftest import CREATE, Project

ROWS = 1_000_000
KILLS = 20
REMAKE = "migrations.AlterField('item1', 'name', models.CharField(max_length=20))"


def wal_bytes(project: Project) -> int:
    try:
        return os.stat(f"{project.database}-wal").st_size
    except FileNotFoundError:
        return 0


def run_to(project: Project, size: int) -> int:
    """Migrate, and kill when the WAL has grown to `size`; return what it had grown to."""
    process = project.start("migrate", "-v0", "--backup", "never")
    largest = 0
    while process.poll() is None:
        largest = max(largest, wal_bytes(project))
        if size and largest >= size:
            process.kill()
        with suppress(subprocess.TimeoutExpired):
            # It grows by megabytes meanwhile.
            process.wait(0.002)
    process.communicate()
    return largest


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_is_as_before_at_twenty_moments(migrated):
    migrated.add_migration("0001_step", CREATE.format(number=1))
    assert migrated.run("migrate", "-v0").returncode == 0
    migrated.query(
        "INSERT INTO shop_item1 (name) WITH RECURSIVE n(i) AS "
        f"(SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {ROWS}) SELECT 'name ' || i FROM n"
    )
    before = migrated.schema()
    content = migrated.database.read_bytes()
    migrated.add_migration("0002_remake", REMAKE)
    whole = run_to(migrated, 0)
    assert migrated.schema() != before
    assert whole > 30_000_000
    migrated.database.write_bytes(content)
    slowest = 0.0
    for kill in range(KILLS):
        run_to(migrated, round(0.95 * whole * (kill + 0.5) / KILLS))
        begun = time.monotonic()
        with closing(sqlite3.connect(migrated.database)) as connection:
            assert connection.execute("SELECT name FROM shop_item1 WHERE id = 7").fetchone()
            slowest = max(slowest, time.monotonic() - begun)
            assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
            assert connection.execute("SELECT count(*) FROM shop_item1").fetchone() == (ROWS,)
        assert migrated.schema() == before
        assert not wal_bytes(migrated)
        assert migrated.events("status", where="name = '0002_remake'")[-1] == ("started",)
    # The log of what was not committed is as long as the table; nobody reads it.
    assert slowest < 1
    assert migrated.run("migrate", "-v0", "--backup", "never").returncode == 0
    assert migrated.query("SELECT count(*) FROM shop_item1") == [(ROWS,)]
    assert [status for (status,) in migrated.events("status", where="name = '0002_remake'")] == [
        *["interrupted"] * KILLS,
        "ok",
    ]

"""Backups of a large database while others write, and restores beside what a dead writer has left."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.schema.conftest import Project

# Writes until it is killed; the file is closed by nobody.
DIE = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("PRAGMA wal_autocheckpoint = 0")
connection.execute("INSERT INTO filled SELECT i + 1000000 FROM filled LIMIT 400")
connection.commit()
os.kill(os.getpid(), signal.SIGKILL)
"""
COUNT = "SELECT count(*) FROM filled"


def fill(project: Project, rows: int, ballast: int = 0) -> None:
    with closing(sqlite3.connect(project.database)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE filled (i)")
        connection.executemany("INSERT INTO filled VALUES (?)", [(i,) for i in range(rows)])
        connection.execute("CREATE TABLE ballast (bytes)")
        for _ in range(ballast):
            connection.execute("INSERT INTO ballast VALUES (randomblob(1000000))")
        connection.commit()


def count(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (rows,) = connection.execute(COUNT).fetchone()
        return rows


def die_writing(project: Project) -> None:
    ended = subprocess.run([sys.executable, "-c", DIE, project.database], check=False)
    assert ended.returncode == -9
    assert os.path.getsize(f"{project.database}-wal") > 0


def test_what_a_dead_writer_left_in_the_wal_is_not_written_over_a_restore(migrated):
    fill(migrated, 500)
    kept = migrated.directory / "kept.sqlite3"
    assert migrated.run("dbbackup", "--to", str(kept)).returncode == 0
    die_writing(migrated)
    assert migrated.run("dbrestore", str(kept), "--yes").returncode == 0
    assert count(migrated.database) == 500


def test_copying_the_file_back_would_undo_the_restore(migrated):
    """Why `dbrestore` is there: the usual `cp` leaves the WAL, which is written over what was copied."""
    fill(migrated, 500)
    kept = migrated.directory / "kept.sqlite3"
    assert migrated.run("dbbackup", "--to", str(kept)).returncode == 0
    die_writing(migrated)
    shutil.copy(kept, migrated.database)
    with closing(sqlite3.connect(migrated.database)) as connection:
        try:
            rows = connection.execute(COUNT).fetchone()[0]
        except sqlite3.DatabaseError:
            rows = -1
    assert rows != 500


def timed(project: Project) -> tuple[float, Path]:
    path = project.directory / f"timed-{time.monotonic_ns()}.sqlite3"
    begun = time.monotonic()
    assert project.run("dbbackup", "--to", str(path)).returncode == 0
    return time.monotonic() - begun, path


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_writer_does_not_hold_a_backup_up(migrated):
    fill(migrated, 1000, ballast=200)
    idle = sorted(timed(migrated)[0] for _ in range(3))[1]
    stop = threading.Event()
    written = []

    def write() -> None:
        with closing(sqlite3.connect(migrated.database, timeout=20)) as connection:
            while not stop.wait(0.005):
                connection.execute("INSERT INTO filled VALUES (0)")
                connection.commit()
                written.append(time.monotonic())

    writer = threading.Thread(target=write)
    writer.start()
    try:
        found = []
        for _ in range(3):
            before = len(written)
            lasted, path = timed(migrated)
            found.append(lasted)
            # All that was committed before it began.
            assert 1000 + before <= count(path) <= 1000 + len(written) + 1
    finally:
        stop.set()
        writer.join()
    assert sorted(found)[1] < 3 * idle
    assert len(written) > 50

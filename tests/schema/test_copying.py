"""`copydatabase`: a gateway's SQLite file in PostgreSQL, whole, whatever happens on the way."""

from __future__ import annotations

import fcntl
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path

import pytest

from tests.schema.conftest import Project

BEGUN = """
from qwenproxy.access import first_start
first_start.prepare()
"""
# Runs the command in small batches, and dies where the test says.
KILLED = """
import os, signal
from django.core.management import call_command
from qwenproxy.schema import copying
copying._BATCH_ROWS = 7
passed = 0
def dying(function):
    def run(*args):
        global passed
        passed += 1
        if passed == {calls}:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args)
    return run
copying.{owner}.{name} = dying(copying.{owner}.{name})
call_command("copydatabase", {source!r})
"""
TEXTS = ['"plain"', '"\\u0000 末 \U0001f600"', "tab\tnew\nline \\N \\. 'x'", "", "x" * 200_000]
TIMES = ["2026-11-23 09:00:00", "2026-11-23 09:00:00.000001", "2026-11-23 09:00:00.500000"]


@pytest.fixture(scope="module")
def begun_file(tmp_path_factory, preloaded, migrated_file) -> Path:
    """A file that a gateway was started on, with conversations."""
    project = Project(tmp_path_factory.mktemp("begun"), preloaded)
    project.database.parent.mkdir(exist_ok=True)
    project.database.write_bytes(migrated_file.read_bytes())
    ended = project.run("shell", "-c", BEGUN)
    assert ended.returncode == 0, ended.stderr
    with closing(sqlite3.connect(project.database)) as file:
        for number in range(3):
            session = str(uuid.UUID(int=number))
            file.execute(
                "INSERT INTO sessions_app_session (id, api_key_id, external_id, title, message_count,"
                " request_count, context_digest, created_at, last_accessed, expires_at)"
                " VALUES (?, 1, 'a' || char(0) || 'b', 't', 1, 1, ?, ?, ?, ?)",
                [session, bytes(range(32)), TIMES[number], TIMES[number], TIMES[number]],
            )
            parent = None
            for position in range(20):
                parent = file.execute(
                    "INSERT INTO sessions_app_message (session_id, parent_id, digest, role, dialect,"
                    " position, given, created_at, content) VALUES (?, ?, ?, 'user', 'chat', ?, ?, ?, ?)",
                    [
                        session,
                        parent,
                        bytes([number, position]) * 16,
                        position,
                        position % 2,
                        TIMES[position % 3],
                        TEXTS[position % 5],
                    ],
                ).lastrowid
        # The highest number ever given was a deleted row's.
        file.execute("DELETE FROM sessions_app_message WHERE id = ?", [parent])
        file.commit()
    assert project.run("shell", "-c", "").returncode == 0
    with closing(sqlite3.connect(project.database)) as file:
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return project.database


@pytest.fixture
def source(postgresql_project, begun_file) -> Path:
    path = postgresql_project.directory / "source" / "qwenproxy.sqlite3"
    path.parent.mkdir()
    path.write_bytes(begun_file.read_bytes())
    return path


def change(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as file:
        file.execute(sql)
        file.commit()


def kill(project, source, name: str, *, calls: int = 1, owner: str = "Copy") -> None:
    code = KILLED.format(owner=owner, name=name, calls=calls, source=str(source))
    ended = project.run("shell", "-c", code)
    assert ended.returncode == -9, ended.stderr


@pytest.mark.slow
def test_killed_anywhere_the_same_call_goes_on_and_all_is_there(postgresql_project, source):
    project = postgresql_project
    kill(project, source, "_begin")
    kill(project, source, "copy_into", owner="Table", calls=4)
    kill(project, source, "copy_into", owner="Table", calls=30)
    # Nothing serves from a part.
    assert project.run("showmigrations", "--check").returncode == 4
    kill(project, source, "_verify", calls=3)
    kill(project, source, "_set_sequence", calls=9)
    assert project.run("showmigrations", "--check").returncode == 4
    before = source.read_bytes()
    ended = project.run("copydatabase", str(source))
    assert ended.returncode == 0, ended.stderr
    assert "Copied and verified" in ended.stdout
    assert source.read_bytes() == before
    assert project.run("showmigrations", "--check").returncode == 0
    assert project.run("showmigrations", "--verify").returncode == 0
    with closing(sqlite3.connect(source)) as file:
        sql = (
            "SELECT id, parent_id, digest, position, content FROM sessions_app_message ORDER BY id"
        )
        assert project.query(sql) == file.execute(sql).fetchall()
    assert len(project.query("SELECT id FROM sessions_app_message")) == 59
    sql = "SELECT external_id, created_at AT TIME ZONE 'UTC' FROM sessions_app_session ORDER BY id"
    found = project.query(sql)
    assert [str(row[1]) for row in found] == TIMES
    assert found[0][0] == "a\ufffdb"
    assert project.query("SELECT nextval('sessions_app_message_id_seq')") == [(61,)]
    assert project.query("SELECT count(*) FROM schema_migrationevent WHERE action = 'copy'") == [
        (1,)
    ]
    # What is there now is nobody's to copy over.
    assert project.run("copydatabase", str(source)).returncode == 9


def test_one_byte_that_changed_on_the_way_is_noticed(postgresql_project, source):
    project = postgresql_project
    kill(project, source, "_verify")
    project.query(
        "UPDATE sessions_app_message SET content = overlay(content placing 'y' from 1000)"
        " WHERE id = 5"
    )
    ended = project.run("copydatabase", str(source))
    assert ended.returncode == 11
    assert "The copy of sessions_app_message is not the same: 59 rows" in ended.stderr
    assert project.run("showmigrations", "--check").returncode == 4


def test_a_copy_goes_on_from_its_own_source_alone(postgresql_project, source):
    project = postgresql_project
    kill(project, source, "copy_into", owner="Table", calls=2)
    canary = "UPDATE access_encryptioncanary SET ciphertext = "
    code = f"""
import sqlite3
from qwenproxy.access import encryption
file = sqlite3.connect({str(source)!r})
file.execute("{canary}?", [encryption.encrypt("qwenproxy")])
file.commit()
"""
    assert project.run("shell", "-c", code).returncode == 0
    ended = project.run("copydatabase", str(source))
    assert ended.returncode == 9
    assert "unfinished copy of another database" in ended.stderr


def refused(project, source, status: int, said: str, **environ: str) -> None:
    ended = project.run("copydatabase", str(source), **environ)
    assert (ended.returncode, ended.stdout) == (status, "")
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert project.query("SELECT to_regclass('django_migrations')::text") == [(None,)]


def test_what_is_no_source_is_refused_before_anything_changes(postgresql_project, source):
    project = postgresql_project
    refused(project, source.parent / "none", 2, "There is no file")
    refused(project, source, 2, "must name the PostgreSQL", DATABASE_URL="")
    refused(project, source, 9, "does not hold", QWENPROXY_ENCRYPTION_KEYS="f" * 50)
    text = source.parent / "text"
    text.write_text("no database " * 100)
    refused(project, text, 7, "file is not a database")
    worker = str(uuid.uuid4())
    change(
        source,
        f"INSERT INTO requests_app_worker VALUES ('{worker}', 'h', 1, '2026-11-23 09:00:00')",
    )
    lock = source.parent / "workers" / f"{worker}.lock"
    lock.parent.mkdir()
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(project, source, 9, "A gateway is serving from the source")
    with closing(sqlite3.connect(source, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        refused(project, source, 7, "database is locked")
    change(source, "UPDATE sessions_app_message SET parent_id = 999 WHERE id = 7")
    refused(project, source, 9, "row 7 of sessions_app_message refers to one of")
    change(source, "DELETE FROM django_migrations WHERE app = 'sessions_app' AND name LIKE '0002%'")
    refused(project, source, 9, "not at this version's state")


def test_a_target_that_holds_something_is_left_alone(postgresql_project, source):
    postgresql_project.query("CREATE TABLE guests (name text)")
    refused(postgresql_project, source, 9, "has tables already (1, such as guests)")

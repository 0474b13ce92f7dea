"""Backups of a database in use are whole, and putting one back gives exactly what it holds."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import subprocess
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest


def backups(project) -> list[Path]:
    return sorted((project.database.parent / "backups").glob("*.sqlite3"))


def fill(project, rows: int) -> None:
    with closing(sqlite3.connect(project.database)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE IF NOT EXISTS filled (i)")
        connection.executemany("INSERT INTO filled VALUES (?)", [(i,) for i in range(rows)])
        connection.commit()


def test_a_backup_holds_what_is_only_in_the_wal(migrated):
    keeper = sqlite3.connect(migrated.database)
    with closing(keeper):
        # An open reader keeps the rows in the WAL.
        keeper.execute("PRAGMA journal_mode = WAL").fetchall()
        keeper.execute("SELECT count(*) FROM sqlite_master").fetchall()
        fill(migrated, 500)
        assert os.path.getsize(f"{migrated.database}-wal") > 0
        assert migrated.run("dbbackup").returncode == 0
    [backup] = backups(migrated)
    assert backup.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(backup)) as copy:
        assert copy.execute("SELECT count(*) FROM filled").fetchone() == (500,)
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_backup_ends_under_a_writer(migrated):
    fill(migrated, 1000)
    stop = threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(migrated.database, timeout=20)) as connection:
            while not stop.wait(0.005):
                connection.execute("INSERT INTO filled VALUES (0)")
                connection.commit()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert migrated.run("dbbackup").returncode == 0
    finally:
        stop.set()
        writer.join()
    with closing(sqlite3.connect(backups(migrated)[0])) as copy:
        assert copy.execute("SELECT count(*) FROM filled").fetchone()[0] >= 1000


def test_a_restore_gives_exactly_the_backup(migrated):
    fill(migrated, 500)
    assert migrated.run("dbbackup").returncode == 0
    [backup] = backups(migrated)
    reader = sqlite3.connect(migrated.database)
    with closing(reader):
        reader.execute("SELECT count(*) FROM filled").fetchall()
        fill(migrated, 400)
        ended = migrated.run("dbrestore", backup.name, "--yes")
        assert ended.returncode == 0, ended.stderr
        assert reader.execute("SELECT count(*) FROM filled").fetchone() == (500,)
    assert len(backups(migrated)) == 2
    [(name, before)] = migrated.events("name", "backup", where="action = 'restore'")
    assert name == backup.name
    with closing(sqlite3.connect(before)) as copy:
        assert copy.execute("SELECT count(*) FROM filled").fetchone() == (900,)
    assert (backup.parent / "log.jsonl").read_text().count("\n") == 1


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="missing"),
        pytest.param(b"not a database" * 99, id="no database"),
        pytest.param("CREATE TABLE other (i)", id="something else's"),
        pytest.param("CREATE TABLE django_migrations (app)", id="another project's"),
    ],
)
def test_a_wrong_file_is_not_restored(migrated, tmp_path, content):
    path = tmp_path / "wrong.sqlite3"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(content)
    before = migrated.database.read_bytes()
    ended = migrated.run("dbrestore", str(path), "--yes")
    assert ended.returncode == 2
    assert "othing was changed" in ended.stderr
    assert migrated.database.read_bytes() == before


def test_old_backups_go(migrated):
    for _ in range(3):
        assert migrated.run("dbbackup", QWENPROXY_MIGRATE_BACKUP_KEEP="2").returncode == 0
    assert len(backups(migrated)) == 2
    assert migrated.run("dbbackup", "--list").stdout.count(".sqlite3") == 2


def test_a_place_that_cannot_be_written_is_refused_before_anything(migrated, tmp_path):
    (tmp_path / "file").touch()
    migrated.add_migration("0001_step", "migrations.RunSQL('CREATE TABLE t (i)', 'DROP TABLE t')")
    before = migrated.database.read_bytes()
    ended = migrated.run("migrate", QWENPROXY_MIGRATE_BACKUP_DIR=str(tmp_path / "file" / "sub"))
    assert ended.returncode == 9
    assert migrated.database.read_bytes() == before


# PostgreSQL's own tools.

STEP = "migrations.RunSQL('CREATE TABLE t (i integer)', 'DROP TABLE t')"
# Told in place of the real one, it writes down how it was called and what it could read.
SPY = """\
#!/bin/sh
[ "$1" = --version ] && exec {tool} --version
echo "$@" > {directory}/arguments
env > {directory}/environment
cat "$(dirname "${{4#--file=}}")"/.tmp-*.pass > {directory}/passfile
exec {tool} "$@"
"""


@pytest.fixture
def on_server(any_project):
    if not any_project.is_postgresql:
        pytest.skip("of PostgreSQL alone")
    assert any_project.run("migrate", "-v0").returncode == 0
    any_project.add_migration("0001_step", STEP)
    return any_project


def place(directory: Path, script: str) -> dict[str, str]:
    """An environment in which `pg_dump` is a script."""
    bin_directory = directory / "bin"
    bin_directory.mkdir()
    (bin_directory / "pg_dump").write_text(script)
    (bin_directory / "pg_dump").chmod(0o755)
    return {"PATH": f"{bin_directory}{os.pathsep}{os.environ['PATH']}"}


def test_the_server_is_backed_up_when_asked(on_server, tmp_path):
    directory = tmp_path / "spied"
    directory.mkdir()
    script = SPY.format(tool=shutil.which("pg_dump"), directory=directory)
    url = on_server.environ["DATABASE_URL"].replace("qwenproxy@", "qwenproxy:se%3Acr%5Cet@")
    environ = {"DATABASE_URL": url, **place(tmp_path, script)}
    ended = on_server.run("migrate", "-v0", "--backup", "always", **environ)
    assert ended.returncode == 0, ended.stderr
    [path] = (tmp_path / "data" / "backups").iterdir()
    assert ended.stderr == f"Backed up: {path}\n"
    assert path.name.endswith("-shop.0001.dump")
    assert path.stat().st_mode & 0o777 == 0o600
    assert on_server.events("action", "backup", where="action = 'backup' OR app = 'shop'") == [
        ("backup", str(path)),
        ("apply", str(path)),
    ]
    assert (directory / "passfile").read_text() == "*:*:*:*:se\\:cr\\\\et\n"
    # What it inherits is the gateway's own environment.
    told = (directory / "arguments").read_text() + (directory / "environment").read_text()
    assert "se:cr" not in told
    assert not list(path.parent.glob(".tmp-*"))
    listed = subprocess.run(["pg_restore", "-l", path], capture_output=True, text=True, check=True)
    assert "schema_migrationevent" in listed.stdout
    assert "TABLE public t " not in listed.stdout


def test_the_server_s_backups_are_listed_and_put_back_by_its_own_tool(on_server):
    told = on_server.run("migrate", "-v0")
    assert told.returncode == 0, told.stderr
    assert (
        "Not backed up; --backup always does it, or you with: pg_dump -Fc --dbname=" in told.stderr
    )
    made = on_server.run("dbbackup")
    assert made.returncode == 0, made.stderr
    path = made.stdout.rpartition(" ")[2].strip()
    assert path in on_server.run("dbbackup", "--list").stdout
    ended = on_server.run("dbrestore", Path(path).name, "--yes")
    assert ended.returncode == 2
    command = ended.stderr[ended.stderr.index("pg_restore") :]
    on_server.query("DELETE FROM django_migrations")
    restored = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
    assert restored.returncode == 0, restored.stderr
    assert on_server.query("SELECT name FROM django_migrations WHERE app = 'shop'")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        pytest.param("#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.1'\n", "version 9", id="too-old"),
        pytest.param("", "There is no pg_dump", id="missing"),
        pytest.param(
            "#!/bin/sh\n[ $1 = --version ] && echo '(x) 99' && exit\necho no way >&2; exit 1\n",
            "no way",
            id="failing",
        ),
    ],
)
def test_what_the_server_s_tool_cannot_do_is_refused(on_server, tmp_path, script, said):
    environ = place(tmp_path, script) if script else {"PATH": str(tmp_path)}
    ended = on_server.run("migrate", "-v0", "--backup", "always", **environ)
    assert ended.returncode == 9
    assert said in ended.stderr
    assert "Nothing was changed" in ended.stderr
    assert on_server.events("name") == []
    assert list((tmp_path / "data" / "backups").iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_restore_leaves_the_old_data_or_the_backup(migrated):
    fill(migrated, 500)
    migrated.query("CREATE TABLE ballast AS SELECT zeroblob(20000000) AS bytes")
    assert migrated.run("dbbackup").returncode == 0
    # Every restore makes a backup; kept among those, this one would go with the oldest.
    [made] = backups(migrated)
    backup = made.rename(made.parent.parent / "kept.sqlite3")
    fill(migrated, 400)
    # From before the first statement to after the last one, however fast this machine is today.
    began = time.monotonic()
    assert migrated.run("dbrestore", str(backup), "--yes").returncode == 0
    whole = time.monotonic() - began
    fill(migrated, 400)
    seen = set()
    for delay in [whole * step / 16 for step in range(20)]:
        process = migrated.start("dbrestore", str(backup), "--yes")
        time.sleep(delay)
        process.kill()
        process.communicate()
        [(rows,)] = migrated.query("SELECT count(*) FROM filled")
        assert migrated.query("PRAGMA integrity_check") == [("ok",)]
        assert rows in (500, 900)
        seen.add(rows)
        if rows == 500:
            fill(migrated, 400)
    assert 900 in seen
    assert migrated.run("dbrestore", str(backup), "--yes").returncode == 0
    assert migrated.query("SELECT count(*) FROM filled") == [(500,)]
    assert not list(made.parent.glob(".tmp-*"))

"""Kills a process at every statement, around every COMMIT and before every change of a file of a schema
change, then runs it again.

It is run again on each state that kills have left, and at every tenth point whatever is left: what is done
depends on nothing else. `python -m tests.schema.kill_points '{"operation": ["migrate"], ...}'` prints what came of it as JSON. Each
attempt is a forked process on a database of its own, so that SIGKILL is the real one; what is imported
already is all that it shares with a process of an operator's. Keys of the task:

- `operation`: the command and its arguments; `before`: commands that are run first, once
- `plain`: use Django's own `migrate`
- `thorough`: run it again at every point
- `commits`: only around COMMITs; `sample`: about so many points; `shard`: [which, of how many]
- `settings`, `path`: a settings module, and where it is
"""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

VARYING = {"run", "at", "ms", "pid", "applied"}
FILE_EVENTS = ("sqlite3.connect", "os.mkdir", "os.rename", "os.remove")


class Points:
    """Counts the places where the process could die, and dies at one of them."""

    def __init__(self, directory: Path, kill_at: int = 0) -> None:
        self.count = 0
        self.commits: list[int] = []
        self._directory = str(directory)
        self._kill_at = kill_at

    def pass_by(self) -> None:
        self.count += 1
        if self.count == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, execute, sql, params, many, context):
        self.pass_by()
        return execute(sql, params, many, context)

    def hear(self, event: str, args: tuple[object, ...]) -> None:
        """Of what Python tells auditors: a database opened, a file made, renamed or removed."""
        if event in FILE_EVENTS and str(args[0]).startswith((self._directory, "file:")):
            self.pass_by()

    def install(self) -> None:
        from django.db import connection
        from django.db.backends.base.base import BaseDatabaseWrapper

        commit = BaseDatabaseWrapper._commit

        def watched_commit(wrapper):
            self.commits += [self.count + 1, self.count + 2]
            self.pass_by()
            commit(wrapper)
            self.pass_by()

        BaseDatabaseWrapper._commit = watched_commit
        connection.execute_wrappers.insert(0, self.watch)
        sys.addaudithook(self.hear)


def in_child(work: Callable[[], object]) -> tuple[int, object]:
    """Run `work` in a forked process; return how it ended and what it returned."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        # It ends before there is anything worth collecting.
        gc.disable()
        status = 1
        try:
            with os.fdopen(write, "w") as pipe:
                json.dump(work(), pipe)
            status = 0
        except SystemExit as exc:
            status = int(exc.code or 0)
        except BaseException:  # noqa: BLE001  # the process ends here
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), json.loads(text) if text else None


def rows(cursor: Any) -> list[list[object]]:
    """Without what differs from one run to the next by itself."""
    names = [column[0] for column in cursor.description]
    return [
        [value for name, value in zip(names, row, strict=True) if name not in VARYING]
        for row in cursor.fetchall()
    ]


def digest(state: object) -> str:
    text = re.sub(r"\d{8}T\d+Z|\.tmp-\d+", "", repr(state))
    return hashlib.sha256(text.encode()).hexdigest()


class SQLiteDatabases:
    def __init__(self, directory: Path) -> None:
        self._path = directory / "qwenproxy.sqlite3"
        self._kept = directory / "kept.sqlite3"
        os.environ["DATABASE_URL"] = f"sqlite:///{self._path}"

    def fresh(self) -> None:
        for path in self._path.parent.glob("qwenproxy.sqlite3*"):
            path.unlink()
        shutil.rmtree(self._path.parent / "backups", ignore_errors=True)
        if self._kept.exists():
            shutil.copy(self._kept, self._path)

    def keep(self) -> None:
        """Make the present database what `fresh` gives."""
        with sqlite3.connect(self._path) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        shutil.copy(self._path, self._kept)

    def left(self) -> object:
        """Every row and every file, read from a copy: reading would heal what a kill has left."""
        copy = self._path.parent / "copy"
        copy.mkdir()
        for path in self._path.parent.glob(f"{self._path.name}*"):
            shutil.copy(path, copy)
        with closing(sqlite3.connect(copy / self._path.name)) as connection:
            found = [connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()]
            for kind, name, _ in found[0]:
                if kind == "table":
                    found.append(rows(connection.execute(f"SELECT * FROM {name}")))
        shutil.rmtree(copy)
        return [found, sorted(path.name for path in self._path.parent.glob("**/*"))]

    @staticmethod
    def schema() -> object:
        from django.db import connection

        with connection.cursor() as cursor:
            (answer,) = cursor.execute("PRAGMA quick_check").fetchone()
            assert answer == "ok"
            assert not cursor.execute("PRAGMA foreign_key_check").fetchall()
            cursor.execute("SELECT type, name, sql FROM sqlite_master ORDER BY rowid")
            return cursor.fetchall()


class PostgreSQLDatabases:
    def __init__(self, url: str) -> None:
        self._url = url
        self._name = f"killed_{os.getpid()}"
        self._kept = ""
        self._server: Any = None
        parts = urlsplit(url)
        os.environ["DATABASE_URL"] = parts._replace(path=f"/{self._name}").geturl()

    def _execute(self, *statements: str) -> None:
        # Only where there is a server.
        import psycopg

        if self._server is None:
            self._server = psycopg.connect(self._url, autocommit=True)
        for statement in statements:
            self._server.execute(statement)

    def fresh(self) -> None:
        self._execute(
            f"DROP DATABASE IF EXISTS {self._name} WITH (FORCE)",
            f"CREATE DATABASE {self._name} TEMPLATE {self._kept or 'template1'}",
        )

    def keep(self) -> None:
        self._kept = f"{self._name}_kept"
        self._execute(
            f"DROP DATABASE IF EXISTS {self._kept}",
            f"CREATE DATABASE {self._kept} TEMPLATE {self._name}",
        )

    def drop(self) -> None:
        for name in (self._name, f"{self._name}_kept"):
            self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        self._server.close()

    def left(self) -> object:
        import psycopg

        with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
            names = connection.execute(
                "SELECT relname, relkind, oid FROM pg_class "
                "WHERE relnamespace = 'public'::regnamespace ORDER BY 1"
            ).fetchall()
            invalid = connection.execute("SELECT indexrelid FROM pg_index WHERE NOT indisvalid")
            tables = [name for name, kind, _ in names if kind == "r"]
            found = [rows(connection.execute(f'SELECT * FROM "{name}"')) for name in tables]
            return [[name[:2] for name in names], len(invalid.fetchall()), found]

    @staticmethod
    def schema() -> object:
        from django.db import connection

        with connection.cursor() as cursor:
            answers = []
            for sql in (
                "SELECT table_name, column_name, data_type, is_nullable, column_default "
                "FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2",
                "SELECT indexdef, indisvalid FROM pg_indexes JOIN pg_class ON relname = indexname "
                "JOIN pg_index ON indexrelid = pg_class.oid WHERE schemaname = 'public' ORDER BY 1",
                "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) "
                "FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2",
            ):
                cursor.execute(sql)
                answers.append(cursor.fetchall())
            return answers


Databases = SQLiteDatabases | PostgreSQLDatabases


def operate(task: dict[str, Any], operation: list[str]) -> None:
    from django.core.management import call_command
    from django.core.management.base import CommandError
    from django.core.management.commands import migrate

    name, *arguments = operation
    command = migrate.Command() if task.get("plain") else name
    try:
        call_command(command, *arguments, interactive=False, verbosity=0, stdout=io.StringIO())
    except CommandError as exc:
        sys.stderr.write(f"{exc}\n")
        sys.exit(exc.returncode)


def outcome(databases: Databases) -> object:
    """The schema, what is recorded, and where the history does not say the same."""
    from django.db import connection
    from django.db.migrations.recorder import MigrationRecorder

    from qwenproxy.schema.history import History

    recorder = MigrationRecorder(connection)
    recorded = []
    if recorder.has_table():
        recorded = [[row.app, row.name] for row in recorder.migration_qs.order_by("id")]
    columns = History(connection).columns
    started = len(History(connection).rows(status="started")) if columns else 0
    done = [
        # In a transaction each, some are applied before there is a table for the history.
        (row["app"], row["name"], "apply" if row["action"] == "adopt" else row["action"])
        for row in History(connection).rows(status="ok")
        if row["app"]
    ]
    disagreements = History(connection).disagreements() if columns else []
    with connection.cursor() as cursor:
        tables = connection.introspection.table_names(cursor)
        rights = 0
        if "auth_permission" in tables:
            cursor.execute("SELECT count(*) FROM auth_permission")
            rights = cursor.fetchone()[0]
    return {
        "schema": databases.schema(),
        "recorded": sorted(recorded),
        "twice": len(recorded) != len({tuple(name) for name in recorded}),
        "done": sorted(done),
        "rights": rights,
        "started": started,
        "disagreements": disagreements,
    }


@contextmanager
def prepared(task: dict[str, Any]) -> Iterator[tuple[Databases, Path]]:
    """Django set up for databases that come and go, with all imported that every child would import."""
    # What a process that dies has written stays, synced or not: memory will do.
    shared = Path("/dev/shm")
    within = shared if os.access(shared, os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="qwenproxy-killed-", dir=within))
    os.environ["QWENPROXY_DATA_DIR"] = str(directory)
    os.environ["QWENPROXY_DEBUG"] = "true"
    os.environ.setdefault("QWENPROXY_SECRET_KEY", "k" * 50)
    os.environ.setdefault("QWENPROXY_ENCRYPTION_KEYS", "e" * 50)
    sys.path[:0] = task.get("path", [])
    url = os.environ.get("QWENPROXY_TEST_DATABASE_URL")
    databases = PostgreSQLDatabases(url) if url else SQLiteDatabases(directory)
    os.environ["DJANGO_SETTINGS_MODULE"] = task.get("settings", "qwenproxy.settings")

    # Only now are there settings.
    import django
    from django.db.migrations.loader import MigrationLoader

    try:
        django.setup()
        MigrationLoader(None)
        gc.freeze()
        yield databases, directory
    finally:
        if isinstance(databases, PostgreSQLDatabases):
            databases.drop()
        shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    task = json.loads(sys.argv[1])
    with prepared(task) as (databases, directory):
        sys.stdout.write(json.dumps(run(task, databases, directory)))


def choose(task: dict[str, Any], total: int, commits: list[int]) -> list[int]:
    chosen = commits if task.get("commits") else list(range(1, total + 1))
    if sample := task.get("sample"):
        # Odd, or around COMMITs it would be always before them or always after.
        step = max(1, len(chosen) // sample) | 1
        chosen = sorted({chosen[0], chosen[-1], *chosen[::step]})
    which, of = task.get("shard", (0, 1))
    return chosen[which::of]


def run(task: dict[str, Any], databases: Databases, directory: Path) -> dict[str, Any]:
    from django.db import connection

    operation = task["operation"]
    for before in task.get("before", []):
        databases.fresh()
        assert in_child(lambda before=before: operate(task, before))[0] == 0
        databases.keep()

    def counted() -> object:
        points = Points(directory)
        points.install()
        operate(task, operation)
        connection.close()
        return points.count, list(points.commits), outcome(databases)

    def killed(point: int) -> None:
        Points(directory, point).install()
        operate(task, operation)

    def again() -> object:
        try:
            operate(task, operation)
        except SystemExit as exc:
            # There was nothing left to roll back.
            if operation[0] != "rollback" or exc.code != 2:
                raise
        connection.close()
        return outcome(databases)

    databases.fresh()
    status, found = in_child(counted)
    assert status == 0, status
    total, commits, expected = found
    chosen = choose(task, total, commits)
    lost, states, again_at = {}, set(), 0
    for index, point in enumerate(chosen):
        databases.fresh()
        status, _ = in_child(lambda point=point: killed(point))
        assert status == -signal.SIGKILL, (point, status)
        left = digest(databases.left())
        if left in states and index % 10 and not task.get("thorough"):
            continue
        states.add(left)
        again_at += 1
        status, found = in_child(again)
        if status != 0:
            lost[point] = f"exit {status}"
        elif found != expected:
            lost[point] = [key for key in expected if found is None or found[key] != expected[key]]
    return {
        "points": total,
        "tried": len(chosen),
        "states": len(states),
        "again": again_at,
        "lost": lost,
        "expected": {key: expected[key] for key in ("twice", "started", "disagreements")},
    }


if __name__ == "__main__":
    main()

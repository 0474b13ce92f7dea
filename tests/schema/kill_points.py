"""Kills a process at every statement and around every COMMIT of a schema change, then runs it again.

`python -m tests.schema.kill_points '{"operation": ["migrate"], ...}'` prints what came of it as JSON. Each
attempt is a forked process on a database of its own, so that SIGKILL is the real one.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit


class Points:
    """Counts the places where the process could die, and dies at one of them."""

    def __init__(self, kill_at: int = 0) -> None:
        self.count = 0
        self._kill_at = kill_at

    def pass_by(self) -> None:
        self.count += 1
        if self.count == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, execute, sql, params, many, context):
        self.pass_by()
        return execute(sql, params, many, context)

    def install(self) -> None:
        from django.db import connection
        from django.db.backends.base.base import BaseDatabaseWrapper

        commit = BaseDatabaseWrapper._commit

        def watched_commit(wrapper):
            self.pass_by()
            commit(wrapper)
            self.pass_by()

        BaseDatabaseWrapper._commit = watched_commit
        connection.execute_wrappers.insert(0, self.watch)


def in_child(work: Callable[[], object]) -> tuple[int, object]:
    """Run `work` in a forked process; return how it ended and what it returned."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
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
        parts = urlsplit(url)
        os.environ["DATABASE_URL"] = parts._replace(path=f"/{self._name}").geturl()

    def _execute(self, *statements: str) -> None:
        import psycopg

        with psycopg.connect(self._url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def fresh(self) -> None:
        self._execute(
            f"DROP DATABASE IF EXISTS {self._name} WITH (FORCE)",
            f"CREATE DATABASE {self._name} TEMPLATE {self._kept or 'template1'}",
        )

    def keep(self) -> None:
        self._kept = f"{self._name}_kept"
        self._execute(f"CREATE DATABASE {self._kept} TEMPLATE {self._name}")

    def drop(self) -> None:
        for name in (self._name, f"{self._name}_kept"):
            self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

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


def operate(operation: list[str], *, plain: bool = False) -> None:
    from django.core.management import call_command
    from django.core.management.base import CommandError
    from django.core.management.commands import migrate

    name, *arguments = operation
    command = migrate.Command() if plain else name
    try:
        call_command(command, *arguments, interactive=False, verbosity=0)
    except CommandError as exc:
        sys.stderr.write(f"{exc}\n")
        sys.exit(exc.returncode)


def outcome(databases: SQLiteDatabases | PostgreSQLDatabases) -> object:
    """The schema, what is recorded, and where the history does not say the same."""
    from django.db import connection

    from qwenproxy.schema.history import History, applied_migrations

    History(connection)
    recorded = [list(name) for name in applied_migrations(connection)]
    columns = History(connection).columns
    started = len(History(connection).rows(status="started")) if columns else 0
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
        "rights": rights,
        "started": started,
        "disagreements": disagreements,
    }


def main() -> None:
    task = json.loads(sys.argv[1])
    directory = Path(tempfile.mkdtemp(prefix="qwenproxy-killed-"))
    os.environ["QWENPROXY_DATA_DIR"] = str(directory)
    os.environ["QWENPROXY_DEBUG"] = "true"
    os.environ.setdefault("QWENPROXY_SECRET_KEY", "k" * 50)
    os.environ.setdefault("QWENPROXY_ENCRYPTION_KEYS", "e" * 50)
    url = os.environ.get("QWENPROXY_TEST_DATABASE_URL")
    databases = PostgreSQLDatabases(url) if url else SQLiteDatabases(directory)
    os.environ["DJANGO_SETTINGS_MODULE"] = task.get("settings", "qwenproxy.settings")
    try:
        sys.stdout.write(json.dumps(run(task, databases)))
    finally:
        if isinstance(databases, PostgreSQLDatabases):
            databases.drop()
        shutil.rmtree(directory, ignore_errors=True)


def run(task: dict, databases: SQLiteDatabases | PostgreSQLDatabases) -> dict:
    import django

    django.setup()
    operation, plain = task["operation"], task.get("plain", False)
    for before in task.get("before", []):
        databases.fresh()
        assert in_child(lambda before=before: operate(before))[0] == 0
        databases.keep()

    def counted() -> int:
        points = Points()
        points.install()
        operate(operation, plain=plain)
        return points.count

    databases.fresh()
    status, total = in_child(counted)
    assert status == 0, status
    _, expected = in_child(lambda: outcome(databases))
    chosen = range(1, total + 1)
    if sample := task.get("sample"):
        chosen = sorted({1, total, *range(1, total + 1, max(1, total // sample))})
    lost = {}
    for point in chosen:
        databases.fresh()

        def killed(point=point) -> None:
            Points(point).install()
            operate(operation, plain=plain)

        status, _ = in_child(killed)
        assert status == -signal.SIGKILL, (point, status)
        status, _ = in_child(lambda: operate(operation, plain=plain))
        if status != 0:
            lost[point] = f"exit {status}"
            continue
        _, found = in_child(lambda: outcome(databases))
        if found != expected:
            lost[point] = [key for key in expected if found is None or found[key] != expected[key]]
    return {
        "points": total,
        "tried": len(chosen),
        "lost": lost,
        "expected": {key: expected[key] for key in ("twice", "started", "disagreements")},
    }


if __name__ == "__main__":
    main()

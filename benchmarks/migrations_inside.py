"""What `benchmarks.migrations` measures inside a process: one scenario, its result as one line of JSON.

The environment says which project and database. Sides that are compared alternate within the process.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "qwenproxy.settings")
django.setup()

from django.conf import settings  # noqa: E402  # after setup
from django.core.management import call_command  # noqa: E402
from django.core.management.commands.migrate import Command as DjangoMigrate  # noqa: E402
from django.db import connection, models  # noqa: E402
from django.db.migrations import AddField, CreateModel  # noqa: E402
from django.db.migrations.state import ProjectState  # noqa: E402

from qwenproxy.schema import backup, engine  # noqa: E402
from qwenproxy.schema.locking import migration_lock  # noqa: E402
from qwenproxy.schema.operations import FastAddField  # noqa: E402
from qwenproxy.schema.startup import bring_up_to_date  # noqa: E402

Body = dict[str, Any]
_BODY_BYTES = 400


def _quiet(line: str) -> None:
    return


def _ms(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def _start() -> None:
    bring_up_to_date(_quiet)


def _django_check() -> None:
    call_command(DjangoMigrate(), check_unapplied=True, verbosity=0)


def once(side: str) -> Body:
    """Nothing to do, as the first thing that a process does, as at a start."""
    connection.ensure_connection()
    return {"ms": _ms({"ours": _start, "check": _django_check}[side])}


def start(rounds: str) -> Body:
    """Nothing to do, again and again; Django's `migrate --check` beside it."""
    _start()
    _django_check()
    found: dict[str, list[float]] = {"ours": [], "check": []}
    for _ in range(int(rounds)):
        found["ours"].append(_ms(_start))
        found["check"].append(_ms(_django_check))
    return found


def memory(side: str) -> Body:
    connection.ensure_connection()
    work = {"ours": _start, "check": _django_check}[side]
    before = _rss_bytes()
    work()
    return {"bytes": _rss_bytes() - before}


def _rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def begin(times: str) -> Body:
    """Starts, back to back, from the moment that a line comes in; the first thing told is readiness."""
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    for _ in range(int(times)):
        _start()
    return {"began": began, "ended": time.monotonic()}


def fresh(side: str) -> Body:
    """The whole of an empty database's migrations."""
    statements = 0

    def count(execute: Any, sql: Any, params: Any, many: Any, context: Any) -> Any:
        nonlocal statements
        statements += 1
        return execute(sql, params, many, context)

    connection.ensure_connection()
    began = time.process_time()
    with connection.execute_wrapper(count):
        if side == "ours":
            work_ms = _ms(lambda: call_command("migrate", verbosity=0, backup="never"))
        else:
            work_ms = _ms(lambda: call_command(DjangoMigrate(), verbosity=0))
    cpu_ms = (time.process_time() - began) * 1000
    return {"ms": work_ms, "cpu_ms": cpu_ms, "statements": statements}


def each(side: str, app: str, first: str) -> Body:
    """One of an app's migrations, then all the others; the difference is theirs."""
    call_command("migrate", verbosity=0, backup="never", app_label="schema")

    def migrate(*target: str) -> None:
        if side == "ours":
            call_command("migrate", *target, verbosity=0, backup="never")
        else:
            call_command(DjangoMigrate(), *target, verbosity=0)

    began = time.process_time()
    one = _ms(lambda: migrate(app, first))
    middle = time.process_time()
    rest = _ms(lambda: migrate(app))
    cpu = (time.process_time() - middle) - (middle - began)
    return {"ms": rest - one, "cpu_ms": cpu * 1000}


def _state() -> ProjectState:
    state = ProjectState()
    _create().state_forwards("bench", state)
    return state


def _create() -> CreateModel:
    fields: list[tuple[str, models.Field[Any, Any]]] = [
        ("id", models.BigAutoField(primary_key=True)),
        ("number", models.IntegerField(db_index=True)),
        ("code", models.CharField(max_length=20, db_index=True)),
        ("other", models.IntegerField(db_index=True)),
        ("body", models.TextField()),
    ]
    return CreateModel("Row", fields)


def build(rows: str) -> Body:
    state = _state()
    with connection.schema_editor() as editor:
        editor.create_model(state.apps.get_model("bench", "row"))
        editor.create_model(
            type(
                "Written",
                (models.Model,),
                {
                    "__module__": __name__,
                    "at": models.FloatField(),
                    "Meta": type("Meta", (), {"app_label": "bench", "apps": state.apps}),
                },
            )
        )
    with connection.cursor() as cursor:
        cursor.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %s) "
            "INSERT INTO bench_row (number, code, other, body) "
            "SELECT i, 'code-' || (i * 7919 %% 1000003), i %% 1000, hex(randomblob(%s)) FROM n",
            [int(rows), _BODY_BYTES // 2],
        )
        cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return {"bytes": backup.size_bytes(connection)}


def column(pairs: str) -> Body:
    """Add a NOT NULL column with a constant default, as ours and as Django's, to the same table."""
    found: Body = {"ours_s": [], "django_s": [], "ours_wal": [], "django_wal": []}
    state = _state()
    for number in range(int(pairs)):
        for side, operation in (("ours", FastAddField), ("django", AddField)):
            adding = operation("row", f"{side}_{number}", models.IntegerField(db_default=number))
            after = state.clone()
            adding.state_forwards("bench", after)
            with connection.cursor() as cursor:
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            began = time.perf_counter()
            with connection.schema_editor() as editor:
                adding.database_forwards("bench", editor, state, after)
            found[f"{side}_s"].append(time.perf_counter() - began)
            wal = os.stat(f"{settings.DATABASES['default']['NAME']}-wal").st_size
            found[f"{side}_wal"].append(wal)
            state = after
    return found


def copies(pairs: str) -> Body:
    """Our backup, its check apart, and a plain copy of the file; and how long writers wait for it."""
    source = str(settings.DATABASES["default"]["NAME"])
    with closing(sqlite3.connect(source)) as direct:
        direct.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    ours, plain = Path(f"{source}.ours"), Path(f"{source}.plain")
    found: Body = {"ours_s": [], "check_s": [], "plain_s": []}

    def copy_ours() -> None:
        ours.unlink(missing_ok=True)
        backup._copy(source, ours)
        backup._sync(ours)

    def copy_plain() -> None:
        plain.unlink(missing_ok=True)
        shutil.copyfile(source, plain)
        backup._sync(plain)

    for _ in range(int(pairs)):
        found["ours_s"].append(_ms(copy_ours) / 1000)
        found["check_s"].append(_ms(lambda: backup._verify(ours)) / 1000)
        found["plain_s"].append(_ms(copy_plain) / 1000)
    for name, meanwhile in (("idle", None), ("ours", copy_ours), ("plain", copy_plain)):
        found[f"{name}_ms"] = _written(source, meanwhile)
    plain.unlink()
    ours.unlink()
    return found


def _written(database: str, meanwhile: Callable[[], None] | None) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.migrations_inside", "write", database]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        ends = time.monotonic() + 5
        while time.monotonic() < ends:
            if meanwhile is None:
                time.sleep(0.1)
            else:
                meanwhile()
        # The end of its input ends it.
        out, _ = writer.communicate("")
    found: list[float] = json.loads(out.splitlines()[-1])["ms"]
    return found


def write(database: str) -> Body:
    """Insert a row every 5 ms until the input ends."""
    found = []
    with closing(sqlite3.connect(database, timeout=60, isolation_level=None)) as direct:
        direct.execute("PRAGMA synchronous = FULL")
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], 0.005)[0]:
            found.append(
                _ms(lambda: direct.execute("INSERT INTO bench_written (at) VALUES (?)", [0.0]))
            )
    return {"ms": found}


def hold(side: str) -> Body:
    """PostgreSQL: hold the migration lock in a statement of 15 s; whoever watches kills this process."""
    with migration_lock(connection, 5, _quiet, lambda: ""):
        if side == "ours":
            with engine.session(connection, 5, 5), connection.cursor() as cursor:
                print("held", flush=True)
                cursor.execute("SELECT pg_sleep(15)")
        else:
            with connection.cursor() as cursor:
                print("held", flush=True)
                cursor.execute("SELECT pg_sleep(15)")
    return {}


_SCENARIOS: dict[str, Callable[..., Body]] = {
    scenario.__name__: scenario
    for scenario in (start, once, memory, begin, fresh, each, build, column, copies, write, hold)
}


if __name__ == "__main__":
    print(json.dumps(_SCENARIOS[sys.argv[1]](*sys.argv[2:])), flush=True)

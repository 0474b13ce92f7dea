"""`python -m benchmarks.migrations [names]`: measures the goals for changing the schema, as a table.

Two sides that are compared run in turn, A B A B; a figure is the median of the pairs' ratios, with the
lowest and the highest. The goal that needs PostgreSQL is measured where QWENPROXY_TEST_DATABASE_URL
names a server: `.ci/postgresql .venv/bin/python -m benchmarks.migrations`.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
import tokenize
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import systems
from benchmarks.processes import ROOT
from benchmarks.targets import Figure

Environment = dict[str, str]
_PYTHON = sys.executable
_RACERS = 8
_STEPS = 100
_LONG_S = 10

_SETTINGS = """\
from qwenproxy.settings import *
INSTALLED_APPS = [*INSTALLED_APPS, "added"]
"""
_EMPTY = """\
from django.db import migrations


class Migration(migrations.Migration):
    dependencies = {dependencies}
    operations = []
"""
_SLOW = """\
import time

from django.db import migrations


def wait(apps, schema_editor):
    time.sleep({seconds})


class Migration(migrations.Migration):
    operations = [migrations.RunPython(wait, migrations.RunPython.noop)]
"""


@dataclass
class Lab:
    directory: Path
    pairs: int
    rows: int
    figures: list[Figure] = field(default_factory=list)
    _count: int = 0

    def new(self) -> Path:
        self._count += 1
        path = self.directory / str(self._count)
        path.mkdir()
        return path

    def add(self, goal: str, what: str, values: Sequence[float], limit: float, **rest: str) -> None:
        """The median of the readings, and how far they lie apart."""
        note = rest.pop("note", "")
        apart = f"{_short(min(values))} to {_short(max(values))} of {len(values)}"
        note = f"{apart}; {note}" if note else apart
        self.figures.append(Figure(goal, what, median(values), limit, note=note, **rest))


def _short(value: float) -> str:
    return f"{value:.3g}"


def _environment(data: Path, *, app: Path | None = None, **more: str) -> Environment:
    env = systems.environment(data) | {
        "DJANGO_SETTINGS_MODULE": "qwenproxy.settings",
        "QWENPROXY_SECRET_KEY": "k" * 50,
        "QWENPROXY_ENCRYPTION_KEYS": "e" * 50,
    }
    env |= more
    if app is not None:
        env |= {
            "PYTHONPATH": f"{app}{os.pathsep}{ROOT}",
            "DJANGO_SETTINGS_MODULE": "bench_settings",
        }
    return env


def _inside(env: Environment, scenario: str, *arguments: str) -> dict[str, Any]:
    output = subprocess.run(
        [_PYTHON, "-m", "benchmarks.migrations_inside", scenario, *arguments],
        env=env,
        cwd=ROOT,
        check=True,
        timeout=1800,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    found = json.loads(output.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def _migrated(lab: Lab) -> Environment:
    """A database with nothing to do."""
    env = _environment(lab.new())
    subprocess.run([_PYTHON, "manage.py", "migrate", "-v0"], env=env, cwd=ROOT, check=True)
    return env


def _project(lab: Lab, migrations: Mapping[str, str]) -> Path:
    """The gateway with one more app, of these migrations."""
    app = lab.new()
    (app / "added" / "migrations").mkdir(parents=True)
    for package in ("added", "added/migrations"):
        (app / package / "__init__.py").touch()
    (app / "bench_settings.py").write_text(_SETTINGS)
    for name, text in migrations.items():
        (app / "added" / "migrations" / f"{name}.py").write_text(text)
    return app


def start(lab: Lab) -> None:
    """Goals 1 and 2: a start with nothing to do, over Django's `migrate --check`; time and memory."""
    env = _migrated(lab)
    ours, ratios = [], []
    for _ in range(lab.pairs):
        found = _inside(env, "start", "50")
        ours.append(median(found["ours"]))
        ratios.append(median(found["ours"]) / median(found["check"]))
    lab.add("1", "start, nothing to do, in process", ours, 1, unit=" ms", note="medians of 50")
    lab.add("1", "the same, over `migrate --check`", ratios, 1 / 30, unit="x", note="all loaded")
    ratios = []
    for _ in range(lab.pairs):
        first, check = (_inside(env, "once", side)["ms"] for side in ("ours", "check"))
        ratios.append(first / check)
    what = "the same, as the first thing of a process"
    note = f"the last {first:.2f} / {check:.0f} ms"
    lab.add("1", what, ratios, 1 / 30, unit="x", note=note)
    taken: dict[str, list[float]] = {"ours": [], "check": []}
    for _ in range(lab.pairs):
        for side, values in taken.items():
            values.append(_inside(env, "memory", side)["bytes"] / 1e6)
    note = f"`migrate --check` {_short(median(taken['check']))} MB"
    lab.add("2", "memory for that", taken["ours"], 0.1, unit=" MB", note=note)


def entrypoint(lab: Lab) -> None:
    """Goal 3: `serve` over `migrate && uvicorn`, from the command to ready."""
    env = _migrated(lab)
    uvicorn = f"{_PYTHON} -m uvicorn qwenproxy.asgi:application --log-level warning --port"
    sides = {
        "serve": lambda port: f"exec {_PYTHON} manage.py serve --port {port}",
        "both": lambda port: f"{_PYTHON} manage.py migrate -v0 && exec {uvicorn} {port}",
    }
    took: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(lab.pairs + 1):
        for side, command in sides.items():
            port = _free_port()
            began = time.monotonic()
            with _running(["sh", "-c", command(port)], env):
                _poll(port, until=began + 60)
                took[side].append(time.monotonic() - began)
    # The first of each warms the caches of the disk.
    pairs = list(zip(took["serve"], took["both"], strict=True))[1:]
    note = " / ".join(f"{median(values):.2f} s" for values in zip(*pairs, strict=True))
    ratios = [a / b for a, b in pairs]
    what = "`serve` over `migrate && uvicorn`, to ready"
    lab.add("3", what, ratios, 0.6, unit="x", note=note)


def racers(lab: Lab) -> None:
    """Goals 5 and 6: processes that start at once, on an empty database and on one with nothing to do."""
    failed, ratios, walls = 0, [], []
    for _ in range(lab.pairs):
        alone = _begin_together([_environment(lab.new())], 1)
        many = _begin_together([_environment(lab.new())] * _RACERS, 1)
        failed += sum(1 for one in (*alone, *many) if one is None)
        walls.append((_wall(many), _wall(alone)))
        ratios.append(walls[-1][0] / walls[-1][1])
    total = lab.pairs * (_RACERS + 1)
    lab.figures.append(
        Figure("5", f"of {total} processes on empty databases, failed", failed, 0, "")
    )
    note = " / ".join(f"{median(values):.2f} s" for values in zip(*walls, strict=True))
    what = f"{_RACERS} migrate an empty database at once, over one alone"
    lab.add("5", what, ratios, 2, unit="x", note=note)
    ratios = []
    shared = _migrated(lab)
    own = [_migrated(lab) for _ in range(_RACERS)]
    for _ in range(lab.pairs):
        together = _begin_together([shared] * _RACERS, 200)
        apart = _begin_together(own, 200)
        ratios.append(_slowest(together) / _slowest(apart))
    what = f"{_RACERS} replicas, nothing to do, over as many with a database each, slowest"
    note = f"of {os.cpu_count()} cores all; 200 starts each"
    lab.add("6", what, ratios, 1.2, unit="x", note=note)


Spans = Sequence[tuple[float, float] | None]


def _begin_together(environments: Sequence[Environment], times: int) -> Spans:
    """Let them begin at one moment, after their start; None for what failed."""
    command = [_PYTHON, "-m", "benchmarks.migrations_inside", "begin", str(times)]
    processes = [
        subprocess.Popen(
            command, env=env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for env in environments
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    spans: list[tuple[float, float] | None] = []
    for process in processes:
        out, _ = process.communicate(timeout=300)
        found = json.loads(out.splitlines()[-1]) if process.returncode == 0 else None
        spans.append((found["began"], found["ended"]) if found else None)
    return spans


def _wall(spans: Spans) -> float:
    known = _known(spans)
    return max(span[1] for span in known) - min(span[0] for span in known)


def _slowest(spans: Spans) -> float:
    return max(span[1] - span[0] for span in _known(spans))


def _known(spans: Spans) -> list[tuple[float, float]]:
    """
    Raises:
        RuntimeError: all of them failed.
    """
    known = [span for span in spans if span]
    if not known:
        raise RuntimeError("none of the processes succeeded; what they said is above")
    return known


def column(lab: Lab) -> None:
    """Goal 7: add a NOT NULL column to a large table, over Django's way."""
    found = _inside(_large(lab), "column", str(lab.pairs))
    ratios = [a / b for a, b in zip(found["ours_s"], found["django_s"], strict=True)]
    wal = [a / b * 100 for a, b in zip(found["ours_wal"], found["django_wal"], strict=True)]
    note = (
        f"{median(found['ours_s']):.2f} / {median(found['django_s']):.1f} s; writers wait so long"
    )
    what = f"add a NOT NULL column to {lab.rows:,} rows, over Django's"
    lab.add("7", what, ratios, 0.1, unit="x", note=note)
    note = f"{median(found['ours_wal']) / 1e6:.2f} of {median(found['django_wal']) / 1e6:.0f} MB"
    lab.add("7", "its WAL, of Django's", wal, 5, unit=" %", note=note)


def copies(lab: Lab) -> None:
    """Goal 10: a backup over a copy of the file, and how long writers wait meanwhile."""
    env = _large(lab)
    found = _inside(env, "copies", str(lab.pairs))
    size = _database(env).stat().st_size / 1e6
    ratios = [a / b for a, b in zip(found["ours_s"], found["plain_s"], strict=True)]
    note = f"{median(found['ours_s']):.2f} / {median(found['plain_s']):.2f} s"
    note += f", and {median(found['check_s']):.2f} s to check it"
    lab.add("10", f"backup of {size:.0f} MB, over cp", ratios, 1.2, unit="x", note=note)
    idle, busy, plain = (_p99(found[f"{when}_ms"]) for when in ("idle", "ours", "plain"))
    note = (
        f"{busy:.1f} / {idle:.1f} ms, longest {max(found['ours_ms']):.0f} ms; with cp {plain:.1f}"
    )
    lab.add("10", "writer's p99 meanwhile, over idle", [busy / idle], 2, unit="x", note=note)


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


def _database(env: Environment) -> Path:
    return Path(env["QWENPROXY_DATA_DIR"]) / "qwenproxy.sqlite3"


def _large(lab: Lab) -> Environment:
    """Made once for the goals that need it."""
    env = _environment(lab.directory / "large")
    if not _database(env).exists():
        _inside(env, "build", str(lab.rows))
    return env


def fresh(lab: Lab) -> None:
    """Goal 8: `migrate` over Django's own, on an empty database without a backup."""
    ratios, cpu, statements, took = [], [], [], []
    for _ in range(lab.pairs):
        ours, django = (
            _inside(_environment(lab.new()), "fresh", side) for side in ("ours", "django")
        )
        took.append((ours["ms"], django["ms"]))
        ratios.append(ours["ms"] / django["ms"])
        cpu.append(ours["cpu_ms"] / django["cpu_ms"])
        statements.append(ours["statements"] / django["statements"])
        counts = f"{ours['statements']} / {django['statements']}"
    note = " / ".join(f"{median(values):.0f} ms" for values in zip(*took, strict=True))
    note += f"; of CPU {_short(median(cpu))}x"
    lab.add("8", "`migrate` of an empty database, over Django's", ratios, 1.1, unit="x", note=note)
    lab.add("8", "its statements, over Django's", statements, 1.3, unit="x", note=counts)


def steps(lab: Lab) -> None:
    """Goal 9: what each pending migration costs that does nothing."""
    names = [f"{number:04}_step" for number in range(1, _STEPS + 2)]
    app = _project(
        lab,
        {
            name: _EMPTY.format(dependencies=[("added", before)] if before else [])
            for before, name in zip(["", *names], names, strict=False)
        },
    )
    took: dict[str, list[float]] = {"ours": [], "django": []}
    cpu: list[float] = []
    for _ in range(lab.pairs):
        for side, values in took.items():
            found = _inside(_environment(lab.new(), app=app), "each", side, "added", names[0])
            values.append(found["ms"] / (_STEPS - 1))
            if side == "ours":
                cpu.append(found["cpu_ms"] / (_STEPS - 1))
    note = f"of {_STEPS} at once, with their events; {_short(median(cpu))} ms of CPU"
    note += f"; Django's {_short(median(took['django']))} ms"
    lab.add("9", "each pending migration that does nothing", took["ours"], 5, unit=" ms", note=note)


def dead_client(lab: Lab) -> None:
    """Goal 11: how soon PostgreSQL gives the lock of a killed process away."""
    what = "lock free after its holder was killed in a statement of 15 s"
    url = os.environ.get("QWENPROXY_TEST_DATABASE_URL", "")
    if not url:
        lab.figures.append(
            Figure("11", what, None, 3, " s", "no server: .ci/postgresql COMMAND brings one")
        )
        return
    env = _environment(lab.new(), DATABASE_URL=url)
    plain = _held_after_kill(env, "django", url)
    values = [_held_after_kill(env, "ours", url) for _ in range(lab.pairs)]
    lab.add("11", what, values, 3, unit=" s", note=f"without our settings {plain:.1f} s")


def _held_after_kill(env: Environment, side: str, url: str) -> float:
    # Only where there is a server.
    import psycopg

    command = [_PYTHON, "-m", "benchmarks.migrations_inside", "hold", side]
    with (
        psycopg.connect(url, autocommit=True) as watcher,
        subprocess.Popen(command, env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder,
    ):
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        # Into the statement.
        time.sleep(0.5)
        holder.kill()
        holder.wait()
        killed = time.monotonic()
        locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        while watcher.execute(locks).fetchone() != (0,):
            time.sleep(0.02)
        return time.monotonic() - killed


def long(lab: Lab) -> None:
    """Goal 12: connections that fail while a start migrates, from the first that succeeds."""
    app = _project(lab, {"0001_long": _SLOW.format(seconds=_LONG_S)})
    env = _environment(lab.new(), app=app)
    port = _free_port()
    command = [_PYTHON, str(ROOT / "manage.py"), "serve", "--port", str(port)]
    with _running(command, env):
        statuses = _poll(port, until=time.monotonic() + _LONG_S + 120)
    errors = sum(1 for status in statuses if status == 0)
    told = f"{len(statuses)} requests, {statuses.count(503)} told to wait, then 200"
    what = f"connection errors during a start that migrates for {_LONG_S} s"
    lab.figures.append(Figure("12", what, errors, 0, "", told))


def _poll(port: int, *, until: float) -> list[int]:
    """The answers of /readyz from the first to the one that is 200; 0 is a connection that failed."""
    statuses: list[int] = []
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as answer:
                statuses.append(answer.status)
        except urllib.error.HTTPError as exc:
            statuses.append(exc.code)
        except OSError:
            # Before the port is bound there is nobody to connect to, however it is started.
            if statuses:
                statuses.append(0)
        if statuses and statuses[-1] == 200:
            return statuses
        time.sleep(0.01)
    raise RuntimeError(f"not ready: {statuses[-3:]}")


@contextlib.contextmanager
def _running(command: Sequence[str], env: Environment) -> Iterator[None]:
    with subprocess.Popen(
        command, env=env, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def lines(lab: Lab) -> None:
    """Goal 15: lines of code, without comments, docstrings and blank ones."""
    commands = ROOT / "qwenproxy" / "management" / "commands"
    names = ("migrate", "showmigrations", "makemigrations", "rollback", "dbbackup", "dbrestore")
    paths = [*(ROOT / "qwenproxy" / "schema").glob("*.py")]
    paths += [commands / f"{name}.py" for name in (*names, "schema")]
    total = sum(_lines(path.read_text("utf-8")) for path in paths)
    note = f"{len(paths)} files; no dependency"
    lab.figures.append(Figure("15", "lines of Python", total, 1500, "", note))


def _lines(source: str) -> int:
    left_out = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    used: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (*left_out, tokenize.ENDMARKER):
            used.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            used -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(used)


GOALS: Mapping[str, Callable[[Lab], None]] = {
    "start": start,
    "entrypoint": entrypoint,
    "racers": racers,
    "copies": copies,
    "column": column,
    "fresh": fresh,
    "steps": steps,
    "dead": dead_client,
    "long": long,
    "lines": lines,
}


def main() -> int:
    listed = "\n".join(f"  {name:<10} {run.__doc__}" for name, run in GOALS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.migrations",
        description=f"Names of benchmarks (none: all):\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--pairs", type=int, default=5, help="rounds of each comparison, 3 to 20")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the large table")
    args = parser.parse_args()
    if unknown := set(args.names) - set(GOALS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    load = os.getloadavg()[0]
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load average {load:.1f}")
    failed = False
    with systems.scratch() as directory:
        lab = Lab(directory, min(max(args.pairs, 3), 20), args.rows)
        for name in args.names or GOALS:
            print(f"{name}: {GOALS[name].__doc__}", flush=True)
            count = len(lab.figures)
            try:
                GOALS[name](lab)
            except (RuntimeError, OSError, subprocess.SubprocessError) as exc:
                print(f"  FAILED: {exc}", flush=True)
                failed = True
            for figure in lab.figures[count:]:
                print(f"  {_row(figure)}", flush=True)
        shutil.rmtree(directory / "large", ignore_errors=True)
    print("\n| # | what | goal | measured | | readings |\n|---|---|---|---|---|---|")
    for figure in lab.figures:
        print(_row(figure))
    return 1 if failed else 0


def _row(figure: Figure) -> str:
    value = "-" if figure.value is None else f"{_short(figure.value)}{figure.unit}"
    goal = f"≤ {_short(figure.limit)}{figure.unit}" if figure.limit < 1000 else f"≤ {figure.limit}"
    if figure.limit >= 1000 and figure.value is not None:
        value = f"{figure.value}"
    verdict = figure.verdict if figure.verdict != "not met" else "**not met**"
    return f"| {figure.target} | {figure.what} | {goal} | {value} | {verdict} | {figure.note} |"


if __name__ == "__main__":
    sys.exit(main())

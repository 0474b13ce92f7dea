"""What the health page shows, part by part: each section reads one part and tells its own error.

Everything here may be pasted into a ticket: no credentials, no content, no values of secrets.
"""

from __future__ import annotations

import platform
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import django
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseError
from django.db import connection, transaction
from django.urls import reverse

from qwenproxy import display, metrics
from qwenproxy.access.account_states import PAUSED, way_out
from qwenproxy.access.models import ApiKey, UpstreamAccount
from qwenproxy.health import uptime_s
from qwenproxy.schema import backup
from qwenproxy.schema.status import read_brief
from requests_app.liveness import WorkerLock
from requests_app.models import Request, Response, Worker
from requests_app.prunings import (
    FULL_SOON_DAYS,
    days_until_full,
    growth,
    last_run,
    read_removed,
)
from requests_app.rollups import next_used, rolled_to
from requests_app.windows import slot_of, slot_start
from sessions_app.guard import Stopped, stopped_after

if TYPE_CHECKING:
    from qwenproxy.proxy.gateway import Gateway

# Variables whose values may name what is to be hidden.
_HIDDEN = frozenset(("QWENPROXY_REDACT",))
_PASSWORD = re.compile(r"(?<=//)[^/@\s]+@")
# To measure the tables.
_MEASURED_S = 0.1
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Fact:
    label: str
    value: str
    # Of the page that explains it.
    url: str = ""
    # ok, warning or error; empty: a figure.
    level: str = ""


@dataclass(slots=True)
class Section:
    title: str
    facts: list[Fact] = field(default_factory=list)
    columns: Sequence[str] = ()
    rows: list[Sequence[str]] = field(default_factory=list)
    note: str = ""
    # Of the page that has more of it.
    url: str = ""
    # Why it could not be read.
    problem: str = ""

    def add(self, label: str, value: object, *, url: str = "", level: str = "") -> None:
        self.facts.append(Fact(label, str(value), url, level))


def read_sections(gateway: Gateway | None, now: datetime) -> list[Section]:
    """All sections; `gateway` is this process's own, null where none runs."""
    looks: tuple[tuple[str, Callable[[Section], None]], ...] = (
        ("Version", _version),
        ("This process", lambda section: _process(section, gateway)),
        ("Database", _database),
        ("Disk", lambda section: _disk(section, now)),
        ("Record", lambda section: _record(section, now)),
        ("Retention", lambda section: _retention(section, now)),
        ("Serving processes", _workers),
        ("Upstream accounts", lambda section: _accounts(section, now)),
        ("Tables", _tables),
        ("Settings", _settings),
    )
    return [_read(title, look) for title, look in looks]


def as_text(sections: Sequence[Section]) -> str:
    """The sections for a ticket."""
    lines = []
    for section in sections:
        lines += ["", f"## {section.title}"]
        lines += [f"{fact.label}: {fact.value}" for fact in section.facts]
        lines += [" | ".join(row) for row in section.rows]
        lines += [f"! {section.problem}"] if section.problem else []
    return "\n".join(lines).strip()


def _read(title: str, look: Callable[[Section], None]) -> Section:
    section = Section(title)
    try:
        look(section)
    except (DatabaseError, OSError, ImproperlyConfigured) as exc:
        first = str(exc).strip().partition("\n")[0]
        section.problem = f"Cannot be read: {first or type(exc).__name__}"
    return section


def _version(section: Section) -> None:
    section.add("Qwen Proxy", settings.VERSION)
    section.add("Commit", _commit(settings.BASE_DIR / ".git") or "not known")
    section.add("Python", platform.python_version())
    section.add("Django", django.get_version())
    section.add("System", f"{platform.system()} {platform.release()} {platform.machine()}")
    schema = read_brief()
    level = {"ready": "ok", "pending": "warning"}.get(schema.state, "error")
    section.add("Migrations", schema.state, url=reverse("admin:migrations"), level=level)


def _commit(git: Path) -> str:
    """Of a checkout, the commit that is checked out; empty elsewhere."""
    if not (git / "HEAD").is_file():
        return ""
    head = (git / "HEAD").read_text().strip()
    name = head.removeprefix("ref: ")
    if name != head:
        loose, packed = git / name, git / "packed-refs"
        if loose.is_file():
            head = loose.read_text().strip()
        elif packed.is_file():
            lines = (line.partition(" ") for line in packed.read_text().splitlines())
            head = next((commit for commit, _, ref in lines if ref == name), "")
    return head[:12] if _COMMIT.fullmatch(head) else ""


def _process(section: Section, gateway: Gateway | None) -> None:
    section.note = "Counts of this process alone, since its start; other processes have their own."
    section.add("Up for", display.span(timedelta(seconds=uptime_s())))
    if gateway is None:
        section.add("Serving", "no: no gateway runs in this process", level="warning")
        return
    recorder = gateway.recorder
    is_full = recorder.queued >= settings.RECORDER_QUEUE_TURNS // 2
    section.add("Serving", "draining" if gateway.draining else "yes", level="ok")
    section.add("Answers running", f"{gateway.running:,}", url=_requests("status=in_progress"))
    section.add(
        "Writes waiting",
        f"{recorder.queued:,} of {settings.RECORDER_QUEUE_TURNS:,}",
        level="warning" if is_full else "",
    )
    section.add("Answers without a record", f"{recorder.unrecorded:,}")
    for status, count in sorted(_ended().items()):
        section.add(f"Ended {status}", f"{count:,}")


def _ended() -> Counter[str]:
    ended: Counter[str] = Counter()
    for metric in metrics.DURATION.collect():
        for sample in metric.samples:
            if sample.name.endswith("_count"):
                ended[sample.labels["status"]] += int(sample.value)
    return ended


def _database(section: Section) -> None:
    connection.ensure_connection()
    version = ".".join(map(str, connection.get_database_version()))
    if connection.vendor == "postgresql":
        section.add("Engine", f"PostgreSQL {version}")
        section.add(
            "Size", display.size(int(_fetch("SELECT pg_database_size(current_database())")))
        )
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        used, most = int(_fetch(query)), _fetch("SHOW max_connections")
        section.add("Connections", f"{used} of {most}")
        began = datetime.now(UTC)
        _fetch("SELECT 1")
        took = datetime.now(UTC) - began
        section.add("Round trip", f"{took.total_seconds() * 1000:.1f} ms")
        with connection.cursor() as cursor:
            cursor.execute("SELECT clock_timestamp()")
            skew = datetime.now(UTC) - cursor.fetchone()[0]
        section.add("Clock against ours", f"{-skew.total_seconds() * 1000:+.0f} ms")
        return
    path = Path(str(connection.settings_dict["NAME"]))
    wal = path.with_name(f"{path.name}-wal")
    mode = str(_fetch("PRAGMA journal_mode"))
    section.add("Engine", f"SQLite {version}")
    section.add("File", path)
    section.add("Size", display.size(backup.size_bytes(connection)))
    section.add("Journal mode", mode, level="ok" if mode == "wal" else "warning")
    section.add("Write-ahead log", display.size(wal.stat().st_size if wal.exists() else 0))
    section.add("Clock", "this machine's own")


def _disk(section: Section, now: datetime) -> None:
    data = Path(settings.DATA_DIR)
    while not data.exists():
        data = data.parent
    disk = shutil.disk_usage(data)
    section.add("Directory", data)
    share = disk.free / disk.total if disk.total else 0
    level = "error" if share < 0.01 else "warning" if share < 0.05 else ""
    section.add("Free", f"{display.size(disk.free)} ({display.percent(share)})", level=level)
    grown = growth(now)
    if grown is None:
        section.add("Grows by", "too little data: its size is noted once a day")
        return
    sign = "-" if grown.bytes_a_day < 0 else ""
    a_day = f"{sign}{display.size(abs(round(grown.bytes_a_day)))} a day"
    section.add("Grows by", f"{a_day}, measured over {grown.days:,.0f} days")
    if connection.vendor != "sqlite":
        # Its disk is another machine's, or may be.
        return
    days = days_until_full(grown, disk.free)
    if days is None or days > 3650:
        section.add("Full in", "more than ten years")
    else:
        level = "warning" if days < FULL_SOON_DAYS else ""
        section.add("Full in", f"about {days:,.0f} days", level=level)


def _retention(section: Section, now: datetime) -> None:
    section.note = "Removed by the serving processes every hour, or by manage.py prune."
    for label, days in (
        ("Content is kept", settings.CONTENT_DAYS),
        ("Records are kept", settings.RECORD_DAYS),
    ):
        section.add(label, "for ever" if days is None else f"{days:,} days")
    own = ApiKey.objects.exclude(content_days=None, record_days=None).count()
    section.add("Keys with their own days", f"{own:,}")
    run = last_run()
    section.add("Last run", "not yet" if run is None else display.relative(run.ended_at, now))
    if run is not None:
        section.add("It took", display.duration(run.took / timedelta(milliseconds=1)))
        removed = f"content of {run.content_sessions:,}, all of {run.record_sessions:,} sessions"
        section.add("It removed", removed)
    month = read_removed(now - timedelta(days=30))
    sessions = sum(one.sessions for one in month.values())
    size = display.size(sum(one.bytes for one in month.values()))
    section.add("Removed in 30 days", f"of {sessions:,} sessions, {size} of texts and files")


def _record(section: Section, now: datetime) -> None:
    border = rolled_to()
    waiting = next_used(border or 0)
    is_late = waiting is not None and waiting < slot_of(now - timedelta(minutes=5))
    told = "all of them" if waiting is None else display.local_text(slot_start(waiting))
    section.add("Statistics up to", told if border or waiting is None else "not begun")
    if waiting is not None and is_late:
        lag = display.span(now - slot_start(waiting + 1))
        section.add("Behind by", lag, level="warning")
    newest = Request.objects.order_by("-created_at", "-pk").values_list("created_at", flat=True)
    section.add("Newest request", display.local_text(newest.first()), url=_requests("span=all"))
    running = Response.objects.filter(status="in_progress").order_by("created_at", "pk")
    oldest = running.values_list("created_at", flat=True).first()
    url = _requests("status=in_progress&span=all")
    section.add("Oldest running", display.relative(oldest, now) if oldest else "none runs", url=url)


def _workers(section: Section) -> None:
    section.columns = ("Process", "Started", "State")
    section.note = "A process is alive while it holds its lock."
    lock = WorkerLock("", settings.DATA_DIR / "workers", wait_s=0)
    with transaction.atomic():
        for worker in Worker.objects.order_by("started_at"):
            state = (
                "gone: its answers are settled in a moment" if lock.is_free(worker.pk) else "alive"
            )
            section.rows.append((str(worker), display.local_text(worker.started_at), state))


def _accounts(section: Section, now: datetime) -> None:
    section.columns = ("Account", "Kind", "State", "Last success", "What to do")
    section.url = reverse("admin:access_upstreamaccount_changelist")
    for row in UpstreamAccount.objects.defer("secrets"):
        state = row.state if row.enabled else PAUSED
        section.rows.append(
            (
                row.name,
                row.get_kind_display(),
                state,
                display.relative(row.last_ok_at, now),
                way_out(row.kind, state, row.state_until) or display.NONE,
            )
        )


def _tables(section: Section) -> None:
    section.columns = ("Table", "Rows", "Data", "Indexes")
    on_postgresql = connection.vendor == "postgresql"
    section.note = "Rows are estimated." if on_postgresql else "Rows: the highest id at most."
    try:
        with stopped_after(_MEASURED_S):
            found = _postgresql_tables() if on_postgresql else _sqlite_tables()
    except Stopped:
        section.problem = "Not measured: the database is too large to be looked through by a page."
        return
    for name, rows, data, indexes in sorted(found, key=lambda one: -one[2] - one[3]):
        count = display.NONE if rows is None or rows < 0 else f"{rows:,}"
        section.rows.append((name, count, display.size(data), display.size(indexes)))


def _postgresql_tables() -> list[tuple[str, int | None, int, int]]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname, CAST(reltuples AS bigint), pg_table_size(oid), pg_indexes_size(oid)"
            " FROM pg_class WHERE relkind = 'r' AND relnamespace = CAST(current_schema() AS regnamespace)"
        )
        return list(cursor.fetchall())


def _sqlite_tables() -> list[tuple[str, int | None, int, int]]:
    with connection.cursor() as cursor:
        # Not `aggregate`: that looks through a whole table before it can be stopped.
        cursor.execute("SELECT name, SUM(pgsize) FROM dbstat GROUP BY name")
        sizes = dict(cursor.fetchall())
        cursor.execute("SELECT name, seq FROM sqlite_sequence")
        highest = dict(cursor.fetchall())
        cursor.execute(
            "SELECT name, tbl_name, type FROM sqlite_master WHERE type IN ('table', 'index')"
        )
        parts = cursor.fetchall()
    indexes: Counter[str] = Counter()
    for name, table, kind in parts:
        if kind == "index":
            indexes[table] += sizes.get(name, 0)
    return [
        (name, highest.get(name), sizes.get(name, 0), indexes[name])
        for name, _, kind in parts
        if kind == "table"
    ]


def _settings(section: Section) -> None:
    section.columns = ("Name", "Value", "Set")
    configured: Mapping[str, tuple[object, bool]] = settings.CONFIGURED
    # What is set here comes first.
    for name in sorted(configured, key=lambda name: (not configured[name][1], name)):
        value, is_set = configured[name]
        if value is None or (name in _HIDDEN and is_set):
            text = "(hidden)" if is_set else ""
        else:
            text = _PASSWORD.sub("…@", str(value))
        section.rows.append((name, text, "yes" if is_set else ""))


def _requests(query: str) -> str:
    return f"{reverse('admin:requests_app_request_changelist')}?{query}"


def _fetch(sql: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return str(cursor.fetchone()[0])

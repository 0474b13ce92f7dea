"""`python -m benchmarks.admin_pages [--rows N] [--keep DIRECTORY]`: what the pages of the admin cost.

The record of a month, made of a few thousand made-up turns that are copied until there are N: server time
(medians of five, after one to warm up: by the clock, and of the processor, which other programs disturb
less), queries and bytes of each page, against its budget. On SQLite in a
directory of its own, which `--keep` keeps and finds again for two hours; on PostgreSQL where
QWENPROXY_TEST_DATABASE_URL names a server: `.ci/postgresql .venv/bin/python -m benchmarks.admin_pages`.
Copies share the messages of what they are copies of.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import os
import re
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.databases import new_database

_DAYS = 30
_BASE_TURNS = 5000
_TIMES = 5
_FRESH = timedelta(hours=2)
_ADDRESSES = re.compile(rb'(?:href|src)="(/static/[^"]+\.(?:css|js))"')
_OLDER = re.compile(r'rel="next" href="([^"]+)"')
# What pages back a reader may go; each is the same work.
_DEEP_PAGES = 20


@dataclass(frozen=True, slots=True)
class Case:
    """A page with its budget: milliseconds and queries; null: none is set."""

    name: str
    url: str
    ms: float | None = None
    queries: int | None = None
    html_kb: float | None = None


def _fill(rows: int, now: datetime) -> None:
    # After `django.setup`.
    from qwenproxy.dashboard import demo_data

    copies = max(rows // _BASE_TURNS, 1)
    step = timedelta(days=_DAYS) / copies
    first = now - step * (copies - 1)
    base = demo_data.make_turns(_BASE_TURNS, step / timedelta(days=1), 1, first, large=False)
    for _ in demo_data.write_turns(base, 1, now):
        pass
    started = time.perf_counter()
    for number in range(1, copies):
        _copy(number, step * number)
        if number % 20 == 0:
            print(
                f"{(number + 1) * _BASE_TURNS:,} rows, {time.perf_counter() - started:.0f} s",
                flush=True,
            )
    _settle()
    # One of today, as large as they get, with its own messages.
    large = demo_data.make_turns(1, 1, 2, now, large=True)
    for _ in demo_data.write_turns(large, 2, now):
        pass
    for _ in demo_data.count_up(now):
        pass


def _copy(number: int, later: timedelta) -> None:
    """Copy the sessions, requests and responses of the base to a later time, with ids that no UUID has."""
    from django.db import connection

    from requests_app.models import Request, Response
    from sessions_app.models import Session

    with connection.cursor() as cursor:
        for model, changed in (
            (Session, {"id": _id("id", number), "last_reply_id": "NULL"}),
            (
                Request,
                {
                    "id": f"id + {number * _BASE_TURNS}",
                    "request_id": f"'req_x{number:05d}' || substr(request_id, 11)",
                    "session_id": _id("session_id", number),
                },
            ),
            (
                Response,
                {
                    "id": f"id + {number * _BASE_TURNS}",
                    "response_id": f"'chatcmpl-x{number:05d}' || substr(response_id, 16)",
                    "request_id": f"request_id + {number * _BASE_TURNS}",
                    "session_id": _id("session_id", number),
                },
            ),
        ):
            columns = [str(field.column) for field in model._meta.concrete_fields]
            values = [changed.get(column) or _later(column, later) for column in columns]
            where = "substr(id, 29, 2) <> '-c'" if model is Session else f"id <= {_BASE_TURNS}"
            cursor.execute(
                f"INSERT INTO {model._meta.db_table} ({', '.join(columns)})"
                f" SELECT {', '.join(values)} FROM {model._meta.db_table} WHERE {where}"
            )


def _id(column: str, number: int) -> str:
    # A UUID's text, its end replaced; those of the base have no such end.
    return f"substr({column}, 1, 28) || '-c{number:06d}'"


def _later(column: str, later: timedelta) -> str:
    from django.db import connection

    if column not in ("created_at", "completed_at", "last_accessed", "expires_at"):
        return column
    seconds = later.total_seconds()
    if connection.vendor == "postgresql":
        return f"{column} + interval '{seconds} seconds'"
    # As Django writes it, with microseconds.
    return f"strftime('%Y-%m-%d %H:%M:%f', {column}, '+{seconds:.3f} seconds') || '000'"


def _settle() -> None:
    """What inserts with ids of their own leave to do."""
    from django.core.management.color import no_style
    from django.db import connection

    from requests_app.models import Request, Response

    with connection.cursor() as cursor:
        for sql in connection.ops.sequence_reset_sql(no_style(), [Request, Response]):
            cursor.execute(sql)
        cursor.execute("ANALYZE")


def _cases(now: datetime) -> Iterator[Case]:
    from requests_app.models import Request, Response
    from sessions_app.models import Session

    newest = Request.objects.order_by("-created_at").first()
    assert newest is not None
    latest = Request.objects.latest("pk")
    large = Session.objects.order_by("-request_count").first()
    assert large is not None
    failed = Response.objects.filter(status="failed").order_by("-created_at").first()
    assert failed is not None
    ago = round((now - timedelta(days=25)).timestamp() * 1000)
    requests, sessions = "/admin/requests_app/request/", "/admin/sessions_app/session/"
    yield Case("Overview, 24 h", "/admin/?range=24h", 60, 20)
    yield Case("Overview, 30 d", "/admin/?range=30d", 150, 20)
    yield Case("Requests, 24 h", requests, 100, 8, 80)
    for chip in (
        "span=7d", "span=all", "status=failed", f"model={newest.model}", f"key={newest.api_key_id}",
        f"account={newest.account_id}", "stream=0", "slower=5", "error=upstream_rate_limited",
    ):  # fmt: skip
        yield Case(f"Requests, {chip.split('=')[0]}", f"{requests}?{chip}", 100, 8, 80)
    yield Case("Requests, 20 pages back", f"{requests}?span=all&deep", 100, 8, 80)
    yield Case("Requests, 25 days ago", f"{requests}?from={ago}&to={ago + 86_400_000}", 100, 8, 80)
    yield Case("Requests, all time, matches nothing", f"{requests}?span=all&error=no_such", 1300, 8)
    yield Case("Request by id", f"{requests}?span=all&q={newest.request_id}", 50, 8)
    yield Case("Request", f"{requests}{newest.pk}/change/", 120)
    yield Case("Request that failed", f"{requests}{failed.request_id}/change/", 120)
    yield Case("Sessions", sessions, 80, 8)
    yield Case("Sessions, span", f"{sessions}?span=all", 80, 8)
    yield Case("Sessions, errors", f"{sessions}?errors=1", 80, 8)
    yield Case("Sessions, branches", f"{sessions}?branches=1", 80, 8)
    yield Case("Transcript, 300 turns, 40 branches", f"{sessions}{large.pk}/change/", 120)
    yield Case("Errors, 24 h", "/admin/errors/?range=24h", 100)
    yield Case("Errors, 30 d", "/admin/errors/?range=30d", 150)
    yield Case("Live tail, a tick", f"/admin/live/rows/?after={latest.pk - 5}", 20)
    yield Case("API keys", "/admin/access/apikey/", 80)
    yield Case("Upstream accounts", "/admin/access/upstreamaccount/", 80)
    yield Case("Playground", "/admin/playground/", 80)
    yield Case("Health", "/admin/health/", 200)
    yield Case("Migrations", "/admin/migrations/", 50)
    yield Case("Audit", "/admin/admin/logentry/", 80)


def _measure(client: Any, case: Case) -> str:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    url = case.url
    if url.endswith("&deep"):
        url = _older(client, url.removesuffix("&deep"))
    answer, taken, cpu = client.get(url), [], []
    for _ in range(_TIMES if answer.status_code == 200 else 1):
        started, used = time.perf_counter(), time.process_time()
        answer = client.get(url)
        taken.append((time.perf_counter() - started) * 1000)
        cpu.append((time.process_time() - used) * 1000)
    with CaptureQueriesContext(connection) as queries:
        client.get(url)
    html, ms = len(answer.content) / 1000, median(taken)
    over = [
        what
        for what, figure, budget in (
            ("time", ms, case.ms), ("queries", len(queries), case.queries), ("HTML", html, case.html_kb)
        )
        if budget is not None and figure > budget
    ]  # fmt: skip
    verdict = f"{answer.status_code}" if answer.status_code != 200 else ", ".join(over)
    return (
        f"| {case.name} | {ms:.1f} | {median(cpu):.1f} | {_budget(case.ms)} | {len(queries)} | {_budget(case.queries)}"
        f" | {html:.1f} | {len(gzip.compress(answer.content, 6)) / 1000:.1f}"
        f" | {verdict or 'yes'} |"
    )


def _budget(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _older(client: Any, url: str) -> str:
    path = url.partition("?")[0]
    for _ in range(_DEEP_PAGES):
        link = _OLDER.search(client.get(url).content.decode())
        assert link
        url = path + link[1].replace("&amp;", "&")
    return url


def _first_load(client: Any) -> float:
    """Kilobytes of the list of requests with its scripts and styles, each compressed, in an empty cache."""
    from django.contrib.staticfiles import finders

    page = client.get("/admin/requests_app/request/").content
    total = len(gzip.compress(page, 6))
    for address in set(_ADDRESSES.findall(page)):
        name = address.decode().removeprefix("/static/")
        found = finders.find(re.sub(r"\.[0-9a-f]{12}(\.\w+)$", r"\1", name)) or finders.find(name)
        assert isinstance(found, str), name
        total += len(gzip.compress(Path(found).read_bytes(), 6))
    return total / 1000


def _export(client: Any, url: str) -> str:
    """Rows per second of an export, and what the process grew by."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    answer = client.get(url)
    if answer.status_code != 200:
        return f"{answer.status_code}"
    lines = asyncio.run(_lines(answer))
    took = time.perf_counter() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return f"{lines:,} lines, {lines / took:,.0f} per second, the process grew by {grown:.0f} MB"


async def _lines(answer: Any) -> int:
    return sum([chunk.count(b"\n") async for chunk in answer.streaming_content])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.admin_pages")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--keep", type=Path, help="of the database, on SQLite")
    args = parser.parse_args()
    with new_database(args.keep):
        from django.contrib.auth.models import User
        from django.db import connection
        from django.test import Client

        from requests_app.models import Request

        now = datetime.now(UTC)
        newest = Request.objects.order_by("-created_at").first()
        if newest is not None and now - newest.created_at > _FRESH:
            parser.error(f"{args.keep} is older than {_FRESH}: remove it")
        if newest is None:
            _fill(args.rows, now)
        user, _ = User.objects.get_or_create(
            username="benchmark", defaults={"is_staff": True, "is_superuser": True}
        )
        client = Client(SERVER_NAME="127.0.0.1")
        client.force_login(user)
        rows = Request.objects.count()
        print(f"{connection.vendor}, {rows:,} requests, load {os.getloadavg()[0]:.1f}\n")
        print("| page | ms | CPU ms | budget | queries | budget | HTML kB | gz kB | within |")
        print("|---|---|---|---|---|---|---|---|---|")
        for case in _cases(now):
            print(_measure(client, case), flush=True)
        print(f"\nFirst load of the list of requests, compressed: {_first_load(client):.0f} kB")
        for what in ("requests", "sessions"):
            url = f"/admin/export/{what}/?span=7d&format=jsonl"
            print(f"Export of {what} of 7 days: {_export(client, url)}", flush=True)


if __name__ == "__main__":
    main()

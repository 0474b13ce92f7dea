"""`python -m benchmarks.rollups [--rows N]`: what the statistics cost on a record of a month.

Measures filling from nothing, rolling one slot again, reading 24 hours and 30 days, the same sums straight
from the record, and what the index of ends costs the end of an answer. On SQLite in a directory of its own;
on PostgreSQL where QWENPROXY_TEST_DATABASE_URL names a server:
`.ci/postgresql .venv/bin/python -m benchmarks.rollups`. The database is new and is removed.
"""

from __future__ import annotations

import argparse
import os
import random
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

from benchmarks.databases import new_database

_DAYS = 30
_CHUNK_ROWS = 10_000
_KEYS, _MODELS, _ACCOUNTS = 50, 8, 5


def _fill(rows: int, now: datetime) -> None:
    # After `django.setup`.
    from qwenproxy.access.models import ApiKey, UpstreamAccount
    from requests_app.models import Request, Response
    from sessions_app.models import Session

    chance = random.Random(1)
    keys = [
        ApiKey.objects.create(name=f"key {n}", prefix=f"qp-{n}", secret_hash=f"{n:064d}")
        for n in range(_KEYS)
    ]
    accounts = [
        UpstreamAccount.objects.create(name=f"account {n}", kind="qwen_web").pk
        for n in range(_ACCOUNTS)
    ]
    sessions = [
        Session.objects.create(
            id=str(uuid.uuid4()), api_key=key, title="", context_digest=b"", created_at=now,
            last_accessed=now, expires_at=now,
        )
        for key in keys
    ]  # fmt: skip
    step = timedelta(days=_DAYS) / rows
    answer = "x" * 1000
    for start in range(0, rows, _CHUNK_ROWS):
        requests, responses = [], []
        for number in range(start, min(start + _CHUNK_ROWS, rows)):
            session = chance.choice(sessions)
            ended = now - timedelta(days=_DAYS) + step * (number + 1)
            duration_ms = int(chance.lognormvariate(8, 1))
            created_at = ended - timedelta(milliseconds=duration_ms)
            status = chance.choices(("completed", "failed", "cancelled"), (95, 3, 2))[0]
            request = Request(
                id=number + 1, request_id=f"req_{number:012d}", session=session,
                api_key_id=session.api_key_id, parameters="{}", dialect="chat", method="POST",
                path="/v1/chat/completions", model=f"model-{int(chance.paretovariate(1)) % _MODELS}",
                account_id=chance.choice(accounts), stream=True, user_agent="benchmark/1",
                match="new", upstream="new", created_at=created_at,
            )  # fmt: skip
            requests.append(request)
            responses.append(
                Response(
                    response_id=f"chatcmpl-{number:012d}",
                    request_id=number + 1,
                    session=session,
                    api_key_id=session.api_key_id,
                    status=status,
                    prompt_tokens=900,
                    completion_tokens=400,
                    total_tokens=1300,
                    duration_ms=duration_ms,
                    error_code="upstream_error" if status == "failed" else None,
                    ttft_ms=int(chance.lognormvariate(6, 1)),
                    created_at=created_at,
                    completed_at=ended,
                    upstream_response=answer,
                )  # fmt: skip
            )
        Request.objects.bulk_create(requests)
        Response.objects.bulk_create(responses)


def _ms(function: Callable[[], object], times: int = 7) -> float:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        function()
        taken.append((time.perf_counter() - started) * 1000)
    return median(taken)


def _row(what: str, figure: str) -> None:
    print(f"| {what} | {figure} |", flush=True)


def _read(days: float, now: datetime) -> None:
    """The parts of an overview: sums, the same before, a line, percentiles, four breakdowns."""
    from requests_app.figures import Reader
    from requests_app.windows import Window

    reader, window = Reader(now), Window.last(timedelta(days=days), now)
    interval = "slot" if days == 1 else "day"
    reader.totals(window)
    reader.totals(window.previous())
    reader.series(window, interval, UTC, "status")
    for metric in ("ttft", "total"):
        reader.latency(window, metric)
    reader.latency_series(window, interval, UTC, "ttft")
    for group in ("model", "key", "account", "error"):
        reader.groups(window, group)


def _roll_again(slot: int, now: datetime) -> None:
    """Roll one slot from nothing."""
    from django.db import connection

    from requests_app.rollups import mark_late, roll_next
    from requests_app.windows import slot_start

    with connection.cursor() as cursor:
        for table in ("usageslot", "latencyslot"):
            cursor.execute(
                f"DELETE FROM requests_app_{table} WHERE dim IN ('total', 'model', 'key') AND slot = %s",
                [slot],
            )
        mark_late(cursor, [slot_start(slot)], now=now, border=None)
    roll_next(now)


def _raw(days: float, now: datetime) -> None:
    """Four of these sums straight from the record."""
    from django.db.models import Count, Sum

    from requests_app.models import Response

    rows = Response.objects.filter(completed_at__gte=now - timedelta(days=days))
    for by in ("status", "request__model", "api_key", "request__account"):
        list(rows.values(by).annotate(Count("id"), Sum("prompt_tokens"), Sum("completion_tokens")))


def _close_cost(times: int = 2000) -> float:
    """Microseconds to end one answer, in transactions of 20."""
    from django.db import connection, transaction

    from requests_app.models import Response

    pks = list(Response.objects.order_by("-pk").values_list("pk", flat=True)[:times])
    Response.objects.filter(pk__in=pks).update(completed_at=None, status="in_progress")
    started = time.perf_counter()
    for start in range(0, times, 20):
        with transaction.atomic(), connection.cursor() as cursor:
            now = connection.ops.adapt_datetimefield_value(datetime.now(UTC))
            cursor.executemany(
                "UPDATE requests_app_response SET status = 'completed', completed_at = %s"
                " WHERE id = %s",
                [(now, pk) for pk in pks[start : start + 20]],
            )
    return (time.perf_counter() - started) * 1e6 / times


def _measure_index() -> None:
    from django.db import connection

    from requests_app.models import Response

    index = next(one for one in Response._meta.indexes if one.name == "response_completed")
    ratios, with_index = [], []
    for _ in range(5):
        with_us = _close_cost()
        with connection.schema_editor() as editor:
            editor.remove_index(Response, index)
        without_us = _close_cost()
        started = time.perf_counter()
        with connection.schema_editor() as editor:
            editor.add_index(Response, index)
        built_s = time.perf_counter() - started
        ratios.append(with_us / without_us)
        with_index.append(with_us)
    _row(
        "ending an answer with the index / without",
        f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), {median(with_index):.0f} µs",
    )
    _row("building the index", f"{built_s:.1f} s")


def _fill_only(rows: int, directory: Path) -> None:
    with new_database(directory):
        # After `django.setup`.
        from requests_app.rollups import roll_next

        now = datetime.now(UTC)
        _fill(rows, now)
        while roll_next(now) is not None:
            pass


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rollups")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--fill", type=Path, help="only fill this data directory's database, on SQLite"
    )
    args = parser.parse_args()
    if args.fill:
        os.environ.pop("QWENPROXY_TEST_DATABASE_URL", None)
        _fill_only(args.rows, args.fill)
        return
    with new_database():
        # After `django.setup`.
        from django.db import connection

        from requests_app.models import LatencySlot, UsageSlot
        from requests_app.rollups import rebuild, roll_next, rolled_to

        now = datetime.now(UTC)
        _fill(args.rows, now)
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE")
        print(f"{connection.vendor}, {args.rows} rows, load {os.getloadavg()[0]:.1f}")
        print("| what | figure |\n|---|---|")
        started = time.perf_counter()
        while roll_next(now) is not None:
            pass
        _row("filling from nothing", f"{time.perf_counter() - started:.1f} s")
        _row("rows", f"{UsageSlot.objects.count()} + {LatencySlot.objects.count()}")
        newest = rolled_to()
        assert newest is not None
        again = _ms(lambda: _roll_again(newest - 2, now), 15)
        _row("rolling one slot again", f"{again:.1f} ms")
        started = time.perf_counter()
        list(rebuild(0, newest, now))
        _row("rebuilding all, resting half of the time", f"{time.perf_counter() - started:.1f} s")
        for name, days in (("24 h", 1), ("30 d", 30)):
            read = _ms(lambda days=days: _read(days, now))  # type: ignore[misc]
            raw = _ms(lambda days=days: _raw(days, now), 3)  # type: ignore[misc]
            _row(f"reading {name}, all of an overview", f"{read:.1f} ms")
            _row(f"four of its sums from the record, {name}", f"{raw:.1f} ms, {raw / read:.0f} x")
        _measure_index()


if __name__ == "__main__":
    main()

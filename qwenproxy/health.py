"""Whether the process lives (`/healthz`), may be given traffic (`/readyz`), and what it counts."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from django.conf import settings
from django.db import Error as DatabaseError
from django.http import HttpResponse

from qwenproxy import __version__, metrics
from qwenproxy.access.auth import authenticate
from qwenproxy.database import run_in_db
from qwenproxy.errors import GatewayError
from qwenproxy.schema.state import SchemaState
from qwenproxy.schema.status import read_figures, read_standing
from qwenproxy.wire import json
from qwenproxy.wire.json import JSONObject

if TYPE_CHECKING:
    from qwenproxy.asgi_handler import LeanRequest
    from qwenproxy.proxy.gateway import Gateway

_STARTED_AT = time.monotonic()
_CHECK_TIMEOUT_S = 2.0
# "ok" or what is wrong with the recording (null: nothing can be recorded yet), and the schema's standing.
_Standing = tuple[str | None, tuple[str, int, str]]


def uptime_s() -> float:
    """Of this process."""
    return time.monotonic() - _STARTED_AT


async def alive(request: LeanRequest) -> HttpResponse:
    """Alive; asks nothing of the database."""
    return _json(
        {
            "status": "healthy",
            "timestamp": int(time.time() * 1000),
            "uptime": round(uptime_s(), 3),
        }
    )


async def ready(request: LeanRequest) -> HttpResponse:
    """200, or 503 with what is not ready: serving, recording, schema."""
    return await _report(request.gateway, {})


async def detailed(request: LeanRequest) -> HttpResponse:
    """The same checks with figures, for an admin key."""
    await authenticate(request, scope="admin")
    gateway = request.gateway
    figures: JSONObject = {
        "version": __version__,
        "uptime": round(uptime_s(), 3),
        "running": gateway.running if gateway else 0,
        "recorder_queue": gateway.recorder.queued if gateway else 0,
        "unrecorded": gateway.recorder.unrecorded if gateway else 0,
    }
    return await _report(gateway, figures)


async def show_metrics(request: LeanRequest) -> HttpResponse:
    """Prometheus exposition; needs an admin key unless QWENPROXY_METRICS_OPEN."""
    if not settings.METRICS_OPEN:
        await authenticate(request, scope="admin")
    if (gateway := request.gateway) is not None:
        metrics.RUNNING.set(gateway.running)
        metrics.RECORDER_QUEUE.set(gateway.recorder.queued)
        metrics.UNRECORDED.set(gateway.recorder.unrecorded)
        for kind, removed in gateway.retention.removed.items():
            metrics.RETENTION_SESSIONS.labels(kind).set(removed.sessions)
            metrics.RETENTION_BYTES.labels(kind).set(removed.bytes)
        metrics.RETENTION_LAST_RUN.set(gateway.retention.last_run)
        metrics.ACCOUNT_STATE.clear()
        for lane in gateway.routing.lanes:
            metrics.ACCOUNT_STATE.labels(lane.upstream.account.name, lane.health.state).set(1)
    await _measure_schema()
    return HttpResponse(metrics.exposition(), content_type=metrics.CONTENT_TYPE)


async def _measure_schema() -> None:
    """Other processes migrate as well, so the database is asked; not a number where it is silent."""
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            figures = await run_in_db(read_figures)
    except (TimeoutError, DatabaseError):
        figures = None
    values = (figures.pending, figures.last_run_s, figures.last_run_ok) if figures else (None,) * 3
    gauges = (
        metrics.SCHEMA_PENDING,
        metrics.SCHEMA_LAST_RUN_SECONDS,
        metrics.SCHEMA_LAST_RUN_OK,
    )
    for gauge, value in zip(gauges, values, strict=True):
        gauge.set(math.nan if value is None else value)


# One at a time on each loop: `/readyz` is asked without a key, and each check reads and writes the database.
_running: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[_Standing]] = (
    WeakKeyDictionary()
)


async def _check(gateway: Gateway | None) -> _Standing:
    schema = await _check_schema()
    return None if gateway is None else await _check_recording(gateway), schema


async def _check_once(gateway: Gateway | None) -> _Standing:
    """What is found now; those who ask meanwhile are told the same."""
    loop = asyncio.get_running_loop()
    task = _running.get(loop)
    if task is None or task.done():
        task = _running[loop] = asyncio.create_task(_check(gateway))
    return await asyncio.shield(task)


async def _check_recording(gateway: Gateway) -> str:
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            await gateway.recorder.check()
    except TimeoutError:
        return f"no write within {_CHECK_TIMEOUT_S:g} s"
    except GatewayError as error:
        return error.message
    return "ok"


async def _check_schema() -> tuple[str, int, str]:
    """The state in a word, how many migrations wait, and "ok" or what is wrong."""
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            word, state = await run_in_db(read_standing)
    except TimeoutError:
        return "db_down", 0, f"no answer within {_CHECK_TIMEOUT_S:g} s"
    except DatabaseError as exc:
        return "db_down", 0, f"the database does not answer: {type(exc).__name__}"
    return word, len(state.pending), schema_problem(state) or "ok"


def schema_problem(state: SchemaState) -> str:
    """Why nothing can be served on the database; empty where it can."""
    if state.ahead:
        return "the database is ahead of this version"
    return f"pending migrations: {len(state.pending)}" if state.pending else ""


async def _report(gateway: Gateway | None, figures: JSONObject) -> HttpResponse:
    """Each part with "ok", or what is wrong with it; the status is the schema's where that is it."""
    recording, (word, pending, schema) = await _check_once(gateway)
    checks = {"serving": "starting", "schema": schema}
    if gateway is not None:
        checks["serving"] = "draining" if gateway.draining else "ok"
    if recording is not None:
        checks["recording"] = recording
    is_ready = all(state == "ok" for state in checks.values())
    status = word if is_ready or word != "ready" else "not_ready"
    body: JSONObject = {"status": status, "pending": pending, "checks": {**checks}}
    return _json({**body, **figures}, status=200 if is_ready else 503)


def _json(body: JSONObject, *, status: int = 200) -> HttpResponse:
    return HttpResponse(json.dumps(body), status=status, content_type="application/json")

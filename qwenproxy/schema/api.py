"""REST of the schema: state, history and plan, as `showmigrations` and `migrate --plan` tell them.

Reads only. Who may ask is set where the routes are mounted; each makes one call to the database pool.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal
from uuid import UUID

from django.db import Error as DatabaseError
from django.db import connection
from django.http import HttpRequest, HttpResponse
from ninja import Query, Router

from qwenproxy.database import run_in_db
from qwenproxy.errors import SchemaNotReady
from qwenproxy.schema import plan, report
from qwenproxy.schema.history import History
from qwenproxy.wire import json
from qwenproxy.wire.json import JSONObject

router = Router(tags=["schema"])

Status = Literal["started", "ok", "failed", "interrupted"]


@router.get("/status")
async def get_status(request: HttpRequest) -> HttpResponse:
    """Show where the database stands: what is applied, pending, failed, held, unknown or changed."""
    return await _answer(lambda: report.build(connection))


@router.get("/plan")
async def get_plan(request: HttpRequest) -> HttpResponse:
    """Show the SQL of all that is pending, who waits for it, and about how long."""
    return await _answer(lambda: plan.describe(connection))


@router.get("/history")
async def list_events(
    request: HttpRequest,
    app: Annotated[str | None, Query(pattern=r"^\w*$", max_length=255)] = None,
    status: Status | None = None,
    run: UUID | None = None,
    cursor: Annotated[int | None, Query(ge=1, lt=2**63)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> HttpResponse:
    """List what was done to the schema, newest first; backups and restores have no app."""
    wanted = {"app": app, "status": status, "run": run, "id__lt": cursor}
    filters = {name: value for name, value in wanted.items() if value is not None}
    return await _answer(lambda: _events(filters, limit))


def _events(filters: dict[str, Any], limit: int) -> JSONObject:
    rows = report.read_events(History(connection), **filters)[::-1]
    page = rows[:limit]
    has_more = len(rows) > limit
    return {
        "object": "list",
        "data": [_event(row) for row in page],
        "limit": limit,
        "has_more": has_more,
        "next_cursor": page[-1]["id"] if has_more else None,
    }


def _event(row: dict[str, Any]) -> JSONObject:
    run, at = row["run"], row["at"]
    return row | {"run": run and str(run), "at": at and at.isoformat()}


async def _answer(read: Callable[[], JSONObject]) -> HttpResponse:
    def encoded() -> bytes:
        with report.read_only(connection):
            return json.dumps(read())

    try:
        body = await run_in_db(encoded)
    except DatabaseError as exc:
        raise SchemaNotReady(f"The database cannot be read: {exc}") from exc
    return HttpResponse(body, content_type="application/json")

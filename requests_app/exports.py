"""Exports of requests and sessions as files: what a list shows under the same filters, all of it.

Rows are read newest first, some at a time, each time in a query of its own: nothing is buffered, no
transaction stays open, the event loop waits for nothing, and what a client does not take is not read.
A filter that no index serves reads so many rows of the time at once and no more. Every export is in the
audit log: when it begins, and with the number of rows that left when it ends.
"""

from __future__ import annotations

import csv
import io
import json as stdlib_json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from django.conf import settings
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.http import Http404, HttpRequest, StreamingHttpResponse

from qwenproxy.access import staff
from qwenproxy.database import run_in_db
from qwenproxy.wire import json
from qwenproxy.wire.json import JSONObject
from requests_app.files import restore
from requests_app.models import Request
from requests_app.records import load_requests
from requests_app.request_filters import read_chips, sort_of, time_column
from requests_app.rollups import ERRORS
from sessions_app.admin import RecordAdmin, begins_with
from sessions_app.chips import Chips, row_id
from sessions_app.models import Message, Session
from sessions_app.paging import Sort, beyond
from sessions_app.transcript import message_body

CHUNK_ROWS = 1000
# With bodies: of whole requests, and of messages, which may be megabytes each.
_CHUNK_BODIES = 20
# What a filter without an index may look at in one query.
_SCANNED_ROWS = 5000
_MAX_IDS = 200
# What spreadsheets would take for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

# Bytes, and the rows that end in them.
Piece = tuple[bytes, int]

CSV_COLUMNS = {
    "time": "created_at",
    "request_id": "request_id",
    "session_id": "session_id",
    "api_key": "api_key__name",
    "model": "model",
    "endpoint": "path",
    "stream": "stream",
    "account": "account__name",
    "response_id": "response__response_id",
    "status": "response__status",
    "http_status": "response__http_status",
    "error_code": "response__error_code",
    "finish_reason": "response__finish_reason",
    "first_token_ms": "response__ttft_ms",
    "total_ms": "response__duration_ms",
    "prompt_tokens": "response__prompt_tokens",
    "completion_tokens": "response__completion_tokens",
    "reasoning_tokens": "response__reasoning_tokens",
    "cached_tokens": "response__cached_tokens",
    "usage_source": "response__usage_source",
}


class Export:
    """The bytes of an export as they are read; an async iterator, for Django's ASGI handler.

    That calls `close` when all has left or the client is gone, in a thread where it may block.
    """

    def __init__(self, pieces: Iterator[Piece], entry: LogEntry) -> None:
        self._pieces = pieces
        self._entry = entry
        self._rows = 0
        self._is_whole = False

    def __aiter__(self) -> Export:
        return self

    async def __anext__(self) -> bytes:
        # Each piece is made of queries of its own, so any thread may take the next.
        piece = await run_in_db(self._next)
        if piece is None:
            self._is_whole = True
            raise StopAsyncIteration
        self._rows += piece[1]
        return piece[0]

    def _next(self) -> Piece | None:
        return next(self._pieces, None)

    def close(self) -> None:
        details = stdlib_json.loads(self._entry.change_message)
        details |= {"rows": self._rows, "is_whole": self._is_whole}
        self._entry.change_message = stdlib_json.dumps(details)
        self._entry.save(update_fields=["change_message"])


@staff.gateway_view(staff.VIEW_REQUESTS)
def export_requests(request: HttpRequest) -> StreamingHttpResponse:
    """The requests of the list: `format=csv` has metadata, `jsonl` (the default) also both bodies."""
    form = request.GET.get("format", "jsonl")
    if form not in ("csv", "jsonl"):
        raise Http404
    # Where only failed requests are readable, the others are without their bodies.
    if form == "jsonl" and not staff.may_read(request, has_failed=True):
        raise PermissionDenied
    chips = read_chips(request.GET)
    ids = _ids(request)
    if ids is None:
        keys = _request_keys(request, chips)
    else:
        keys = iter([list(Request.objects.filter(pk__in=ids).order_by("-id").values_list("pk"))])
    if form == "csv":
        pieces = _csv(keys)
    else:
        pieces = _request_lines(keys, only_failed=not staff.may_read(request))
    details = {"ids": len(ids)} if ids is not None else {"filter": chips.parameters}
    return _answer(request, Request, form, pieces, details)


@staff.gateway_view(staff.VIEW_SESSIONS)
def export_sessions(request: HttpRequest) -> StreamingHttpResponse:
    """The sessions of the list with all their messages, a JSON line each."""
    if not staff.may_read(request):
        raise PermissionDenied
    # Whose filters are the export's.
    session_admin = cast("RecordAdmin", admin.site.get_model_admin(Session))
    chips = session_admin.chips(request)
    rows = Session.objects.filter(chips.condition(session_admin.time_column(request)))
    rows, _ = session_admin.get_search_results(request, rows, chips.search)
    pieces = _session_lines(_keys(rows, session_admin.sort(request), None))
    return _answer(request, Session, "jsonl", pieces, {"filter": chips.parameters})


def _answer(
    request: HttpRequest,
    model: type[Model],
    form: str,
    pieces: Iterator[Piece],
    details: Mapping[str, object],
) -> StreamingHttpResponse:
    entry = staff.audit(request, staff.EXPORTED, model, format=form, rows=None, **details)
    moment = datetime.now(settings.REPORTING_ZONE).strftime("%Y%m%d-%H%M%S")
    name = f"{model._meta.verbose_name_plural}-{moment}.{form}"
    return StreamingHttpResponse(
        Export(pieces, entry),
        content_type="text/csv; charset=utf-8" if form == "csv" else "application/x-ndjson",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )


# Which rows, in their order.


def _ids(request: HttpRequest) -> list[int] | None:
    """The rows chosen by hand; null: all of the filters."""
    text = request.GET.get("ids")
    if text is None:
        return None
    found = [pk for part in text.split(",") if (pk := row_id(part)) is not None]
    return found[:_MAX_IDS]


def _request_keys(request: HttpRequest, chips: Chips) -> Iterator[list[tuple[int]]]:
    sort = sort_of(request.GET)
    rows = Request.objects.filter(chips.condition(time_column(request.GET)))
    if chips.search:
        is_request = chips.search.startswith("req_")
        column = "request_id" if is_request else "response__response_id"
        rows = rows.filter(begins_with(column, chips.search))
    is_quick = chips.is_indexed or bool(chips.search)
    everything = None
    if not is_quick and sort.value is not None:
        everything = Request.objects.filter(chips.window.condition(sort.value))
    return _keys(rows, sort, everything)


def _keys(
    rows: QuerySet[Any], sort: Sort, everything: QuerySet[Any] | None
) -> Iterator[list[tuple[Any]]]:
    """Primary keys, some at a time, newest first.

    `everything` is what would have to be looked through to find the rows; null: an index serves them.
    """
    columns = [column for column in (sort.value, sort.id) if column]
    order = [f"-{column}" for column in columns]
    position: tuple[Any, ...] | None = None
    while True:
        below = rows if position is None else rows.filter(beyond(sort, True, *position))
        last = None
        if everything is not None:
            rest = everything.filter(beyond(sort, True, *position)) if position else everything
            last = rest.order_by(*order).values_list(*columns)[_SCANNED_ROWS - 1 :].first()
            if last is not None:
                below = below.exclude(beyond(sort, True, *last))
        found = below.order_by(*order).values_list("pk", *columns)
        chunk = list(found if last is not None else found[:CHUNK_ROWS])
        yield [row[:1] for row in chunk]
        if last is None and len(chunk) < CHUNK_ROWS:
            return
        position = last if last is not None else chunk[-1][1:]
        if sort.value is None:
            position = (None, *position)


# What is written of them.


def _csv(keys: Iterator[list[tuple[int]]]) -> Iterator[Piece]:
    yield _csv_text([tuple(CSV_COLUMNS)]), 0
    for chunk in keys:
        pks = [pk for (pk,) in chunk]
        rows = Request.objects.filter(pk__in=pks).values_list("pk", *CSV_COLUMNS.values())
        by_pk = {row[0]: row[1:] for row in rows}
        found = [by_pk[pk] for pk in pks if pk in by_pk]
        if found:
            yield _csv_text([tuple(map(_cell, row)) for row in found]), len(found)


def _csv_text(rows: Sequence[tuple[object, ...]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "replace")


def _cell(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, str):
        value = value.replace("\0", "\ufffd")
        return f"'{value}" if value.startswith(_FORMULA) else value
    return value


def _request_lines(keys: Iterator[list[tuple[int]]], *, only_failed: bool) -> Iterator[Piece]:
    for chunk in keys:
        for start in range(0, len(chunk), _CHUNK_BODIES):
            pks = [pk for (pk,) in chunk[start : start + _CHUNK_BODIES]]
            for record in load_requests(pks):
                yield json.dumps(_without_bodies(record) if only_failed else record) + b"\n", 1


def _without_bodies(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record as those may have it who read failed requests only."""
    response = record["response"] or {}
    if response.get("status") in ERRORS:
        return record
    hidden = dict.fromkeys(("openai_request", "qwen_request", "headers", "attempts"))
    hidden_response = dict.fromkeys(("openai_response", "qwen_response", "error"))
    return {**record, **hidden, "response": {**response, **hidden_response} if response else None}


def _session_lines(keys: Iterator[list[tuple[str]]]) -> Iterator[Piece]:
    for chunk in keys:
        for (session_id,) in chunk:
            yield from _session_line(session_id)


def _session_line(session_id: str) -> Iterator[Piece]:
    """One session, in pieces: all of its messages may be more than is good to hold."""
    session = Session.objects.select_related("api_key").filter(pk=session_id).first()
    if session is None:
        return
    head = {
        "id": session.id,
        "title": session.title,
        "api_key": session.api_key.name,
        "user": session.user_id,
        "external_id": session.external_id,
        "created_at": _cell(session.created_at),
        "last_activity": _cell(session.last_accessed),
        "requests": session.request_count,
    }
    messages = Message.objects.filter(session=session_id).order_by("id")
    pks = list(messages.values_list("pk", flat=True))
    yield json.dumps(head)[:-1] + b',"messages":[', 0
    for start in range(0, len(pks), _CHUNK_BODIES):
        part = messages.filter(pk__in=pks[start : start + _CHUNK_BODIES])
        rows = list(part)
        bodies = restore([message_body(row) for row in rows], session.api_key_id)
        lines = [json.dumps(_message(*pair)) for pair in zip(rows, bodies, strict=True)]
        yield (b"," if start else b"") + b",".join(lines), 0
    yield b"]}\n", 1


def _message(row: Message, body: JSONObject) -> dict[str, Any]:
    # Below which message it stands: a session is a tree.
    place = {"id": row.pk, "parent_id": row.parent_id, "created_at": _cell(row.created_at)}
    return {**place, "message": body}

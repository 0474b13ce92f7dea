"""Exports of requests and sessions as files: what a list shows under the same filters, all of it.

Rows are read newest first, some at a time, each time in a query of its own: no transaction stays open, the
event loop waits for nothing, and what a client does not take is not read. No more is held than the rows of
one batch and the messages that the next ones may share with them.
A filter that no index serves reads so many rows of the time at once and no more. Every export is in the
audit log: when it begins, and with the number of rows that left when it ends.
"""

from __future__ import annotations

import csv
import io
import itertools
import json as stdlib_json
import time
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
from qwenproxy.access.models import ApiKey, UpstreamAccount
from qwenproxy.database import read_in_db
from qwenproxy.wire import json
from qwenproxy.wire.history import decode_content
from qwenproxy.wire.json import JSONObject
from requests_app.files import restore
from requests_app.models import Request
from requests_app.records import RecordReader
from requests_app.request_filters import read_chips, sort_of, time_column
from requests_app.rollups import ERRORS
from sessions_app.admin import RecordAdmin, begins_with
from sessions_app.chips import Chips, row_id
from sessions_app.models import Message, Session
from sessions_app.paging import Sort, beyond

CHUNK_ROWS = 1000
# With bodies: of requests and sessions, and of messages, which may be megabytes each.
_CHUNK_BODIES = 100
_CHUNK_MESSAGES = 100
# Each piece is a hop between threads and a write to the client.
_PIECE_BYTES = 2**16
# A piece ends then at the latest, with what there is: a call of the pool has a time limit.
_PIECE_S = 1.0
# What a filter without an index may look at in one query.
_SCANNED_ROWS = 5000
_MAX_IDS = 200
# What spreadsheets would take for the beginning of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

_SESSION_COLUMNS = (
    "id", "title", "api_key_id", "user_id", "external_id", "created_at", "last_accessed", "request_count",
)  # fmt: skip

# Bytes, and the rows that end in them.
Piece = tuple[bytes, int]
# Columns of some rows.
Chunk = list[tuple[Any, ...]]

CSV_COLUMNS = {
    "time": "created_at",
    "request_id": "request_id",
    "session_id": "session_id",
    "api_key": "api_key_id",
    "model": "model",
    "endpoint": "path",
    "stream": "stream",
    "account": "account_id",
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
        piece = await read_in_db(self._next)
        while piece is not None and not piece[0]:
            # It looked through rows of which none is wanted.
            piece = await read_in_db(self._next)
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
    columns = tuple(CSV_COLUMNS.values()) if form == "csv" else ("pk",)
    if ids is None:
        rows = _requests(request, chips, columns)
    else:
        rows = iter(
            [list(Request.objects.filter(pk__in=ids).order_by("-id").values_list(*columns))]
        )
    if form == "csv":
        pieces = _csv(rows)
    else:
        pieces = _request_lines(rows, only_failed=not staff.may_read(request))
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
    pieces = _session_lines(_chunks(rows, session_admin.sort(request), ("pk",)))
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
        Export(_together(pieces), entry),
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


def _requests(request: HttpRequest, chips: Chips, columns: Sequence[str]) -> Iterator[Chunk]:
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
    return _chunks(rows, sort, columns, everything)


def _chunks(
    rows: QuerySet[Any],
    sort: Sort,
    columns: Sequence[str],
    everything: QuerySet[Any] | None = None,
) -> Iterator[Chunk]:
    """These columns of the rows, some at a time, newest first; a chunk may be empty.

    `everything` is what would have to be looked through to find the rows; null: an index serves them.
    """
    place = [column for column in (sort.value, sort.id) if column]
    order = [f"-{column}" for column in place]
    position: tuple[Any, ...] | None = None
    while True:
        below = rows if position is None else rows.filter(beyond(sort, True, *position))
        last = None
        if everything is not None:
            rest = everything.filter(beyond(sort, True, *position)) if position else everything
            last = rest.order_by(*order).values_list(*place)[_SCANNED_ROWS - 1 :].first()
            if last is not None:
                below = below.exclude(beyond(sort, True, *last))
        found = below.order_by(*order).values_list(*place, *columns)
        chunk = list(found if last is not None else found[:CHUNK_ROWS])
        yield [row[len(place) :] for row in chunk]
        if last is None and len(chunk) < CHUNK_ROWS:
            return
        position = last if last is not None else chunk[-1][: len(place)]
        if sort.value is None:
            position = (None, *position)


# What is written of them.


def _together(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Small pieces as one."""
    parts: list[bytes] = []
    size = rows = 0
    until = time.monotonic() + _PIECE_S
    for part, ended in pieces:
        parts.append(part)
        size, rows = size + len(part), rows + ended
        if size >= _PIECE_BYTES or time.monotonic() > until:
            yield b"".join(parts), rows
            parts, size, rows = [], 0, 0
            until = time.monotonic() + _PIECE_S
    yield b"".join(parts), rows


class _Names(dict[int, str]):
    """Names by primary key: a join would look each up for every row."""

    def __init__(self, model: type[Model]) -> None:
        super().__init__({0: ""})
        self._rows = model._default_manager.order_by()

    def __missing__(self, pk: int) -> str:
        name = self._rows.filter(pk=pk).values_list("name", flat=True).first() or ""
        self[pk] = name
        return name


def _csv(chunks: Iterator[Chunk]) -> Iterator[Piece]:
    head = tuple(CSV_COLUMNS)
    yield _csv_text([head]), 0
    named = {head.index("api_key"): _Names(ApiKey), head.index("account"): _Names(UpstreamAccount)}
    for chunk in chunks:
        cells = []
        for row in chunk:
            values = list(row)
            for index, names in named.items():
                values[index] = names[values[index] or 0]
            cells.append([_cell(value) for value in values])
        yield _csv_text(cells), len(cells)


def _csv_text(rows: Sequence[Sequence[object]]) -> bytes:
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


def _request_lines(chunks: Iterator[Chunk], *, only_failed: bool) -> Iterator[Piece]:
    reader = RecordReader()
    for pks in _bodies(chunks):
        for record in reader.read(pks):
            yield json.dumps(_without_bodies(record) if only_failed else record) + b"\n", 1
        yield b"", 0


def _bodies(chunks: Iterator[Chunk]) -> Iterator[list[Any]]:
    """Primary keys, so many as are read at once with their bodies."""
    for chunk in chunks:
        pks = [pk for (pk,) in chunk]
        for start in range(0, max(1, len(pks)), _CHUNK_BODIES):
            yield pks[start : start + _CHUNK_BODIES]


def _without_bodies(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record as those may have it who read failed requests only."""
    response = record["response"] or {}
    if response.get("status") in ERRORS:
        return record
    hidden = dict.fromkeys(("openai_request", "qwen_request", "headers", "attempts"))
    hidden_response = dict.fromkeys(("openai_response", "qwen_response", "error"))
    return {**record, **hidden, "response": {**response, **hidden_response} if response else None}


def _session_lines(chunks: Iterator[Chunk]) -> Iterator[Piece]:
    names = _Names(ApiKey)
    for pks in _bodies(chunks):
        found = Session.objects.filter(pk__in=pks).values(*_SESSION_COLUMNS)
        sessions = {row["id"]: {**row, "api_key": names[row["api_key_id"]]} for row in found}
        ids: dict[str, list[int]] = {pk: [] for pk in pks if pk in sessions}
        rows = Message.objects.filter(session__in=list(ids)).order_by("id")
        for session_id, message_id in rows.values_list("session_id", "id"):
            ids[session_id].append(message_id)
        messages = _messages(itertools.chain.from_iterable(ids.values()))
        for session_id, own in ids.items():
            yield from _session_line(sessions[session_id], itertools.islice(messages, len(own)))
        yield b"", 0


def _session_line(
    session: Mapping[str, Any], rows: Iterator[Mapping[str, Any] | None]
) -> Iterator[Piece]:
    """One session, in pieces: all of its messages may be more than is good to hold."""
    head = {
        "id": session["id"],
        "title": session["title"],
        "api_key": session["api_key"],
        "user": session["user_id"],
        "external_id": session["external_id"],
        "created_at": _cell(session["created_at"]),
        "last_activity": _cell(session["last_accessed"]),
        "requests": session["request_count"],
    }
    yield json.dumps(head)[:-1] + b',"messages":[', 0
    separator = b""
    while some := list(itertools.islice(rows, _CHUNK_MESSAGES)):
        found = [row for row in some if row is not None]
        stored = [decode_content(row["role"], row["content"]) for row in found]
        for row, body in zip(found, restore(stored, session["api_key_id"]), strict=True):
            yield separator + json.dumps(_message(row, body)), 0
            separator = b","
    yield b"]}\n", 1


def _messages(ids: Iterator[int]) -> Iterator[Mapping[str, Any] | None]:
    """Rows in the order of their ids; null for what was deleted meanwhile."""
    columns = ("id", "parent_id", "created_at", "role", "content")
    while pks := list(itertools.islice(ids, _CHUNK_MESSAGES)):
        rows = Message.objects.filter(pk__in=pks).values(*columns)
        by_pk = {row["id"]: row for row in rows}
        yield from (by_pk.get(pk) for pk in pks)


def _message(row: Mapping[str, Any], body: JSONObject) -> dict[str, Any]:
    # Below which message it stands: a session is a tree.
    place = {"id": row["id"], "parent_id": row["parent_id"], "created_at": _cell(row["created_at"])}
    return {**place, "message": body}

"""REST of requests, responses and statistics, and what of a session needs them.

Keys see their own records, the admin scope all. Each endpoint makes one call to the database pool.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TypeVar

from django.conf import settings
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, QueryDict
from ninja import Router

from qwenproxy.database import read_in_db, run_in_db
from qwenproxy.errors import InvalidRequest, NotFound
from qwenproxy.reports import report
from qwenproxy.wire import json
from qwenproxy.wire.json import JSONObject
from qwenproxy.wire.openai_responses import PREFIX
from requests_app import responses_api, schemas
from requests_app.deletion import delete_session_rows
from requests_app.figures import GROUPS, RANGES
from requests_app.models import Request, Response
from requests_app.records import (
    REQUEST_FIELDS,
    RESPONSE_FIELDS,
    load_request,
    load_response,
    request_object,
    response_object,
)
from requests_app.stats import read_stats_query, stats_json, usage_totals
from requests_app.windows import INTERVALS
from sessions_app.api import require_session
from sessions_app.api import router as sessions_router
from sessions_app.paging import (
    MAX_INTEGER,
    Page,
    Sort,
    fetch,
    json_answer,
    list_object,
    milliseconds,
    read_boolean,
    read_choice,
    read_dates,
    read_integer,
    read_page,
    read_text,
    visible_key,
)
from sessions_app.schemas import ErrorBody, date_parameters, page_parameters, parameter

router = Router(tags=["requests"])

_Row = TypeVar("_Row", Request, Response)

SORTS = {
    "created_at": Sort("created_at"),
    "timestamp": Sort("created_at"),
    "id": Sort(None),
}
_CREATED_BY_STATUS = Sort("response__created_at", "response__id")
# The index of `status` lies on responses, which are created together with their requests: sorted by
# their columns, a rare status is found without reading through all requests.
SORTS_BY_STATUS = {
    "created_at": _CREATED_BY_STATUS,
    "timestamp": _CREATED_BY_STATUS,
    "id": Sort(None, "response__id"),
}
STATUSES = tuple(name for name, _ in Response.STATUSES)
_INTEGER_ID = re.compile(r"[0-9]{1,40}")
_REQUEST_ID = re.compile(r"req_[0-9A-Za-z_-]{1,60}")
_RESPONSE_ID = re.compile(r"(chatcmpl-|cmpl-|msg_|resp_)[0-9A-Za-z_-]{1,60}")

_REQUEST_FILTERS = [
    parameter("model", "string", "The model, as the client named it."),
    parameter("stream", "boolean", "Streamed or whole."),
    *date_parameters(),
    parameter("status", "string", "Status of the response.", enum=list(STATUSES)),
    parameter("api_key", "integer", "Id of the API key."),
]
_SESSION_FILTER = parameter("session_id", "string", "The session.")


@router.get(
    "/requests",
    response={200: schemas.RequestList, 400: ErrorBody},
    openapi_extra={
        "parameters": [*page_parameters(list(SORTS)), _SESSION_FILTER, *_REQUEST_FILTERS]
    },
)
async def list_requests(request: HttpRequest) -> HttpResponse:
    """List requests, newest first."""
    page, condition = _read_request_list(request.GET)
    session_id = read_text(request.GET, "session_id")
    if session_id is not None:
        condition &= Q(session=session_id)
    return await json_answer(_request_list, visible_key(request), condition, page)


@router.get(
    "/sessions/{session_id}/requests",
    tags=["sessions"],
    response={200: schemas.SessionRequestList, 400: ErrorBody, 404: ErrorBody},
    openapi_extra={"parameters": [*page_parameters(list(SORTS), 100), *_REQUEST_FILTERS]},
)
async def list_session_requests(request: HttpRequest, session_id: str) -> HttpResponse:
    """List the requests of one session, newest first."""
    page, condition = _read_request_list(request.GET, default_limit=100)
    return await json_answer(
        _session_request_list, visible_key(request), session_id, condition, page
    )


@router.get(
    "/requests/{reference}",
    response={200: schemas.RequestDetail, 400: ErrorBody, 404: ErrorBody},
)
async def get_request(request: HttpRequest, reference: str) -> HttpResponse:
    """Show one request, by its integer id or its `req_...` id, with the bodies of both sides."""
    condition = _read_reference(reference, "request_id", _REQUEST_ID)
    return await json_answer(_request_detail, visible_key(request), condition)


@router.get(
    "/requests/{reference}/response",
    response={200: schemas.ResponseDetail, 400: ErrorBody, 404: ErrorBody},
)
async def get_request_response(request: HttpRequest, reference: str) -> HttpResponse:
    """Show the response to one request."""
    condition = _read_reference(reference, "request_id", _REQUEST_ID)
    return await json_answer(_response_of_request, visible_key(request), condition)


@router.get(
    "/responses",
    tags=["responses"],
    response={200: schemas.ResponseList, 400: ErrorBody},
    openapi_extra={
        "parameters": [
            *page_parameters(list(SORTS)),
            _SESSION_FILTER,
            parameter("status", "string", "How it ended.", enum=list(STATUSES)),
        ]
    },
)
async def list_responses(request: HttpRequest) -> HttpResponse:
    """List responses, newest first."""
    page = read_page(request.GET, SORTS)
    condition = Q()
    session_id = read_text(request.GET, "session_id")
    status = read_choice(request.GET, "status", STATUSES)
    if session_id is not None:
        condition &= Q(session=session_id)
    if status is not None:
        condition &= Q(status=status)
    return await json_answer(_response_list, visible_key(request), condition, page)


@router.get(
    "/responses/stats",
    tags=["responses"],
    response={200: schemas.ResponseStats, 400: ErrorBody},
    openapi_extra={
        "parameters": [
            _SESSION_FILTER,
            parameter("sessionId", "string", "The same, in the older spelling."),
        ]
    },
)
async def get_response_stats(request: HttpRequest) -> HttpResponse:
    """Add up the responses of one session, or of all that the key may see."""
    named = [read_text(request.GET, name) for name in ("session_id", "sessionId")]
    session_ids = {session_id for session_id in named if session_id is not None}
    if len(session_ids) > 1:
        raise InvalidRequest(
            "session_id and sessionId differ", param="session_id", code="invalid_session_id"
        )
    return await json_answer(_response_stats, visible_key(request), next(iter(session_ids), None))


@router.get(
    "/stats",
    tags=["statistics"],
    response={200: schemas.Stats, 400: ErrorBody},
    openapi_extra={
        "parameters": [
            parameter("range", "string", "The last so much.", enum=list(RANGES), default="24h"),
            parameter(
                "from", "string", "Instead of `range`: milliseconds since 1970, or ISO 8601."
            ),
            parameter("to", "string", "With `from`; now where it is absent."),
            parameter("group", "string", "Break down by.", enum=list(GROUPS)),
            parameter("interval", "string", "Also as a line.", enum=list(INTERVALS)),
        ]
    },
)
async def get_stats(request: HttpRequest) -> HttpResponse:
    """Count what ended in a stretch of time, broken down by model, key, account, status or error, and in time.

    Quarters of an hour are the smallest unit. A key without the scope admin sees its own figures: by
    model, account or error, and percentiles, over a day at most. Deleted sessions are still counted.
    """
    query = read_stats_query(request.GET, datetime.now(UTC), settings.REPORTING_ZONE)
    run = report if query.is_long else read_in_db
    body = await run(stats_json, visible_key(request), query)
    return HttpResponse(body, content_type="application/json")


@router.get(
    "/responses/{reference}",
    tags=["responses"],
    response={200: schemas.ResponseDetail, 400: ErrorBody, 404: ErrorBody},
)
async def get_response(request: HttpRequest, reference: str) -> HttpResponse:
    """Show one response, by its integer id or its `chatcmpl-...` id, with the bodies of both sides.

    By a `resp_...` id it is OpenAI's response object; `/record` has ours for every id.
    """
    condition = _read_reference(reference, "response_id", _RESPONSE_ID)
    if reference.startswith(PREFIX):
        if read_boolean(request.GET, "stream"):
            raise InvalidRequest(
                "stream: a response is streamed by the request that makes it; ask again until its"
                " status is no longer in_progress",
                param="stream",
            )
        return await json_answer(responses_api.stored_response, reference, visible_key(request))
    return await json_answer(_response_detail, visible_key(request), condition)


@router.delete(
    "/responses/{reference}",
    tags=["responses"],
    response={200: schemas.ResponseDeleted, 400: ErrorBody, 404: ErrorBody},
)
async def delete_response(request: HttpRequest, reference: str) -> HttpResponse:
    """Let a `resp_...` id reach nothing any more, as OpenAI's API does; the record of the turn stays."""
    _require_openai_id(reference)
    return await json_answer(responses_api.withdraw, reference, visible_key(request))


@router.get(
    "/responses/{reference}/record",
    tags=["responses"],
    response={200: schemas.ResponseDetail, 400: ErrorBody, 404: ErrorBody},
)
async def get_response_record(request: HttpRequest, reference: str) -> HttpResponse:
    """Show the record of one response, by any of its ids, with the bodies of both sides."""
    condition = _read_reference(reference, "response_id", _RESPONSE_ID)
    return await json_answer(_response_detail, visible_key(request), condition)


@router.get(
    "/responses/{reference}/input_items",
    tags=["responses"],
    response={200: schemas.InputItems, 400: ErrorBody, 404: ErrorBody},
    openapi_extra={
        "parameters": [
            parameter("limit", "integer", "Items of a page, at most 100.", default=20),
            parameter("order", "string", "By their place.", enum=["asc", "desc"], default="desc"),
            parameter("after", "string", "The id of the item before the page."),
        ]
    },
)
async def list_input_items(request: HttpRequest, reference: str) -> HttpResponse:
    """List what a `resp_...` response answered, as OpenAI's items."""
    _require_openai_id(reference)
    page = responses_api.read_items_page(request.GET)
    return await json_answer(responses_api.input_items, reference, visible_key(request), *page)


def _require_openai_id(reference: str) -> None:
    _read_reference(reference, "response_id", _RESPONSE_ID)
    if not reference.startswith(PREFIX):
        raise InvalidRequest(f"{reference!r} is not a {PREFIX} id", param="id", code="invalid_id")


@router.get(
    "/sessions/{session_id}/stats",
    tags=["sessions"],
    response={200: schemas.SessionStats, 404: ErrorBody},
)
async def get_session_stats(request: HttpRequest, session_id: str) -> HttpResponse:
    """Add up the responses of one session."""
    return await json_answer(_session_stats, visible_key(request), session_id)


# On the router that has GET of the same path: of two routers Django asks the first one alone.
@sessions_router.delete(
    "/sessions/{session_id}",
    response={200: schemas.SessionDeleted, 404: ErrorBody},
)
async def delete_session(request: HttpRequest, session_id: str) -> HttpResponse:
    """Delete a session with its messages, requests and responses.

    Nothing is deleted upstream. A turn that runs in it is still answered, and not recorded.
    """
    # PostgreSQL cannot even be asked for a text with NUL.
    if "\0" in session_id or not await run_in_db(
        delete_session_rows, session_id, visible_key(request)
    ):
        raise NotFound("There is no such session.", code="session_not_found")
    return HttpResponse(
        json.dumps({"deleted": True, "session_id": session_id}), content_type="application/json"
    )


def _read_request_list(query: QueryDict, *, default_limit: int = 50) -> tuple[Page, Q]:
    status = read_choice(query, "status", STATUSES)
    page = read_page(query, SORTS_BY_STATUS if status else SORTS, default_limit=default_limit)
    condition = read_dates(query, "response__created_at" if status else "created_at")
    model, stream = read_text(query, "model"), read_boolean(query, "stream")
    if status is not None:
        condition &= Q(response__status=status)
    if model is not None:
        condition &= Q(model=model)
    if stream is not None:
        condition &= Q(stream=stream)
    if "api_key" in query:
        # Not `invalid_api_key`: that is what clients with a wrong key are told.
        code = "invalid_api_key_id"
        condition &= Q(api_key=read_integer(query, "api_key", 0, minimum=1, code=code))
    return page, condition


def _read_reference(text: str, column: str, pattern: re.Pattern[str]) -> Q:
    """Read an id from a path: the integer one, or the public text.

    Raises:
        InvalidRequest: it is neither.
    """
    if _INTEGER_ID.fullmatch(text):
        # Beyond the column there is nothing, and asking would be an error.
        return Q(id=int(text)) if int(text) <= MAX_INTEGER else Q(id__in=[])
    if pattern.fullmatch(text):
        return Q((column, text))
    raise InvalidRequest(f"{text[:100]!r} is not an id", param="id", code="invalid_id")


def _visible(rows: QuerySet[_Row], api_key_id: int | None) -> QuerySet[_Row]:
    return rows if api_key_id is None else rows.filter(api_key=api_key_id)


def _require(rows: QuerySet[_Row], api_key_id: int | None, condition: Q, noun: str) -> int:
    pk = _visible(rows, api_key_id).filter(condition).values_list("pk", flat=True).first()
    if pk is None:
        raise NotFound(f"There is no such {noun}.", code=f"{noun}_not_found")
    return int(pk)


def _request_list(api_key_id: int | None, condition: Q, page: Page) -> JSONObject:
    rows = _visible(Request.objects.all(), api_key_id).filter(condition)
    fetched = fetch(rows, page, REQUEST_FIELDS)
    return list_object(page, fetched, [request_object(row) for row in fetched.rows])


def _session_request_list(
    api_key_id: int | None, session_id: str, condition: Q, page: Page
) -> JSONObject:
    require_session(api_key_id, session_id)
    return {
        "session_id": session_id,
        **_request_list(api_key_id, condition & Q(session=session_id), page),
    }


def _request_detail(api_key_id: int | None, condition: Q) -> JSONObject:
    return load_request(_require(Request.objects.all(), api_key_id, condition, "request"))


def _response_of_request(api_key_id: int | None, condition: Q) -> JSONObject:
    request_pk = _require(Request.objects.all(), api_key_id, condition, "request")
    return _response_detail(api_key_id, Q(request=request_pk))


def _response_list(api_key_id: int | None, condition: Q, page: Page) -> JSONObject:
    rows = _visible(Response.objects.all(), api_key_id).filter(condition)
    fetched = fetch(rows, page, RESPONSE_FIELDS)
    return list_object(page, fetched, [response_object(row) for row in fetched.rows])


def _response_detail(api_key_id: int | None, condition: Q) -> JSONObject:
    return load_response(_require(Response.objects.all(), api_key_id, condition, "response"))


def _session_stats(api_key_id: int | None, session_id: str) -> JSONObject:
    session = require_session(api_key_id, session_id)
    return {
        "session_id": session_id,
        "message_count": session["message_count"],
        "created_at": milliseconds(session["created_at"]),
        "last_accessed": milliseconds(session["last_accessed"]),
        "usage": usage_totals(Response.objects.filter(session=session_id)),
    }


def _response_stats(api_key_id: int | None, session_id: str | None) -> JSONObject:
    responses = _visible(Response.objects.all(), api_key_id)
    if session_id is not None:
        responses = responses.filter(session=session_id)
    return {
        "session_id": "all" if session_id is None else session_id,
        "statistics": usage_totals(responses),
    }

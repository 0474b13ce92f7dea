"""REST of sessions: list, detail, pin. What needs requests as well is in `requests_app.api`.

Keys see their own sessions, the admin scope all. Each endpoint makes one call to the database pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.db.models import Exists, OuterRef, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from ninja import Router

from qwenproxy.errors import NotFound
from qwenproxy.wire.json import JSONObject
from sessions_app import schemas
from sessions_app.models import Session
from sessions_app.paging import (
    Page,
    Sort,
    fetch,
    json_answer,
    list_object,
    milliseconds,
    read_dates,
    read_page,
    read_text,
    visible_key,
)
from sessions_app.transcript import first_user_texts

router = Router(tags=["sessions"])

SORTS = {
    "created_at": Sort("created_at", has_text_id=True),
    "last_accessed": Sort("last_accessed", has_text_id=True),
    "message_count": Sort("message_count", is_count=True, has_text_id=True),
    # The name that requests and responses have for it.
    "timestamp": Sort("created_at", has_text_id=True),
    "id": Sort(None, has_text_id=True),
}
_CHAT_ID = "last_reply__upstream_chat__chat_id"
_PARENT_ID = "last_reply__upstream_parent_id"
_FIELDS = (
    "id",
    _CHAT_ID,
    _PARENT_ID,
    "message_count",
    "request_count",
    "title",
    "user_id",
    "external_id",
    "api_key_id",
    "created_at",
    "last_accessed",
    "expires_at",
    "content_removed_at",
    "pinned_at",
)


@router.get(
    "/sessions",
    response={200: schemas.SessionList, 400: schemas.ErrorBody},
    openapi_extra={
        "parameters": [
            *schemas.page_parameters(list(SORTS)),
            schemas.parameter("user_id", "string", "The `user` that the client sent."),
            schemas.parameter("model", "string", "Sessions with a request for this model."),
            *schemas.date_parameters(),
        ]
    },
)
async def list_sessions(request: HttpRequest) -> HttpResponse:
    """List sessions, newest first."""
    page = read_page(request.GET, SORTS)
    condition = read_dates(request.GET, "created_at")
    user_id, model = (read_text(request.GET, name) for name in ("user_id", "model"))
    if user_id is not None:
        condition &= Q(user_id=user_id)
    if model is not None:
        # By the relation's name: requests_app builds upon this app, not the other way round.
        asked = Session.objects.filter(pk=OuterRef("pk"), request__model=model)
        condition &= Q(Exists(asked))
    return await json_answer(_session_list, visible_key(request), condition, page)


@router.get(
    "/sessions/{session_id}",
    response={200: schemas.SessionObject, 404: schemas.ErrorBody},
)
async def get_session(request: HttpRequest, session_id: str) -> HttpResponse:
    """Show one session."""
    return await json_answer(_session_detail, visible_key(request), session_id)


@router.post(
    "/sessions/{session_id}/pin",
    response={200: schemas.SessionObject, 404: schemas.ErrorBody},
)
async def pin_session(request: HttpRequest, session_id: str) -> HttpResponse:
    """Keep a session for good: it does not expire. Pinning it again changes nothing."""
    return await json_answer(_pin, visible_key(request), session_id, timezone.now())


@router.delete(
    "/sessions/{session_id}/pin",
    response={200: schemas.SessionObject, 404: schemas.ErrorBody},
)
async def unpin_session(request: HttpRequest, session_id: str) -> HttpResponse:
    """Let a session expire again, as its key and the settings say."""
    return await json_answer(_pin, visible_key(request), session_id, None)


def visible_sessions(api_key_id: int | None) -> QuerySet[Session]:
    """The sessions that a key may see; all where it is null."""
    sessions = Session.objects.all()
    return sessions if api_key_id is None else sessions.filter(api_key_id=api_key_id)


def require_session(api_key_id: int | None, session_id: str) -> dict[str, Any]:
    """Load the columns of one session that REST shows.

    Raises:
        NotFound: there is none, or another key's.
    """
    row: dict[str, Any] | None = None
    # PostgreSQL cannot even be asked for a text with NUL.
    if "\0" not in session_id:
        row = visible_sessions(api_key_id).filter(id=session_id).values(*_FIELDS).first()
    if row is None:
        raise NotFound("There is no such session.", code="session_not_found")
    return row


def _session_list(api_key_id: int | None, condition: Q, page: Page) -> JSONObject:
    fetched = fetch(visible_sessions(api_key_id).filter(condition), page, _FIELDS)
    texts = first_user_texts([row["id"] for row in fetched.rows]) if fetched.rows else {}
    return list_object(page, fetched, [_session_object(row, texts) for row in fetched.rows])


def _session_detail(api_key_id: int | None, session_id: str) -> JSONObject:
    row = require_session(api_key_id, session_id)
    return _session_object(row, first_user_texts([session_id]))


def _pin(api_key_id: int | None, session_id: str, at: datetime | None) -> JSONObject:
    require_session(api_key_id, session_id)
    set_pinned(visible_sessions(api_key_id).filter(id=session_id), at)
    return _session_detail(api_key_id, session_id)


def set_pinned(sessions: QuerySet[Session], at: datetime | None) -> int:
    """Pin sessions, or with null let them go; return how many were not so before."""
    return sessions.filter(pinned_at__isnull=at is not None).update(pinned_at=at)


def _session_object(row: Mapping[str, Any], texts: Mapping[str, str]) -> JSONObject:
    return {
        "id": row["id"],
        "chat_id": row[_CHAT_ID],
        "parent_id": row[_PARENT_ID],
        "message_count": row["message_count"],
        "request_count": row["request_count"],
        "first_user_message": texts.get(row["id"]),
        "title": row["title"],
        "user_id": row["user_id"],
        "external_id": row["external_id"],
        "api_key": row["api_key_id"],
        "created_at": milliseconds(row["created_at"]),
        "last_accessed": milliseconds(row["last_accessed"]),
        "expires_at": milliseconds(row["expires_at"]),
        "content_removed_at": _moment(row["content_removed_at"]),
        "pinned_at": _moment(row["pinned_at"]),
    }


def _moment(at: datetime | None) -> int | None:
    return None if at is None else milliseconds(at)

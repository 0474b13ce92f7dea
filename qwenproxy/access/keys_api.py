"""REST of API keys, for keys with the scope `admin`: list, create, change, rotate, revoke.

A key's secret is in the answer that creates or rotates it and nowhere else. Each endpoint makes one call
to the database pool; what a field may hold is in `key_fields`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

from django.http import HttpRequest, HttpResponse
from ninja import Field, Query, Router, Schema

from qwenproxy.access import keys
from qwenproxy.access.key_fields import (
    DAYS,
    MAX_DAYS,
    MAX_LIMITS,
    MAX_NAME_CHARS,
    InvalidKey,
    check_names,
)
from qwenproxy.access.models import SCOPES, ApiKey, Recorded
from qwenproxy.access.rest import MAX_ID, Milliseconds, answer, json_body, read_id, read_object
from qwenproxy.access.usage import describe_keys
from qwenproxy.database import run_in_db
from qwenproxy.errors import InvalidRequest, NotFound
from qwenproxy.wire.json import JSONObject

router = Router(tags=["keys"])

_MAX_OVERLAP_S = round(keys.MAX_OVERLAP.total_seconds())
_OVERLAP_S = round(keys.ROTATION_OVERLAP.total_seconds())


class Count(Schema):
    requests: int
    tokens: int = Field(description="Of ended turns, and what running ones have reserved.")


class Usage(Schema):
    minute: Count | None = Field(description="The last minute; null: no limit counts minutes.")
    day: Count
    month: Count
    running: int


class KeyObject(Schema):
    id: int
    name: str
    prefix: str = Field(description="The first characters of its secret.")
    state: Literal["active", "expired", "revoked"]
    scopes: list[Literal["chat", "records", "admin"]]
    created_at: Milliseconds
    expires_at: Milliseconds | None = Field(description="Refused from then on; null: never.")
    revoked_at: Milliseconds | None
    previous_expires_at: Milliseconds | None = Field(
        description="Until then the secret before the last rotation is accepted as well."
    )
    allowed_models: list[str] = Field(description="Shell-style patterns; empty: every model.")
    requests_per_minute: int | None = Field(description="Null: no limit; 0: nothing passes.")
    tokens_per_minute: int | None
    max_concurrent: int | None
    tokens_per_day: int | None
    tokens_per_month: int | None
    recorded: Literal["everything", "metadata"]
    content_days: int | None = Field(
        description="After a session's last use, then its content is removed; null: QWENPROXY_CONTENT_DAYS."
    )
    record_days: int | None = Field(
        description="After a session's last use, then it is deleted; null: QWENPROXY_RECORD_DAYS."
    )
    usage: Usage | None = Field(description="Null: the key has no limits, so nothing is counted.")


class KeyWithSecret(KeyObject):
    key: str = Field(description="The secret. It is not kept and cannot be shown again.")


class KeyList(Schema):
    object: Literal["list"]
    data: list[KeyObject]
    total: int
    limit: int
    offset: int
    has_more: bool
    next_cursor: str | None = Field(description="Give it as `cursor` to read on.")


_FIELDS: Mapping[str, Any] = {
    "name": {"type": "string", "maxLength": MAX_NAME_CHARS},
    "scopes": {
        "type": "array",
        "items": {"type": "string", "enum": list(SCOPES)},
        "description": "`admin` implies the others. New keys have `chat` and `records` by default.",
    },
    "expires_at": {
        "description": "Milliseconds since 1970, ISO 8601 (UTC where it names no zone), or a span from "
        "now such as `30d`; null: never.",
        "oneOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}],
    },
    "allowed_models": {
        "description": "Shell-style patterns of model ids; empty or null: every model.",
        "oneOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}],
    },
    **{
        name: {
            "description": "Null: no limit; 0: nothing passes.",
            "oneOf": [{"type": "integer", "minimum": 0, "maximum": largest}, {"type": "null"}],
        }
        for name, largest in MAX_LIMITS.items()
    },
    "recorded": {
        "type": "string",
        "enum": Recorded.values,
        "description": "`metadata`: counts, times and digests, no content.",
    },
    **{
        name: {
            "description": f"Null: as the setting QWENPROXY_{name.upper()} says.",
            "oneOf": [{"type": "integer", "minimum": 1, "maximum": MAX_DAYS}, {"type": "null"}],
        }
        for name in DAYS
    },
}


@router.get("", response={200: KeyList})
async def list_keys(
    request: HttpRequest,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    offset: Annotated[int, Query(ge=0, le=MAX_ID - 1001)] = 0,
    cursor: Annotated[int | None, Query(ge=1, le=MAX_ID)] = None,
) -> HttpResponse:
    """List API keys, newest first, revoked ones too."""
    if cursor is not None and offset:
        raise InvalidRequest(
            "cursor and offset exclude each other", param="cursor", code="invalid_cursor"
        )
    return await _answer(lambda: _key_list(limit, offset, cursor))


@router.post("", response={201: KeyWithSecret}, openapi_extra=json_body(_FIELDS, required=["name"]))
async def create_key(request: HttpRequest) -> HttpResponse:
    """Create an API key. Its secret is in this answer, as `key`, and nowhere else."""
    fields = read_object(request)

    def create() -> JSONObject:
        # A secret of the client's own choice is none of them.
        check_names(fields)
        api_key, secret = keys.create_api_key(**fields)
        return {**_key_object(api_key), "key": secret}

    return await _answer(create, status=201)


@router.get("/{key_id}", response={200: KeyObject})
async def get_key(request: HttpRequest, key_id: str) -> HttpResponse:
    """Show one API key, and what it has used of its limits."""
    pk = read_id(key_id)
    return await _answer(lambda: _key_object(_require(pk)))


@router.patch("/{key_id}", response={200: KeyObject}, openapi_extra=json_body(_FIELDS))
async def change_key(request: HttpRequest, key_id: str) -> HttpResponse:
    """Change what the body names; null takes a limit, the expiry or the list of models away."""
    pk, fields = read_id(key_id), read_object(request)

    def change() -> JSONObject:
        api_key = _require(pk)
        keys.change_api_key(api_key, fields)
        return _key_object(api_key)

    return await _answer(change)


@router.post(
    "/{key_id}/rotate",
    response={200: KeyWithSecret},
    openapi_extra=json_body(
        {
            "overlap_seconds": {
                "type": "integer",
                "minimum": 0,
                "maximum": _MAX_OVERLAP_S,
                "default": _OVERLAP_S,
            }
        },
        is_optional=True,
    ),
)
async def rotate_key(request: HttpRequest, key_id: str) -> HttpResponse:
    """Give a key a new secret, in this answer as `key`; the present one works on for the overlap."""
    pk = read_id(key_id)
    overlap = _read_overlap(read_object(request) if request.body.strip() else {})

    def rotate() -> JSONObject:
        api_key = _require(pk)
        secret = keys.rotate_api_key(api_key, overlap=overlap)
        return {**_key_object(api_key), "key": secret}

    return await _answer(rotate)


@router.delete("/{key_id}", response={200: KeyObject})
async def revoke_key(request: HttpRequest, key_id: str) -> HttpResponse:
    """Revoke a key for good; its records stay. Revoking it again changes nothing."""
    pk = read_id(key_id)

    def revoke() -> JSONObject:
        api_key = _require(pk)
        keys.revoke_api_key(api_key)
        return _key_object(api_key)

    return await _answer(revoke)


async def _answer(function: Callable[[], JSONObject], *, status: int = 200) -> HttpResponse:
    try:
        body = await run_in_db(function)
    except keys.KeyNotInUse as exc:
        raise InvalidRequest(str(exc), status=409, code="key_not_in_use") from exc
    except InvalidKey as exc:
        raise InvalidRequest(str(exc), param=exc.field) from exc
    return answer(body, status=status)


def _read_overlap(body: Mapping[str, Any]) -> timedelta:
    for name in body:
        if name != "overlap_seconds":
            raise InvalidRequest(f"there is no field {name[:50]!r}", param=name[:50])
    seconds = body.get("overlap_seconds", _OVERLAP_S)
    # A bool is an int to Python.
    if type(seconds) is not int or not 0 <= seconds <= _MAX_OVERLAP_S:
        raise InvalidRequest(
            f"overlap_seconds is a whole number from 0 to {_MAX_OVERLAP_S}", param="overlap_seconds"
        )
    return timedelta(seconds=seconds)


def _require(pk: int) -> ApiKey:
    api_key = ApiKey.objects.filter(pk=pk).first()
    if api_key is None:
        raise NotFound("There is no such API key.", code="key_not_found")
    return api_key


def _key_object(api_key: ApiKey) -> JSONObject:
    return describe_keys([api_key])[0]


def _key_list(limit: int, offset: int, cursor: int | None) -> JSONObject:
    rows = ApiKey.objects.order_by("-id")
    total = rows.count()
    if cursor is not None:
        rows = rows.filter(pk__lt=cursor)
    found = list(rows[offset : offset + limit + 1])
    page, has_more = found[:limit], len(found) > limit
    return {
        "object": "list",
        "data": [*describe_keys(page)],
        "total": total,
        "limit": limit,
        "offset": offset,
        "has_more": has_more,
        "next_cursor": str(page[-1].pk) if has_more else None,
    }

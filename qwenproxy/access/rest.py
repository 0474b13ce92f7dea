"""What the REST of keys and of accounts share: bodies and ids read strictly, times as milliseconds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from django.http import HttpRequest, HttpResponse

from qwenproxy.errors import InvalidRequest
from qwenproxy.wire import json
from qwenproxy.wire.json import JSONObject

Milliseconds = int

# Of the columns: beyond it there is nothing, and asking would be an error.
MAX_ID = 2**63 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def milliseconds(moment: datetime | None) -> int | None:
    return None if moment is None else (moment - _EPOCH) // timedelta(milliseconds=1)


def json_body(
    properties: Mapping[str, Any], required: Sequence[str] = (), *, is_optional: bool = False
) -> dict[str, Any]:
    """A request's body as its documentation shows it; other fields are refused."""
    schema = {
        "type": "object",
        "required": list(required),
        "properties": dict(properties),
        "additionalProperties": False,
    }
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": not is_optional, "content": content}}


def read_object(request: HttpRequest) -> dict[str, Any]:
    try:
        body = json.loads(request.body)
    except json.JSONError as exc:
        raise InvalidRequest(f"the body is not JSON: {exc}", code="invalid_json") from exc
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object", code="invalid_json")
    return body


def read_id(text: str) -> int:
    """Read an id from a path; one beyond `MAX_ID` becomes an id that nothing has."""
    if not re.fullmatch("[0-9]{1,40}", text):
        raise InvalidRequest(f"{text[:100]!r} is not an id", param="id", code="invalid_id")
    number = int(text)
    return number if number <= MAX_ID else 0


def answer(body: JSONObject, *, status: int = 200) -> HttpResponse:
    return HttpResponse(json.dumps(body), status=status, content_type="application/json")

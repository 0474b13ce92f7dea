"""Rows of requests and responses as the objects that REST and the admin show.

Bodies are rebuilt from what is stored once: the client's from its parameters, the shared texts and the
line of messages; the answer from the reply; the upstream call by filling its text in again. Nothing
here holds an upstream's credentials: they are never recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any

from qwenproxy.access.models import REMOVED, Recorded
from qwenproxy.wire import (
    anthropic_bodies,
    anthropic_messages,
    embeddings,
    json,
    openai_chat,
    openai_completions,
    responses_record,
)
from qwenproxy.wire.events import UsageReport
from qwenproxy.wire.history import decode_content, text_of
from qwenproxy.wire.json import JSONObject, JSONValue
from qwenproxy.wire.openai_chat import usage_object
from requests_app.files import restore
from requests_app.models import Blob, Request, Response
from requests_app.openai_responses import build_response
from requests_app.upstream_text import fill_text
from sessions_app.lines import LineReader
from sessions_app.paging import milliseconds
from sessions_app.transcript import load_line, message_body

REQUEST_FIELDS = (
    "id",
    "session_id",
    "request_id",
    "method",
    "path",
    "model",
    "stream",
    "created_at",
    "api_key_id",
    "dialect",
    "match",
    "upstream",
    "recorded",
    "response__response_id",
    "response__status",
    "response__finish_reason",
    "response__error_message",
    "response__total_tokens",
    "response__duration_ms",
)
_REQUEST_BODY_FIELDS = (
    "prompt_id",
    "system_id",
    "tools_id",
    "parameters",
    "attempts",
    "user_agent",
    "headers",
    "account__name",
    "upstream_request",
    "upstream_text_digest",
    "session__content_removed_at",
)
RESPONSE_FIELDS = (
    "id",
    "request_id",
    "session_id",
    "response_id",
    "upstream_parent_id",
    "completion_tokens",
    "prompt_tokens",
    "total_tokens",
    "reasoning_tokens",
    "cached_tokens",
    "usage_source",
    "status",
    "finish_reason",
    "error_message",
    "error_type",
    "error_code",
    "http_status",
    "client_left",
    "ttft_ms",
    "duration_ms",
    "created_at",
    "completed_at",
)
_RESPONSE_BODY_FIELDS = (
    "reply__role",
    "reply__content",
    "reasoning",
    "upstream_response",
    "request__request_id",
    "request__model",
    "request__stream",
    "request__dialect",
    "request__upstream_request",
    "request__created_at",
    "request__recorded",
)


def request_object(row: Mapping[str, Any]) -> JSONObject:
    """Build a request as lists show it, from the values of `REQUEST_FIELDS`."""
    return {
        "id": row["id"],
        "session_id": row["session_id"],
        "request_id": row["request_id"],
        "timestamp": milliseconds(row["created_at"]),
        "method": row["method"],
        "path": row["path"],
        "model": row["model"],
        "stream": row["stream"],
        "created_at": milliseconds(row["created_at"]),
        "api_key": row["api_key_id"],
        "dialect": row["dialect"],
        "match": row["match"],
        "upstream": row["upstream"],
        "recorded": row["recorded"],
        "response_summary": _summary(row),
    }


def _summary(row: Mapping[str, Any]) -> JSONObject | None:
    if row["response__response_id"] is None:
        return None
    return {
        "response_id": row["response__response_id"],
        "status": row["response__status"],
        "finish_reason": row["response__finish_reason"],
        "total_tokens": row["response__total_tokens"],
        "duration_ms": row["response__duration_ms"],
        "error": row["response__error_message"],
    }


def response_object(row: Mapping[str, Any]) -> JSONObject:
    """Build a response as lists show it, from the values of `RESPONSE_FIELDS`."""
    completed_at: datetime | None = row["completed_at"]
    return {
        "id": row["id"],
        "request_id": row["request_id"],
        "session_id": row["session_id"],
        "response_id": row["response_id"],
        "timestamp": milliseconds(row["created_at"]),
        "parent_id": row["upstream_parent_id"],
        "completion_tokens": row["completion_tokens"],
        "prompt_tokens": row["prompt_tokens"],
        "total_tokens": row["total_tokens"],
        "reasoning_tokens": row["reasoning_tokens"],
        "cached_tokens": row["cached_tokens"],
        "usage_source": row["usage_source"],
        "status": row["status"],
        "finish_reason": row["finish_reason"],
        "error": row["error_message"],
        "error_type": row["error_type"],
        "error_code": row["error_code"],
        "http_status": row["http_status"],
        "client_left": row["client_left"],
        "ttft_ms": row["ttft_ms"],
        "duration_ms": row["duration_ms"],
        "created_at": milliseconds(row["created_at"]),
        "completed_at": None if completed_at is None else milliseconds(completed_at),
    }


def load_request(request_pk: int) -> JSONObject:
    """Load a request with the bodies of both sides and its response; three queries, four with files.

    Raises:
        Request.DoesNotExist: it was deleted meanwhile.
    """
    columns = (*REQUEST_FIELDS, *_REQUEST_BODY_FIELDS, "system__body", "tools__body")
    row = Request.objects.values(*columns).get(pk=request_pk)
    response = Response.objects.filter(request=request_pk)
    # A list of messages, written by the recorder.
    system: Any = json.loads_text(row["system__body"] or "[]")
    line = [message_body(message) for message in load_line(row["prompt_id"])]
    return _whole_request(
        row,
        response.values(*RESPONSE_FIELDS, *_RESPONSE_BODY_FIELDS).first(),
        [*system, *restore(line, row["api_key_id"])],
        json.loads_text(row["tools__body"] or "null"),
    )


class RecordReader:
    """Reads many requests as `load_request` does; what they share is read and parsed once."""

    def __init__(self) -> None:
        self._lines = LineReader()
        self._blobs = _Blobs()

    def read(self, request_pks: Sequence[int]) -> Iterator[JSONObject]:
        """The requests in their order, without those that were deleted meanwhile.

        Two queries, and those for messages (see `LineReader.read`), texts and files that are not held. What
        stands in an object may stand in others too: nobody may change it.
        """
        rows = Request.objects.filter(pk__in=request_pks)
        by_pk = {row["id"]: row for row in rows.values(*REQUEST_FIELDS, *_REQUEST_BODY_FIELDS)}
        responses = Response.objects.filter(request__in=request_pks)
        by_request = {
            row["request_id"]: row
            for row in responses.values(*RESPONSE_FIELDS, *_RESPONSE_BODY_FIELDS)
        }
        found = [by_pk[pk] for pk in request_pks if pk in by_pk]
        blobs = self._blobs.load([row[name] for row in found for name in ("system_id", "tools_id")])
        lines = self._lines.read([row["prompt_id"] for row in found])
        for row, line in zip(found, lines, strict=True):
            if line is not None:
                system: Any = blobs.get(row["system_id"]) or ()
                messages = [*system, *restore(line, row["api_key_id"])]
                tools = blobs.get(row["tools_id"])
                yield _whole_request(row, by_request.get(row["id"]), messages, tools)


class _Blobs:
    """Parsed texts by their ids, held from one batch of requests to the next."""

    _MAX_CHARS = 2**20

    def __init__(self) -> None:
        self._held: dict[int, JSONValue] = {}
        self._chars = 0

    def load(self, ids: Sequence[int | None]) -> Mapping[int | None, JSONValue]:
        wanted = {pk for pk in ids if pk is not None}
        if self._chars > self._MAX_CHARS:
            self._held = {}
            self._chars = 0
        missing = wanted - self._held.keys()
        if missing:
            for pk, body in Blob.objects.filter(pk__in=missing).values_list("pk", "body"):
                self._held[pk] = json.loads_text(body)
                self._chars += len(body)
        return {pk: self._held.get(pk) for pk in wanted}


def _whole_request(
    row: Mapping[str, Any],
    response_row: Mapping[str, Any] | None,
    messages: Sequence[JSONObject],
    tools: JSONValue,
) -> JSONObject:
    has_content = row["recorded"] == Recorded.EVERYTHING
    upstream_request, is_exact = (
        _upstream_request(row, messages, tools) if has_content else (None, None)
    )
    body = _openai_request(row, messages, tools) if has_content else None
    return {
        **request_object(row),
        "content_removed_at": _removed_at(row),
        "user_agent": row["user_agent"],
        "headers": json.loads_text(row["headers"] or "{}"),
        "account": row["account__name"],
        "attempts": json.loads_text(row["attempts"]),
        "openai_request": body,
        "qwen_request": upstream_request,
        "qwen_request_exact": is_exact,
        "response": None if response_row is None else _with_bodies(response_row, body),
    }


def _removed_at(row: Mapping[str, Any]) -> int | None:
    at: datetime | None = row["session__content_removed_at"]
    return milliseconds(at) if at is not None and row["recorded"] == REMOVED else None


def load_response(response_pk: int) -> JSONObject:
    """Load a response with the bodies of both sides; one query, more where it repeats its request.

    Raises:
        Response.DoesNotExist: it was deleted meanwhile.
    """
    row = Response.objects.values(*RESPONSE_FIELDS, *_RESPONSE_BODY_FIELDS).get(pk=response_pk)
    body: JSONObject | None = None
    if row["request__dialect"] == "responses":
        request = load_request(row["request_id"])["openai_request"]
        body = request if isinstance(request, dict) else None
    return {
        **_with_bodies(row, body),
        "request": {
            "id": row["request_id"],
            "request_id": row["request__request_id"],
            "model": row["request__model"],
            "stream": row["request__stream"],
            "timestamp": milliseconds(row["request__created_at"]),
        },
    }


def _with_bodies(row: Mapping[str, Any], body: JSONObject | None) -> JSONObject:
    stored = row["upstream_response"]
    return {
        **response_object(row),
        "qwen_response": json.loads_text(stored) if stored else None,
        "openai_response": _openai_response(row, body),
    }


def _openai_request(
    row: Mapping[str, Any], messages: Sequence[JSONObject], tools: JSONValue
) -> JSONObject:
    body = json.loads_text(row["parameters"])
    assert isinstance(body, dict)
    if row["dialect"] == "anthropic":
        return anthropic_bodies.to_body(body, messages, tools)
    if row["dialect"] == "responses":
        return responses_record.to_body(body, messages, tools)
    if row["dialect"] == embeddings.DIALECT:
        return embeddings.to_body(body, text_of(messages[-1]) if messages else "")
    if row["dialect"] == "completions":
        body["prompt"] = text_of(messages[-1]) if messages else ""
    else:
        body["messages"] = list(messages)
    if tools is not None:
        body["tools"] = tools
    return body


def _upstream_request(
    row: Mapping[str, Any], messages: Sequence[JSONObject], tools: JSONValue
) -> tuple[JSONObject | None, bool | None]:
    """The body that went upstream and whether its text is exact; nulls where nothing went."""
    if not row["upstream_request"]:
        return None, None
    stored = json.loads_text(row["upstream_request"])
    assert isinstance(stored, dict)
    request, first_message = stored["request"], stored["first_message"]
    assert isinstance(request, dict)
    assert isinstance(first_message, int)
    digest = row["upstream_text_digest"]
    if row["dialect"] == embeddings.DIALECT:
        asked = _openai_request(row, messages, None)["input"]
        filled = {**request, "input": asked}
        return filled, sha256(json.dumps(asked)).digest() == bytes(digest or b"")
    return fill_text(
        request,
        messages,
        tools,
        first_message=first_message,
        # PostgreSQL gives a memoryview.
        digest=None if digest is None else bytes(digest),
    )


def _answering_model(row: Mapping[str, Any]) -> str:
    """The model that the client was told: the one asked upstream, whatever alias named it."""
    stored = json.loads_text(row["request__upstream_request"] or "{}")
    request = stored.get("request") if isinstance(stored, dict) else None
    model = request.get("model") if isinstance(request, dict) else None
    return model if isinstance(model, str) else str(row["request__model"])


def _openai_response(row: Mapping[str, Any], body: JSONObject | None) -> JSONObject | None:
    """The answer, or the part of one that arrived, in the form of the client's protocol.

    `body` is that of the request, for a protocol whose answers repeat it.
    """
    if row["reply__content"] is None or row["request__recorded"] != Recorded.EVERYTHING:
        return None
    message = decode_content(row["reply__role"], row["reply__content"])
    created = milliseconds(row["request__created_at"]) // 1000
    usage = None
    if row["usage_source"]:
        usage = UsageReport(
            row["prompt_tokens"],
            row["completion_tokens"],
            row["total_tokens"],
            row["reasoning_tokens"],
            row["cached_tokens"],
        )
    if row["request__dialect"] == embeddings.DIALECT:
        told = None if usage is None else usage_object(usage)
        return embeddings.to_response(text_of(message), model=_answering_model(row), usage=told)
    finish_reason = row["finish_reason"] or "error"
    if row["request__dialect"] == "completions":
        return openai_completions.completion(
            response_id=row["response_id"],
            model=_answering_model(row),
            created=created,
            text=text_of(message),
            finish_reason=finish_reason,
            usage=usage,
        )
    if row["request__dialect"] == "responses":
        return build_response(
            row,
            body or {},
            model=_answering_model(row),
            message=message,
            reasoning=row["reasoning"],
            usage=usage,
        )
    if row["request__dialect"] == "anthropic":
        return anthropic_messages.whole_message(
            response_id=row["response_id"],
            model=_answering_model(row),
            message=message,
            reasoning=row["reasoning"],
            finish_reason=finish_reason,
            usage=usage,
        )
    return openai_chat.completion(
        response_id=row["response_id"],
        model=_answering_model(row),
        created=created,
        message=message,
        reasoning=row["reasoning"],
        finish_reason=finish_reason,
        usage=usage,
    )

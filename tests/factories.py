"""Rows for tests of what reads the record, as the recorder would leave them."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any
from uuid import uuid4

from django.utils import timezone

from qwenproxy.access.models import ApiKey, UpstreamAccount
from qwenproxy.wire import history, json
from requests_app.models import Blob, Request, Response
from sessions_app.models import Message, Session, UpstreamChat

START = datetime(2026, 11, 1, 12, 0, 0, 123456, tzinfo=UTC)
START_MS = 1793534400123
_numbers = itertools.count(1)


def make_api_key(name: str = "", **fields: Any) -> ApiKey:
    number = next(_numbers)
    fields = {
        "name": name or f"key {number}",
        "prefix": f"qp-{number}",
        "secret_hash": sha256(str(number).encode()).hexdigest(),
        **fields,
    }
    return ApiKey.objects.create(**fields)


def make_account(name: str = "", kind: str = "openai_compatible", **fields: Any) -> UpstreamAccount:
    return UpstreamAccount.objects.create(
        name=name or f"account {next(_numbers)}", kind=kind, **fields
    )


def make_session(api_key: ApiKey | None = None, **fields: Any) -> Session:
    created_at = fields.pop("created_at", START + timedelta(seconds=next(_numbers)))
    fields = {
        "id": str(uuid4()),
        "api_key": api_key or make_api_key(),
        "title": "",
        "context_digest": b"",
        "created_at": created_at,
        "last_accessed": created_at,
        "expires_at": created_at + timedelta(hours=24),
        **fields,
    }
    return Session.objects.create(**fields)


def make_message(
    session: Session,
    body: dict[str, Any],
    parent: Message | None = None,
    *,
    given: bool | None = None,
    **fields: Any,
) -> Message:
    above = bytes(parent.digest) if parent else history.root_digest(session.api_key_id)
    fields = {
        "session": session,
        "parent": parent,
        "digest": history.message_digest(above, body),
        "role": body["role"],
        "content": history.encode_content(body),
        "dialect": "chat",
        "position": parent.position + 1 if parent else 0,
        "given": body["role"] == "assistant" if given is None else given,
        "created_at": session.created_at,
        **fields,
    }
    return Message.objects.create(**fields)


def make_line(session: Session, *bodies: dict[str, Any], parent: Message | None = None) -> Message:
    """Store messages below each other and return the last."""
    for body in bodies:
        parent = make_message(session, body, parent)
    assert parent is not None
    return parent


def make_chat(session: Session, account: UpstreamAccount | None = None) -> UpstreamChat:
    return UpstreamChat.objects.create(
        chat_id=str(uuid4()),
        session=session,
        account=account or make_account(kind="qwen_web"),
        model="qwen3-max",
        context_digest=b"",
        created_at=session.created_at,
    )


def make_blob(api_key: ApiKey, kind: str, body: list[Any]) -> Blob:
    text = json.dumps_text(body)
    return Blob.objects.create(
        api_key=api_key, digest=sha256(text.encode()).digest(), kind=kind, body=text
    )


def make_request(session: Session, prompt: Message | None = None, **fields: Any) -> Request:
    number = next(_numbers)
    fields = {
        "request_id": f"req_{number:08d}",
        "session": session,
        "api_key": session.api_key,
        "prompt": prompt,
        "parameters": json.dumps_text({"model": "qwen3-max"}),
        "dialect": "chat",
        "method": "POST",
        "path": "/v1/chat/completions",
        "model": "qwen3-max",
        "stream": False,
        "user_agent": "tests/1",
        "match": "new",
        "upstream": "new",
        "created_at": START + timedelta(seconds=number),
        **fields,
    }
    return Request.objects.create(**fields)


def make_response(request_row: Request, reply: Message | None = None, **fields: Any) -> Response:
    status = fields.get("status", "completed")
    done = status != "in_progress"
    fields = {
        "response_id": f"chatcmpl-{request_row.request_id.removeprefix('req_')}",
        "request": request_row,
        "session": request_row.session,
        "api_key": request_row.api_key,
        "reply": reply,
        "status": status,
        "finish_reason": {"completed": "stop", "in_progress": None}.get(status, "error"),
        "http_status": 200 if done else None,
        "duration_ms": 1500 if done else None,
        "created_at": request_row.created_at,
        "completed_at": request_row.created_at + timedelta(milliseconds=1500) if done else None,
        **fields,
    }
    return Response.objects.create(**fields)


def make_turn(
    session: Session,
    question: str = "Hello",
    answer: str | None = "Hi!",
    *,
    parent: Message | None = None,
    request: dict[str, Any] | None = None,
    response: dict[str, Any] | None = None,
    reply: dict[str, Any] | None = None,
) -> Response:
    """Store one question below `parent` with its answer (null: it failed), all rows of it."""
    prompt = make_message(session, {"role": "user", "content": question}, parent)
    request_row = make_request(session, prompt, **(request or {}))
    message = None
    if answer is not None:
        message = make_message(
            session, {"role": "assistant", "content": answer}, prompt, **(reply or {})
        )
        Session.objects.filter(pk=session.pk).update(
            last_reply=message, message_count=message.position + 1
        )
    Session.objects.filter(pk=session.pk).update(
        request_count=Request.objects.filter(session=session).count(), last_accessed=timezone.now()
    )
    fields: dict[str, Any] = {}
    if message is None:
        fields = {"status": "failed", "error_type": "upstream_error", "http_status": 502}
        fields |= {"error_code": "upstream_error", "error_message": "The upstream failed."}
    else:
        fields = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
        fields |= {"usage_source": "reported"}
    return make_response(request_row, message, **{**fields, **(response or {})})

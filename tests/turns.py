"""Turns as the request path hands them to the recorder, and a recorder to hand them to."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from qwenproxy.transaction import transaction
from qwenproxy.wire import history, json
from requests_app.models import Worker
from requests_app.recorder import Recorder
from requests_app.writes import BlobText, Closing, Opened, Opening, close_turns, open_turns

TTL = timedelta(hours=24)
WORKER = "00000000-0000-4000-8000-000000000001"
_numbers = itertools.count(1)


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any, **members: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **members}


def make_opening(
    api_key: Any,
    *messages: dict[str, Any],
    tools: list[Any] | None = None,
    parameters: dict[str, Any] | None = None,
    **fields: Any,
) -> Opening:
    """A turn whose history is `messages`."""
    number = next(_numbers)
    system, line = history.split_system(messages)
    system_blob = _blob("system", list(system)) if system else None
    tools_blob = _blob("tools", tools) if tools else None
    opening = Opening(
        api_key_id=api_key.pk,
        user_id=None,
        external_id=None,
        request_id=f"req_{number:08d}",
        response_id=f"chatcmpl-{number:08d}",
        dialect="chat",
        method="POST",
        path="/v1/chat/completions",
        model="qwen3-8b",
        stream=True,
        user_agent="tests/1",
        title="",
        parameters=json.dumps_text(parameters or {"model": "qwen3-8b"}),
        system=system_blob,
        tools=tools_blob,
        context_digest=history.digest_of(
            system_blob.digest if system_blob else b"-", tools_blob.digest if tools_blob else b"-"
        ),
        line=history.chain(api_key.pk, line),
        created_at=datetime.now(UTC),
        session_ttl=TTL,
    )
    return replace(opening, **fields)


def _blob(kind: str, value: Any) -> BlobText:
    body = json.dumps(value)
    return BlobText(history.digest_of(kind.encode(), body), kind, body.decode())


def make_closing(
    opening: Opening, opened: Opened, answer: str | dict[str, Any] | None, **fields: Any
) -> Closing:
    """The end of a turn; a null answer is one that failed."""
    parent = opening.line[-1].digest if opening.line else None
    reply = None
    if answer is not None:
        message = assistant(answer) if isinstance(answer, str) else answer
        above = parent or history.root_digest(opening.api_key_id)
        digest = history.message_digest(above, message)
        reply = history.Node(digest, message)
    closing = Closing(
        session_id=opened.session_id,
        request_id=opening.request_id,
        response_id=opening.response_id,
        reply=reply,
        parent=parent,
        dialect=opening.dialect,
        position=len(opening.line),
        status="failed" if reply is None else "completed",
        finish_reason="error" if reply is None else "stop",
        http_status=502 if reply is None else 200,
        completed_at=datetime.now(UTC),
        session_ttl=TTL,
        duration_ms=10,
        upstream="whole",
    )
    return replace(closing, **fields)


def open_all(*openings: Opening) -> list[Opened]:
    """Write turns as in progress, in one transaction and without a recorder."""
    with transaction(lock_wait_s=5) as tx:
        return open_turns(tx, openings, worker_id=WORKER)


def close_all(*closings: Closing) -> int:
    with transaction(lock_wait_s=5) as tx:
        return close_turns(tx, closings)


def take_turn(
    api_key: Any, *messages: dict[str, Any], answer: str | dict[str, Any] = "ok", **fields: Any
) -> Opened:
    """One whole turn."""
    closing = fields.pop("closing", {})
    opening = make_opening(api_key, *messages, **fields)
    (opened,) = open_all(opening)
    close_all(make_closing(opening, opened, answer, **closing))
    return opened


def make_worker(worker_id: str = WORKER) -> None:
    Worker.objects.get_or_create(
        id=worker_id, defaults={"host": "tests", "pid": 1, "started_at": datetime.now(UTC)}
    )


@contextlib.asynccontextmanager
async def running_recorder(directory: Path, **fields: Any) -> AsyncIterator[Recorder]:
    settings: dict[str, Any] = {"queue_turns": 1000, "deadline_s": 5.0, "session_ttl": TTL}
    recorder = Recorder(lock_directory=directory, **{**settings, **fields})
    await recorder.start()
    try:
        yield recorder
    finally:
        await recorder.stop()


def one_shots(api_key: Any, count: int, **fields: Any) -> Sequence[Opening]:
    return [make_opening(api_key, user(f"question {i}"), **fields) for i in range(count)]

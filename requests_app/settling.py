"""Gives an end to what dead workers left running, and lets go of expired upstream chats.

A response whose worker's lock is free becomes `interrupted`, with the text that its `Partial` rows
hold. Runs in the recorder's thread, in a transaction of its own.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Any

from qwenproxy.transaction import Transaction
from qwenproxy.wire import history, json
from qwenproxy.wire.events import Accumulator, Asked, unpack
from qwenproxy.wire.json import JSONValue
from requests_app.liveness import WorkerLock
from requests_app.usage import count_interrupted, forget_worker
from requests_app.writes import ChatRow, Closing, close_turns

logger = logging.getLogger(__name__)

# Turns per transaction: a long stop of the writer would stall every stream.
_BATCH_TURNS = 200

_RUNNING = """
SELECT r.id, r.response_id, r.session_id, q.request_id, q.api_key_id, q.dialect,
       m.digest, m.position
FROM requests_app_response r
JOIN requests_app_request q ON q.id = r.request_id
LEFT JOIN sessions_app_message m ON m.id = q.prompt_id
WHERE r.status = 'in_progress' AND {worker}
ORDER BY r.id LIMIT %s
"""


def settle_dead_workers(
    tx: Transaction, lock: WorkerLock, *, now: datetime, session_ttl: timedelta
) -> int:
    """Turn what dead workers left in progress into `interrupted`; return how many there were.

    At most one batch a call: call again until it returns 0.
    """
    tx.execute("SELECT id FROM requests_app_worker WHERE id <> %s", [lock.worker_id])
    dead = [worker for (worker,) in tx.fetchall() if lock.is_free(worker)]
    tx.execute(_RUNNING.format(worker="r.worker_id IS NULL"), [_BATCH_TURNS])
    rows = tx.fetchall()
    for worker in dead:
        tx.execute(_RUNNING.format(worker="r.worker_id = %s"), [worker, _BATCH_TURNS])
        rows += tx.fetchall()
    rows = rows[:_BATCH_TURNS]
    closings = [_interrupted(tx, row, now, session_ttl) for row in rows]
    close_turns(tx, closings)
    count_interrupted(
        tx, [(row[4], turn.total_tokens) for row, turn in zip(rows, closings, strict=True)]
    )
    if not rows:
        for worker in dead:
            forget_worker(tx, worker)
            tx.execute("DELETE FROM requests_app_worker WHERE id = %s", [worker])
            lock.forget(worker)
    return len(rows)


def _interrupted(tx: Transaction, row: Any, now: datetime, session_ttl: timedelta) -> Closing:
    pk, response_id, session_id, request_id, key_id, dialect, parent, position = row
    answer = Accumulator()
    attempts: list[JSONValue] = []
    tx.execute("SELECT events FROM requests_app_partial WHERE response_id = %s ORDER BY seq", [pk])
    partials = tx.fetchall()
    is_readable = True
    for (events,) in partials:
        try:
            found = unpack(events)
        except (json.JSONError, LookupError, TypeError) as exc:
            # It must not keep all others, and the start of the process, from their ends; its row stays.
            logger.error("a part of %s cannot be read: %s", response_id, exc)
            is_readable = False
            continue
        for event in found:
            answer.add(event)
            if isinstance(event, Asked):
                attempts.append(event.attempt)
    parent = None if parent is None else bytes(parent)
    reply = None
    if answer.has_content:
        message = answer.message()
        digest = history.message_digest(parent or history.root_digest(key_id), message)
        reply = history.Node(digest, message)
    usage, asked, started = answer.usage, answer.asked, answer.started
    return Closing(
        session_id=session_id,
        request_id=request_id,
        response_id=response_id,
        reply=reply,
        parent=parent,
        dialect=dialect,
        position=0 if position is None else position + 1,
        status="interrupted",
        finish_reason="error",
        error_type="server_error",
        error_code="interrupted",
        error_message="the gateway's process ended before the answer did",
        http_status=200 if reply else 503,
        completed_at=now,
        session_ttl=session_ttl,
        duration_ms=None,
        prompt_tokens=usage.prompt_tokens if usage else 0,
        completion_tokens=usage.completion_tokens if usage else 0,
        total_tokens=usage.total_tokens if usage else 0,
        usage_source="partial" if usage else "",
        upstream_response=json.dumps_text(
            {
                "response_id": started.response_id,
                "chat_id": started.chat_id,
                "parent_id": started.parent_id,
                "usage": usage.raw if usage else None,
            }
        ),
        reasoning=json.plain(answer.reasoning),
        upstream=asked.upstream if asked else "",
        account_id=asked.account_id if asked else None,
        attempts=json.dumps_text(attempts),
        sent=answer.sent,
        chat=_chat(asked, answer),
        upstream_parent_id=started.parent_id,
        has_partials=bool(partials) and is_readable,
    )


def _chat(asked: Asked | None, answer: Accumulator) -> ChatRow | None:
    """The chat of an unfinished answer, to be shown; nothing continues it, so its context is none."""
    chat_id, sent = answer.started.chat_id, answer.sent
    if asked is None or sent is None or chat_id is None:
        return None
    return ChatRow(chat_id, asked.account_id, json.plain(str(sent.request.get("model"))), b"")


def release_expired_chats(tx: Transaction, *, now: datetime) -> None:
    """Forget upstream chats of expired sessions; nothing is deleted upstream, nor any message."""
    expired = (
        "SELECT c.id FROM sessions_app_upstreamchat c "
        "JOIN sessions_app_session s ON s.id = c.session_id WHERE s.expires_at <= %s"
    )
    tx.execute(
        f"UPDATE sessions_app_message SET upstream_chat_id = NULL WHERE upstream_chat_id IN ({expired})",  # noqa: S608  # a constant
        [tx.time(now)],
    )
    tx.execute(
        f"DELETE FROM sessions_app_upstreamchat WHERE id IN ({expired})",  # noqa: S608  # a constant
        [tx.time(now)],
    )

"""Derives again what the record says of itself: every digest, count and reference, and names what differs.

Reads batch by batch, each in one statement, so that a gateway that serves meanwhile never makes a
difference; writes nothing. Where no content is kept (a key's `recorded`, retention), or what is kept is redacted,
a digest cannot be derived: that is counted, not passed over. A tree has no circle where every message
stands one position below its parent, which is looked at message by message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.db import connection

from qwenproxy.wire import attachments, history, json
from qwenproxy.wire.redaction import PLACEHOLDER
from requests_app.keeping import is_bare
from requests_app.liveness import WorkerLock

BATCH_ROWS = 500
NO_CONTENT = "no content kept"
REDACTED = "redacted"


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as the rest of the record says."""

    what: str
    # Table and id: `message 12`.
    where: str
    expected: str
    found: str


@dataclass(slots=True)
class Verified:
    """What was looked at so far; `place` is where to go on."""

    place: str = ""
    rows: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)
    # Digests that cannot be derived, by reason.
    not_verifiable: Counter[str] = field(default_factory=Counter)

    def expect(self, what: str, where: str, expected: object, found: object) -> None:
        if expected != found:
            self.differences.append(Difference(what, where, str(expected), str(found)))


_SESSIONS = """
SELECT s.id, s.message_count, s.request_count, s.last_reply_id, m.id, m.session_id, m.position,
 (SELECT COUNT(*) FROM requests_app_request q WHERE q.session_id = s.id)
FROM sessions_app_session s LEFT JOIN sessions_app_message m ON m.id = s.last_reply_id
WHERE s.id > %s {session} ORDER BY s.id LIMIT %s
"""
_MESSAGES = """
SELECT m.id, m.session_id, m.parent_id, m.digest, m.role, m.position, m.given, m.content,
 p.digest, p.session_id, p.position, s.api_key_id,
 m.given = EXISTS (SELECT 1 FROM requests_app_response r WHERE r.reply_id = m.id)
FROM sessions_app_message m LEFT JOIN sessions_app_message p ON p.id = m.parent_id
LEFT JOIN sessions_app_session s ON s.id = m.session_id
WHERE m.id > %s {session} ORDER BY m.id LIMIT %s
"""
_REQUESTS = """
SELECT q.id, q.request_id, q.session_id, q.api_key_id, s.api_key_id, q.prompt_id, m.session_id,
 q.system_id, bs.kind, bs.api_key_id, q.tools_id, bt.kind, bt.api_key_id, r.id
FROM requests_app_request q LEFT JOIN sessions_app_session s ON s.id = q.session_id
LEFT JOIN sessions_app_message m ON m.id = q.prompt_id
LEFT JOIN requests_app_blob bs ON bs.id = q.system_id
LEFT JOIN requests_app_blob bt ON bt.id = q.tools_id
LEFT JOIN requests_app_response r ON r.request_id = q.id
WHERE q.id > %s {session} ORDER BY q.id LIMIT %s
"""
_RESPONSES = """
SELECT r.id, r.response_id, r.status, r.worker_id, r.session_id, r.api_key_id, q.session_id, q.api_key_id,
 r.reply_id, m.session_id, m.role, m.parent_id, q.prompt_id,
 r.completed_at IS NOT NULL AND r.finish_reason IS NOT NULL AND r.http_status IS NOT NULL,
 EXISTS (SELECT 1 FROM requests_app_partial p WHERE p.response_id = r.id),
 r.prompt_tokens, r.completion_tokens, r.total_tokens, r.usage_source
FROM requests_app_response r LEFT JOIN requests_app_request q ON q.id = r.request_id
LEFT JOIN sessions_app_message m ON m.id = r.reply_id
WHERE r.id > %s {session} ORDER BY r.id LIMIT %s
"""
_FILES = """
SELECT f.id, f.message_id, m.id, b.kind, b.api_key_id, s.api_key_id
FROM requests_app_messagefile f LEFT JOIN sessions_app_message m ON m.id = f.message_id
LEFT JOIN requests_app_blob b ON b.id = f.blob_id
LEFT JOIN sessions_app_session s ON s.id = m.session_id
WHERE f.id > %s {session} ORDER BY f.id LIMIT %s
"""
_BLOBS = """
SELECT b.id, b.kind, b.digest, b.body,
 EXISTS (SELECT 1 FROM requests_app_request q WHERE q.system_id = b.id)
 OR EXISTS (SELECT 1 FROM requests_app_request q WHERE q.tools_id = b.id)
 OR EXISTS (SELECT 1 FROM requests_app_messagefile f WHERE f.blob_id = b.id)
FROM requests_app_blob b WHERE b.id > %s {session} ORDER BY b.id LIMIT %s
"""
_BODIES = """
SELECT b.digest, b.body FROM requests_app_messagefile f JOIN requests_app_blob b ON b.id = f.blob_id
WHERE f.message_id = %s
"""
_STATUS = "SELECT status FROM requests_app_response WHERE id = %s"
_CONTENT = "SELECT content FROM sessions_app_message WHERE id = %s"


class Verification:
    """One pass over the record; `workers` is the directory of the processes' locks (SQLite)."""

    def __init__(self, workers: Path) -> None:
        self._lock = WorkerLock("00000000-0000-4000-8000-000000000000", workers, wait_s=0)
        # Of processes, by id: whether their lock is free.
        self._free: dict[str, bool] = {}
        self._stages: dict[str, tuple[str, str, Callable[[Verified, Sequence[Any]], None]]] = {
            "sessions": (_SESSIONS, "s.id", self._session),
            "messages": (_MESSAGES, "m.session_id", self._message),
            "requests": (_REQUESTS, "q.session_id", self._request),
            "responses": (_RESPONSES, "r.session_id", self._response),
            "files": (_FILES, "m.session_id", self._file),
            # Shared by sessions: not of one.
            "blobs": (_BLOBS, "", self._blob),
        }

    def steps(self, *, start: str = "", session_id: str = "") -> Iterator[Verified]:
        """Look through the record, or one session; the same object after every batch.

        `start` is a `place` of an earlier pass.

        Raises:
            ValueError: `start` is no such place.
            django.db.Error: the database cannot be read.
        """
        names = [name for name, stage in self._stages.items() if stage[1] or not session_id]
        first, last = _read_place(start, names)
        verified = Verified(start)
        for name in names[names.index(first) :]:
            sql, column, look = self._stages[name]
            condition = f"AND {column} = %s" if session_id else ""
            given = [session_id] if session_id else []
            while rows := _read(sql.format(session=condition), [last, *given, BATCH_ROWS]):
                for row in rows:
                    look(verified, row)
                last = rows[-1][0]
                verified.rows[name] += len(rows)
                verified.place = f"{name}:{last}"
                yield verified
            last = 0
        yield verified

    def _session(self, verified: Verified, row: Sequence[Any]) -> None:
        pk, messages, requests, last_reply_id, reply_id, reply_session, position, counted = row
        where = f"session {pk}"
        verified.expect("request_count", where, counted, requests)
        verified.expect("last reply", where, last_reply_id, reply_id)
        if reply_id is not None:
            verified.expect("session of the last reply", where, pk, reply_session)
        verified.expect("message_count", where, 0 if position is None else position + 1, messages)

    def _message(self, verified: Verified, row: Sequence[Any]) -> None:
        pk, session_id, parent_id, digest, role, position, _, content, *above, is_replied = row
        parent_digest, parent_session, parent_position, api_key_id = above
        where = f"message {pk}"
        if api_key_id is None:
            verified.expect("session", where, session_id, None)
            return
        if not is_replied:
            verified.expect("answer", where, "given by a response", "given and reply differ")
        if parent_id is not None:
            verified.expect("session of the parent", where, session_id, parent_session)
        expected = 0 if parent_id is None else (parent_position or 0) + 1
        verified.expect("position", where, expected, position)
        above_it = (
            history.root_digest(api_key_id) if parent_id is None else bytes(parent_digest or b"")
        )
        self._digest(verified, (pk, bytes(digest), role, content), above_it)

    def _digest(self, verified: Verified, row: tuple[int, bytes, str, str], above: bytes) -> None:
        """Derive a message's digest; what removal changed meanwhile is looked at as it is now."""
        pk, digest, role, content = row
        try:
            derived = _derive(pk, role, content, above)
        except ValueError as exc:
            verified.expect("content", f"message {pk}", "JSON of a message", str(exc))
            return
        if derived == digest:
            return
        if derived is None:
            verified.not_verifiable[NO_CONTENT] += 1
        elif (now := _read(_CONTENT, [pk])) and now[0][0] != content:
            self._digest(verified, (pk, digest, role, now[0][0]), above)
        elif not now:
            # Deleted meanwhile, with its session.
            return
        elif PLACEHOLDER in content or any(PLACEHOLDER in _plain(b) for b in _bodies(pk).values()):
            verified.not_verifiable[REDACTED] += 1
        else:
            verified.expect("digest", f"message {pk}", derived.hex(), digest.hex())

    def _request(self, verified: Verified, row: Sequence[Any]) -> None:
        _, request_id, session_id, api_key_id, session_key, prompt_id, prompt_session, *rest = row
        *blobs, response_id = rest
        where = f"request {request_id}"
        if response_id is None:
            verified.expect("response", where, "one", "none")
        verified.expect("API key of the session", where, api_key_id, session_key)
        if prompt_id is not None:
            verified.expect("session of the prompt", where, session_id, prompt_session)
        for kind, (blob_id, blob_kind, blob_key) in (("system", blobs[:3]), ("tools", blobs[3:])):
            if blob_id is not None:
                verified.expect(f"{kind} blob", where, (kind, api_key_id), (blob_kind, blob_key))

    def _response(self, verified: Verified, row: Sequence[Any]) -> None:
        pk, response_id, status, worker_id, session_id, api_key_id, *rest = row
        request_session, request_key, reply_id, *reply, is_ended, has_partials = rest[:9]
        where = f"response {response_id}"
        expected = (session_id, api_key_id)
        verified.expect("session and key", where, (request_session, request_key), expected)
        if reply_id is not None:
            reply_session, role, parent_id, prompt_id = reply
            found = (reply_session, role, parent_id)
            verified.expect("reply", where, (session_id, "assistant", prompt_id), found)
        if status == "in_progress":
            self._running(verified, pk, where, worker_id)
        else:
            verified.expect("time, reason and status of the end", where, True, bool(is_ended))
            verified.expect("parts after the end", where, False, bool(has_partials))
        self._tokens(verified, where, rest[9:])

    def _running(self, verified: Verified, pk: int, where: str, worker_id: str | None) -> None:
        """An answer without an end needs a process that lives; it may have got its end meanwhile."""
        if worker_id is not None and worker_id not in self._free:
            self._free[worker_id] = self._lock.is_free(worker_id)
        is_dead = worker_id is None or self._free[worker_id]
        if is_dead and _read(_STATUS, [pk]) == [("in_progress",)]:
            verified.expect("process", where, "a live one", worker_id or "none")

    def _tokens(self, verified: Verified, where: str, row: Sequence[Any]) -> None:
        prompt, completion, total, source = row
        verified.expect("token counts", where, True, min(prompt, completion, total) >= 0)
        if source == "estimated":
            verified.expect("total_tokens", where, prompt + completion, total)

    def _file(self, verified: Verified, row: Sequence[Any]) -> None:
        pk, message_id, found_id, kind, blob_key, session_key = row
        where = f"message file {pk}"
        verified.expect("message", where, message_id, found_id)
        verified.expect("file blob", where, ("file", session_key), (kind, blob_key))

    def _blob(self, verified: Verified, row: Sequence[Any]) -> None:
        pk, kind, digest, body, is_used = row
        verified.expect("use", f"blob {pk}", True, bool(is_used))
        derived = history.digest_of(kind.encode(), body.encode())
        if derived == bytes(digest):
            return
        if PLACEHOLDER in _plain(body):
            verified.not_verifiable[REDACTED] += 1
        else:
            verified.expect("digest", f"blob {pk}", derived.hex(), bytes(digest).hex())


def _read_place(start: str, names: Sequence[str]) -> tuple[str, str | int]:
    if not start:
        return names[0], ""
    name, _, last = start.partition(":")
    # Ids of sessions are texts.
    if name == "sessions":
        return name, last
    if name in names and last.isascii() and last.isdigit() and len(last) < 19:
        return name, int(last)
    raise ValueError(f"{start!r} is no place; one is messages:1200")


def _derive(pk: int, role: str, content: str, above: bytes) -> bytes | None:
    """The digest of a stored message; null where its content is not kept.

    Raises:
        ValueError: it is no message, or a file that it holds is not there.
    """
    message = history.decode_content(role, content)
    if is_bare(message):
        return None
    if '"$' in content:
        bodies = _bodies(pk)
        for reference in attachments.references(message.get("content")):
            if reference.get("digest") not in bodies:
                raise ValueError(f"file {reference.get('digest')} is not there")
        message = attachments.put_back(message, bodies)
    return history.message_digest(above, message)


def _bodies(pk: int) -> dict[str, str]:
    return {bytes(digest).hex(): body for digest, body in _read(_BODIES, [pk])}


def _plain(body: str) -> str:
    """A blob's text, with what its data says where it is data."""
    text = json.loads_text(body)
    if not isinstance(text, str):
        return body
    try:
        return attachments.read_data(text).content.decode("utf-8", "replace")
    except ValueError:
        return text


def _read(sql: str, parameters: Sequence[Any]) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall())

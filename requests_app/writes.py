"""The SQL of the record: one transaction for many turns.

Rows of a batch refer to each other by natural key ((session, digest), request_id, response_id), so
that nothing waits for an id. A message below another is inserted *from* its parent's row: a parent
deleted meanwhile is noticed by the count of rows, and `Vanished` asks for the turn to be resolved
again. Conflicts name their columns: `OR IGNORE` would swallow NOT NULL and CHECK violations on SQLite.
Rows go in sorted by session, then position: unsorted, 55 of 180 overlapping batches deadlocked on
PostgreSQL; sorted, none.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Model

from qwenproxy.access.models import Limits, UpstreamAccount
from qwenproxy.transaction import Transaction
from qwenproxy.wire import attachments, json
from qwenproxy.wire.attachments import File
from qwenproxy.wire.events import Event, Sent, pack
from qwenproxy.wire.history import Node
from requests_app.keeping import KEEP, Keep
from requests_app.limits import Standing
from requests_app.models import Blob, MessageFile, Partial, Request, Response
from sessions_app.models import Message, Session, UpstreamChat
from sessions_app.resolver import Match, Resolution, explicit_session_id, resolve


class Vanished(Exception):
    """Rows that a turn builds on were deleted between its resolution and its insertion."""


@dataclass(frozen=True, slots=True)
class BlobText:
    digest: bytes
    kind: str
    body: str


@dataclass(slots=True)
class Opening:
    """A turn as it arrives; texts are fit for their columns (`wire.json.plain`)."""

    api_key_id: int
    user_id: str | None
    external_id: str | None
    request_id: str
    response_id: str
    dialect: str
    method: str
    path: str
    model: str
    stream: bool
    user_agent: str
    title: str
    # Compact JSON: the body without messages and tools.
    parameters: str
    system: BlobText | None
    tools: BlobText | None
    context_digest: bytes
    line: Sequence[Node]
    created_at: datetime
    session_ttl: timedelta
    # Compact JSON object of the headers that are kept; empty: none.
    headers: str = ""
    keep: Keep = KEEP
    # Of the key; null: none, and the turn is not counted.
    limits: Limits | None = None
    # What it may need at most, where a limit counts tokens.
    reserved_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Opened:
    """A turn on record, in progress."""

    session_id: str
    resolution: Resolution
    # Null: the key has no limits.
    standing: Standing | None = None

    @property
    def match(self) -> Match:
        return self.resolution.match


@dataclass(frozen=True, slots=True)
class ChatRow:
    """The upstream chat that an answer was given in."""

    chat_id: str
    account_id: int
    model: str
    context_digest: bytes


@dataclass(slots=True)
class Closing:
    """How a turn ended, in the columns of `Response` and `Request` (see their comments)."""

    session_id: str
    request_id: str
    response_id: str
    # Null where nothing arrived; `parent` is the digest of the prompt, null below system text alone.
    reply: Node | None
    parent: bytes | None
    dialect: str
    position: int
    status: str
    finish_reason: str
    http_status: int
    completed_at: datetime
    session_ttl: timedelta
    duration_ms: int | None
    ttft_ms: int | None = None
    error_type: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    client_left: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None
    usage_source: str = ""
    upstream_response: str = ""
    reasoning: str = ""
    upstream: str = ""
    account_id: int | None = None
    attempts: str = "[]"
    sent: Sent | None = None
    chat: ChatRow | None = None
    # Null for an answer that is not whole: its chat does not go on from here.
    upstream_id: str | None = None
    upstream_parent_id: str | None = None
    has_partials: bool = False
    keep: Keep = KEEP


def without_facts(closing: Closing) -> Closing:
    """The end of a turn without what its upstream said besides the answer, where a database refuses that."""
    return replace(
        closing,
        prompt_tokens=0,
        completion_tokens=0,
        total_tokens=0,
        reasoning_tokens=None,
        cached_tokens=None,
        usage_source="",
        upstream_response="",
        attempts="[]",
        sent=None,
        chat=None,
        upstream_id=None,
        upstream_parent_id=None,
    )


@dataclass(slots=True)
class PartialRows:
    """What running answers brought since the last time: (response_id, seq, events)."""

    rows: list[tuple[str, int, Sequence[Event]]] = field(default_factory=list)


def _table(model: type[Model]) -> str:
    return model._meta.db_table


def _columns(model: type[Model], names: Iterable[str]) -> str:
    """Column names of model fields: a field that is renamed breaks here, at import."""
    columns = {field.name: field.column for field in model._meta.concrete_fields}
    return ", ".join(str(columns[name]) for name in names)


def _length(model: type[Model], name: str) -> int | None:
    return model._meta.get_field(name).max_length  # type: ignore[union-attr]  # a column's field


_MARK = "%s"
_SESSION_FIELDS = (
    "id", "api_key", "user_id", "external_id", "title", "message_count", "request_count",
    "context_digest", "created_at", "last_accessed", "expires_at",
)  # fmt: skip
_SESSION_UPSERT = f"""
INSERT INTO {_table(Session)} ({_columns(Session, _SESSION_FIELDS)})
VALUES ({", ".join([_MARK] * len(_SESSION_FIELDS))})
ON CONFLICT (id) DO UPDATE SET last_accessed = excluded.last_accessed,
 expires_at = excluded.expires_at, context_digest = excluded.context_digest,
 request_count = {_table(Session)}.request_count + 1
"""

_MESSAGE_FIELDS = ("session", "digest", "role", "content", "dialect", "position", "given")
_MESSAGE_COLUMNS = _columns(Message, (*_MESSAGE_FIELDS, "created_at", "parent"))
_MESSAGE_VALUES = ", ".join([_MARK] * (len(_MESSAGE_FIELDS) + 1))
_MESSAGE_FIRST = f"""
INSERT INTO {_table(Message)} ({_MESSAGE_COLUMNS}) VALUES ({_MESSAGE_VALUES}, NULL)
ON CONFLICT (session_id, digest) DO NOTHING
"""
_MESSAGE_BELOW = f"""
INSERT INTO {_table(Message)} ({_MESSAGE_COLUMNS}) SELECT {_MESSAGE_VALUES}, p.id
FROM {_table(Message)} p WHERE p.session_id = %s AND p.digest = %s
ON CONFLICT (session_id, digest) DO NOTHING
"""

# Messages of sessions whose content was removed, in the form that `keeping.bare_content` gives.
_BARE = f"""
SELECT m.session_id, m.digest FROM {_table(Message)} m JOIN {_table(Session)} s ON s.id = m.session_id
WHERE s.id IN ({{marks}}) AND s.content_removed_at IS NOT NULL
 AND (m.content = %s OR m.content LIKE %s)
"""
_BARE_FORMS = ("{}", f'{{"{attachments.FILES}":%')
_MESSAGE_FILL = f"UPDATE {_table(Message)} SET content = %s WHERE session_id = %s AND digest = %s"

_REPLY_FIELDS = ("upstream_chat", "upstream_id", "upstream_parent_id")
_REPLY_COLUMNS = f"{_MESSAGE_COLUMNS}, {_columns(Message, _REPLY_FIELDS)}"
_CHAT_OF_REPLY = f"(SELECT id FROM {_table(UpstreamChat)} WHERE account_id = %s AND chat_id = %s)"
_REPLY_UPSERT = """
ON CONFLICT (session_id, digest) DO UPDATE SET given = excluded.given,
 upstream_chat_id = excluded.upstream_chat_id, upstream_id = excluded.upstream_id,
 upstream_parent_id = excluded.upstream_parent_id,
 content = CASE WHEN sessions_app_message.content = '{}' THEN excluded.content
  ELSE sessions_app_message.content END
"""
_REPLY_BELOW = f"""
INSERT INTO {_table(Message)} ({_REPLY_COLUMNS})
SELECT {_MESSAGE_VALUES}, p.id, {_CHAT_OF_REPLY}, %s, %s
FROM {_table(Message)} p WHERE p.session_id = %s AND p.digest = %s {_REPLY_UPSERT}
"""
_REPLY_FIRST = f"""
INSERT INTO {_table(Message)} ({_REPLY_COLUMNS})
SELECT {_MESSAGE_VALUES}, NULL, {_CHAT_OF_REPLY}, %s, %s
FROM {_table(Session)} s WHERE s.id = %s {_REPLY_UPSERT}
"""

_BLOB_FIELDS = ("api_key", "digest", "kind", "body")
_BLOB_INSERT = f"""
INSERT INTO {_table(Blob)} ({_columns(Blob, _BLOB_FIELDS)})
VALUES ({", ".join([_MARK] * len(_BLOB_FIELDS))}) ON CONFLICT (api_key_id, digest) DO NOTHING
"""

# A conflict is written over, so that the count of rows tells whether message and blob are there.
_FILE_INSERT = f"""
INSERT INTO {_table(MessageFile)} ({_columns(MessageFile, ("message", "blob"))})
SELECT m.id, b.id FROM {_table(Message)} m, {_table(Blob)} b
WHERE m.session_id = %s AND m.digest = %s AND b.api_key_id = %s AND b.digest = %s
ON CONFLICT (message_id, blob_id) DO UPDATE SET blob_id = excluded.blob_id
"""

_REQUEST_FIELDS = (
    "request_id", "session", "api_key", "parameters", "dialect", "method", "path", "model",
    "stream", "user_agent", "match", "upstream", "attempts", "upstream_request", "created_at",
    "recorded", "headers",
)  # fmt: skip
_REQUEST_INSERT = f"""
INSERT INTO {_table(Request)}
 ({_columns(Request, (*_REQUEST_FIELDS, "prompt", "system", "tools"))})
SELECT {", ".join([_MARK] * len(_REQUEST_FIELDS))}, m.id, bs.id, bt.id
FROM {_table(Session)} s
LEFT JOIN {_table(Message)} m ON m.session_id = s.id AND m.digest = %s
LEFT JOIN {_table(Blob)} bs ON bs.api_key_id = s.api_key_id AND bs.digest = %s
LEFT JOIN {_table(Blob)} bt ON bt.api_key_id = s.api_key_id AND bt.digest = %s
WHERE s.id = %s AND (m.id IS NOT NULL) = %s AND (bs.id IS NOT NULL) = %s
 AND (bt.id IS NOT NULL) = %s
"""

_RESPONSE_FIELDS = (
    "response_id", "session", "api_key", "worker", "status", "client_left", "prompt_tokens",
    "completion_tokens", "total_tokens", "usage_source", "upstream_response", "reasoning",
    "created_at",
)  # fmt: skip
_RESPONSE_INSERT = f"""
INSERT INTO {_table(Response)} ({_columns(Response, (*_RESPONSE_FIELDS, "request"))})
SELECT {", ".join([_MARK] * len(_RESPONSE_FIELDS))}, r.id
FROM {_table(Request)} r WHERE r.request_id = %s
"""

_CHAT_FIELDS = ("chat_id", "model", "context_digest", "created_at")
_CHAT_INSERT = f"""
INSERT INTO {_table(UpstreamChat)} ({_columns(UpstreamChat, (*_CHAT_FIELDS, "session", "account"))})
SELECT {", ".join([_MARK] * len(_CHAT_FIELDS))}, s.id, a.id
FROM {_table(Session)} s, {_table(UpstreamAccount)} a WHERE s.id = %s AND a.id = %s
ON CONFLICT (account_id, chat_id) DO NOTHING
"""

_CLOSED_FIELDS = (
    "status", "finish_reason", "error_type", "error_code", "error_message", "http_status",
    "client_left", "prompt_tokens", "completion_tokens", "total_tokens", "reasoning_tokens",
    "cached_tokens", "usage_source", "upstream_response", "reasoning", "upstream_parent_id",
    "ttft_ms", "duration_ms", "completed_at",
)  # fmt: skip
_RESPONSE_CLOSE = f"""
UPDATE {_table(Response)} SET {", ".join(f"{name} = %s" for name in _CLOSED_FIELDS)},
 worker_id = NULL,
 reply_id = (SELECT id FROM {_table(Message)} WHERE session_id = %s AND digest = %s)
WHERE response_id = %s
"""
_REQUEST_CLOSE = f"""
UPDATE {_table(Request)} SET upstream = %s, attempts = %s, upstream_request = %s,
 upstream_text_digest = %s,
 account_id = (SELECT id FROM {_table(UpstreamAccount)} WHERE id = %s)
WHERE request_id = %s
"""
_SESSION_ANSWERED = f"""
UPDATE {_table(Session)} SET message_count = %s, last_accessed = %s, expires_at = %s,
 last_reply_id = (SELECT id FROM {_table(Message)} WHERE session_id = %s AND digest = %s)
WHERE id = %s
"""
_SESSION_LOCK = f"SELECT 1 FROM {_table(Session)} WHERE id = %s FOR NO KEY UPDATE"
_PARTIAL_INSERT = f"""
INSERT INTO {_table(Partial)} ({_columns(Partial, ("seq", "events", "response"))})
SELECT %s, %s, r.id FROM {_table(Response)} r WHERE r.response_id = %s AND r.status = 'in_progress'
ON CONFLICT (response_id, seq) DO UPDATE SET events = excluded.events
"""
_PARTIAL_DELETE = f"""
DELETE FROM {_table(Partial)}
WHERE response_id = (SELECT id FROM {_table(Response)} WHERE response_id = %s)
"""


def open_turns(tx: Transaction, turns: Sequence[Opening], *, worker_id: str) -> list[Opened]:
    """Resolve turns and write them as in progress.

    Raises:
        Vanished: rows that a turn builds on are gone; resolving again finds the new state.
    """
    opened = _resolve_all(tx, turns)
    # The upsert locks the sessions in this order on every process.
    order = sorted(range(len(turns)), key=lambda i: opened[i].session_id)
    pairs = [(turns[i], opened[i]) for i in order]
    tx.executemany(_SESSION_UPSERT, [_session_row(tx, turn, o) for turn, o in pairs])
    new = _new_messages(tx, pairs)
    _fill_again(tx, pairs, new)
    _insert_blobs(tx, turns, new.blobs)
    _insert_lines(tx, new)
    count = tx.executemany(_REQUEST_INSERT, [_request_row(tx, turn, o) for turn, o in pairs])
    if count != len(turns):
        raise Vanished
    tx.executemany(
        _RESPONSE_INSERT,
        [
            (turn.response_id, o.session_id, turn.api_key_id, worker_id, "in_progress", False,
             0, 0, 0, "", "", "", tx.time(turn.created_at), turn.request_id)
            for turn, o in pairs
        ],
    )  # fmt: skip
    return opened


def _resolve_all(tx: Transaction, turns: Sequence[Opening]) -> list[Opened]:
    opened: list[Opened] = []
    claimed: set[tuple[str, bytes]] = set()
    for turn in turns:
        found = resolve(
            tx,
            turn.line,
            api_key_id=turn.api_key_id,
            user_id=turn.user_id,
            external_id=turn.external_id,
            context_digest=turn.context_digest,
            now=turn.created_at,
            new_id=str(uuid.uuid4()),
            claimed=claimed,
        )
        if found.answer >= 0:
            claimed.add((found.session_id, turn.line[found.answer].digest))
        opened.append(Opened(found.session_id, found))
    return opened


def is_open(tx: Transaction, request_id: str) -> bool:
    """Whether a turn is on record: the answer to a COMMIT may be lost where the COMMIT is not."""
    tx.execute(f"SELECT 1 FROM {_table(Request)} WHERE request_id = %s", [request_id])
    return tx.fetchone() is not None


def _session_row(tx: Transaction, turn: Opening, opened: Opened) -> Sequence[Any]:
    now = tx.time(turn.created_at)
    external_id = turn.external_id
    if external_id is not None and opened.session_id != explicit_session_id(
        turn.api_key_id, turn.user_id, external_id
    ):
        external_id = None
    return (
        opened.session_id, turn.api_key_id, turn.user_id, external_id, turn.title, 0, 1,
        turn.context_digest, now, now, tx.time(turn.created_at + turn.session_ttl),
    )  # fmt: skip


@dataclass(slots=True)
class _NewMessages:
    """What lines have that is not stored: rows of messages, and of their files."""

    first: list[Sequence[Any]] = field(default_factory=list)
    below: list[Sequence[Any]] = field(default_factory=list)
    blobs: dict[tuple[int, bytes], tuple[Opening, BlobText]] = field(default_factory=dict)
    links: set[tuple[str, bytes, int, bytes]] = field(default_factory=set)

    def add_files(self, turn: Opening, opened: Opened, node: Node, files: Sequence[File]) -> None:
        for file in files:
            blob = BlobText(file.digest, "file", file.body)
            self.blobs[turn.api_key_id, file.digest] = (turn, blob)
            self.links.add((opened.session_id, node.digest, turn.api_key_id, file.digest))


def _new_messages(tx: Transaction, pairs: Sequence[tuple[Opening, Opened]]) -> _NewMessages:
    new = _NewMessages()
    for turn, opened in pairs:
        now = tx.time(turn.created_at)
        for position in range(opened.resolution.stored, len(turn.line)):
            node = turn.line[position]
            content, files = turn.keep.message(node)
            row = (
                opened.session_id, node.digest, node.role, content, turn.dialect, position, False,
                now,
            )  # fmt: skip
            if position == 0:
                new.first.append(row)
            else:
                new.below.append((*row, opened.session_id, turn.line[position - 1].digest))
            new.add_files(turn, opened, node, files)
    return new


def _fill_again(
    tx: Transaction, pairs: Sequence[tuple[Opening, Opened]], new: _NewMessages
) -> None:
    """Put the content that a client sends again back where it was removed (`requests_app.content_removal`).

    The sessions are locked by now: what is not marked as removed stays.
    """
    old = {opened.session_id for _, opened in pairs if opened.resolution.may_be_bare}
    if not old:
        return
    marks = ", ".join([_MARK] * len(old))
    tx.execute(_BARE.format(marks=marks), [*sorted(old), *_BARE_FORMS])
    bare: dict[str, set[bytes]] = {}
    for session_id, digest in tx.fetchall():
        bare.setdefault(session_id, set()).add(bytes(digest))
    rows = []
    for turn, opened in pairs:
        for node in turn.line:
            if node.digest in bare.get(opened.session_id, ()):
                content, files = turn.keep.message(node)
                rows.append((content, opened.session_id, node.digest))
                new.add_files(turn, opened, node, files)
    if rows:
        tx.executemany(_MESSAGE_FILL, sorted(rows, key=lambda row: (row[1], row[2])))


def _insert_blobs(
    tx: Transaction,
    turns: Sequence[Opening],
    files: Mapping[tuple[int, bytes], tuple[Opening, BlobText]],
) -> None:
    blobs = {
        (turn.api_key_id, blob.digest): (turn, blob)
        for turn in turns
        for blob in (turn.system, turn.tools)
        if blob is not None
    }
    blobs |= files
    if blobs:
        rows = [
            (key_id, b.digest, b.kind, turn.keep.blob(b))
            for (key_id, _), (turn, b) in sorted(blobs.items(), key=lambda item: item[0])
        ]
        tx.executemany(_BLOB_INSERT, rows)


def _insert_lines(tx: Transaction, new: _NewMessages) -> None:
    """Insert what is new, all first messages, then the rest from its parents down, then their files.

    Raises:
        Vanished: a file was deleted meanwhile, or the message above.
    """
    if new.first:
        tx.executemany(_MESSAGE_FIRST, new.first)
    if new.below:
        tx.executemany(_MESSAGE_BELOW, sorted(new.below, key=lambda row: (row[0], row[5])))
    if new.links and tx.executemany(_FILE_INSERT, sorted(new.links)) != len(new.links):
        raise Vanished


def _request_row(tx: Transaction, turn: Opening, opened: Opened) -> Sequence[Any]:
    digests = (
        turn.line[-1].digest if turn.line else None,
        turn.system.digest if turn.system else None,
        turn.tools.digest if turn.tools else None,
    )
    return (
        turn.request_id, opened.session_id, turn.api_key_id, turn.parameters, turn.dialect,
        turn.method, turn.path, turn.model, turn.stream, turn.user_agent, opened.match, "", "[]",
        "", tx.time(turn.created_at), turn.keep.recorded, turn.headers, *digests, opened.session_id,
        *(digest is not None for digest in digests),
    )  # fmt: skip


def close_turns(tx: Transaction, turns: Sequence[Closing]) -> int:
    """Write how turns ended; return how many could not be, their session being deleted meanwhile."""
    turns = sorted(turns, key=lambda turn: (turn.session_id, turn.position))
    if tx.vendor == "postgresql":
        # Sessions before their messages, as `open_turns` has it: the order in which all wait.
        tx.executemany(_SESSION_LOCK, [(id,) for id in sorted({turn.session_id for turn in turns})])
    chats = [turn for turn in turns if turn.chat is not None and _fit_id(turn.chat.chat_id)]
    if chats:
        tx.executemany(_CHAT_INSERT, [_chat_row(tx, turn) for turn in chats])
    replies = [turn for turn in turns if turn.reply is not None]
    for sql, below in ((_REPLY_FIRST, False), (_REPLY_BELOW, True)):
        rows = [_reply_row(tx, t) for t in replies if (t.parent is not None) == below]
        if rows:
            tx.executemany(sql, rows)
    written = tx.executemany(_RESPONSE_CLOSE, [_response_row(tx, turn) for turn in turns])
    tx.executemany(_REQUEST_CLOSE, [_request_close_row(turn) for turn in turns])
    if replies:
        tx.executemany(_SESSION_ANSWERED, [_answered_row(tx, turn) for turn in replies])
    partials = [(turn.response_id,) for turn in turns if turn.has_partials]
    if partials:
        tx.executemany(_PARTIAL_DELETE, partials)
    return len(turns) - written


# What an upstream says must not keep an answer from being recorded: PostgreSQL refuses longer texts,
# NUL, and numbers beyond 32 bits. The upstream's own words are in `upstream_response` as well.
_REASON_CHARS = _length(Response, "finish_reason")
_CODE_CHARS = _length(Response, "error_code")
_ID_CHARS = _length(Message, "upstream_id")
_LARGEST_COUNT = 2**31 - 1


def _fit(text: str | None, chars: int | None) -> str | None:
    return None if text is None else json.plain(text)[:chars]


def _fit_id(text: str | None) -> str | None:
    """An id that had to be changed names nothing."""
    return text if text == _fit(text, _ID_CHARS) else None


def _fit_count(count: int | None) -> int | None:
    return None if count is None else max(0, min(count, _LARGEST_COUNT))


def _chat_row(tx: Transaction, turn: Closing) -> Sequence[Any]:
    chat = turn.chat
    assert chat is not None
    return (
        chat.chat_id, chat.model, chat.context_digest, tx.time(turn.completed_at),
        turn.session_id, chat.account_id,
    )  # fmt: skip


def _reply_row(tx: Transaction, turn: Closing) -> Sequence[Any]:
    reply, chat = turn.reply, turn.chat
    assert reply is not None
    row = (
        turn.session_id, reply.digest, reply.role, reply.content, turn.dialect, turn.position, True,
        tx.time(turn.completed_at), chat.account_id if chat else None,
        _fit_id(chat.chat_id) if chat else None, _fit_id(turn.upstream_id),
        _fit_id(turn.upstream_parent_id),
        turn.session_id,
    )  # fmt: skip
    return row if turn.parent is None else (*row, turn.parent)


def _response_row(tx: Transaction, turn: Closing) -> Sequence[Any]:
    return (
        turn.status, _fit(turn.finish_reason, _REASON_CHARS), turn.error_type,
        _fit(turn.error_code, _CODE_CHARS), turn.error_message, turn.http_status, turn.client_left,
        *(_fit_count(count) for count in (
            turn.prompt_tokens, turn.completion_tokens, turn.total_tokens, turn.reasoning_tokens,
            turn.cached_tokens,
        )), turn.usage_source,
        turn.upstream_response, turn.reasoning, _fit_id(turn.upstream_parent_id), turn.ttft_ms,
        turn.duration_ms,
        tx.time(turn.completed_at), turn.session_id,
        turn.reply.digest if turn.reply else None, turn.response_id,
    )  # fmt: skip


def _request_close_row(turn: Closing) -> Sequence[Any]:
    sent = turn.sent
    request = ""
    if sent is not None:
        request = json.dumps_text({"request": sent.request, "first_message": sent.first_message})
    return (
        turn.upstream, turn.attempts, request, sent.text_digest if sent else None, turn.account_id,
        turn.request_id,
    )  # fmt: skip


def _answered_row(tx: Transaction, turn: Closing) -> Sequence[Any]:
    assert turn.reply is not None
    return (
        turn.position + 1, tx.time(turn.completed_at),
        tx.time(turn.completed_at + turn.session_ttl), turn.session_id, turn.reply.digest,
        turn.session_id,
    )  # fmt: skip


def append_partials(tx: Transaction, partials: PartialRows) -> None:
    rows = [(seq, pack(events), response_id) for response_id, seq, events in partials.rows]
    if rows:
        tx.executemany(_PARTIAL_INSERT, rows)

"""Removes what was said in a session, in pieces: messages, texts and files go, the bare form stays.

It is the form that turns of keys with `recorded=metadata` have (`requests_app.keeping`): digests, counts, times,
ids and codes. So a conversation goes on by its digests, and what a client sends again is recorded again.

A session is marked before its first piece (`content_removed_at` not after `last_accessed`) and after its last: one
that was interrupted is found again, and begins anew with what is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db import connection
from django.db.backends.utils import CursorWrapper

from qwenproxy.access.models import REMOVED, Recorded
from requests_app.deletion import BYTES, delete_unused_blobs
from requests_app.keeping import (
    bare_attempts,
    bare_content,
    bare_parameters,
    bare_upstream_request,
    bare_upstream_response,
)

# Of a piece: it is written in some milliseconds.
PIECE_ROWS, PIECE_BYTES = 200, 256 * 1024

_MESSAGES, _RESPONSES, _REQUESTS = range(3)
# Table, columns of texts, which rows have content. Requests last: by them it is known that their responses have.
_SOURCES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("sessions_app_message", ("content",), "content <> '{{}}'"),
    (
        "requests_app_response",
        ("reasoning", "upstream_response", "COALESCE(error_message, '')"),
        "EXISTS (SELECT 1 FROM requests_app_request q"
        " WHERE q.id = requests_app_response.request_id AND q.recorded = '{everything}')",
    ),
    (
        "requests_app_request",
        ("parameters", "attempts", "upstream_request"),
        "recorded = '{everything}'",
    ),
)
_SIZES = "SELECT id, {sizes} AS n FROM {table} WHERE session_id IN ({marks}) AND {condition}"
_SUM = "SELECT COUNT(*), SUM(n) FROM ({sizes}) sized"
_BEGIN = (
    "UPDATE sessions_app_session SET title = '', content_removed_at = last_accessed WHERE id = %s"
)
_END = "UPDATE sessions_app_session SET content_removed_at = %s WHERE id = %s"
_MESSAGE = "UPDATE sessions_app_message SET content = %s WHERE id = %s"
_RESPONSE = (
    "UPDATE requests_app_response SET reasoning = '', upstream_response = %s,"
    " error_message = error_code WHERE id = %s"
)
_REQUEST = (
    "UPDATE requests_app_request SET parameters = %s, attempts = %s, upstream_request = %s,"
    " system_id = NULL, tools_id = NULL, recorded = %s WHERE id = %s"
)
_READ_MESSAGES = "SELECT id, role, content FROM sessions_app_message WHERE id IN ({})"
_READ_FILES = "SELECT blob_id FROM requests_app_messagefile WHERE message_id IN ({})"
_READ_RESPONSES = "SELECT id, upstream_response FROM requests_app_response WHERE id IN ({})"
_READ_REQUESTS = (
    "SELECT id, parameters, attempts, upstream_request, system_id, tools_id"
    " FROM requests_app_request WHERE id IN ({})"
)
_DELETE_FILES = "DELETE FROM requests_app_messagefile WHERE message_id IN ({})"


@dataclass(slots=True)
class Piece:
    """Rows of one session in their bare form, as parameters of the statements above."""

    session_id: str
    is_first: bool
    is_last: bool
    # Of the texts that are in the rows.
    bytes: int
    messages: list[tuple[str, int]] = field(default_factory=list)
    responses: list[tuple[str, int]] = field(default_factory=list)
    requests: list[tuple[str, str, str, str, int]] = field(default_factory=list)
    blob_ids: set[int] = field(default_factory=set)

    @property
    def rows(self) -> int:
        return 2 + len(self.messages) + len(self.responses) + len(self.requests)


@dataclass(frozen=True, slots=True)
class _Row:
    # Index of `_SOURCES`.
    source: int
    id: int
    bytes: int


def size_of(session_ids: Sequence[str], *, is_whole: bool) -> tuple[int, int]:
    """Rows and bytes of texts of sessions, files left out; of those rows that hold content, or of all.

    Three queries; blocks.
    """
    rows = size = 0
    with connection.cursor() as cursor:
        for source in range(len(_SOURCES)):
            sizes = _sizes(source, session_ids, is_whole=is_whole)
            cursor.execute(_SUM.format(sizes=sizes), session_ids)
            count, total = cursor.fetchone()
            rows, size = rows + count, size + int(total or 0)
    return rows, size


def read_pieces(session_id: str) -> Iterator[Piece]:
    """What is to be written, piece by piece; to be read outside of the transactions that write it.

    There is one at least. A single text is never cut. Blocks.
    """
    parts = list(_parts(_sized_rows(session_id))) or [[]]
    for number, part in enumerate(parts):
        yield _piece(session_id, part, is_first=number == 0, is_last=number == len(parts) - 1)


def write_piece(cursor: CursorWrapper, piece: Piece, now: datetime) -> int:
    """Write a piece in a transaction that has locked the session; return the bytes that went."""
    if piece.is_first:
        cursor.execute(_BEGIN, [piece.session_id])
    for sql, rows in (
        (_MESSAGE, piece.messages),
        (_RESPONSE, piece.responses),
        (_REQUEST, piece.requests),
    ):
        if rows:
            cursor.executemany(sql, rows)
    freed = piece.bytes
    if piece.blob_ids:
        if piece.messages:
            ids = [pk for _, pk in piece.messages]
            cursor.execute(_DELETE_FILES.format(_marks(ids)), ids)
        freed += delete_unused_blobs(cursor, piece.blob_ids)
    if piece.is_last:
        moment = connection.ops.adapt_datetimefield_value(now)
        cursor.execute(_END, [moment, piece.session_id])
    return freed


def _sizes(source: int, session_ids: Sequence[str], *, is_whole: bool = False) -> str:
    table, columns, condition = _SOURCES[source]
    length = BYTES[connection.vendor]
    return _SIZES.format(
        sizes=" + ".join(length.format(column) for column in columns),
        table=table,
        marks=_marks(session_ids),
        condition="1 = 1" if is_whole else condition.format(everything=Recorded.EVERYTHING.value),
    )


def _sized_rows(session_id: str) -> Iterator[_Row]:
    with connection.cursor() as cursor:
        for source in range(len(_SOURCES)):
            cursor.execute(_sizes(source, [session_id]), [session_id])
            yield from (_Row(source, pk, size) for pk, size in sorted(cursor.fetchall()))


def _parts(rows: Iterator[_Row]) -> Iterator[list[_Row]]:
    part: list[_Row] = []
    size = 0
    for row in rows:
        if part and (len(part) >= PIECE_ROWS or size + row.bytes > PIECE_BYTES):
            yield part
            part, size = [], 0
        part.append(row)
        size += row.bytes
    if part:
        yield part


def _piece(session_id: str, part: Sequence[_Row], *, is_first: bool, is_last: bool) -> Piece:
    piece = Piece(session_id, is_first, is_last, sum(row.bytes for row in part))
    ids: list[list[int]] = [[] for _ in _SOURCES]
    for row in part:
        ids[row.source].append(row.id)
    with connection.cursor() as cursor:
        for pk, role, content in _read(cursor, _READ_MESSAGES, ids[_MESSAGES]):
            piece.messages.append((bare_content(role, content), pk))
        for (blob_id,) in _read(cursor, _READ_FILES, ids[_MESSAGES]):
            piece.blob_ids.add(blob_id)
        for pk, text in _read(cursor, _READ_RESPONSES, ids[_RESPONSES]):
            piece.responses.append((bare_upstream_response(text), pk))
        for pk, parameters, attempts, sent, *blobs in _read(cursor, _READ_REQUESTS, ids[_REQUESTS]):
            piece.blob_ids.update(blob_id for blob_id in blobs if blob_id is not None)
            bare = (bare_parameters(parameters), bare_attempts(attempts))
            piece.requests.append((*bare, bare_upstream_request(sent), REMOVED, pk))
    return piece


def _read(cursor: CursorWrapper, sql: str, ids: Sequence[int]) -> list[Any]:
    if not ids:
        return []
    cursor.execute(sql.format(_marks(ids)), ids)
    return list(cursor.fetchall())


def _marks(values: Sequence[object]) -> str:
    return ", ".join(["%s"] * len(values))

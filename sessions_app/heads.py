"""Messages of a page with the long ones cut, so that their cost is bounded by what is shown of them.

A result of a tool may be megabytes, of which a page shows the beginning. No more is read where that tells
all that the page needs: of a message that is one text, and of a result whose beginning or end names its
call. Other messages are loaded whole.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from django.db import connection

from qwenproxy.wire import json
from qwenproxy.wire.cut_json import loads_head
from qwenproxy.wire.history import decode_content
from qwenproxy.wire.json import JSONObject
from sessions_app.models import Message
from sessions_app.transcript import Place

HEAD_CHARS = 65_536
# What is longer is cut: as many bytes as so many characters can have.
_LONG_BYTES = 4 * HEAD_CHARS
# No page shows more long beginnings than this; of further messages it is less.
_MAX_HEADS = 8
_SHORT_HEAD_CHARS = 8192
_TAIL_CHARS = 500
_RESULT_ROLES = ("tool", "function")
# Among the last members of the outermost object: within a text its quotes would be escaped.
_ID_AT_END = re.compile(
    r',("tool_call_id":"(?:[^"\\]|\\.)*")'
    r'(?:,"(?:[^"\\]|\\.)*":(?:"(?:[^"\\]|\\.)*"|[^\s"{}\[\],:]+))*\}\Z'
)
# Of PostgreSQL, which reads no more of a long text than a beginning, and none of it for its length.
_HEADS = """
SELECT id, octet_length(content), CASE WHEN octet_length(content) > %s
 THEN substr(content, 1, %s) ELSE content END
FROM sessions_app_message WHERE id IN ({}) ORDER BY id
"""
_TAILS = "SELECT id, right(content, %s) FROM sessions_app_message WHERE id IN ({})"


class Head(NamedTuple):
    """A message as far as a page shows it."""

    pk: int
    parent_id: int | None
    role: str
    body: JSONObject
    # The bytes that are stored of it, where the body is its beginning; null: it is whole.
    cut_from: int | None


def load_heads(places: Sequence[Place], whole: Collection[int] = ()) -> list[Head]:
    """Load the messages at these places, those with an id in `whole` to their end.

    Messages that were deleted meanwhile are left out. On SQLite one query at most and a read of each
    message, on PostgreSQL three queries at most.
    """
    texts, sizes = {}, {}
    for pk, size, text in _read_heads([place.pk for place in places if place.pk not in whole]):
        texts[pk], sizes[pk] = text, size
    cut = {pk for pk, size in sizes.items() if size > _LONG_BYTES}
    bodies = _bodies_of([place for place in places if place.pk in cut], texts)
    missing = (cut - bodies.keys()) | {place.pk for place in places if place.pk in whole}
    texts |= _read_whole(missing)
    return [
        Head(
            place.pk,
            place.parent_id,
            place.role,
            bodies.get(place.pk) or decode_content(place.role, texts[place.pk]),
            sizes[place.pk] if place.pk in bodies else None,
        )
        for place in places
        if place.pk in texts
    ]


def _bodies_of(places: Sequence[Place], texts: Mapping[int, str]) -> dict[int, JSONObject]:
    """What the beginnings of long messages say, without those that have to be loaded whole."""
    found = {place.pk: _body_of(place.role, texts[place.pk]) for place in places}
    bodies = {pk: body for pk, body in found.items() if body is not None}
    # Of an object that is a result: nearly all of them have it.
    nameless = [
        pk for pk in bodies if "tool_call_id" not in bodies[pk] and texts[pk].startswith("{")
    ]
    ends = dict(_read_tails(nameless))
    for pk in nameless:
        named = _ID_AT_END.search(ends.get(pk, ""))
        member = json.loads_text("{" + named[1] + "}") if named else None
        if isinstance(member, dict):
            bodies[pk] |= member
        else:
            del bodies[pk]
    return bodies


def _body_of(role: str, text: str) -> JSONObject | None:
    """The message that a text begins; null where what is missing may matter."""
    try:
        stored = loads_head(text)
    except json.JSONError:
        return None
    if isinstance(stored, str):
        return {"role": role, "content": stored}
    if role in _RESULT_ROLES and isinstance(stored, dict) and list(stored)[-1:] == ["content"]:
        return {"role": role, **stored}
    return None


# How they are read.


def _read_heads(pks: Collection[int]) -> Iterator[tuple[int, int, str]]:
    """Id, bytes and text of each message, of long ones its beginning."""
    long_ones = 0
    for pk, size, text in _read_beginnings(pks):
        long_ones += size > _LONG_BYTES
        is_short = size > _LONG_BYTES and long_ones > _MAX_HEADS
        yield pk, size, text[:_SHORT_HEAD_CHARS] if is_short else text


def _read_beginnings(pks: Collection[int]) -> Iterator[tuple[int, int, str]]:
    if connection.vendor != "sqlite":
        yield from _select(_HEADS, [_LONG_BYTES, HEAD_CHARS], pks)
        return
    for pk, size, content in _read_blobs(pks, 0, _LONG_BYTES):
        text = content.decode("utf-8", "ignore" if size > _LONG_BYTES else "strict")
        yield pk, size, text[:HEAD_CHARS] if size > _LONG_BYTES else text


def _read_tails(pks: Collection[int]) -> Iterator[tuple[int, str]]:
    if connection.vendor != "sqlite":
        yield from _select(_TAILS, [_TAIL_CHARS], pks)
        return
    for pk, _, content in _read_blobs(pks, -_TAIL_CHARS, _TAIL_CHARS):
        yield pk, content.decode("utf-8", "ignore")


def _read_whole(pks: Collection[int]) -> dict[int, str]:
    if not pks:
        return {}
    return dict(Message.objects.filter(pk__in=pks).values_list("pk", "content"))


def _select(sql: str, params: Sequence[int], pks: Collection[int]) -> Iterator[tuple[Any, ...]]:
    if pks:
        with connection.cursor() as cursor:
            cursor.execute(sql.format(", ".join(["%s"] * len(pks))), [*params, *pks])
            yield from cursor.fetchall()


def _read_blobs(pks: Iterable[int], start: int, length: int) -> Iterator[tuple[int, int, bytes]]:
    """Id, size in bytes and a part of each content; a negative start counts from the end.

    SQLite's queries read a value whole, whatever of it is asked for: 60 ms for fifty of 2 MB. This reads its
    pages up to the part.
    """
    connection.ensure_connection()
    table, column = Message._meta.db_table, "content"
    for pk in pks:
        try:
            blob = connection.connection.blobopen(table, column, pk, readonly=True)
        except sqlite3.OperationalError as exc:
            if "no such rowid" in str(exc):
                continue
            raise
        with blob:
            blob.seek(max(0, start + len(blob)) if start < 0 else start)
            yield pk, len(blob), blob.read(length)

"""Reading the conversation tree: the line from a root to a message, and how a session began.

A line is read with one recursive query by primary keys, however large the session around it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from django.db import connection
from django.db.models import Min, Q

from qwenproxy.wire.history import decode_content, text_of
from qwenproxy.wire.json import JSONObject
from sessions_app.models import Message

_LINE = """
WITH RECURSIVE line(id, parent_id, height) AS (
    SELECT id, parent_id, 0 FROM sessions_app_message WHERE id = %s
    UNION ALL
    SELECT above.id, above.parent_id, line.height + 1
    FROM line JOIN sessions_app_message above ON above.id = line.parent_id
)
"""
# Not sorted by the database: 100 results of 2 MB took 2 s in SQLite's sorter.
_MESSAGES = (
    _LINE
    + """
SELECT m.id, m.parent_id, m.role, m.content, m.given, m.position, m.created_at
FROM line JOIN sessions_app_message m ON m.id = line.id
"""
)
# Counted from the root, so that a part can be named without reading the rest; the recursion has to begin at
# the leaf all the same.
_PLACES = (
    _LINE
    + """
SELECT m.id, m.parent_id, m.role FROM line JOIN sessions_app_message m ON m.id = line.id
ORDER BY line.height DESC LIMIT %s OFFSET %s
"""
)
# Ids grow within a session, so the largest below a message is a leaf, and the newest one.
_NEWEST = """
WITH RECURSIVE below(id) AS (
    SELECT id FROM sessions_app_message WHERE id = %s AND session_id = %s
    UNION ALL
    SELECT child.id FROM below JOIN sessions_app_message child ON child.parent_id = below.id
)
SELECT leaf.id, leaf.position, wanted.position, (
    SELECT COUNT(*) - COUNT(DISTINCT parent_id) FROM sessions_app_message WHERE session_id = %s
)
FROM sessions_app_message leaf, sessions_app_message wanted
WHERE leaf.id = (SELECT MAX(id) FROM below) AND wanted.id = %s
"""


class Place(NamedTuple):
    """A message of a line, without what it says."""

    pk: int
    parent_id: int | None
    role: str


class Way(NamedTuple):
    """Where a line leads that goes through a message."""

    leaf_id: int
    leaf_position: int
    # Of the message itself.
    position: int
    # Lines of the session: its leaves.
    branches: int


def find_way(session_id: str, message_id: int) -> Way | None:
    """The line through a message of the session down to its newest leaf; null: not the session's.

    One query, over all that is below the message.
    """
    with connection.cursor() as cursor:
        cursor.execute(_NEWEST, [message_id, session_id, session_id, message_id])
        row = cursor.fetchone()
    return None if row is None else Way(*row)


def load_siblings(session_id: str, line: Sequence[Place]) -> dict[int | None, list[int]]:
    """The ids below each parent of a part of a line, oldest first; one query.

    Those below null are the session's first messages.
    """
    condition = Q(parent__in=[message.parent_id for message in line if message.parent_id])
    if any(message.parent_id is None for message in line):
        # By position: an index of the parents would find the first messages of every session.
        condition |= Q(position=0)
    rows = Message.objects.filter(condition, session=session_id).order_by("id")
    siblings: dict[int | None, list[int]] = {}
    for message_id, parent_id in rows.values_list("id", "parent_id"):
        siblings.setdefault(parent_id, []).append(message_id)
    return siblings


def load_line(leaf_id: int | None) -> list[Message]:
    """Load the messages from the root down to `leaf_id`.

    One query. The messages have id, parent_id, role, content, given, position and created_at only.
    """
    if leaf_id is None:
        return []
    rows = Message.objects.raw(_MESSAGES, [leaf_id])
    return sorted(rows, key=lambda message: message.position)


def load_places(leaf_id: int, start: int, limit: int) -> list[Place]:
    """The places of `limit` messages of a line from position `start` on; one query."""
    with connection.cursor() as cursor:
        cursor.execute(_PLACES, [leaf_id, limit, start])
        return [Place(*row) for row in cursor.fetchall()]


def message_body(message: Message) -> JSONObject:
    """The message in the form in which it was first seen."""
    return decode_content(message.role, message.content)


def first_user_texts(session_ids: Iterable[str]) -> dict[str, str]:
    """The text of each session's first user message, as the user wrote it; two queries for all.

    Sessions without a user message are left out.
    """
    # Ids grow within a session: the smallest is the message that came first.
    first_ids = (
        Message.objects.filter(session__in=list(session_ids), role="user")
        .order_by()
        .values("session_id")
        .annotate(first_id=Min("id"))
        .values_list("first_id", flat=True)
    )
    rows = Message.objects.filter(id__in=list(first_ids)).values_list("session_id", "content")
    return {session_id: text_of(decode_content("user", content)) for session_id, content in rows}

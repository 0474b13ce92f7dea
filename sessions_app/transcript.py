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

# Positions count from the root, so that a part of a line can be named without reading the rest; the
# recursion has to begin at the leaf all the same. Contents are read for the part alone and are not sorted: 100
# results of 2 MB took 2 s in SQLite's sorter.
_LINE = """
WITH RECURSIVE line(id, parent_id, height) AS (
    SELECT id, parent_id, 0 FROM sessions_app_message WHERE id = %s
    UNION ALL
    SELECT above.id, above.parent_id, line.height + 1
    FROM line JOIN sessions_app_message above ON above.id = line.parent_id
), page(id) AS (
    SELECT id FROM line ORDER BY height DESC LIMIT %s OFFSET %s
)
SELECT m.id, m.parent_id, m.role, m.content, m.given, m.position, m.created_at
FROM page JOIN sessions_app_message m ON m.id = page.id
"""
_ALL = 2**31
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


def load_siblings(session_id: str, line: Sequence[Message]) -> dict[int | None, list[int]]:
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


def load_line(leaf_id: int | None, *, start: int = 0, limit: int = _ALL) -> list[Message]:
    """Load the messages from the root down to `leaf_id`, or `limit` of them from position `start` on.

    One query. The messages have id, parent_id, role, content, given, position and created_at only.
    """
    if leaf_id is None:
        return []
    rows = Message.objects.raw(_LINE, [leaf_id, limit, start])
    return sorted(rows, key=lambda message: message.position)


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

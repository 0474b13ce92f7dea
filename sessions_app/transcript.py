"""Reading the conversation tree: the line from a root to a message, and how a session began.

A line is read with one recursive query by primary keys, however large the session around it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from django.db import connection
from django.db.models import Min

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
# Siblings of messages, counted from the oldest; of each message those near it, the first and the last.
_FORKS = """
WITH branch AS (
    SELECT id, COALESCE(parent_id, 0) AS place, COUNT(*) OVER (PARTITION BY parent_id) AS of_all,
        ROW_NUMBER() OVER (PARTITION BY parent_id ORDER BY id) AS number
    FROM sessions_app_message WHERE session_id = %s AND {}
)
SELECT own.id, own.number, own.of_all, other.number, other.id
FROM branch own JOIN branch other ON other.place = own.place
WHERE own.of_all > 1 AND own.id IN ({}) AND (
    other.number BETWEEN own.number - %s AND own.number + %s OR other.number IN (1, other.of_all)
) ORDER BY own.id, other.number
"""
_NEAR = 2


class Place(NamedTuple):
    """A message of a line, without what it says."""

    pk: int
    parent_id: int | None
    role: str


class Fork(NamedTuple):
    """Which of its siblings a message is, and some of them."""

    # From 1, oldest first.
    number: int
    of_all: int
    # Number -> id, in their order.
    branches: dict[int, int]

    @property
    def before(self) -> int | None:
        return self.branches.get(self.number - 1)

    @property
    def after(self) -> int | None:
        return self.branches.get(self.number + 1)

    @property
    def steps(self) -> list[tuple[int, int, bool]]:
        """Number and id of each branch, and whether others are left out before it."""
        numbers = list(self.branches)
        gaps = (later - number > 1 for number, later in zip([0, *numbers], numbers, strict=False))
        return [
            (number, pk, gap) for (number, pk), gap in zip(self.branches.items(), gaps, strict=True)
        ]


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


def load_forks(session_id: str, line: Sequence[Place]) -> dict[int, Fork]:
    """The messages of a part of a line that have siblings, by id; one query.

    Of each it is the branches nearest to it, with the first and the last, however many there are.
    """
    parents = list({place.parent_id for place in line if place.parent_id is not None})
    condition = f"parent_id IN ({', '.join(['%s'] * len(parents))})" if parents else "1 = 0"
    # By position: an index of the parents would find the first messages of every session.
    first = "OR position = 0" if any(place.parent_id is None for place in line) else ""
    pks = [place.pk for place in line]
    sql = _FORKS.format(f"({condition} {first})", ", ".join(["%s"] * len(pks)))
    forks: dict[int, Fork] = {}
    with connection.cursor() as cursor:
        cursor.execute(sql, [session_id, *parents, *pks, _NEAR, _NEAR])
        for pk, own, of_all, number, sibling_id in cursor.fetchall():
            fork = forks.setdefault(pk, Fork(own, of_all, {}))
            fork.branches[number] = sibling_id
    return forks


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

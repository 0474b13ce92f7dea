"""Many lines of messages, one after the other: what they share is read and parsed once.

The requests of a session send nearly the same line again and again. A `LineReader` asks for the tree above
some messages at a time, loads the messages it does not hold, so many in a query, and lets go of those not
used for longest. It holds `MAX_CHARS` of them between two lines, and with a line what that needs.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence

from django.db import connection

from qwenproxy.wire.history import decode_content
from qwenproxy.wire.json import JSONObject
from sessions_app.models import Message

# In memory each is up to four bytes, and as much again where it stands in an object.
MAX_CHARS = 4 * 2**20
# Read ahead in one query: each of them may be megabytes.
_BATCH_MESSAGES = 100
_ABOVE = """
WITH RECURSIVE above(id, parent_id) AS (
    SELECT id, parent_id FROM sessions_app_message WHERE id IN ({})
    UNION
    SELECT m.id, m.parent_id FROM above JOIN sessions_app_message m ON m.id = above.parent_id
)
SELECT id, parent_id FROM above
"""


class LineReader:
    def __init__(self) -> None:
        # By id: a message and its length as stored; used last at the end.
        self._held: OrderedDict[int, tuple[JSONObject, int]] = OrderedDict()
        self._chars = 0

    def read(self, leaf_ids: Sequence[int | None]) -> Iterator[list[JSONObject] | None]:
        """The line from the root down to each message, in their order; empty for null.

        A line of which a message was deleted meanwhile is null. One query for all, and one for each hundred
        messages that are not held. The messages are shared: nobody may change them.
        """
        parents = _parents_above({leaf_id for leaf_id in leaf_ids if leaf_id is not None})
        lines = [_line(leaf_id, parents) for leaf_id in leaf_ids]
        for index, line in enumerate(lines):
            if not all(pk in self._held for pk in line or ()):
                self._load(itertools.islice(lines, index, None))
            yield None if line is None else self._bodies(line)
            self._let_go()

    def _load(self, lines: Iterable[list[int] | None]) -> None:
        """Load what the first line lacks, and of the following ones what fits in the same queries."""
        missing: dict[int, None] = {}
        for line in lines:
            lacking = [pk for pk in line or () if pk not in self._held and pk not in missing]
            if missing and len(missing) + len(lacking) > _BATCH_MESSAGES:
                break
            missing.update(dict.fromkeys(lacking))
        pks = list(missing)
        for start in range(0, len(pks), _BATCH_MESSAGES):
            rows = Message.objects.filter(pk__in=pks[start : start + _BATCH_MESSAGES])
            for pk, role, content in rows.values_list("pk", "role", "content"):
                self._held[pk] = decode_content(role, content), len(content)
                self._chars += len(content)

    def _bodies(self, line: Sequence[int]) -> list[JSONObject] | None:
        for pk in line:
            if pk not in self._held:
                return None
            self._held.move_to_end(pk)
        return [self._held[pk][0] for pk in line]

    def _let_go(self) -> None:
        while self._chars > MAX_CHARS:
            _, (_, chars) = self._held.popitem(last=False)
            self._chars -= chars


def _parents_above(leaf_ids: Iterable[int]) -> dict[int, int | None]:
    wanted = list(leaf_ids)
    if not wanted:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(_ABOVE.format(", ".join(["%s"] * len(wanted))), wanted)
        return dict(cursor.fetchall())


def _line(leaf_id: int | None, parents: dict[int, int | None]) -> list[int] | None:
    """The ids from the root down; null where one is missing."""
    line = []
    while leaf_id is not None:
        if leaf_id not in parents:
            return None
        line.append(leaf_id)
        leaf_id = parents[leaf_id]
    return line[::-1]

"""Which conversation a history belongs to, always inside one API key and one `user`.

Only answers that this gateway gave identify a conversation: a canned opening that a client invents
does not. Runs in the recorder's thread, inside the transaction that inserts the turn, so that no
earlier turn is missed. It reads; the recorder writes.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from qwenproxy.transaction import Transaction
from qwenproxy.wire import json
from qwenproxy.wire.history import Node

Match = Literal["explicit", "continued", "forked", "imported", "new"]

_NAMESPACE = uuid.UUID("6f2d1a58-6d0f-4c59-9a37-0c9e4f2b7c11")
# Probes per statement: below SQLite's limit on bound variables.
_PROBES = 500
# After its last use a session keeps its content for so long, whatever is set.
_SURELY_KEPT = timedelta(days=1)
# Answers of the same digest that are looked at, newest first; the second number where the first few
# all belong to conversations that went on: so many may begin alike at a time and stay apart.
_CANDIDATES, _ALL_CANDIDATES = 16, 256


@dataclass(frozen=True, slots=True)
class KnownChat:
    """The web upstream's place below which a turn may go on: the answer at `index` of the line."""

    chat_id: str
    account_id: int
    model: str
    context_digest: bytes
    # The upstream's ids of the answer's node and of the user node above it.
    upstream_id: str | None
    upstream_parent_id: str | None
    index: int


@dataclass(frozen=True, slots=True)
class Resolution:
    session_id: str
    match: Match
    # Messages of the line before this index are stored in the session already.
    stored: int
    # Index of the deepest given answer of the line, -1 where none is known.
    answer: int = -1
    chat: KnownChat | None = None
    # What is stored of it may have lost its content: the session was, or may just now be, too old.
    may_be_bare: bool = False


def explicit_session_id(api_key_id: int, user_id: str | None, external_id: str) -> str:
    """The session that a client's own id names; two keys, or two users of one, never share one."""
    named = external_id.encode("utf-8", "surrogatepass").hex()
    if user_id is not None:
        named = f"{named}:{user_id.encode('utf-8', 'surrogatepass').hex()}"
    return str(uuid.uuid5(_NAMESPACE, f"{api_key_id}:{named}"))


def resolve(
    tx: Transaction,
    line: Sequence[Node],
    *,
    api_key_id: int,
    user_id: str | None,
    external_id: str | None,
    context_digest: bytes,
    now: datetime,
    new_id: str,
    claimed: Collection[tuple[str, bytes]] = (),
) -> Resolution:
    """Find the session of a line; `new_id` is the id of a session that must be made.

    Chats of sessions that expired before `now` are not continued. `claimed` are the answers (session,
    digest) that turns of the same batch go on from: their rows are not there yet.
    """
    answers = [index for index, node in enumerate(line) if node.role == "assistant"]
    if external_id is not None:
        return _resolve_explicit(
            tx, line, answers, api_key_id=api_key_id, user_id=user_id, external_id=external_id,
            context_digest=context_digest, now=now,
        )  # fmt: skip
    found = _find_answer(
        tx, line, answers, user_id=user_id, context_digest=context_digest, now=now, claimed=claimed
    )
    if found is None:
        return Resolution(new_id, "imported" if answers else "new", stored=0)
    return Resolution(
        found.session_id,
        "forked" if found.continued else "continued",
        stored=found.index + 1,
        answer=found.index,
        chat=found.chat,
        may_be_bare=found.may_be_bare,
    )


@dataclass(frozen=True, slots=True)
class _Answer:
    index: int
    session_id: str
    # It has messages below it.
    continued: bool
    same_context: bool
    chat: KnownChat | None
    may_be_bare: bool


_FIND = """
SELECT m.session_id, s.context_digest, s.content_removed_at IS NOT NULL OR s.last_accessed < %s,
       m.upstream_id, m.upstream_parent_id, c.chat_id, c.account_id, c.model, c.context_digest,
       EXISTS (SELECT 1 FROM sessions_app_message child WHERE child.parent_id = m.id)
FROM sessions_app_message m
JOIN sessions_app_session s ON s.id = m.session_id
LEFT JOIN sessions_app_upstreamchat c ON c.id = m.upstream_chat_id AND s.expires_at > %s
WHERE m.digest = %s AND m.given AND {owner}
ORDER BY m.id DESC LIMIT %s
"""


def _find_answer(
    tx: Transaction,
    line: Sequence[Node],
    answers: Sequence[int],
    *,
    user_id: str | None,
    context_digest: bytes,
    now: datetime,
    session_id: str | None = None,
    claimed: Collection[tuple[str, bytes]] = (),
) -> _Answer | None:
    """The best place of the deepest given answer: same context, then uncontinued, then newest."""
    owner, params = _owner(user_id, session_id)
    sql = _FIND.format(owner=owner)

    # A loop: a closure that calls itself would keep the whole history until the collector comes to it.
    def best(index: int) -> _Answer | None:
        digest = line[index].digest
        for limit in (_CANDIDATES, _ALL_CANDIDATES):
            tx.execute(sql, [tx.time(now - _SURELY_KEPT), tx.time(now), digest, *params, limit])
            rows = tx.fetchall()
            found = [
                _answer(index, row, context_digest, is_claimed=(row[0], digest) in claimed)
                for row in rows
            ]
            chosen = max(found, key=lambda a: (a.same_context, not a.continued), default=None)
            if chosen is None or not chosen.continued or len(rows) < limit:
                break
        return chosen

    # Nearly always the last answer is ours; one probe finds it. Looking for all at once by
    # `IN (...) ORDER BY` took 23 ms against 0.03 ms where a first exchange is popular.
    remaining = list(answers)
    while remaining:
        index = remaining.pop()
        if (found := best(index)) is not None:
            return found
        deepest = _deepest_stored(
            tx, line, remaining, "m.given AND " + owner, params, join=session_id is None
        )
        remaining = [] if deepest is None else [i for i in remaining if i <= deepest]
    return None


def _owner(user_id: str | None, session_id: str | None) -> tuple[str, list[str]]:
    if session_id is not None:
        return "m.session_id = %s", [session_id]
    if user_id is None:
        return "s.user_id IS NULL", []
    return "s.user_id = %s", [user_id]


def _answer(index: int, row: Sequence[Any], context_digest: bytes, *, is_claimed: bool) -> _Answer:
    session_id, session_context, may_be_bare, upstream_id, upstream_parent_id, *chat, continued = (
        row
    )
    known = None
    if chat[0] is not None and upstream_id is not None:
        chat_id, account_id, model, chat_context = chat
        known = KnownChat(
            chat_id, account_id, model, bytes(chat_context), upstream_id, upstream_parent_id, index
        )
    return _Answer(
        index,
        session_id,
        bool(continued) or is_claimed,
        bytes(session_context) == context_digest,
        known,
        bool(may_be_bare),
    )


def _deepest_stored(
    tx: Transaction,
    line: Sequence[Node],
    indexes: Sequence[int],
    condition: str,
    params: Sequence[str],
    *,
    join: bool,
) -> int | None:
    """The deepest of `indexes` that is stored: one index probe per digest, no sorting of matches."""
    joined = "JOIN sessions_app_session s ON s.id = m.session_id" if join else ""
    for start in range(len(indexes), 0, -_PROBES):
        probes = indexes[max(0, start - _PROBES) : start]
        values = ",".join(["(%s, %s)"] * len(probes))
        # PostgreSQL types the columns of VALUES by its first row, hence the casts.
        tx.execute(
            f"WITH probe(place, digest) AS (VALUES {values}) "  # noqa: S608  # placeholders only
            f"SELECT MAX(CAST(place AS integer)) FROM probe WHERE EXISTS (SELECT 1 "
            f"FROM sessions_app_message m {joined} WHERE m.digest = probe.digest AND {condition})",
            [value for index in probes for value in (index, line[index].digest)] + list(params),
        )
        row = tx.fetchone()
        if row[0] is not None:
            return int(row[0])
    return None


def _resolve_explicit(
    tx: Transaction,
    line: Sequence[Node],
    answers: Sequence[int],
    *,
    api_key_id: int,
    user_id: str | None,
    external_id: str,
    context_digest: bytes,
    now: datetime,
) -> Resolution:
    """The client names the session; where an upstream chat goes on is still decided by digest."""
    session_id = explicit_session_id(api_key_id, user_id, external_id)
    # Clients may hand back the id that our own x-session-id header named.
    tx.execute(
        "SELECT id, user_id FROM sessions_app_session WHERE id = %s AND api_key_id = %s",
        [json.plain(external_id), api_key_id],
    )
    row = tx.fetchone()
    if row is not None and row[0] == external_id and user_id in (None, row[1]):
        session_id = row[0]
    found = _find_answer(
        tx, line, answers, user_id=user_id, context_digest=context_digest, now=now,
        session_id=session_id,
    )  # fmt: skip
    if found is None:
        found = _find_answer(
            tx, line, answers, user_id=user_id, context_digest=context_digest, now=now
        )
    is_of_session = found is not None and found.session_id == session_id
    deepest = _deepest_stored(
        tx, line, range(len(line)), "m.session_id = %s", [session_id], join=False
    )
    return Resolution(
        session_id,
        "explicit",
        stored=0 if deepest is None else deepest + 1,
        answer=-1 if found is None else found.index,
        chat=None if found is None else found.chat,
        # Of a session that is known by its questions alone, nothing is known.
        may_be_bare=found.may_be_bare if is_of_session and found else deepest is not None,
    )

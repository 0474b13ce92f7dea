"""How long sessions are kept: content goes before the record, both counted from a session's last use.

Nothing expires unless QWENPROXY_CONTENT_DAYS, QWENPROXY_RECORD_DAYS or a key's own days say so; pinned sessions
and those with a running turn never do. Content leaves the bare form (`requests_app.content_removal`), the record
goes whole (`requests_app.deletion`); what was counted stays.

The work is cut into transactions of some milliseconds, so that the recorder's writer waits for none of them
for long. Each asks again, with the session locked, whether its time is over. Ended at any place, it has lost
nothing and goes on with the next run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper
from django.db.models import F, Q, QuerySet

from qwenproxy.access.models import ApiKey
from requests_app.content_removal import PIECE_BYTES, Piece, read_pieces, size_of, write_piece
from requests_app.deletion import delete_session_with_all
from requests_app.prunings import Kind, Removed, count_removed
from sessions_app.models import Session

# "retain" in ASCII, beside the keys of migrations, workers and roll-ups.
_ADVISORY_KEY = 0x72657461696E
# Sessions that are looked at in one query, and asked for their size in one.
_CHUNK, _SIZED = 2000, 100
# Beyond so many bytes of texts a session is emptied in pieces before it is deleted.
_LARGE_BYTES = 4 * PIECE_BYTES
# Rows of a transaction: as many as take about this long, between these limits.
_AIM_S = 0.01
_ROWS = (20, 400)

# After a transaction its caller rests so many times as long as it took: on SQLite a writer that finds the lock
# taken comes back after 1 to 100 ms, and must not find it taken again and again.
_REST = 3

_IS_OVER = (
    "SELECT 1 FROM sessions_app_session WHERE id = %s AND last_accessed < %s AND pinned_at IS NULL"
)
_RUNS = "SELECT 1 FROM requests_app_response WHERE session_id = %s AND status = 'in_progress'"


class Elsewhere(Exception):
    """Another process removes just now; that one goes on."""


@dataclass(frozen=True, slots=True)
class Periods:
    """Days after the last use; null: as keys and settings say."""

    content_days: int | None = None
    record_days: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes of the sessions of one key that were used last between two moments."""

    api_key_id: int
    kind: Kind
    # Null: from the first on. What is older goes whole.
    since: datetime | None
    before: datetime


def plans(now: datetime, wanted: Periods = Periods()) -> list[Plan]:
    """What is to expire by now, key by key, whole records first; one query."""
    found: list[Plan] = []
    rows = ApiKey.objects.order_by("pk").values_list("pk", "content_days", "record_days")
    for pk, own_content, own_record in rows:
        content = wanted.content_days or own_content or settings.CONTENT_DAYS
        record = wanted.record_days or own_record or settings.RECORD_DAYS
        since = None
        if record is not None:
            since = now - timedelta(days=record)
            found.append(Plan(pk, "record", None, since))
        if content is not None and (record is None or content < record):
            found.append(Plan(pk, "content", since, now - timedelta(days=content)))
    return found


def due(plan: Plan) -> Iterator[list[str]]:
    """The ids of the sessions that a plan is for, in chunks, some of them empty; two queries each.

    Looked through by an index, however many sessions have lost their content before.
    """
    sessions = Session.objects.filter(api_key=plan.api_key_id, last_accessed__lt=plan.before)
    if plan.since is not None:
        sessions = sessions.filter(last_accessed__gte=plan.since)
    sessions = sessions.order_by("last_accessed", "id")
    rest: QuerySet[Session] | None = sessions
    while rest is not None:
        end = rest.values_list("last_accessed", "id")[_CHUNK : _CHUNK + 1].first()
        part, rest = rest, None
        if end is not None:
            at, pk = end
            # The first conditions are for the index.
            part = part.filter(last_accessed__lte=at)
            part = part.filter(Q(last_accessed__lt=at) | Q(id__lt=pk))
            rest = sessions.filter(last_accessed__gte=at)
            rest = rest.filter(Q(last_accessed__gt=at) | Q(id__gte=pk))
        part = part.filter(pinned_at=None)
        if plan.kind == "content":
            has_content = Q(content_removed_at=None) | Q(content_removed_at__lte=F("last_accessed"))
            part = part.filter(has_content)
        yield list(part.values_list("id", flat=True))


def estimate(plan: Plan) -> Iterator[Removed]:
    """How much a plan would remove, chunk by chunk; changes nothing."""
    for ids in due(plan):
        for part in _cut(ids, _SIZED):
            _, size = size_of(part, is_whole=plan.kind == "record")
            yield Removed(len(part), size)


@dataclass(slots=True)
class Pruning:
    """One run over all plans.

    `steps` is to be called on until it ends, with a rest of `rest_s` after each so that others write meanwhile. It may be called from several threads, one after the other.
    """

    now: datetime
    wanted: Periods = Periods()
    # Where another process removes: wait for each of its transactions; else `Elsewhere` is raised.
    waits: bool = False
    removed: dict[Kind, Removed] = field(
        default_factory=lambda: {"content": Removed(), "record": Removed()}
    )
    rest_s: float = 0.0
    _rows: float = field(default_factory=lambda: _ROWS[0])
    # That are used, pinned or running after all: the rest of them stays as it is.
    _left_alone: set[str] = field(default_factory=set)

    def steps(self) -> Iterator[None]:
        """One transaction or query each, of some milliseconds, unless one text is megabytes long."""
        for plan in plans(self.now, self.wanted):
            for ids in due(plan):
                self.rest_s = 0.0
                yield
                for _ in (
                    self._empty(plan, ids) if plan.kind == "content" else self._delete(plan, ids)
                ):
                    yield

    def _empty(self, plan: Plan, ids: Sequence[str]) -> Iterator[None]:
        batch: list[Piece] = []
        for session_id in ids:
            for piece in read_pieces(session_id):
                batch.append(piece)
                if self._is_enough(sum(one.rows for one in batch), sum(one.bytes for one in batch)):
                    self._write(plan, batch, [])
                    batch = []
                    yield
                if session_id in self._left_alone:
                    break
        if batch:
            self._write(plan, batch, [])
            yield

    def _delete(self, plan: Plan, ids: Sequence[str]) -> Iterator[None]:
        batch: list[tuple[str, int]] = []
        rows = 0
        for session_id in ids:
            count, size = size_of([session_id], is_whole=True)
            if size > _LARGE_BYTES:
                yield from self._empty(plan, [session_id])
                count, size = size_of([session_id], is_whole=True)
            batch.append((session_id, size))
            # In three indexes more than an update.
            rows += 3 * count
            if self._is_enough(rows, 0):
                self._write(plan, [], batch)
                batch, rows = [], 0
                yield
        if batch:
            self._write(plan, [], batch)
            yield

    def _is_enough(self, rows: int, size: int) -> bool:
        # On PostgreSQL nobody waits for a writer, but two that lock rows of many sessions for each other.
        return connection.vendor == "postgresql" or rows >= self._rows or size >= PIECE_BYTES

    def _write(
        self, plan: Plan, pieces: Sequence[Piece], deletions: Sequence[tuple[str, int]]
    ) -> None:
        """Empty and delete in one transaction, and count it there."""
        ended, freed = 0, 0
        with transaction.atomic(), connection.cursor() as cursor:
            self._take_turn(cursor)
            # From here on others wait; what it waited for them itself says nothing.
            started = time.monotonic()
            for piece in pieces:
                if self._is_over(cursor, plan, piece.session_id):
                    freed += write_piece(cursor, piece, self.now)
                    ended += piece.is_last and plan.kind == "content"
            for session_id, size in deletions:
                if self._is_over(cursor, plan, session_id):
                    freed += size + delete_session_with_all(cursor, session_id)
                    ended += 1
            removed = Removed(ended, freed)
            count_removed(cursor, {plan.kind: removed}, self.now)
        self.removed[plan.kind] += removed
        self._adapt(time.monotonic() - started)

    def _take_turn(self, cursor: CursorWrapper) -> None:
        if connection.vendor != "postgresql":
            return
        if self.waits:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_ADVISORY_KEY])
            return
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [_ADVISORY_KEY])
        if not cursor.fetchone()[0]:
            raise Elsewhere

    def _is_over(self, cursor: CursorWrapper, plan: Plan, session_id: str) -> bool:
        """Lock the session and ask again: it may be in use, or pinned, by now."""
        if session_id in self._left_alone:
            return False
        # A session that a turn has locked is in use.
        lock = " FOR UPDATE SKIP LOCKED" if connection.features.has_select_for_update else ""
        before: Any = connection.ops.adapt_datetimefield_value(plan.before)
        cursor.execute(_IS_OVER + lock, [session_id, before])
        if cursor.fetchone() is not None:
            cursor.execute(_RUNS, [session_id])
            if cursor.fetchone() is None:
                return True
        self._left_alone.add(session_id)
        return False

    def _adapt(self, took_s: float) -> None:
        self.rest_s = _REST * took_s
        least, most = _ROWS
        factor = min(max(_AIM_S / max(took_s, 0.0001), 0.5), 1.5)
        self._rows = min(max(self._rows * factor, least), most)


def _cut(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))


def describe(removed: Mapping[Kind, Removed]) -> str:
    """For logs: what a run removed."""
    content, record = removed["content"], removed["record"]
    return (
        f"content of {content.sessions:,} sessions ({content.bytes:,} bytes),"
        f" {record.sessions:,} whole sessions ({record.bytes:,} bytes)"
    )

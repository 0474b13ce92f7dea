"""The one writer of the record: group commit on a thread of its own.

The event loop gathers turns while one batch is being written, one batch is in flight, one transaction
holds many turns, and a turn's future resolves after the commit. Whoever awaits `commit` may tell its
client the answer is whole. A full queue is backpressure; nothing is dropped and no error is swallowed.
A batch that fails on the database is retried whole until a deadline; one that fails on data is
retried turn by turn.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from django.db import Error, connections

from qwenproxy.database import run_in_db
from qwenproxy.errors import GatewayError, RecorderUnavailable
from qwenproxy.transaction import (
    Transaction,
    is_connection_lost,
    is_reference_broken,
    is_transient,
    transaction,
)
from qwenproxy.wire.events import Event
from requests_app.keeping import Feed
from requests_app.limits import Refusal, Refusals, Standing
from requests_app.liveness import WorkerLock
from requests_app.rollups import mark_behind, mark_late, roll_next
from requests_app.settling import release_expired_chats, settle_dead_workers
from requests_app.usage import Ledger, forget_worker, prune
from requests_app.writes import (
    Closing,
    Opened,
    Opening,
    PartialRows,
    Vanished,
    append_partials,
    close_turns,
    is_open,
    open_turns,
    without_facts,
)

logger = logging.getLogger(__name__)

# Turns per transaction: beyond it a batch delays its first turn more than it saves.
_BATCH_TURNS = 256
# A killed process loses at most a second of a running answer: this, the write, and room for a busy machine.
_FLUSH_INTERVAL_S = 0.5
_SETTLE_INTERVAL_S = 15.0
_EXPIRE_INTERVAL_S = 300.0
_ROLL_INTERVAL_S = 30.0
_FIRST_DELAY_S = 0.01
_LONGEST_DELAY_S = 1.0
# Another writer is waited for so long at least, whatever is left of the deadline.
_SHORTEST_WAIT_S = 0.05
# A turn whose session is deleted again and again while it opens is refused after this many times.
_VANISHED_TRIES = 5

_Task = Callable[[Transaction], Any]


@dataclass(slots=True, eq=False)
class _Work:
    item: Opening | Closing | PartialRows | _Task
    future: asyncio.Future[Any]


@dataclass(slots=True)
class _Stream:
    """What a running answer has brought since its last `Partial` row."""

    # From what came to what may be stored of it.
    feed: Feed
    events: list[Event] = field(default_factory=list)
    # Fed, and not written yet.
    kept: list[Event] = field(default_factory=list)
    seq: int = 0
    has_rows: bool = False


@dataclass(slots=True)
class _Attempt:
    """A batch and what became of it in the transaction that ran last."""

    batch: Sequence[_Work]
    outcomes: list[Any] | None = None
    # Closings that found their session deleted.
    unrecorded: int = 0


def _lesser(work: _Work) -> list[_Work]:
    """What else may be tried of a write that a healthy database refuses; empty: nothing."""
    match work.item:
        case PartialRows(rows) if len(rows) > 1:
            # One answer's must not keep those of all others from being written.
            return [replace(work, item=PartialRows([row])) for row in rows]
        case Closing() as closing if (bare := without_facts(closing)) != closing:
            return [replace(work, item=bare)]
    return []


class Recorder:
    """Made and used on the event loop; `start` before, `stop` after everything that records."""

    def __init__(
        self,
        *,
        lock_directory: Path,
        queue_turns: int,
        deadline_s: float,
        session_ttl: timedelta,
    ) -> None:
        self.worker_id = str(uuid4())
        self.session_ttl = session_ttl
        # Commits that found their session deleted.
        self.unrecorded = 0
        self._refusals = Refusals()
        self._ledger = Ledger(self.worker_id)
        self._lock = WorkerLock(self.worker_id, lock_directory, wait_s=deadline_s)
        self._is_registered = False
        # What was known last of the slots that are rolled (`requests_app.rollups`).
        self._rolled_to: int | None = None
        self._queue_turns = queue_turns
        self._deadline_s = deadline_s
        self._queue: deque[_Work] = deque()
        self._space = asyncio.Event()
        self._space.set()
        self._inbox: queue.SimpleQueue[Sequence[_Work] | None] = queue.SimpleQueue()
        self._streams: dict[str, _Stream] = {}
        # Ends that could not be written: they are tried again until the database is back.
        self._owed: dict[str, Closing] = {}
        self._in_flight = False
        # The database refused a batch until its deadline, and has taken none since.
        self._is_failing = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._tasks: list[asyncio.Task[None]] = []

    # On the loop.

    async def start(self) -> None:
        """Register this worker, settle what dead ones left, begin the periodic work."""
        self._thread.start()
        await self.settle()
        self._tasks = [
            asyncio.create_task(self._every(_FLUSH_INTERVAL_S, self.flush)),
            asyncio.create_task(self._every(_SETTLE_INTERVAL_S, self.settle)),
            asyncio.create_task(self._every(_EXPIRE_INTERVAL_S, self._expire)),
            asyncio.create_task(self._every(_ROLL_INTERVAL_S, self.roll)),
        ]

    async def stop(self) -> None:
        """Write what is queued, give the lock back and end the thread.

        Raises:
            RecorderUnavailable: the database is away; the next start settles what is left.
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._queue or self._in_flight:
            await self._idle.wait()
        try:
            await self._write_owed()
            await self._submit(self._unregister)
        finally:
            self._inbox.put(None)
            await asyncio.to_thread(self._thread.join)
            self._lock.release()

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def owed(self) -> int:
        """Answers whose end could not be written yet: the database is busy or away."""
        return len(self._owed)

    @property
    def is_working(self) -> bool:
        return self._thread.is_alive()

    async def open(self, opening: Opening) -> Opened:
        """Resolve a turn and put it on record as in progress, before the upstream is asked.

        Raises:
            RateLimited: a limit of the key keeps it from beginning; nothing was written.
            RecorderUnavailable: it could not be written before the deadline, or others could not and
                it is being tried whether it can be again.
        """
        opened = await self._submit_open(opening)
        self._streams[opening.response_id] = _Stream(opening.keep.feed())
        return opened

    async def _submit_open(self, opening: Opening) -> Opened:
        key_id, limits, tokens = opening.api_key_id, opening.limits, opening.reserved_tokens
        if limits and (known := self._refusals.find(key_id, limits, tokens)):
            raise known.error()
        if self._is_failing and self._in_flight:
            # One of them finds out whether it can be written again; the others need not wait for it.
            raise RecorderUnavailable("the record cannot be written at present")
        outcome: Opened | Refusal = await self._submit(opening)
        if isinstance(outcome, Refusal):
            assert limits is not None
            self._refusals.remember(key_id, limits, tokens, outcome)
            raise outcome.error()
        return outcome

    def append(self, response_id: str, events: Sequence[Event]) -> None:
        """Keep what a running answer brought for the next flush; memory only."""
        stream = self._streams.get(response_id)
        if stream is not None:
            stream.events.extend(events)

    async def commit(self, closing: Closing) -> None:
        """Put the end of a turn on record; where its session was deleted, nothing is written.

        Raises:
            RecorderUnavailable: it could not be written before the deadline; it is tried again until
                it is written, or until another end of the same turn is committed.
        """
        self._owed.pop(closing.response_id, None)
        stream = self._streams.pop(closing.response_id, None)
        closing.has_partials = stream is None or stream.has_rows
        try:
            await self._submit(closing)
        except RecorderUnavailable:
            self._owed[closing.response_id] = closing
            raise

    async def check(self) -> None:
        """Commit a write that changes nothing: less does not tell a full or read-only disk.

        Raises:
            RecorderUnavailable: it could not be written until the deadline.
        """

        def write(tx: Transaction) -> None:
            # There and back: SQLite writes nothing where the new row equals the old one.
            for _ in range(2):
                tx.execute(
                    "UPDATE requests_app_worker SET pid = -pid WHERE id = %s", [self.worker_id]
                )

        await self.run(write)

    async def run(self, task: _Task) -> Any:
        """Run other writes in the writer's order, in a transaction with the rest of their batch."""
        return await self._submit(task)

    async def flush(self) -> None:
        """Append what all running answers brought since the last time to their `Partial` rows."""
        rows: list[tuple[str, int, Sequence[Event]]] = []
        for response_id, stream in self._streams.items():
            if stream.events or stream.kept:
                kept = [*stream.kept, *stream.feed(stream.events)]
                stream.events, stream.kept = [], []
                if not kept:
                    continue
                rows.append((response_id, stream.seq, kept))
                stream.seq += 1
                stream.has_rows = True
        if not rows:
            return
        try:
            await self._submit(PartialRows(rows))
        except RecorderUnavailable:
            for response_id, seq, events in rows:
                if running := self._streams.get(response_id):
                    # The same number again: should the rows be there after all, they are replaced.
                    running.kept, running.seq = [*events, *running.kept], seq
            raise

    async def settle(self) -> None:
        """Turn what dead workers left in progress into `interrupted`; write what is owed."""
        await self._write_owed()

        def settle(tx: Transaction) -> int:
            return settle_dead_workers(
                tx, self._lock, now=datetime.now(UTC), session_ttl=self.session_ttl
            )

        while settled := await self._submit(settle):
            logger.warning("settled %d turns that a dead process left running", settled)

    async def _write_owed(self) -> None:
        # An end that fails again stays owed, and the thread has logged why.
        owed = [self.commit(closing) for closing in list(self._owed.values())]
        await asyncio.gather(*owed, return_exceptions=True)

    async def _expire(self) -> None:
        await self._submit(lambda tx: release_expired_chats(tx, now=datetime.now(UTC)))
        await self._submit(prune)

    async def roll(self) -> None:
        """Bring the statistics up to date, slot by slot; in the pool, beside the writer."""
        try:
            self._rolled_to = await run_in_db(mark_behind, datetime.now(UTC))
            started, rolled = time.monotonic(), set[int | None]([None])
            while (slot := await run_in_db(roll_next, datetime.now(UTC))) not in rolled:
                rolled.add(slot)
                # As long a pause as it took: on SQLite the writer waits for its lock meanwhile.
                await asyncio.sleep(time.monotonic() - started)
                started = time.monotonic()
        except Error as exc:
            # The next round goes on.
            logger.warning("the statistics could not be brought up to date: %s", exc)

    async def _every(self, interval_s: float, work: Callable[[], Any]) -> None:
        due_s = self._loop.time()
        while True:
            # From when it began last: the time that it takes does not make the next one later.
            due_s = max(due_s + interval_s, self._loop.time())
            await asyncio.sleep(due_s - self._loop.time())
            try:
                await work()
            except RecorderUnavailable as exc:
                # The next round tries again; turns that await a commit hear of it themselves.
                logger.error("periodic writes failed: %s", exc.message)
            except Exception:
                # A fault of ours; without its rounds nothing would be flushed or settled any more.
                logger.exception("periodic work failed")

    async def _submit(self, item: Opening | Closing | PartialRows | _Task) -> Any:
        work = _Work(item, self._loop.create_future())
        if isinstance(item, PartialRows):
            # A second is promised: it waits for the batch in flight alone. What it builds on is
            # committed, and the ends of its turns come after it.
            self._queue.appendleft(work)
        else:
            while len(self._queue) >= self._queue_turns:
                self._space.clear()
                await self._space.wait()
            self._queue.append(work)
        self._idle.clear()
        if not self._in_flight:
            self._send()
        # Shielded: a waiter that is cancelled must not cancel what is being written.
        return await asyncio.shield(work.future)

    def _send(self) -> None:
        batch = [self._queue.popleft() for _ in range(min(len(self._queue), _BATCH_TURNS))]
        self._in_flight = True
        self._space.set()
        self._inbox.put(batch)

    def _done(self, batch: Sequence[_Work], outcomes: Sequence[Any]) -> None:
        self._in_flight = False
        if self._queue:
            self._send()
        else:
            self._idle.set()
        for work, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, GatewayError):
                work.future.set_exception(outcome)
                # A waiter may be gone: its exception is then nobody's to fetch.
                work.future.exception()
            else:
                work.future.set_result(outcome)

    # In the recorder's thread.

    def _run(self) -> None:
        while (batch := self._inbox.get()) is not None:
            outcomes = self._write(batch, time.monotonic() + self._deadline_s)
            self._loop.call_soon_threadsafe(self._done, batch, outcomes)
        connections.close_all()

    def _write(self, batch: Sequence[_Work], deadline: float) -> list[Any]:
        """Write a batch; an outcome each, a `GatewayError` for what could not be written."""
        attempt = _Attempt(batch)
        delay_s, vanished = _FIRST_DELAY_S, 0
        while True:
            try:
                outcomes = self._try(attempt, deadline)
                self._is_failing = False
                return outcomes
            except Exception as exc:  # noqa: BLE001  # the thread's edge: each waiter gets the error
                error = exc
            if is_connection_lost(error):
                connections["default"].close()
            else:
                attempt.outcomes = None
            if is_transient(error):
                if time.monotonic() + delay_s < deadline:
                    time.sleep(delay_s)
                    delay_s = min(delay_s * 2, _LONGEST_DELAY_S)
                    continue
                self._is_failing = True
            elif len(batch) > 1:
                return [self._write([work], deadline)[0] for work in batch]
            elif isinstance(error, Vanished) or is_reference_broken(error):
                vanished += 1
                if vanished < _VANISHED_TRIES:
                    continue
            logger.error("%d writes failed", len(batch), exc_info=error)
            if not is_transient(error) and (lesser := _lesser(batch[0])):
                outcomes = [self._write([work], deadline)[0] for work in lesser]
                return [next((outcome for outcome in outcomes if outcome is not None), None)]
            return [
                RecorderUnavailable(f"the record cannot be written: {type(error).__name__}")
                for _ in batch
            ]

    def _try(self, attempt: _Attempt, deadline: float) -> list[Any]:
        """Write a batch in one transaction.

        Raises:
            Vanished: rows that it builds on were deleted meanwhile.
            sqlite3.Error, psycopg.Error: from the driver; where the connection was lost in COMMIT, all
                of it may be written, and `attempt` knows what was.
        """
        if self._lock.hold():
            # While it was free, another process may have settled this one and removed its row.
            self._is_registered = False
        wait_s = max(deadline - time.monotonic(), _SHORTEST_WAIT_S)
        with transaction(lock_wait_s=wait_s) as tx:
            if attempt.outcomes is None or not self._is_written(tx, attempt):
                if not self._is_registered:
                    self._register(tx)
                attempt.outcomes = self._apply(tx, attempt)
        self._is_registered = True
        self._ledger.committed()
        if attempt.unrecorded:
            self.unrecorded += attempt.unrecorded
            logger.info(
                "%d answers belong to deleted sessions and were not recorded", attempt.unrecorded
            )
        return attempt.outcomes

    def _is_written(self, tx: Transaction, attempt: _Attempt) -> bool:
        """Whether a batch whose COMMIT was not answered is there; all or nothing of it is.

        One that opens no turn may be written twice: closings and partials replace what they wrote.
        """
        opened = (
            work.item.request_id
            for work, outcome in zip(attempt.batch, attempt.outcomes or (), strict=True)
            if isinstance(work.item, Opening) and isinstance(outcome, Opened)
        )
        request_id = next(opened, None)
        return request_id is not None and is_open(tx, request_id)

    def _apply(self, tx: Transaction, attempt: _Attempt) -> list[Any]:
        """Write a batch in its order: partials, commits, other writes, then what opens."""
        batch = attempt.batch
        outcomes: dict[int, Any] = {}
        closings: list[Closing] = []
        openings: list[tuple[int, Opening]] = []
        tasks: list[tuple[int, _Task]] = []
        for index, work in enumerate(batch):
            match work.item:
                case PartialRows() as partials:
                    append_partials(tx, partials)
                case Closing() as closing:
                    closings.append(closing.keep.closing(closing))
                case Opening() as opening:
                    openings.append((index, opening.keep.opening(opening)))
                case task:
                    tasks.append((index, task))
        self._ledger.begin(tx, [opening for _, opening in openings], closings)
        self._ledger.close(tx, closings)
        attempt.unrecorded = close_turns(tx, closings) if closings else 0
        for index, task in tasks:
            outcomes[index] = task(tx)
        if openings:
            outcomes |= self._open(tx, openings)
        self._ledger.finish(tx)
        if closings:
            ended = [closing.completed_at for closing in closings]
            mark_late(tx, ended, now=datetime.now(UTC), border=self._rolled_to)
        return [outcomes.get(index) for index in range(len(batch))]

    def _open(
        self, tx: Transaction, openings: Sequence[tuple[int, Opening]]
    ) -> dict[int, Opened | Refusal]:
        """Open the turns that the limits of their keys let in; an outcome each, by index."""
        admitted = self._ledger.admit(tx, [opening for _, opening in openings])
        outcomes: dict[int, Opened | Refusal] = {}
        passed: list[tuple[int, Opening, Standing | None]] = []
        for (index, opening), standing in zip(openings, admitted, strict=True):
            if isinstance(standing, Refusal):
                outcomes[index] = standing
            else:
                passed.append((index, opening, standing))
        if passed:
            opened = open_turns(tx, [turn for _, turn, _ in passed], worker_id=self.worker_id)
            for (index, _, standing), turn in zip(passed, opened, strict=True):
                outcomes[index] = turn if standing is None else replace(turn, standing=standing)
        return outcomes

    def _register(self, tx: Transaction) -> None:
        tx.execute(
            "INSERT INTO requests_app_worker (id, host, pid, started_at) VALUES (%s, %s, %s, %s)"
            " ON CONFLICT (id) DO NOTHING",
            [self.worker_id, socket.gethostname(), os.getpid(), tx.time(datetime.now(UTC))],
        )

    def _unregister(self, tx: Transaction) -> None:
        tx.execute(
            "UPDATE requests_app_response SET worker_id = NULL WHERE worker_id = %s",
            [self.worker_id],
        )
        forget_worker(tx, self.worker_id)
        tx.execute("DELETE FROM requests_app_worker WHERE id = %s", [self.worker_id])

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
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from django.db import connections

from qwenproxy.errors import GatewayError, RecorderUnavailable
from qwenproxy.transaction import Transaction, is_connection_lost, is_transient, transaction
from qwenproxy.wire.events import Event
from requests_app.liveness import WorkerLock
from requests_app.settling import release_expired_chats, settle_dead_workers
from requests_app.writes import (
    Closing,
    Opened,
    Opening,
    PartialRows,
    Vanished,
    append_partials,
    close_turns,
    open_turns,
)

logger = logging.getLogger(__name__)

# Turns per transaction: beyond it a batch delays its first turn more than it saves.
_BATCH_TURNS = 256
_FLUSH_INTERVAL_S = 1.0
_SETTLE_INTERVAL_S = 15.0
_EXPIRE_INTERVAL_S = 300.0
_FIRST_DELAY_S = 0.01
_LONGEST_DELAY_S = 1.0
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

    events: list[Event] = field(default_factory=list)
    seq: int = 0


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
        self._lock = WorkerLock(self.worker_id, lock_directory)
        self._queue_turns = queue_turns
        self._deadline_s = deadline_s
        self._queue: deque[_Work] = deque()
        self._space = asyncio.Event()
        self._space.set()
        self._inbox: queue.SimpleQueue[Sequence[_Work] | None] = queue.SimpleQueue()
        self._streams: dict[str, _Stream] = {}
        self._in_flight = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._tasks: list[asyncio.Task[None]] = []

    # On the loop.

    async def start(self) -> None:
        """Register this worker, settle what dead ones left, begin the periodic work."""
        self._thread.start()
        await self._submit(self._register)
        await self.settle()
        self._tasks = [
            asyncio.create_task(self._every(_FLUSH_INTERVAL_S, self.flush)),
            asyncio.create_task(self._every(_SETTLE_INTERVAL_S, self.settle)),
            asyncio.create_task(self._every(_EXPIRE_INTERVAL_S, self._expire)),
        ]

    async def stop(self) -> None:
        """Write what is queued, give the lock back and end the thread."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._queue or self._in_flight:
            await self._idle.wait()
        await self._submit(self._unregister)
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    @property
    def queued(self) -> int:
        return len(self._queue)

    async def open(self, opening: Opening) -> Opened:
        """Resolve a turn and put it on record as in progress, before the upstream is asked.

        Raises:
            RecorderUnavailable: it could not be written before the deadline.
        """
        opened: Opened = await self._submit(opening)
        self._streams[opening.response_id] = _Stream()
        return opened

    def append(self, response_id: str, events: Sequence[Event]) -> None:
        """Keep what a running answer brought for the next flush; memory only."""
        stream = self._streams.get(response_id)
        if stream is not None:
            stream.events.extend(events)

    async def commit(self, closing: Closing) -> None:
        """Put the end of a turn on record; where its session was deleted, nothing is written.

        Raises:
            RecorderUnavailable: it could not be written before the deadline.
        """
        stream = self._streams.pop(closing.response_id, None)
        closing.has_partials = stream is None or stream.seq > 0
        await self._submit(closing)

    async def run(self, task: _Task) -> Any:
        """Run other writes in the writer's order, in a transaction with the rest of their batch."""
        return await self._submit(task)

    async def flush(self) -> None:
        """Append what all running answers brought since the last time to their `Partial` rows."""
        rows: list[tuple[str, int, Sequence[Event]]] = []
        for response_id, stream in self._streams.items():
            if stream.events:
                rows.append((response_id, stream.seq, stream.events))
                stream.events = []
                stream.seq += 1
        if not rows:
            return
        try:
            await self._submit(PartialRows(rows))
        except RecorderUnavailable:
            for response_id, _, events in rows:
                if kept := self._streams.get(response_id):
                    kept.events = [*events, *kept.events]
            raise

    async def settle(self) -> None:
        """Turn what dead workers left in progress into `interrupted`."""

        def settle(tx: Transaction) -> int:
            return settle_dead_workers(
                tx, self._lock, now=datetime.now(UTC), session_ttl=self.session_ttl
            )

        while settled := await self._submit(settle):
            logger.warning("settled %d turns that a dead process left running", settled)

    async def _expire(self) -> None:
        await self._submit(lambda tx: release_expired_chats(tx, now=datetime.now(UTC)))

    async def _every(self, interval_s: float, work: Callable[[], Any]) -> None:
        while True:
            await asyncio.sleep(interval_s)
            try:
                await work()
            except RecorderUnavailable as exc:
                # The next round tries again; turns that await a commit hear of it themselves.
                logger.error("periodic writes failed: %s", exc.message)

    async def _submit(self, item: Opening | Closing | PartialRows | _Task) -> Any:
        while len(self._queue) >= self._queue_turns:
            self._space.clear()
            await self._space.wait()
        work = _Work(item, self._loop.create_future())
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
        delay_s, vanished = _FIRST_DELAY_S, 0
        while True:
            try:
                self._lock.hold()
                with transaction() as tx:
                    return self._apply(tx, batch)
            except Vanished:
                vanished += 1
                if len(batch) == 1 and vanished < _VANISHED_TRIES:
                    continue
                error: Exception = Vanished("its session was deleted while it opened")
            except Exception as exc:  # noqa: BLE001  # the thread's edge: each waiter gets the error
                error = exc
                if is_connection_lost(exc):
                    connections["default"].close()
                if is_transient(exc) and time.monotonic() + delay_s < deadline:
                    time.sleep(delay_s)
                    delay_s = min(delay_s * 2, _LONGEST_DELAY_S)
                    continue
            if len(batch) > 1 and not is_transient(error):
                return [self._write([work], deadline)[0] for work in batch]
            logger.error("%d writes failed", len(batch), exc_info=error)
            return [
                RecorderUnavailable(f"the record cannot be written: {type(error).__name__}")
                for _ in batch
            ]

    def _apply(self, tx: Transaction, batch: Sequence[_Work]) -> list[Any]:
        """Write a batch in its order: partials, commits, other writes, then what opens."""
        outcomes: dict[int, Any] = {}
        closings: list[Closing] = []
        openings: list[tuple[int, Opening]] = []
        tasks: list[tuple[int, _Task]] = []
        for index, work in enumerate(batch):
            match work.item:
                case PartialRows() as partials:
                    append_partials(tx, partials)
                case Closing() as closing:
                    closings.append(closing)
                case Opening() as opening:
                    openings.append((index, opening))
                case task:
                    tasks.append((index, task))
        if closings:
            unrecorded = close_turns(tx, closings)
        for index, task in tasks:
            outcomes[index] = task(tx)
        if openings:
            opened = open_turns(tx, [opening for _, opening in openings], worker_id=self.worker_id)
            outcomes.update(zip((index for index, _ in openings), opened, strict=True))
        if closings and unrecorded:
            self.unrecorded += unrecorded
            logger.info("%d answers belong to deleted sessions and were not recorded", unrecorded)
        return [outcomes.get(index) for index in range(len(batch))]

    def _register(self, tx: Transaction) -> None:
        tx.execute(
            "INSERT INTO requests_app_worker (id, host, pid, started_at) VALUES (%s, %s, %s, %s)",
            [self.worker_id, socket.gethostname(), os.getpid(), tx.time(datetime.now(UTC))],
        )

    def _unregister(self, tx: Transaction) -> None:
        tx.execute(
            "UPDATE requests_app_response SET worker_id = NULL WHERE worker_id = %s",
            [self.worker_id],
        )
        tx.execute("DELETE FROM requests_app_worker WHERE id = %s", [self.worker_id])
        self._lock.release()

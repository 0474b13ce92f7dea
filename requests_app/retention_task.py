"""Retention beside the traffic: once an hour, in the pool's threads, a step at a time.

On PostgreSQL one process at a time works; another finds that and lets it. A step that fails is logged, and the
next hour goes on. The size of the database is noted once a day, whether anything expires or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from django.conf import settings
from django.db import DatabaseError

from qwenproxy.database import run_in_db
from requests_app import erasure
from requests_app.prunings import Kind, Removed, measure, note_run
from requests_app.retention import Elsewhere, Pruning, describe

logger = logging.getLogger(__name__)

_EVERY_S = 3600.0
# After the start, which has better to do.
_FIRST_S = 30.0


@dataclass(slots=True, eq=False)
class Retention:
    """Made at start-up; on the loop."""

    # Of this process.
    removed: dict[Kind, Removed] = field(
        default_factory=lambda: {"content": Removed(), "record": Removed()}
    )
    # Of this process, in seconds since 1970; 0: it has not run yet.
    last_run: float = 0.0
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        # Not the context of whatever request or test starts it.
        self._task = asyncio.get_running_loop().create_task(
            self._run(), context=contextvars.Context()
        )

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        await asyncio.sleep(_FIRST_S)
        while True:
            try:
                await self.prune()
            except DatabaseError as exc:
                logger.warning("retention failed and goes on in an hour: %s", exc)
            await asyncio.sleep(_EVERY_S)

    async def prune(self) -> None:
        """One run.

        Raises:
            DatabaseError: what was done until then stays.
        """
        now, began = datetime.now(UTC), time.monotonic()
        await run_in_db(measure, now)
        pruning = Pruning(now)
        try:
            await self._work(pruning)
        except Elsewhere:
            logger.debug("retention: another process is at it")
            return
        finally:
            for kind, removed in pruning.removed.items():
                self.removed[kind] += removed
        if settings.SECURE_DELETE and not await run_in_db(erasure.empty_log):
            logger.warning("the write-ahead log could not be emptied: something reads on")
        took = timedelta(seconds=time.monotonic() - began)
        await run_in_db(note_run, pruning.removed, ended_at=datetime.now(UTC), took=took)
        self.last_run = time.time()
        if any(one != Removed() for one in pruning.removed.values()):
            logger.info("retention removed %s", describe(pruning.removed))

    async def _work(self, pruning: Pruning) -> None:
        steps = pruning.steps()
        while True:
            if await run_in_db(_step, steps):
                return
            await asyncio.sleep(pruning.rest_s)


def _step(steps: Iterator[None]) -> bool:
    """Whether it was the last."""
    return next(steps, _END) is _END


_END = object()

"""Ends running responses by their ids, whichever process of the database gives them.

A process that does not give a response marks its row (`requests_app.cancelling`). Each process looks twice a
second, in one query, whether any of the responses that it gives is marked, and not at all while it gives none.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from dataclasses import dataclass
from functools import partial

from django.db import Error as DatabaseError

from qwenproxy.database import run_in_db
from qwenproxy.errors import InvalidRequest
from qwenproxy.proxy.gateway import Gateway
from requests_app.cancelling import ask_to_cancel, asked_to_cancel, is_running
from requests_app.responses_api import DIALECT

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
_ASK_EVERY_S = 0.25
# An answer ends within the look, the upstream's word that it stops, and a commit.
_WAIT_S = 5.0


@dataclass(slots=True, eq=False)
class CancelWatch:
    """Ends what other processes were asked to cancel; made at start-up, on the loop."""

    gateway: Gateway
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), context=contextvars.Context())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            if response_ids := self.gateway.running_ids(DIALECT):
                try:
                    await self._look(response_ids)
                except DatabaseError as exc:
                    logger.warning("what is to be cancelled cannot be read: %s", exc)

    async def _look(self, response_ids: list[str]) -> None:
        for response_id in await run_in_db(asked_to_cancel, response_ids):
            turn = self.gateway.find(response_id)
            if turn is not None:
                turn.cancel()


async def cancel(gateway: Gateway, response_id: str) -> None:
    """End a response that is in progress, and return after its end, by whatever that came.

    Raises:
        InvalidRequest: it was asked to end, and had not after some seconds (409).
        RecorderUnavailable: another process could not be asked.
    """
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + _WAIT_S
    turn = gateway.find(response_id)
    if turn is not None:
        turn.cancel()
        await turn.wait(_WAIT_S)
    else:
        await gateway.recorder.run(partial(ask_to_cancel, response_id=response_id))
        # A dead process hears nothing: what it left is ended here.
        await gateway.recorder.settle()
    while await run_in_db(is_running, response_id):
        if loop.time() > deadline_s:
            raise InvalidRequest(
                "the response was asked to end and has not ended yet: ask again",
                code="response_cancelling",
                status=409,
            )
        await asyncio.sleep(_ASK_EVERY_S)

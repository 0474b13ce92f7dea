"""What the request path shares: made at start-up, closed at shutdown, held by the ASGI handler."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from django.http import HttpRequest

from qwenproxy.access.auth import KeyInfo
from qwenproxy.proxy.routing import Routing
from qwenproxy.wire.redaction import Redaction
from requests_app.recorder import Recorder
from requests_app.retention_task import Retention

if TYPE_CHECKING:
    from qwenproxy.proxy.turn import Turn


@dataclass(frozen=True, slots=True)
class TurnSettings:
    """The settings of a turn; durations in seconds, sizes in bytes (docs/configuration.md)."""

    send_buffer_bytes: int
    send_timeout_s: float
    keep_alive_s: float
    # Text, reasoning and arguments of one answer, in characters.
    max_answer_chars: int
    turn_timeout_s: float
    upstream_retries: int
    # For an account that has a place.
    account_wait_s: float
    # response_id or parent_id: which of the web upstream's ids the next turn hangs below.
    parent_rule: str
    # finish or cancel; empty: as the upstream has it.
    on_client_left: str
    # reasoning_content, reasoning, both or none: where chat completions carry thinking.
    reasoning_field: str
    # Held of a key's token limits for an answer whose length the request does not bound.
    reserved_tokens: int
    redaction: Redaction
    # Lower-case names of request headers that are stored.
    record_headers: frozenset[str]


@dataclass(slots=True, eq=False)
class Gateway:
    recorder: Recorder
    routing: Routing
    settings: TurnSettings
    retention: Retention = field(default_factory=Retention)
    # Web chats with a running turn of this process.
    busy_chats: set[str] = field(default_factory=set)
    # No new turns are taken.
    draining: bool = False
    _turns: set[Turn] = field(default_factory=set)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def running(self) -> int:
        return len(self._turns)

    def find(self, response_id: str) -> Turn | None:
        """The turn of this process that gives this response."""
        return next((turn for turn in self._turns if turn.response_id == response_id), None)

    def running_ids(self, dialect: str) -> list[str]:
        """The ids of the responses that this process gives in a protocol."""
        return [turn.response_id for turn in self._turns if turn.body.dialect == dialect]

    def enter(self, turn: Turn) -> None:
        self._turns.add(turn)
        self._idle.clear()

    def leave(self, turn: Turn) -> None:
        self._turns.discard(turn)
        if not self._turns:
            self._idle.set()

    async def drain(self, timeout_s: float) -> int:
        """Let running turns end; interrupt those that have not by then, and return how many."""
        self.draining = True
        if not self._turns:
            return 0
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            pass
        late = list(self._turns)
        for turn in late:
            turn.interrupt()
        if late:
            await self._idle.wait()
        return len(late)


class GatewayRequest(HttpRequest):
    """Django's request as the lean handler makes it."""

    gateway: Gateway
    # ASGI's.
    scope: dict[str, Any]
    # Set by the security class (access.auth).
    auth: KeyInfo

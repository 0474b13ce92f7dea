"""What a client of a turn holds: a buffer that the turn fills and the client empties.

The turn never waits for its client. A client that is gone, takes nothing for too long or lets the
buffer fill counts as having left, and the turn is told once. The lean ASGI handler drives `send` and
`http.disconnect` here directly: no generator whose clean-up depends on being closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from django.http.response import HttpResponseBase

from qwenproxy.errors import GatewayError, error_headers, to_openai_error
from qwenproxy.wire import json
from qwenproxy.wire.json import JSONObject
from qwenproxy.wire.sse import KEEP_ALIVE

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def _nobody() -> None:
    """Whom to tell that the client left, after the turn's end."""


class ClientStream(HttpResponseBase):
    """The answer to one turn's client, streamed (`sse`) or whole."""

    streaming = True

    def __init__(
        self,
        *,
        sse: bool,
        buffer_bytes: int,
        send_timeout_s: float,
        keep_alive_s: float,
        on_left: Callable[[], None],
        keep_alive: Callable[[], bytes] = lambda: KEEP_ALIVE,
    ) -> None:
        content_type = "text/event-stream; charset=utf-8" if sse else "application/json"
        super().__init__(content_type=content_type)
        if sse:
            self["Cache-Control"] = "no-cache"
            # nginx buffers a proxied stream unless told.
            self["X-Accel-Buffering"] = "no"
        self._sse = sse
        self._buffer_bytes = buffer_bytes
        self._send_timeout_s = send_timeout_s
        self._keep_alive_s = keep_alive_s
        self._on_left = on_left
        self._keep_alive = keep_alive
        self._pieces: list[bytes] = []
        self._size = 0
        self._has_head = False
        self._ended = False
        self._is_broken = False
        self._waiter: asyncio.Future[None] | None = None
        self._last_sent = 0.0
        self._sending_since: float | None = None
        self.left = False

    # The turn's side.

    @property
    def has_head(self) -> bool:
        """Status and headers are decided: from here on an error can only be an event."""
        return self._has_head

    def append(self, data: bytes) -> None:
        """Hand bytes on; the first ones send the headers out."""
        if self.left:
            return
        self._has_head = True
        self._pieces.append(data)
        self._size += len(data)
        # A whole answer comes in one piece, bounded by its own limit.
        if self._sse and self._size > self._buffer_bytes:
            self._leave()
        self._wake()

    def end(self) -> None:
        self._ended = True
        # The turn holds this stream, and is held by nobody from now on: a circle would keep both, with the
        # whole request, until the collector looks at the oldest objects, once in 100,000 requests or more.
        self._on_left = _nobody
        self._wake()

    def fail(self, error: GatewayError, event: bytes, *, body: JSONObject | None = None) -> None:
        """End with an error: a status and `body` before the headers, `event` on a stream after.

        Without `body` it is OpenAI's.
        """
        if self._has_head:
            if self._sse:
                self.append(event)
            self.end()
            return
        self.status_code = error.http_status
        self["Content-Type"] = "application/json"
        for name, value in error_headers(error).items():
            self[name] = value
        self.append(json.dumps(to_openai_error(error) if body is None else body))
        self.end()

    def break_off(self) -> None:
        """End what has no end, by an error before the headers, by a broken connection after."""
        if self._ended:
            return
        if self._has_head:
            self._is_broken = True
            self.end()
        else:
            self.fail(GatewayError("internal error"), b"")

    # The client's side.

    async def drive(
        self, receive: Receive, send: Send, *, extra_headers: Mapping[str, str] = {}
    ) -> None:
        """Send everything to the client, until the end or until it leaves.

        Raises:
            nothing for a client that left; the turn is told.
        """
        loop = asyncio.get_running_loop()
        for name, value in extra_headers.items():
            self[name] = value
        self._last_sent = loop.time()
        listener = asyncio.create_task(self._listen(receive))
        deadline: asyncio.Timeout | None = None
        try:
            async with asyncio.timeout(None) as deadline:
                timer = loop.call_later(self._tick_s, self._tick, loop, deadline)
                self._timer = timer
                await self._pump(loop, send)
        except TimeoutError:
            self._leave()
        except OSError:
            # The server reports a closed connection so, where it reports it at all.
            self._leave()
        except asyncio.CancelledError:
            self._leave()
            raise
        finally:
            self._timer.cancel()
            listener.cancel()

    @property
    def _tick_s(self) -> float:
        return min(self._keep_alive_s, self._send_timeout_s)

    async def _pump(self, loop: asyncio.AbstractEventLoop, send: Send) -> None:
        while not self._pieces and not self._ended and not self.left:
            await self._wait(loop)
        if self.left:
            return
        headers = [
            (name.lower().encode("ascii"), value.encode("latin-1")) for name, value in self.items()
        ]
        if self._ended and not self._sse:
            headers.append((b"content-length", b"%d" % self._size))
        await self._send(
            loop,
            send,
            {"type": "http.response.start", "status": self.status_code, "headers": headers},
        )
        while not self.left:
            if self._pieces:
                data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
                self._pieces.clear()
                self._size = 0
                is_last = self._ended and not self._is_broken
                await self._send(
                    loop,
                    send,
                    {"type": "http.response.body", "body": data, "more_body": not is_last},
                )
                if is_last:
                    return
            elif self._is_broken:
                # The server closes the connection of an answer that is not whole.
                return
            elif self._ended:
                await self._send(loop, send, {"type": "http.response.body", "body": b""})
                return
            else:
                await self._wait(loop)

    async def _send(
        self, loop: asyncio.AbstractEventLoop, send: Send, message: dict[str, Any]
    ) -> None:
        self._sending_since = self._last_sent = loop.time()
        await send(message)
        self._sending_since = None

    async def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        self._waiter = loop.create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _tick(self, loop: asyncio.AbstractEventLoop, deadline: asyncio.Timeout) -> None:
        """One timer per client in place of one per chunk: keep-alive comments, stuck sends."""
        now, next_s = loop.time(), self._tick_s
        if self._sending_since is not None:
            if now - self._sending_since >= self._send_timeout_s:
                deadline.reschedule(now)
                return
        elif self._sse and not self._ended:
            left_s = self._keep_alive_s * 0.99 - (now - self._last_sent)
            if left_s <= 0:
                self.append(self._keep_alive())
            else:
                next_s = min(next_s, left_s)
        self._timer = loop.call_later(next_s, self._tick, loop, deadline)

    async def _listen(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._leave()

    def _leave(self) -> None:
        if self.left or (self._ended and not self._pieces):
            return
        self.left = True
        self._pieces.clear()
        self._size = 0
        self._wake()
        if not self._ended:
            self._on_left()

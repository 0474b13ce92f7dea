"""What a connection may cost: time, bytes of its head, answers that are not taken, and how many there are.

uvicorn bounds none of these. A request that does not come in time is answered 408, a head that is too long
431, a connection too many 503; one whose client takes nothing of what was written is cut. A running answer
never is: only what the client itself still owes is timed. One sweep a second looks at all connections, so
that no request costs a timer.
"""

from __future__ import annotations

import asyncio
import http
from collections.abc import Iterable
from typing import Any

from django.conf import settings
from httptools import HttpParserUpgrade, HttpRequestParser
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from qwenproxy.errors import GatewayError, InvalidRequest, error_body
from qwenproxy.wire import json

MAX_HEAD_BYTES = 64 * 1024
# A slower body than this is not waited for, once the time that every request has is over.
MIN_BODY_BYTES_PER_S = 8 * 1024
# Headers that announce a body.
_BODY = (b"content-length", b"transfer-encoding")
# What asks for another protocol, as headers and as words of `Connection`.
_UPGRADE = (b"upgrade", b"http2-settings")
# Of the marks between chunks of a body and what may follow it, for each byte of it.
_FRAMING = 16


def is_admin_side(server: tuple[str, int | None] | None) -> bool:
    """Tell whether the admin is served at this own address of a connection (an ASGI scope's `server`)."""
    bind = settings.ADMIN_BIND
    return bind is None or (server is not None and server[1] == bind[1])


class _Parser(HttpRequestParser):
    """Reads a request that wishes for another protocol as one that does not (RFC 9110, 7.8).

    httptools ends such a request with its head, and what is its body would be the next request: the head is
    read once more without the wish, the body after it. Java's client sends the wish with every first request.
    """

    def __init__(self, protocol: BoundedProtocol) -> None:
        super().__init__(protocol)
        # As uvicorn has it for its own.
        self.set_dangerous_leniencies(lenient_data_after_close=True)
        self._protocol = protocol

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]  # uvicorn's are bytes
        """Parse what came.

        Raises:
            HttpParserError: it is no HTTP.
            HttpParserUpgrade: after CONNECT.
        """
        rest = memoryview(data)
        while True:
            try:
                return super().feed_data(rest)
            except HttpParserUpgrade as upgrade:
                if self.get_method() == b"CONNECT":
                    raise
                rest = rest[upgrade.args[0] :]
            super().feed_data(self._protocol.plain_head())


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds; its times hold where `sweep` is called now and then."""

    # Loop time at which the request began that is not whole yet; null: none is awaited.
    _begun_s: float | None = None
    _in_head = True
    _received_bytes = 0
    _body_bytes = 0
    _refusal = 400
    # What was written and not taken at the last look, and the loop time since which it is as much.
    _unsent_bytes = 0
    _unsent_since_s = 0.0

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.parser = _Parser(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begun_s = self.loop.time()
        is_own = settings.ADMIN_BIND is not None and is_admin_side(self.server)
        # The admin's own address answers its operator also while the other one is flooded.
        if len(self.connections) > settings.MAX_CONNECTIONS * (2 if is_own else 1):
            self._refuse(503)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._received_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._begun_s is None:
            if self.cycle.response_complete:
                # Blank lines between requests: they have ended the wait for the next one.
                self._begun_s = self.loop.time()
            return
        allowed = (
            MAX_HEAD_BYTES if self._in_head else _FRAMING * (MAX_HEAD_BYTES + self._body_bytes)
        )
        if self._received_bytes > allowed:
            self._refuse(431)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun_s = self.loop.time()
        self._in_head = True
        self._body_bytes = 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self.parser.should_upgrade():
            if self.parser.get_method() != b"CONNECT":
                # Comes again without the wish.
                return
            if any(name in _BODY for name, _ in self.headers):
                # The parser does not read it: it would be read as the next request.
                raise ValueError("CONNECT has no body")
        if self._received_bytes > MAX_HEAD_BYTES:
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > MAX_HEAD_BYTES:
                self._refusal = 431
                # Ends the parser, which then asks for the answer to a bad request.
                raise ValueError("the head is too long")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            return
        super().on_message_complete()
        self._begun_s = None
        self._in_head = True
        self._received_bytes = 0

    def plain_head(self) -> bytes:
        """The head that was parsed last, without its wish for another protocol."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        for name, value in self.headers:
            if name in _UPGRADE:
                continue
            if name == b"connection":
                words = [word.strip() for word in value.split(b",")]
                value = b", ".join(word for word in words if word.lower() not in _UPGRADE)
            lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join((*lines, b"", b""))

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal)

    def end_if_late(self, now_s: float) -> None:
        """Answer 408 where the client had its time for the request, by the loop's clock.

        Cut the connection where it takes nothing of what was written.
        """
        if self._is_stuck(now_s):
            # To close would wait for it.
            self.transport.abort()
            return
        if self._begun_s is None or self.transport.is_closing():
            return
        if self.flow.read_paused or (self._in_head and self._is_answering()):
            # It is us who do not read, or an earlier answer that still runs.
            self._begun_s = now_s
            return
        allowed_s = settings.REQUEST_TIMEOUT_S + self._body_bytes / MIN_BODY_BYTES_PER_S
        if now_s - self._begun_s > allowed_s:
            self._refuse(408)

    def _is_stuck(self, now_s: float) -> bool:
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent != self._unsent_bytes:
            self._unsent_bytes, self._unsent_since_s = unsent, now_s
            return False
        return now_s - self._unsent_since_s > settings.SEND_TIMEOUT_S

    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _refuse(self, status: int) -> None:
        """Close the connection, with an answer unless another has begun on it."""
        if not self._is_answering() or not self.cycle.response_started:
            body = json.dumps(error_body(_error(status), ""))
            self.transport.write(
                b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n%b"
                % (status, http.HTTPStatus(status).phrase.encode(), len(body), body)
            )
        self.transport.close()


def sweep(connections: Iterable[object], now_s: float) -> None:
    """End the connections that are late with their requests."""
    for connection in tuple(connections):
        if isinstance(connection, BoundedProtocol):
            connection.end_if_late(now_s)


def _error(status: int) -> GatewayError:
    messages = {
        400: "this is no HTTP request",
        408: "the request did not come in time (QWENPROXY_REQUEST_TIMEOUT_S)",
        431: f"the request's head has more than {MAX_HEAD_BYTES} bytes",
        503: "too many connections (QWENPROXY_MAX_CONNECTIONS)",
    }
    return InvalidRequest(messages[status], status=status)

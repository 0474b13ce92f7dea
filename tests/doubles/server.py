"""Real HTTP servers in threads, and the part that all scripted doubles share.

`serve_in_thread` runs any ASGI application under uvicorn on a free loopback port. `ScriptedServer` is
an ASGI application that records what it is asked and answers with queued `Reply` objects; what it does
when nothing is queued is its subclass's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import socket
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# What running answers get when a server stops.
_GRACE_S = 1.0


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol; the application gets the transport, to drop connections rudely."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {"tests.transport": {"transport": self.transport}}


class _Server(uvicorn.Server):
    """uvicorn's server without its waits of a tenth of a second: tests start hundreds of them."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await super().startup(sockets=sockets)
        finally:
            self.ready.set()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self._stop.wait()

    def stop(self) -> None:
        """Thread-safe."""
        self.should_exit = True
        # A server that did not start has closed its loop.
        with contextlib.suppress(RuntimeError):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._stop.set)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_S):
                while state.connections or state.tasks:  # noqa: ASYNC110  # uvicorn has no event for it
                    await asyncio.sleep(0.005)
        for task in state.tasks:
            task.cancel()
        await self.lifespan.shutdown()


@contextlib.contextmanager
def serve_in_thread(app: Callable[..., Awaitable[None]], *, lifespan: str = "off") -> Iterator[str]:
    """Serve `app` on 127.0.0.1 and yield its base URL; at the end running answers get one second."""
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan=lifespan,
        log_config=None,
        log_level="critical",
        access_log=False,
    )
    server = _Server(config)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(512)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [listener]}, daemon=True, name="test-server"
    )
    thread.start()
    try:
        if not server.ready.wait(30) or not server.started:
            raise RuntimeError("the server did not start")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        close = getattr(app, "close", None)
        if close is not None:
            close()
        server.stop()
        thread.join(30)
        listener.close()


def unused_port() -> int:
    """A port on which nobody listens (connections are refused)."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Recorded(NamedTuple):
    method: str
    path: str
    # Lower-case names.
    headers: dict[str, str]
    # Parsed where it is JSON, else the bytes.
    body: Any
    query: dict[str, str]


@dataclass
class Reply:
    """One scripted answer. Exactly one of the first five says what; the others say how.

    `text` (with `reasoning`, `tool_calls`) is put into the protocol's own records; `raw` is sent as it is;
    `body` is a plain answer with `status`; `silent` accepts and says nothing until the client leaves;
    `refused` closes the connection without an answer.
    """

    text: str | None = None
    raw: bytes | None = None
    body: Any = None
    silent: bool = False
    refused: bool = False

    reasoning: str = ""
    # OpenAI's form; the web upstream has none (its calls are text).
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    # Before every piece, and once before the first.
    delay_s: float = 0
    first_delay_s: float = 0
    # Cuts the stream into pieces of this size, in the middle of UTF-8 sequences as it comes.
    piece_bytes: int = 0
    # After so many pieces the connection drops, or nothing more comes.
    cut_after: int | None = None
    silent_after: int | None = None
    # After so many pieces this is set, and the answer waits for `resume`.
    pause_after: int | None = None
    paused: threading.Event = field(default_factory=threading.Event)
    resume: threading.Event = field(default_factory=threading.Event)
    # Repeats the last text piece until the client leaves.
    endless: bool = False
    crlf: bool = False
    # Put in after the first text piece.
    malformed_line: bytes = b""


class Exchange:
    """One request and what was said to it; a client that left is noticed at once."""

    def __init__(self, scope: Any, receive: Any, send: Any, left: queue.SimpleQueue[str]) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._left = left
        self._complete = False
        self._transport = scope.get("extensions", {}).get("tests.transport", {}).get("transport")
        self.gone = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None

    async def read(self) -> bytes:
        parts = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                break
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                break
        self._watcher = asyncio.create_task(self._watch())
        return b"".join(parts)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone.set()
        if not self._complete:
            self._left.put(self.scope["path"])

    async def start(self, status: int, headers: dict[str, str]) -> None:
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
            }
        )

    async def piece(self, data: bytes) -> None:
        if not self.gone.is_set():
            await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        self._complete = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def whole(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self._complete = True
        await self.start(status, {"content-length": str(len(body)), **headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    def drop(self) -> None:
        """Close the connection as it stands: what was written before arrives, the end does not."""
        self._complete = True
        self._transport.close()

    def finish(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()


class ScriptedServer:
    """Records requests and answers with queued replies.

    `left` receives the path of each request whose client left before the end: `left.get(timeout=5)`.
    """

    completions_path: str

    def __init__(self) -> None:
        self.requests: list[Recorded] = []
        self.left: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._replies: dict[str, deque[Reply]] = {}
        self._closing = threading.Event()

    def enqueue(self, *replies: Reply | str, path: str | None = None) -> None:
        """Script the next answers of a path (the completions'); a text is an answer's text."""
        waiting = self._replies.setdefault(path or self.completions_path, deque())
        waiting.extend(Reply(text=r) if isinstance(r, str) else r for r in replies)

    def requests_to(self, path: str) -> list[Recorded]:
        return [request for request in self.requests if request.path == path]

    def close(self) -> None:
        """Let every waiting answer go."""
        self._closing.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        exchange = Exchange(scope, receive, send, self.left)
        raw = await exchange.read()
        try:
            body = json.loads(raw)
        except ValueError:
            body = raw
        query = {k: v[-1] for k, v in parse_qs(scope["query_string"].decode()).items()}
        headers = {k.decode().lower(): v.decode("utf-8", "replace") for k, v in scope["headers"]}
        request = Recorded(scope["method"], scope["path"], headers, body, query)
        self.requests.append(request)
        try:
            await self.answer(request, exchange)
        finally:
            exchange.finish()

    async def answer(self, request: Recorded, exchange: Exchange) -> None:
        raise NotImplementedError

    def next_reply(self, path: str) -> Reply | None:
        waiting = self._replies.get(path)
        return waiting.popleft() if waiting else None

    async def send_json(
        self, exchange: Exchange, body: Any, *, status: int = 200, headers: Any = None
    ) -> None:
        kind, data = "application/json", b""
        if isinstance(body, str | bytes):
            data = body.encode() if isinstance(body, str) else body
            kind = "text/html" if data.lstrip()[:1] == b"<" else "text/plain"
        else:
            data = json.dumps(body, ensure_ascii=False).encode()
        await exchange.whole(status, {"content-type": kind, **(headers or {})}, data)

    async def send_simple(self, exchange: Exchange, reply: Reply) -> bool:
        """Give a reply that is no stream; false where it is one."""
        if reply.first_delay_s:
            await asyncio.sleep(reply.first_delay_s)
        if reply.refused:
            exchange.drop()
        elif reply.silent:
            await self.wait_for(exchange, threading.Event())
        elif reply.body is not None:
            await self.send_json(exchange, reply.body, status=reply.status, headers=reply.headers)
        else:
            return False
        return True

    async def send_stream(
        self,
        exchange: Exchange,
        reply: Reply,
        records: Sequence[bytes],
        *,
        endless_record: bytes = b"",
        stopped: asyncio.Event | None = None,
    ) -> bool:
        """Send the records as the reply says; true where the whole answer was produced.

        `stopped` ends the answer early; without one it ends when the client leaves.
        """
        headers = {"content-type": "text/event-stream; charset=utf-8", **reply.headers}
        await exchange.start(reply.status, headers)
        ended = False
        for index, piece in enumerate(self._pieces(reply, records, endless_record)):
            if reply.pause_after == index:
                reply.paused.set()
                await self.wait_for(exchange, reply.resume, stopped)
            if reply.cut_after == index:
                exchange.drop()
                return False
            if reply.silent_after == index:
                await self.wait_for(exchange, threading.Event(), stopped)
                return False
            if reply.delay_s or (reply.endless and index >= len(records)):
                await asyncio.sleep(reply.delay_s)
            ended = self._closing.is_set() or (
                stopped.is_set() if stopped is not None else exchange.gone.is_set()
            )
            if ended:
                break
            await exchange.piece(piece)
        if not exchange.gone.is_set():
            await exchange.end()
        return not ended

    def _pieces(self, reply: Reply, records: Sequence[bytes], repeated: bytes) -> Iterator[bytes]:
        whole = list(records)
        if reply.malformed_line and whole:
            whole.insert(min(2, len(whole)), reply.malformed_line)
        if reply.crlf:
            whole = [record.replace(b"\n", b"\r\n") for record in whole]
        if reply.piece_bytes:
            data = b"".join(whole)
            whole = [
                data[at : at + reply.piece_bytes] for at in range(0, len(data), reply.piece_bytes)
            ]
        yield from whole
        # No pieces after the last record: `cut_after` equal to their number cuts before the end.
        if reply.cut_after is not None and reply.cut_after >= len(whole):
            yield b""
        while reply.endless:
            yield repeated or whole[-1]

    async def wait_for(
        self, exchange: Exchange, event: threading.Event, stopped: asyncio.Event | None = None
    ) -> None:
        """Wait for the test's event, a stop, or (where nothing can stop it) the client's leaving."""
        end = exchange.gone if stopped is None else stopped
        while not (event.is_set() or end.is_set() or self._closing.is_set()):
            # Threads' events cannot be awaited; a short poll keeps tests free of other machinery.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(end.wait(), 0.01)

"""What answers on the gateway's port until the gateway does: alive, not ready, and how far it is.

A thread with a loop of its own, so that no probe kills a process that migrates. The listening socket
stays open: what has connected and was not answered is the gateway's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Self

from qwenproxy.schema.watch import Progress
from qwenproxy.wire import json
from qwenproxy.wire.json import JSONObject

_RETRY_AFTER_S = 2
_HEAD_BYTES = 64 * 1024
# For a client to send its request, and to read its answer.
_CLIENT_TIMEOUT_S = 5.0
_GRACE_S = 1.0
_SETTLE_S = 0.05
_ALIVE = ("/healthz", "/health")


class Responder:
    """A context manager."""

    def __init__(self, listener: socket.socket, progress: Progress) -> None:
        self._listener = listener
        self._progress = progress
        self._begun = time.monotonic()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._answers: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="responder", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        listener = self._listener.dup()
        server = await asyncio.start_server(
            self._accept, sock=listener, limit=_HEAD_BYTES, backlog=2048
        )
        self._ready.set()
        await self._stop.wait()
        # First no more is accepted: a connection that was, and has no task yet, would be lost with the
        # server that it belongs to, and its client would wait for ever.
        self._loop.remove_reader(listener)
        await asyncio.sleep(_SETTLE_S)
        server.close()
        if self._answers:
            await asyncio.wait(self._answers, timeout=_GRACE_S)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._answers.add(task)
        try:
            async with asyncio.timeout(_CLIENT_TIMEOUT_S):
                await self._answer(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            # The client has left, or is none of ours.
            return
        finally:
            self._answers.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, _, rest = head.decode("latin-1").partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        is_alive = path in _ALIVE
        body = json.dumps({"status": "healthy"} if is_alive else self._state())
        lines = [
            "HTTP/1.1 200 OK" if is_alive else "HTTP/1.1 503 Service Unavailable",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        if not is_alive:
            lines.append(f"Retry-After: {_RETRY_AFTER_S}")
        writer.write("\r\n".join([*lines, "", ""]).encode() + (b"" if method == "HEAD" else body))
        await writer.drain()
        writer.write_eof()
        # A body that nobody read would turn the answer into a reset.
        while await reader.read(_HEAD_BYTES):
            continue

    def _state(self) -> JSONObject:
        progress = self._progress
        now = time.monotonic()
        if progress.done == progress.of:
            return {"status": "starting", "seconds": round(now - self._begun)}
        return {
            "status": "migrating",
            "done": progress.done,
            "of": progress.of,
            "migration": progress.migration,
            "statement": " ".join(progress.statement.split())[:200],
            "seconds": round(now - progress.since),
        }

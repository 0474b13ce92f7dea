"""What answers on the gateway's port until the gateway does: alive, not ready, and how far it is.

A thread with a loop of its own, so that no probe kills a process that migrates. It also tells the
progress every 10 s, and at a signal breaks off the statement that runs, so that stopping does not wait
for it. The listening socket stays open: what has connected and was not answered is the gateway's.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sqlite3
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

import psycopg
from django.db import connections

from qwenproxy.schema.locking import Write
from qwenproxy.schema.runner import Progress
from qwenproxy.wire import json
from qwenproxy.wire.json import JSONObject

_TELL_EVERY_S = 10.0
_RETRY_AFTER_S = 2
_HEAD_BYTES = 64 * 1024
# For a client to send its request, and to read its answer.
_CLIENT_TIMEOUT_S = 5.0
_GRACE_S = 1.0
_SETTLE_S = 0.05
_INTERRUPT_EVERY_S = 0.5
_ALIVE = ("/healthz", "/health")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Responder:
    """A context manager for the main thread."""

    def __init__(self, listener: socket.socket, progress: Progress, write: Write) -> None:
        self._listener = listener
        self._progress = progress
        self._write = write
        self._begun = time.monotonic()
        # Connections are a thread's own; this one is only ever interrupted from the other.
        self._wrapper = connections["default"]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._answers: set[asyncio.Task[None]] = set()
        self._wakeup, self._waker = socket.socketpair()
        self._handlers: dict[int, Any] = {}
        self._thread = threading.Thread(target=self._run, name="responder", daemon=True)

    def __enter__(self) -> Self:
        for end in (self._wakeup, self._waker):
            end.setblocking(False)
        self._thread.start()
        self._ready.wait()
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, _leave) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._wakeup.close()
        self._waker.close()

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
        if sys.platform != "win32":
            self._loop.add_reader(self._wakeup, self._interrupt)
        self._ready.set()
        telling = asyncio.create_task(self._tell())
        await self._stop.wait()
        telling.cancel()
        # First no more is accepted: a connection that was, and has no task yet, would be lost with the
        # server that it belongs to, and its client would wait for ever.
        self._loop.remove_reader(listener)
        await asyncio.sleep(_SETTLE_S)
        server.close()
        if self._answers:
            await asyncio.wait(self._answers, timeout=_GRACE_S)

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(_TELL_EVERY_S)
            progress = self._progress
            if progress.done < progress.of:
                seconds = round(time.monotonic() - progress.since)
                statement = " ".join(progress.statement.split())[:100]
                self._write(
                    f"Migrating, {progress.done} of {progress.of} done, at {progress.migration}: "
                    f"{statement} ({seconds} s)"
                )

    def _interrupt(self) -> None:
        with contextlib.suppress(OSError):
            self._wakeup.recv(64)
        self._break_off(self._progress.statement)

    def _break_off(self, statement: str) -> None:
        if statement is not self._progress.statement or self._loop is None:
            return
        # Again while it is the same one: an interruption that comes just before a statement is lost.
        self._loop.call_later(_INTERRUPT_EVERY_S, self._break_off, statement)
        raw = self._wrapper.connection
        # Between two statements there is nothing to break off.
        with contextlib.suppress(sqlite3.Error, psycopg.Error):
            if isinstance(raw, sqlite3.Connection):
                raw.interrupt()
            elif isinstance(raw, psycopg.Connection):
                raw.cancel()

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


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)

"""Looks after a change of the schema from beside it: tells how far it is, and breaks it off at a signal.

Python hears of a signal only when the statement that runs has ended, which may take hours. So a thread
interrupts the statement; the run rolls back, and the process ends with 128 + the signal.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import sqlite3
import threading
import time
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

import psycopg
from django.db.backends.base.base import BaseDatabaseWrapper

from qwenproxy.schema.locking import Write

_TELL_EVERY_S = 10.0
_INTERRUPT_EVERY_S = 0.5
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(slots=True)
class Progress:
    """How far a run is, for another thread to tell; read without a lock."""

    done: int = 0
    of: int = 0
    migration: str = ""
    # Empty where there is nothing to break off.
    statement: str = ""
    # Of `time.monotonic`, when the statement began.
    since: float = 0.0

    def line(self) -> str:
        seconds = round(time.monotonic() - self.since)
        statement = " ".join(self.statement.split())[:100]
        return f"{self.done} of {self.of} done, at {self.migration}: {statement} ({seconds} s)"


class Watch:
    """A context manager around what changes the schema; signals are looked after in the main thread."""

    def __init__(self, connection: BaseDatabaseWrapper, progress: Progress, write: Write) -> None:
        # A connection is a thread's own; from here it is only ever interrupted.
        self._connection = connection
        self._progress = progress
        self._write = write
        self._wakeup, self._waker = socket.socketpair()
        self._handlers: dict[int, Any] = {}
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if threading.current_thread() is threading.main_thread():
            self._waker.setblocking(False)
            signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
            self._handlers = {number: signal.signal(number, _leave) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handlers:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(-1)
        # The thread reads the end of it.
        self._waker.close()
        self._thread.join()
        self._wakeup.close()

    def _run(self) -> None:
        told, broken_off = time.monotonic(), ""
        while True:
            # Again while it is the same one: an interruption that comes just before a statement is lost.
            wait_s = _INTERRUPT_EVERY_S if broken_off else _TELL_EVERY_S
            if select.select([self._wakeup], [], [], wait_s)[0]:
                if not self._wakeup.recv(64):
                    return
                broken_off = self._progress.statement
            if broken_off and broken_off is self._progress.statement:
                self._interrupt()
            else:
                broken_off = ""
            if time.monotonic() - told >= _TELL_EVERY_S:
                told = time.monotonic()
                if self._progress.done < self._progress.of:
                    self._write(f"Migrating, {self._progress.line()}")

    def _interrupt(self) -> None:
        raw = self._connection.connection
        # Between two statements there is nothing to break off.
        with contextlib.suppress(sqlite3.Error, psycopg.Error):
            if isinstance(raw, sqlite3.Connection):
                raw.interrupt()
            elif isinstance(raw, psycopg.Connection):
                raw.cancel()


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)

"""Which serving processes are alive: each holds a lock that dies with it. No clock is asked.

SQLite: `flock` on a file in the data directory, freed by the kernel with the process. PostgreSQL: a
session advisory lock on the recorder's own connection, so that a process which lost its connection
counts as gone until it has it back. Whoever finds a lock free there keeps it to the end of the
transaction: a process that comes back waits until what it left has been settled.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any
from uuid import UUID

from qwenproxy.transaction import raw_connection


def _advisory_key(worker_id: str) -> int:
    return int.from_bytes(UUID(worker_id).bytes[:8], "big", signed=True)


class WorkerLock:
    """This process's own lock; used in the recorder's thread alone."""

    def __init__(self, worker_id: str, directory: Path, *, wait_s: float) -> None:
        self.worker_id = worker_id
        self.directory = directory
        self._wait_s = wait_s
        self._file: int | None = None
        self._connection: Any = None

    def hold(self) -> bool:
        """Take the lock unless it is held; true where it was taken: others may have counted us as gone."""
        wrapper, raw = raw_connection()
        if wrapper.vendor == "postgresql":
            if raw is self._connection:
                return False
            # Of all statements of this connection: a writer that waits for ever answers nobody.
            wait_ms = str(round(self._wait_s * 1000))
            raw.execute("SELECT set_config('lock_timeout', %s, false)", [wait_ms])
            raw.execute("SELECT pg_advisory_lock(%s)", [_advisory_key(self.worker_id)])
            self._connection = raw
            return True
        if self._file is not None:
            return False
        self.directory.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path(self.worker_id), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return True

    def is_free(self, worker_id: str) -> bool:
        """Whether another worker's lock is free: its process is gone. Called within a transaction."""
        wrapper, raw = raw_connection()
        if wrapper.vendor == "postgresql":
            taken = raw.execute(
                "SELECT pg_try_advisory_xact_lock(%s)", [_advisory_key(worker_id)]
            ).fetchone()
            return bool(taken[0])
        return is_file_lock_free(self.directory, worker_id)

    def forget(self, worker_id: str) -> None:
        """Remove what a dead worker's lock left behind."""
        self._path(worker_id).unlink(missing_ok=True)

    def release(self) -> None:
        """Give the lock back; closing the connection does it on PostgreSQL."""
        if self._file is not None:
            self.forget(self.worker_id)
            os.close(self._file)
            self._file = None

    def _path(self, worker_id: str) -> Path:
        return _file_of(self.directory, worker_id)


def is_file_lock_free(directory: Path, worker_id: str) -> bool:
    """Whether no process holds the lock of a worker on SQLite."""
    try:
        descriptor = os.open(_file_of(directory, worker_id), os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _file_of(directory: Path, worker_id: str) -> Path:
    return directory / f"{UUID(worker_id)}.lock"

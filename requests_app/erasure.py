"""That what is deleted is gone from the files of SQLite, and the space given back.

With QWENPROXY_SECURE_DELETE every connection writes zeros over what it deletes (`PRAGMA secure_delete`, set
where connections are opened). The write-ahead log keeps what was written before, until it is emptied.
PostgreSQL does both by VACUUM, in its own time.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.db import connection

# While it waits for readers no other connection writes.
_WAIT_MS = 50
_TRIES = 5
_TABLES = (
    "sessions_app_session",
    "sessions_app_message",
    "requests_app_request",
    "requests_app_response",
    "requests_app_blob",
    "requests_app_messagefile",
)
_INCREMENTAL = 2
# One megabyte, with the usual pages.
_PAGES_PER_STEP = 256


class NoRoom(Exception):
    """The disk has no room for what is asked; says how much is needed."""


def empty_log() -> bool:
    """Empty SQLite's write-ahead log; false where a reader kept it from that, and it is to be tried again.

    Outside of transactions. Others write on meanwhile but for some milliseconds. On PostgreSQL it does nothing.
    """
    if connection.vendor != "sqlite":
        return True
    with _short_wait():
        for _ in range(_TRIES):
            # Most of it without keeping anybody from writing.
            _pragma("wal_checkpoint(PASSIVE)")
            if _pragma("wal_checkpoint(TRUNCATE)") == 0:
                return True
    return False


def give_space_back() -> Iterator[int]:
    """Make SQLite's file smaller, in steps where it was set up for that; yields how many bytes went.

    The first time the whole file is written anew, during which nobody else can write, and set up for steps. On
    PostgreSQL `VACUUM` makes room for new rows.

    Raises:
        NoRoom: the file cannot be written anew.
    """
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            for table in _TABLES:
                cursor.execute(f"VACUUM (ANALYZE) {table}")
                yield 0
        return
    page = _pragma("page_size")
    if _pragma("auto_vacuum") != _INCREMENTAL:
        before = _pragma("page_count")
        _vacuum_whole(before * page)
        yield (before - _pragma("page_count")) * page
        return
    while free := _pragma("freelist_count"):
        started = time.monotonic()
        with connection.cursor() as cursor:
            cursor.execute(f"PRAGMA incremental_vacuum({_PAGES_PER_STEP})")
            # Each row is a page.
            cursor.fetchall()
        yield (free - _pragma("freelist_count")) * page
        # Others come to write meanwhile.
        time.sleep(time.monotonic() - started)


def _vacuum_whole(size: int) -> None:
    path = Path(str(connection.settings_dict["NAME"]))
    # A copy beside it, and all of it in the log.
    needed = 2 * size
    if path.exists() and shutil.disk_usage(path.parent).free < needed:
        raise NoRoom(f"it needs {needed // 10**6:,} MB of free disk in {path.parent}")
    with connection.cursor() as cursor:
        cursor.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")
        cursor.execute("VACUUM")


@contextmanager
def _short_wait() -> Iterator[None]:
    usual = _pragma("busy_timeout")
    _pragma(f"busy_timeout = {_WAIT_MS}")
    try:
        yield
    finally:
        _pragma(f"busy_timeout = {usual}")


def _pragma(text: str) -> int:
    """Of a checkpoint: 1 where it could not be finished."""
    with connection.cursor() as cursor:
        cursor.execute(f"PRAGMA {text}")
        return int(cursor.fetchone()[0])

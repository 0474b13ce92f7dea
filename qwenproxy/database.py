"""The bridge from the event loop to Django's ORM: `run_in_db`.

A small pool of threads runs plain synchronous functions, each thread on a connection of its own that
stays open between calls (a call costs 67 µs; with a connection per call it was 965). What is read of the
record has one more thread (`read_in_db`). Every statement has a time limit, so that one slow query delays
nobody else for long. A connection that failed is dropped and opened anew by the next call; the error
itself goes to the caller.

This is the home of executors, with the recorder's thread the only ones. It retries nothing.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal, ParamSpec, TypeVar

from django.db import DEFAULT_DB_ALIAS, Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

P = ParamSpec("P")
R = TypeVar("R")

THREADS = 2
# Chats wait for the threads of the first; one thread reads the record, beside them in the same interpreter, and
# one waits for another process (`qwenproxy.reports`).
_Purpose = Literal["chats", "record", "reports"]
STATEMENT_TIMEOUT_S = 10.0
# SQLite's virtual machine asks for the deadline once in so many instructions, about once a millisecond.
_INSTRUCTIONS_BETWEEN_CHECKS = 20_000
# A kept connection to a server may have died while it was idle: from this age on it is asked first.
_TRUSTED_IDLE_S = 5.0


class _ThreadState(threading.local):
    # The driver's connection that has its time limit installed.
    limited: object = None
    deadline_s = 0.0
    used_s = 0.0


_state = _ThreadState()


class _Pool:
    def __init__(self, purpose: _Purpose) -> None:
        self.connections: list[BaseDatabaseWrapper] = []
        self.executor = ThreadPoolExecutor(
            THREADS if purpose == "chats" else 1,
            thread_name_prefix="qwenproxy-db",
            initializer=self._register,
        )

    def _register(self) -> None:
        self.connections.append(connections[DEFAULT_DB_ALIAS])

    def close(self) -> None:
        self.executor.shutdown(wait=True)
        # In a thread of its own: Django refuses to close a connection where an event loop runs.
        closer = threading.Thread(target=self._close_connections, name="qwenproxy-db-close")
        closer.start()
        closer.join()

    def _close_connections(self) -> None:
        for connection in self.connections:
            connection.inc_thread_sharing()
            connection.close()


_pools: dict[_Purpose, _Pool] = {}
_pool_lock = threading.Lock()


def _executor(purpose: _Purpose) -> ThreadPoolExecutor:
    with _pool_lock:
        if purpose not in _pools:
            _pools[purpose] = _Pool(purpose)
        return _pools[purpose].executor


async def run_in_db(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run synchronous ORM code in the database pool and return what it returns.

    The function opens its own transaction where it writes. A statement that takes longer than
    `STATEMENT_TIMEOUT_S` (on SQLite: all statements of the call together) ends in `OperationalError`.
    A cancelled caller does not stop a function that already runs.
    """
    loop = asyncio.get_running_loop()
    call = partial(call_with_limits, function, *args, **kwargs)
    return await loop.run_in_executor(_executor("chats"), call)


async def read_in_db(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """The same for what is read of the record, one call at a time.

    Statistics, searches and exports take long: in a thread of their own they wait for each other, and chats,
    whose keys and accounts are read by `run_in_db`, do not wait for them.
    """
    loop = asyncio.get_running_loop()
    call = partial(call_with_limits, function, *args, **kwargs)
    return await loop.run_in_executor(_executor("record"), call)


async def wait_beside(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run what waits for another process, one call at a time; it gets no connection."""
    loop = asyncio.get_running_loop()
    call = partial(function, *args, **kwargs)
    return await loop.run_in_executor(_executor("reports"), call)


def close_pool() -> None:
    """Wait for the running calls, close the pools' connections and end their threads.

    Blocks. The next `run_in_db` starts a new pool.
    """
    with _pool_lock:
        pools = list(_pools.values())
        _pools.clear()
    for pool in pools:
        pool.close()


def call_with_limits(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call on this thread's connection, kept in order and with the limits of `run_in_db`."""
    connection = connections[DEFAULT_DB_ALIAS]
    _state.deadline_s = time.monotonic() + STATEMENT_TIMEOUT_S
    try:
        _make_ready(connection)
        return function(*args, **kwargs)
    except Error as exc:
        if is_connection_error(exc):
            connection.close()
        raise
    finally:
        # Also for what the driver does between calls, such as closing.
        _state.deadline_s = float("inf")
        _state.used_s = time.monotonic()


def _make_ready(connection: BaseDatabaseWrapper) -> None:
    idle_s = time.monotonic() - _state.used_s
    if connection.connection is not None and idle_s > _TRUSTED_IDLE_S:
        connection.close_if_unusable_or_obsolete()
        if connection.connection is not None and not connection.is_usable():
            connection.close()
    connection.ensure_connection()
    if connection.connection is _state.limited:
        return
    if connection.vendor == "sqlite":
        connection.connection.set_progress_handler(_is_late, _INSTRUCTIONS_BETWEEN_CHECKS)
    else:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT set_config('statement_timeout', %s, false)",
                [str(round(STATEMENT_TIMEOUT_S * 1000))],
            )
    _state.limited = connection.connection


def _is_late() -> bool:
    return time.monotonic() > _state.deadline_s


def is_connection_error(exc: BaseException) -> bool:
    """Tell whether the connection should be dropped and opened anew: it is lost, or not to be trusted.

    Takes Django's errors and the drivers' own.
    """
    # By name: PEP 249 gives all drivers the same ones, and neither driver need be imported.
    return any(
        base.__name__ in ("OperationalError", "InterfaceError") for base in type(exc).__mro__
    )

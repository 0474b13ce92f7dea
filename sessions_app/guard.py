"""Queries of a page that take longer than a second are stopped, and the page says so.

A filter that no index serves may read every row of the record before it finds a page of them. Whoever
shows such a list runs its queries within `stopped_after` and catches `Stopped`; the connection goes on
working. Not for `run_in_db`, whose threads have a limit of their own on the same connection.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import DEFAULT_DB_ALIAS, OperationalError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

LIMIT_S = 1.0
# SQLite's virtual machine asks once in so many instructions, about once a millisecond.
_INSTRUCTIONS_BETWEEN_CHECKS = 20_000
# PostgreSQL's QueryCanceled.
_CANCELED = "57014"


class Stopped(Exception):
    """The queries took longer than they may."""


@contextmanager
def stopped_after(limit_s: float | None = None) -> Iterator[None]:
    """Stop what is read within it after `limit_s` (None: `LIMIT_S`) and raise `Stopped`.

    On SQLite all queries together have that long, on PostgreSQL each of them. Read only: on PostgreSQL
    it is a transaction, which is rolled back.
    """
    limit_s = LIMIT_S if limit_s is None else limit_s
    connection = connections[DEFAULT_DB_ALIAS]
    limited = _on_sqlite if connection.vendor == "sqlite" else _on_postgresql
    with limited(connection, limit_s):
        yield


@contextmanager
def _on_sqlite(connection: BaseDatabaseWrapper, limit_s: float) -> Iterator[None]:
    connection.ensure_connection()
    driver = connection.connection
    deadline = time.monotonic() + limit_s
    was_late = False

    def is_late() -> bool:
        nonlocal was_late
        was_late = was_late or time.monotonic() > deadline
        return was_late

    driver.set_progress_handler(is_late, _INSTRUCTIONS_BETWEEN_CHECKS)
    try:
        yield
    except OperationalError as exc:
        if was_late:
            raise Stopped from exc
        raise
    finally:
        driver.set_progress_handler(None, 0)


@contextmanager
def _on_postgresql(connection: BaseDatabaseWrapper, limit_s: float) -> Iterator[None]:
    limit_ms = max(1, round(limit_s * 1000))
    limited = _in_transaction if connection.in_atomic_block else _in_own_transaction
    try:
        with limited(connection, limit_ms):
            yield
    except OperationalError as exc:
        if _code(exc) == _CANCELED:
            raise Stopped from exc
        raise


@contextmanager
def _in_own_transaction(connection: BaseDatabaseWrapper, limit_ms: int) -> Iterator[None]:
    # Django's own would be a statement more: here the limit goes with the BEGIN. Of a transaction, since
    # a pool may give the next one another connection.
    with connection.cursor() as cursor:
        cursor.execute(f"BEGIN READ ONLY; SET LOCAL statement_timeout = {limit_ms:d}")
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ROLLBACK")


@contextmanager
def _in_transaction(connection: BaseDatabaseWrapper, limit_ms: int) -> Iterator[None]:
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT current_setting('statement_timeout'),"
                " set_config('statement_timeout', %s, true)",
                [str(limit_ms)],
            )
            before = cursor.fetchone()[0]
        yield
        # It would hold for the rest of the transaction around this one.
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('statement_timeout', %s, true)", [before])


def _code(exc: BaseException) -> str | None:
    # Of the driver's error below Django's; by name, since the driver need not be installed.
    code = getattr(exc.__cause__, "sqlstate", None)
    return code if isinstance(code, str) else None

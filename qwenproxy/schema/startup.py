"""Bringing the database up to date before serving, or saying why not; never serving after a failure.

Nothing to do is the usual case and costs one SELECT. A database ahead of the code, a migration that
was rolled back by hand and a file that was edited after it ran are refused with nothing changed.
"""

from __future__ import annotations

import time

from django.conf import settings
from django.core.management import call_command
from django.db import DatabaseError, connection

from qwenproxy.schema import engine
from qwenproxy.schema.history import History
from qwenproxy.schema.locking import Write, refuse_pool
from qwenproxy.schema.refusals import Held, LockTimeout, Refused, SchemaRefusal
from qwenproxy.schema.state import (
    SchemaState,
    held,
    read_state,
    refuse_ahead,
    refuse_edited,
    warn_unknown,
)
from qwenproxy.schema.watch import Progress

_POLL_S = 1.0


def bring_up_to_date(
    write: Write, *, progress: Progress | None = None, mode: str | None = None
) -> None:
    """Apply what is pending, in one process at a time; `write` is told about it in lines. Blocks.

    `mode` is QWENPROXY_MIGRATE_ON_START's: auto, check (another process migrates: wait for it), off.

    Raises:
        SchemaRefusal: do not serve; its exit code says why.
    """
    mode = mode or settings.MIGRATE_ON_START
    if mode == "off":
        return
    _wait_for_database(write)
    refuse_pool(connection)
    with engine.set_apart(connection):
        _bring_up_to_date(write, progress, mode)


def _bring_up_to_date(write: Write, progress: Progress | None, mode: str) -> None:
    state = _acceptable_state(write)
    if not state.pending:
        if mode == "auto":
            _mend_history(write)
        return
    _refuse_by_hand_only(state, write)
    if mode == "check":
        _wait_for_migrations(write)
        return
    write(f"Applying {_count(state)} ...")
    call_command(
        "migrate", interactive=False, verbosity=0, source="serve", write=write, progress=progress
    )
    # The process that was waited for may have been of a newer version.
    state = _acceptable_state(write)
    if state.pending:
        raise Refused(f"{_count(state)} could not be applied; nothing is served.")
    write("The database is up to date.")


def _mend_history(write: Write) -> None:
    if History(connection).is_whole():
        return
    write("The history of the schema is not whole; it is made anew from Django's record.")
    try:
        call_command("migrate", interactive=False, verbosity=0, source="serve", write=write)
    except (SchemaRefusal, DatabaseError) as exc:
        # It tells what was; serving does not need it.
        write(f"That failed: {exc}")


def _acceptable_state(write: Write) -> SchemaState:
    state = read_state()
    refuse_ahead(state)
    if state.unknown:
        write(warn_unknown(state))
    return state


def _refuse_by_hand_only(state: SchemaState, write: Write) -> None:
    kept = held("default", state.pending)
    if kept:
        names = ", ".join(f"{app}.{name}" for app, name in kept)
        raise Held(
            f"{names} was rolled back by hand and is held. Nothing was changed. "
            "Apply it by hand (manage.py migrate), or start the version before it."
        )
    refuse_edited(write)


def _wait_for_database(write: Write) -> None:
    deadline = time.monotonic() + settings.MIGRATE_WAIT_FOR_DATABASE_S
    has_told = False
    while True:
        try:
            engine.ensure_open(connection)
            return
        except Refused as exc:
            if connection.vendor == "sqlite" or time.monotonic() > deadline:
                raise
            if not has_told:
                write(f"Waiting for it. {exc}")
                has_told = True
        time.sleep(_POLL_S)


def _wait_for_migrations(write: Write) -> None:
    write("Waiting for another process to migrate the database ...")
    deadline = time.monotonic() + settings.MIGRATE_LOCK_WAIT_S
    while _acceptable_state(write).pending:
        if time.monotonic() > deadline:
            raise LockTimeout(
                "The database has not been migrated. Run: manage.py migrate, or start with "
                "QWENPROXY_MIGRATE_ON_START=auto."
            )
        time.sleep(_POLL_S)


def _count(state: SchemaState) -> str:
    count = len(state.pending)
    return f"{count} migration" if count == 1 else f"{count} migrations"

"""One change of the schema: under the lock, after a backup, in one transaction with its own history.

Consecutive atomic migrations, Django's record of them, our events and what `post_migrate` writes are
committed together, or not at all. A migration that cannot be in a transaction (`atomic = False`) ends
the one before it and runs alone; only then can a failure leave a part behind.
"""

from __future__ import annotations

import getpass
import os
import random
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import django
from django.apps.registry import Apps
from django.conf import settings
from django.db import DatabaseError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations import Migration
from django.db.migrations.recorder import MigrationRecorder
from django.db.models.signals import pre_migrate
from django.utils import timezone

from qwenproxy import __version__
from qwenproxy.schema import backup, dump, engine, files, preflight
from qwenproxy.schema.files import MigrationName
from qwenproxy.schema.history import History
from qwenproxy.schema.locking import Write, is_scratch, migration_lock
from qwenproxy.schema.models import MigrationEvent
from qwenproxy.schema.refusals import (
    LockTimeout,
    MigrationFailed,
    MigrationFailedPartWay,
    SchemaRefusal,
)
from qwenproxy.schema.rewrites import Rewrites
from qwenproxy.schema.watch import Progress, Watch

_ATTEMPTS = 5

Plan = Sequence[tuple[Migration, bool]]
Source = Literal["cli", "serve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    transactions: Literal["all", "each"]
    backup: Literal["auto", "always", "never"]
    lock_wait_s: float
    # PostgreSQL: how long a statement waits for a table, and with it everyone behind it.
    lock_timeout_s: float
    allow_unsafe: bool = False
    source: Source = "cli"


class Run:
    """Runs migrations through Django's executor; the caller hands on the executor's progress."""

    def __init__(
        self,
        connection: BaseDatabaseWrapper,
        options: Options,
        write: Write,
        progress: Progress | None = None,
    ) -> None:
        self.id = uuid.uuid4()
        self.backup_path = ""
        self.progress = progress or Progress()
        self._connection = connection
        self._options = options
        self._write = write
        self._history = History(connection)
        self._seq = 0
        self._events: dict[MigrationName, MigrationEvent] = {}
        self._buffered: list[MigrationEvent] = []
        self._uncommitted: list[MigrationEvent] = []
        # The migration that runs, what it rewrites, since when, and whether it is outside the transaction.
        self._current: MigrationEvent | None = None
        self._rewrites: Rewrites | None = None
        self._begun = 0.0
        self._is_alone = False
        self._batch: ExitStack | None = None
        self._refused_statement: tuple[BaseException | None, str] = (None, "")
        # Of this attempt, of any attempt, and whether something of the run is there to stay.
        self._has_begun = self._has_tried = self._has_committed = False
        self._has_looked = False

    def execute(self, work: Callable[[], object]) -> None:
        """Do `work`, which lets Django migrate this connection. Blocks, also for the lock.

        On PostgreSQL it is done again, up to five times, when a table was not to be had in time.

        Raises:
            SchemaRefusal: with the exit code that says what happened.
        """
        with (
            self._watched(),
            migration_lock(self._connection, self._options.lock_wait_s, self._write, self._holder),
            engine.session(
                self._connection, self._options.lock_wait_s, self._options.lock_timeout_s
            ),
        ):
            for attempt in range(1, _ATTEMPTS + 1):
                try:
                    with self._attempt():
                        work()
                    return
                except DatabaseError as exc:
                    if not engine.is_lock_conflict(exc):
                        raise
                    conflict = exc
                if attempt < _ATTEMPTS:
                    self._write(f"A table is in use; trying again ({attempt} of {_ATTEMPTS}) ...")
                    time.sleep(random.uniform(0.5, 1.0) * 2**attempt / 2)  # noqa: S311  # jitter
            if self._has_committed:
                raise self._failure(conflict) from conflict
            raise LockTimeout(
                f"A table stayed in use through {_ATTEMPTS} attempts: {_first_line(conflict)}. "
                "The database is unchanged. Try at a quieter time, or wait longer: --lock-timeout."
            ) from conflict

    def _watched(self) -> AbstractContextManager[object]:
        # `serve` is watched from its beginning on.
        if self._options.source == "serve" or is_scratch(self._connection):
            return nullcontext()
        return Watch(self._connection, self.progress, self._write)

    @contextmanager
    def _attempt(self) -> Iterator[None]:
        self._has_looked = self._has_begun = False
        self._current = self._rewrites = None
        pre_migrate.connect(self._begin, weak=False, dispatch_uid=self.id)
        try:
            with self._connection.execute_wrapper(self._watch):
                yield
                self._finish()
        except BaseException as raised:
            exc = _cause(raised)
            # What follows is not to be broken off.
            self.progress.statement = ""
            self._roll_back(exc)
            if not isinstance(exc, Exception):
                if self._has_begun:
                    self._write(f"Stopped. {self._what_is_left()}")
                raise exc from None
            if not self._has_begun:
                raise
            if isinstance(exc, SchemaRefusal) or is_scratch(self._connection):
                raise
            if engine.is_lock_conflict(exc):
                raise
            raise self._failure(exc) from exc
        finally:
            pre_migrate.disconnect(dispatch_uid=self.id)

    def _failure(self, exc: Exception) -> SchemaRefusal:
        at = self._current
        where = f"{at.app}.{at.name}" if at else "The end of the migrations"
        what = f"{where} failed: {type(exc).__name__}: {_first_line(exc)}."
        refusal = MigrationFailedPartWay if self._is_part_way() else MigrationFailed
        return refusal(f"{what} {self._what_is_left()}")

    def _is_part_way(self) -> bool:
        return self._has_committed or (self._current is not None and self._is_alone)

    def _what_is_left(self) -> str:
        if not self._is_part_way():
            return "The database is unchanged; the version before can be started."
        way_out = "Start again to continue"
        if self.backup_path:
            way_out += f", or go back: manage.py dbrestore {self.backup_path} --yes"
        return f"What ran before it is committed. {way_out}."

    # What Django calls

    def _begin(self, *, plan: Plan, using: str, apps: Apps, **_: Any) -> None:
        # Sent once per app.
        if self._has_looked or using != self._connection.alias:
            return
        self._has_looked = True
        self._history.look_again()
        self._history.settle_interrupted()
        self._buffered = []
        if not plan:
            self._mend_history()
            return
        events = [self._event_of(migration, backwards) for migration, backwards in plan]
        if not is_scratch(self._connection):
            self._check(plan, events, apps)
        self._has_begun = self._has_tried = True
        self._events = {(event.app, event.name): event for event in events}
        self.progress.done, self.progress.of = 0, len(events)
        self._history.mend()
        self._reconcile()
        for event in events:
            event.backup = self.backup_path
            event.seq = self._next_seq()
        self._buffered += events
        self._uncommitted = list(events)
        self._history.insert(events)

    def observe(self, action: str, migration: Migration | None, fake: bool | None) -> None:
        """Hand on what `MigrationExecutor` tells its progress callback, before it is shown."""
        if migration is None:
            return
        if action in ("apply_start", "unapply_start"):
            self._start(migration)
        elif action in ("apply_success", "unapply_success"):
            self._succeed(migration, fake=bool(fake))

    def _start(self, migration: Migration) -> None:
        event = self._events[migration.app_label, migration.name]
        self.progress.migration = f"{event.app}.{event.name}"
        self._current, self._begun = event, time.monotonic()
        self._is_alone = not migration.atomic
        if migration.atomic:
            self._open_batch()
        else:
            self._close_batch()
            engine.drop_invalid_indexes(self._connection, migration)
        self._rewrites = Rewrites(self._connection, migration)

    def _succeed(self, migration: Migration, *, fake: bool) -> None:
        assert self._current is not None
        assert self._rewrites is not None
        event = self._current
        event.rows = self._rewrites.settle() or None
        if fake and event.action == "apply":
            event.action = "fake"
        if migration.app_label == MigrationEvent._meta.app_label:
            self._table_may_have_appeared()
        event.status = "ok"
        event.ms = round((time.monotonic() - self._begun) * 1000)
        self._history.update(event)
        self._current = self._rewrites = None
        self.progress.done += 1
        if self._is_alone or self._options.transactions == "each":
            self._close_batch()

    def _table_may_have_appeared(self) -> None:
        had = bool(self._history.columns)
        self._history.look_again()
        if not had:
            self._history.insert(self._buffered)

    def _watch(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        self.progress.statement, self.progress.since = sql, time.monotonic()
        if self._batch is None and self._is_alone and _is_record(sql):
            self._open_batch_for_record()
        rewrites = self._rewrites
        if rewrites is not None:
            rewrites.before(sql)
        try:
            result = execute(sql, params, many, context)
        except transaction.TransactionManagementError:
            raise
        except DatabaseError as exc:
            # Like the above it follows what has gone wrong: a full disk ends the transaction.
            if not sql.startswith("ROLLBACK"):
                self._refused_statement = (exc, sql)
            raise
        if rewrites is not None:
            rewrites.after(sql)
        return result

    # The transaction

    def _open_batch(self) -> None:
        if self._batch is not None or not self._connection.features.can_rollback_ddl:
            return
        self._batch = ExitStack()
        # Before BEGIN: inside a transaction SQLite ignores it.
        self._batch.enter_context(engine.foreign_keys_off(self._connection))
        self._batch.enter_context(transaction.atomic(self._connection.alias))

    def _open_batch_for_record(self) -> None:
        """Django's record of a migration without a transaction: the event is committed with it."""
        self._batch = ExitStack()
        # The schema editor does this inside the transaction, where SQLite ignores it.
        self._batch.callback(self._connection.enable_constraint_checking)
        self._batch.enter_context(transaction.atomic(self._connection.alias))

    def _close_batch(self) -> None:
        batch, self._batch = self._batch, None
        if batch is None:
            return
        with batch:
            pass
        committed = [event for event in self._uncommitted if event.status == "ok"]
        self._has_committed = self._has_committed or bool(committed)
        self._uncommitted = [event for event in self._uncommitted if event.status != "ok"]

    def _finish(self) -> None:
        if not self._has_begun:
            return
        if self._batch is not None:
            # What post_migrate wrote has not been looked at by the schema editor.
            self._connection.check_constraints()
        self._reconcile()
        self._close_batch()
        engine.shrink_wal(self._connection)

    def _roll_back(self, exc: BaseException) -> None:
        batch, self._batch = self._batch, None
        if batch is not None:
            # What ended the transaction already (a lost connection) has been told by `exc`.
            try:
                batch.__exit__(type(exc), exc, exc.__traceback__)
            except DatabaseError:
                self._connection.close()
        failed = [self._current] if self._current else self._uncommitted
        error = f"{type(exc).__name__}: {exc}"
        if self._refused_statement[0] is exc:
            error += f"\n{self._refused_statement[1]}"
        try:
            self._history.look_again()
            with transaction.atomic(self._connection.alias):
                for event in self._uncommitted:
                    is_cause = event in failed and isinstance(exc, Exception)
                    event.status = "failed" if is_cause else "interrupted"
                    event.error = error[:4000] if event in failed else "rolled back with the run"
                    event.ms = None
                    self._history.update(event)
        except DatabaseError:
            # The next run finds them started and settles them.
            return

    # The history

    def _mend_history(self) -> None:
        try:
            self._history.mend()
            self._reconcile()
        except DatabaseError as exc:
            # Nobody has to wait for it.
            self._write(f"The history of the schema could not be mended: {_first_line(exc)}.")

    def _reconcile(self) -> None:
        """Mend what was done to Django's record without us."""
        differing = self._history.disagreements()
        on_disk = files.loaded(self._connection) if differing else {}
        events = []
        for (app, name), action in differing:
            event = self._event(app=app, name=name, action=action, status="ok")
            if action == "adopt" and (app, name) in on_disk:
                event.checksum = files.checksum(on_disk[app, name])
            event.seq = self._next_seq()
            events.append(event)
        self._buffered += events
        self._history.insert(events)

    def _event_of(self, migration: Migration, backwards: bool) -> MigrationEvent:
        return self._event(
            app=migration.app_label,
            name=migration.name,
            action="unapply" if backwards else "apply",
            status="started",
            author=str(getattr(migration, "author", "")),
            checksum=files.checksum(migration),
            breaking=files.is_breaking(migration),
        )

    def _event(self, **values: Any) -> MigrationEvent:
        scratch = is_scratch(self._connection)
        return make_event(
            self._connection,
            run=self.id,
            source="test" if scratch else self._options.source,
            **values,
        )

    def _next_seq(self) -> int:
        self._seq += 1
        return self._seq

    def _check(self, plan: Plan, events: Sequence[MigrationEvent], apps: Apps) -> None:
        """Refuse what should not even begin; the last of it is that the backup fails."""
        preflight.refuse_foreign(self._connection)
        preflight.refuse_unwritable(self._connection)
        if self._options.source == "serve":
            preflight.refuse_failing_again(self._history, events)
            preflight.refuse_breaking(self._connection, events, self._write)
        if not self._options.allow_unsafe and not settings.DEBUG:
            preflight.refuse_data_loss(self._connection, plan, apps)
        wants_backup = self._wants_backup()
        backs_up = wants_backup and (
            self._connection.vendor == "sqlite" or self._options.backup == "always"
        )
        size = backup.size_bytes(self._connection) if backs_up else 0
        preflight.refuse_short_space(self._connection, plan, size)
        if backs_up:
            self._back_up(plan)
        elif wants_backup:
            self._write(
                "Not backed up; --backup always does it, or you with: "
                f"{dump.command_line(self._connection)}"
            )

    def _wants_backup(self) -> bool:
        """Nothing is backed up before a first run, nor again when a run is tried again."""
        if self._options.backup == "never" or self._has_tried:
            return False
        return bool(MigrationRecorder(self._connection).applied_migrations())

    def _back_up(self, plan: Plan) -> None:
        first = plan[0][0]
        path = backup.make(self._connection, f"{first.app_label}.{first.name[:4]}")
        self.backup_path = str(path)
        self._write(f"Backed up: {path}")
        backup.prune(self._connection)
        event = self._event(app="", name=path.name, action="backup", status="ok")
        event.backup, event.seq = self.backup_path, self._next_seq()
        self._buffered.append(event)
        self._history.insert([event])

    def _holder(self) -> str:
        running = History(self._connection).rows(status="started")
        if not running:
            return ""
        row = running[-1]
        return f"pid {row['pid']} on {row['host']}, since {row['at']:%H:%M:%S} UTC"


def make_event(connection: BaseDatabaseWrapper, **values: Any) -> MigrationEvent:
    """An event of this process, now."""
    version = connection.get_database_version()
    return MigrationEvent(
        at=timezone.now(),
        actor=actor(),
        host=socket.gethostname(),
        pid=os.getpid(),
        app_version=__version__,
        django_version=django.get_version(),
        db_version=".".join(map(str, version)),
        **values,
    )


def actor() -> str:
    """Who does this: what the history and a written migration name."""
    if settings.ACTOR:
        return str(settings.ACTOR)
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a number without a name.
        return f"uid {os.getuid()}"


def _is_record(sql: str) -> bool:
    return sql.startswith(("INSERT INTO", "DELETE FROM")) and "django_migrations" in sql[:60]


def _cause(exc: BaseException) -> BaseException:
    # SQLite's schema editor checks constraints even when an error leaves it. Where the engine has
    # rolled back by itself (a full disk, an interruption), that fails, and hides what happened.
    while isinstance(exc, transaction.TransactionManagementError) and exc.__context__ is not None:
        exc = exc.__context__
    return exc


def _first_line(exc: BaseException) -> str:
    return str(exc).strip().split("\n", 1)[0].rstrip(".")

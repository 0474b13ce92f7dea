"""`manage.py copydatabase`: from one SQLite file to PostgreSQL, resumable and verified."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
from django.conf import settings
from django.core.management.base import CommandParser
from django.db import DatabaseError, connection

from qwenproxy.access import encryption
from qwenproxy.schema import engine
from qwenproxy.schema.commands import SchemaCommand
from qwenproxy.schema.copying import Copy, open_source, refuse_source
from qwenproxy.schema.locking import migration_lock
from qwenproxy.schema.refusals import MigrationFailedPartWay, Refused, WrongUsage
from requests_app.liveness import is_file_lock_free


class Command(SchemaCommand):
    help = (
        "Copy a SQLite database into the empty PostgreSQL that DATABASE_URL names, and verify it. "
        "Killed, the same call goes on where it was."
    )
    requires_migrations_checks = False

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "source", type=Path, help="the SQLite file, such as data/qwenproxy.sqlite3"
        )

    def handle(self, *args: Any, source: Path, **options: Any) -> None:
        if connection.vendor != "postgresql":
            raise WrongUsage(
                "DATABASE_URL must name the PostgreSQL to copy into. Nothing was changed."
            )
        if not source.is_file():
            raise WrongUsage(f"There is no file {source}. Nothing was changed.")
        begun = time.monotonic()
        try:
            with closing(open_source(f"{source.absolute().as_uri()}?mode=rw")) as file:
                copied = self._copy(file, source)
        except (sqlite3.Error, psycopg.Error, DatabaseError) as exc:
            raise MigrationFailedPartWay(
                f"The copy has stopped: {_reason(exc)}. The source is as it was. Mend the cause, then call "
                "the same again: it goes on where it was."
            ) from exc
        rows, took_s = sum(number for _, number in copied), time.monotonic() - begun
        self._say(
            f"Copied and verified {rows:,} rows of {len(copied)} tables in {took_s:.1f} s. Start the gateway "
            f"with this environment; {source} is as it was: keep it until you trust the copy."
        )

    def _copy(self, file: sqlite3.Connection, path: Path) -> list[tuple[str, int]]:
        refuse_source(file)
        _refuse_served(file, path)
        identity = _identity(file)
        engine.ensure_open(connection)
        copy = Copy(file, connection, identity=identity, write=self._say)
        copy.prepare()
        with migration_lock(connection, settings.MIGRATE_LOCK_WAIT_S, self.stderr.write):
            return copy.run()

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()


def _refuse_served(file: sqlite3.Connection, path: Path) -> None:
    for (worker,) in file.execute("SELECT id FROM requests_app_worker"):
        for directory in (path.absolute().parent, settings.DATA_DIR):
            if not is_file_lock_free(directory / "workers", worker):
                raise Refused(
                    "A gateway is serving from the source. Nothing was changed. Stop it, then call this "
                    "again: what it recorded meanwhile would not be in the copy."
                )


def _identity(file: sqlite3.Connection) -> str:
    """Of the installation; see that its secrets will be readable.

    Raises:
        Refused: they need other encryption keys.
    """
    canary = file.execute("SELECT ciphertext FROM access_encryptioncanary").fetchone()
    if canary is None:
        raise Refused(
            "No gateway was ever started on the source: there is nothing to copy. Start one on the target."
        )
    try:
        encryption.decrypt(canary[0])
    except encryption.EncryptionError as exc:
        raise Refused(
            f"{exc} Nothing was changed. The keys of SQLite are in the file encryption_keys beside it: "
            "QWENPROXY_ENCRYPTION_KEYS_FILE names it."
        ) from exc
    return hashlib.sha256(canary[0].encode()).hexdigest()[:32]


def _reason(error: Exception) -> str:
    """Without the row that it came with: that is content."""
    cause = error.__cause__ if isinstance(error, DatabaseError) and error.__cause__ else error
    if isinstance(cause, psycopg.Error) and cause.diag.message_primary:
        where = f" (in {cause.diag.table_name})" if cause.diag.table_name else ""
        return f"{cause.diag.message_primary}{where}"
    return str(cause).strip().partition("\n")[0].rstrip(".")

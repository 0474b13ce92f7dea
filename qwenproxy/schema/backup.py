"""Backups of a database, made while it is in use and verified; and putting one of SQLite back.

A backup exists under its name only when it is whole: it is written beside, checked, synced, renamed.
Restoring writes into the live file in one transaction of SQLite's: a process that dies leaves the old
data, open connections stay valid. Files of the database are never copied: half of it is in the WAL.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper

from qwenproxy.schema import dump, engine, files
from qwenproxy.schema.refusals import Refused, WrongUsage
from qwenproxy.wire import json

_PREFIX, _TEMPORARY = "qwen-", ".tmp-"
_SUFFIXES = {"sqlite": ".sqlite3", "postgresql": ".dump"}


@dataclass(frozen=True, slots=True)
class Backup:
    path: Path
    size_bytes: int
    at: datetime


def directory(connection: BaseDatabaseWrapper) -> Path:
    if settings.MIGRATE_BACKUP_DIR is not None:
        return Path(settings.MIGRATE_BACKUP_DIR)
    if connection.vendor != "sqlite":
        return Path(settings.DATA_DIR) / "backups"
    name = str(connection.settings_dict["NAME"])
    # A connection that only reads names the file by a URI.
    return Path(name.removeprefix("file://").partition("?")[0]).parent / "backups"


def existing(connection: BaseDatabaseWrapper) -> list[Backup]:
    """All backups, newest first."""
    backups = []
    for path in directory(connection).glob(f"{_PREFIX}*{_SUFFIXES[connection.vendor]}"):
        facts = path.stat()
        at = datetime.fromtimestamp(facts.st_mtime, UTC)
        backups.append(Backup(path, facts.st_size, at))
    return sorted(backups, key=lambda backup: backup.path.name, reverse=True)


def size_bytes(connection: BaseDatabaseWrapper) -> int:
    """Of SQLite's data file and its WAL; 0 where there is no file yet."""
    total = 0
    if connection.vendor != "sqlite":
        return total
    for suffix in ("", "-wal"):
        try:
            total += os.stat(f"{connection.settings_dict['NAME']}{suffix}").st_size
        except FileNotFoundError:
            continue
    return total


def is_beside(connection: BaseDatabaseWrapper) -> bool:
    """Whether backups go to the disk that the database is on."""
    folder = directory(connection).absolute()
    while not folder.exists():
        folder = folder.parent
    data = Path(str(connection.settings_dict["NAME"])).absolute().parent
    return folder.stat().st_dev == data.stat().st_dev


def make(connection: BaseDatabaseWrapper, label: str, *, to: Path | None = None) -> Path:
    """Back the database up and return the file; call with the migration lock held.

    Raises:
        Refused: it could not be made; nothing is left of it.
    """
    folder = directory(connection) if to is None else to.parent
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    target = to or folder / f"{_PREFIX}{stamp}-{label}{_SUFFIXES[connection.vendor]}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(folder)
        if target.exists():
            raise WrongUsage(f"{target} exists already; nothing was written.")
        _require_space(folder, size_bytes(connection))
        with _temporary(folder) as temporary:
            if connection.vendor == "sqlite":
                _copy(str(connection.settings_dict["NAME"]), temporary)
                _verify(temporary)
            else:
                dump.make(connection, temporary)
            _sync(temporary)
            temporary.rename(target)
        _sync(folder)
    except (OSError, sqlite3.Error) as exc:
        raise Refused(f"The backup could not be made: {exc}. The database is unchanged.") from exc
    return target


def sweep(folder: Path) -> None:
    """Remove what backups that were killed have left; call with the migration lock held."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        path.unlink(missing_ok=True)


def prune(connection: BaseDatabaseWrapper) -> list[Path]:
    """Remove backups beyond the number and the bytes to keep; the newest always stays."""
    removed, total = [], 0
    for index, backup in enumerate(existing(connection)):
        total += backup.size_bytes
        is_beyond = index >= settings.MIGRATE_BACKUP_KEEP or total > settings.MIGRATE_BACKUP_BYTES
        if index and is_beyond:
            backup.path.unlink(missing_ok=True)
            removed.append(backup.path)
    return removed


def check(path: Path) -> None:
    """
    Raises:
        WrongUsage: the file is no whole backup of this gateway.
    """
    if not path.is_file():
        raise WrongUsage(f"There is no file {path}; nothing was changed.")
    try:
        _verify(path)
        with closing(_open(path)) as file:
            labels = engine.recorded_labels(file)
    except sqlite3.Error as exc:
        raise WrongUsage(f"{path} is no backup of a gateway: {exc}. Nothing was changed.") from exc
    if not labels & files.OUR_LABELS:
        raise WrongUsage(
            f"{path} is no backup of a gateway, but of something else. Nothing was changed."
        )


def put_back(connection: BaseDatabaseWrapper, path: Path) -> None:
    """Write a checked backup into the live database, as one step. Blocks while others write.

    Raises:
        sqlite3.Error: the old data stands.
    """
    connection.ensure_connection()
    with closing(_open(path)) as source:
        # One step: between steps a writer would start it over.
        source.backup(connection.connection, pages=-1)


def log(connection: BaseDatabaseWrapper, event: dict[str, json.JSONValue]) -> None:
    """Append to the log beside the backups: the history in the database is lost with a restore."""
    folder = directory(connection)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    line = {"at": datetime.now(UTC).isoformat(timespec="seconds"), **event}
    descriptor = os.open(folder / "log.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "ab") as file:
        file.write(json.dumps(line) + b"\n")


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    path = folder / f"{_TEMPORARY}{os.getpid()}"
    # Tokens and prompts are in it: it is nobody else's to read from the first byte on.
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        yield path
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Refused(
            f"The backup needs {needed / 2**20:.0f} MB in {folder}, and {free / 2**20:.0f} MB are "
            "free. The database is unchanged. Make room, or name another place: "
            "QWENPROXY_MIGRATE_BACKUP_DIR."
        )


def _open(path: Path | str) -> sqlite3.Connection:
    return sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, timeout=20)


def _copy(source: str, target: Path) -> None:
    with closing(_open(source)) as live, closing(sqlite3.connect(target)) as copy:
        live.backup(copy, pages=-1)
        # One file that is whole by itself; restoring keeps the live database's own mode.
        copy.execute("PRAGMA journal_mode = DELETE")


def _verify(path: Path) -> None:
    with closing(_open(path)) as copy:
        (answer,) = copy.execute("PRAGMA quick_check(1)").fetchone()
        if answer != "ok":
            raise sqlite3.DatabaseError(f"it is damaged: {answer}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

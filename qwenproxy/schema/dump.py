"""Backups of PostgreSQL by its own tools: `pg_dump` where it is new enough; restoring is told, never done.

No password is on a command line or in the environment: libpq reads it from a file that is removed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.conninfo import make_conninfo

from qwenproxy.schema.refusals import Refused

_KEPT = ("channel_binding", "gssencmode", "krbsrvname", "passfile", "requirepeer")


def make(connection: BaseDatabaseWrapper, target: Path) -> None:
    """Dump the database into a file that only its owner can read, and see that it can be read back.

    Raises:
        Refused: there is no tool for it, or it failed.
    """
    _require_version(connection)
    with _conninfo(connection, target) as conninfo:
        _run("pg_dump", "-Fc", "--no-password", f"--dbname={conninfo}", f"--file={target}")
    _run("pg_restore", "--list", str(target))


def command_line(connection: BaseDatabaseWrapper) -> str:
    """What an operator types to make one."""
    name = connection.settings_dict["NAME"]
    return f"pg_dump -Fc --dbname={_address(connection)} --file={shlex.quote(f'{name}.dump')}"


def restore_line(connection: BaseDatabaseWrapper, path: Path) -> str:
    """What an operator types to put one back."""
    file = shlex.quote(str(path))
    return (
        "pg_restore --clean --if-exists --single-transaction "
        f"--dbname={_address(connection)} {file}"
    )


def _address(connection: BaseDatabaseWrapper) -> str:
    return shlex.quote(make_conninfo(**_parameters(connection)))


def _parameters(connection: BaseDatabaseWrapper) -> dict[str, Any]:
    """How to reach the database, without the password.

    Not the driver's own list: it may be newer than the tool, which refuses what it does not know.
    """
    connection.ensure_connection()
    info = connection.connection.info
    kept = {
        name: value
        for name, value in connection.settings_dict["OPTIONS"].items()
        if name.startswith("ssl") or name in _KEPT
    }
    return {"host": info.host, "port": info.port, "user": info.user, "dbname": info.dbname} | kept


def _require_version(connection: BaseDatabaseWrapper) -> None:
    found = re.search(r"\) (\d+)", _run("pg_dump", "--version"))
    client = int(found[1]) if found else 0
    server = connection.pg_version // 10000  # type: ignore[attr-defined]  # PostgreSQL has it
    if client < server:
        raise Refused(
            f"pg_dump is of version {client} and the server of version {server}, which it cannot "
            f"back up. Nothing was changed. {_way_out(server)}"
        )


def _way_out(version: int | str) -> str:
    return (
        f"Install PostgreSQL's client tools, version {version} or newer, or back up in another way "
        "and go on with --backup never."
    )


@contextmanager
def _conninfo(connection: BaseDatabaseWrapper, target: Path) -> Iterator[str]:
    parameters = _parameters(connection)
    password = re.sub(r"([\\:])", r"\\\1", connection.connection.info.password)
    if not password:
        yield make_conninfo(**parameters)
        return
    path = Path(f"{target}.pass")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"*:*:*:*:{password}\n")
        yield make_conninfo(**parameters | {"passfile": str(path)})
    finally:
        path.unlink()


def _run(tool: str, *arguments: str) -> str:
    path = shutil.which(tool)
    if path is None:
        raise Refused(f"There is no {tool}. Nothing was changed. {_way_out('of the server')}")
    # The tool is PostgreSQL's, the arguments are ours.
    ended = subprocess.run(  # noqa: S603
        [path, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if ended.returncode:
        reason = " ".join(ended.stderr.split())[:500]
        raise Refused(f"The backup could not be made: {reason}. Nothing was changed.")
    return ended.stdout

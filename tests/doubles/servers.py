"""Real servers between client, gateway and database, where they are installed: PgBouncer and nginx.

Each runs with a directory of its own, on free loopback ports, as nobody where root calls, and ends with
its block. Where one is missing the test is skipped, and the end of the run says so loudly.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.doubles.server import unused_port

# The summary of a run looks for it.
_MISSED = "IS NOT INSTALLED"
_START_S = 20.0
_PGBOUNCER = """\
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
logfile = {directory}/pgbouncer.log
{lines}
"""


def documented(language: str) -> str:
    """The one block of docs/scaling.md in a language: `nginx` or `ini`, PgBouncer's."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "scaling.md").read_text("utf-8")
    (block,) = re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)
    return str(block)


def put(text: str, old: str, new: str) -> str:
    """Replace what stands in a text once."""
    assert text.count(old) == 1, old
    return text.replace(old, new)


def _binary(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        pytest.skip(f"{name.upper()} {_MISSED}: what is behind a real one is not tested")
    return found


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    # Not pytest's: root's directories are nobody else's.
    directory = Path(tempfile.mkdtemp(prefix="qwenproxy-server-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


@contextlib.contextmanager
def _running(command: list[str], directory: Path, port: int, log: Path) -> Iterator[None]:
    user: dict[str, Any] = {}
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        for path in (directory, *directory.iterdir()):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    process = subprocess.Popen(command, cwd=directory, stderr=subprocess.DEVNULL, **user)
    try:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                told = log.read_text("utf-8", "replace") if log.exists() else "it said nothing"
                assert process.poll() is None, told
                assert time.monotonic() < deadline, told
                time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(_START_S)


@contextlib.contextmanager
def pgbouncer(database_url: str, mode: str, *lines: str) -> Iterator[str]:
    """Put one before PostgreSQL; yields the database's URL through it. `lines` add to its configuration."""
    binary, direct, port = _binary("pgbouncer"), urlsplit(database_url), unused_port()
    with _directory() as directory:
        file = directory / "pgbouncer.ini"
        file.write_text(
            _PGBOUNCER.format(
                host=direct.hostname,
                port=direct.port,
                user=direct.username,
                listen_port=port,
                directory=directory,
                lines="\n".join([f"pool_mode = {mode}", *lines]),
            )
        )
        command = [binary, "-q", str(file)]
        with _running(command, directory, port, directory / "pgbouncer.log"):
            yield direct._replace(netloc=f"{direct.username}@127.0.0.1:{port}").geturl()


@contextlib.contextmanager
def nginx(configuration: str, port: int, **files: str) -> Iterator[Path]:
    """Serve what stands in `http { }`, which listens on `port`; yields the directory of its logs.

    `files` are put there first; `{directory}` in the configuration stands for it.
    """
    binary = _binary("nginx")
    with _directory() as directory:
        for name, content in files.items():
            (directory / name).write_text(content)
        temporary = "\n".join(
            f"{name}_temp_path {directory}/{name};"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        file = directory / "nginx.conf"
        file.write_text(
            f"daemon off; worker_processes 1; pid {directory}/nginx.pid;\n"
            f"error_log {directory}/error.log;\nevents {{ worker_connections 4096; }}\n"
            f"http {{\naccess_log {directory}/access.log;\n{temporary}\n"
            f"{configuration.replace('{directory}', str(directory))}\n}}\n"
        )
        command = [binary, "-p", str(directory), "-e", f"{directory}/error.log", "-c", str(file)]
        with _running(command, directory, port, directory / "error.log"):
            yield directory

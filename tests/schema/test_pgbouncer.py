"""Behind a real PgBouncer that changes servers between transactions nothing migrates; past it all does."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.schema.conftest import CREATE, Project

CONFIGURATION = """\
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = 5
ignore_startup_parameters = extra_float_digits,options
logfile = {directory}/pgbouncer.log
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def pgbouncer(postgresql_project) -> Iterator:
    """Starts one for the project's database; returns its URL."""
    binary = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if binary is None:
        pytest.skip("PGBOUNCER IS NOT INSTALLED: the refusal behind a real one is not tested")
    started: list[subprocess.Popen] = []
    directories: list[Path] = []
    direct = urlsplit(postgresql_project.environ["DATABASE_URL"])

    def start(mode: str) -> str:
        # It does not run as root, whose directories are nobody else's.
        directory = Path(tempfile.mkdtemp(prefix="qwenproxy-pgbouncer-"))
        directories.append(directory)
        port = free_port()
        file = directory / "pgbouncer.ini"
        file.write_text(
            CONFIGURATION.format(
                host=direct.hostname,
                port=direct.port,
                user=direct.username,
                listen_port=port,
                mode=mode,
                directory=directory,
            )
        )
        user = {}
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(directory, nobody.pw_uid, nobody.pw_gid)
            user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        started.append(subprocess.Popen([binary, "-q", str(file)], cwd=directory, **user))
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, (directory / "pgbouncer.log").read_text()
                time.sleep(0.02)
        return direct._replace(netloc=f"{direct.username}@127.0.0.1:{port}").geturl()

    yield start
    for process in started:
        process.terminate()
        process.wait(20)
    for directory in directories:
        shutil.rmtree(directory)


def recorded(project: Project) -> list[tuple]:
    return project.query("SELECT name FROM django_migrations WHERE app = 'shop'")


def test_it_is_refused_whether_the_pool_is_busy_or_not(postgresql_project, pgbouncer):
    project = postgresql_project
    assert project.run("migrate", "-v0").returncode == 0
    project.add_migration("0001_step", CREATE.format(number=1))
    pooled = pgbouncer("transaction")
    ended = project.run("migrate", DATABASE_URL=pooled)
    assert ended.returncode == 9, ended.stderr
    assert "QWENPROXY_MIGRATE_DATABASE_URL" in ended.stderr
    assert recorded(project) == []
    direct = project.environ["DATABASE_URL"]
    ended = project.run("migrate", DATABASE_URL=pooled, QWENPROXY_MIGRATE_DATABASE_URL=direct)
    assert ended.returncode == 0, ended.stderr
    assert recorded(project) == [("0001_step",)]


def test_a_pool_that_keeps_a_session_whole_is_none(postgresql_project, pgbouncer):
    project = postgresql_project
    project.add_migration("0001_step", CREATE.format(number=1))
    ended = project.run("migrate", "-v0", DATABASE_URL=pgbouncer("session"))
    assert ended.returncode == 0, ended.stderr
    assert recorded(project) == [("0001_step",)]

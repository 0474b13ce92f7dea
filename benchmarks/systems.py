"""What is measured: the gateway, the gateway without its recorder, controls R and F, nginx, the double."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import native
from benchmarks.processes import LOAD_CORE, SYSTEM_CORE, Process, running
from benchmarks.profiled import FOLDER as PROFILE_FOLDER

_PYTHON = sys.executable
_LISTENING = "Serving on http://127.0.0.1:"
KEY = "qp-" + secrets.token_urlsafe(24)


@dataclass
class System:
    """A running system; `port` is where it listens."""

    name: str
    process: Process
    port: int
    # Of the gateway: its SQLite file.
    database: Path | None = None
    answered: int = field(default=0)

    def check_rows(self) -> None:
        """Compare the record with what clients were answered.

        Raises:
            RuntimeError: an answer is not on record, or is not on record as completed.
        """
        if self.database is None:
            return
        with contextlib.closing(sqlite3.connect(self.database)) as connection:
            counts = connection.execute(
                "SELECT (SELECT COUNT(*) FROM requests_app_request),"
                " (SELECT COUNT(*) FROM requests_app_response WHERE status = 'completed'),"
                " (SELECT COUNT(*) FROM requests_app_response WHERE reply_id IS NOT NULL)"
            ).fetchone()
        if set(counts) != {self.answered}:
            raise RuntimeError(
                f"{self.name}: {self.answered} calls were answered, but the record has "
                f"{counts[0]} requests, {counts[1]} completed responses, {counts[2]} replies"
            )


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory on the disk of the checkout: a memory file system would make fsync free."""
    native.BUILD.mkdir(exist_ok=True)
    path = Path(tempfile.mkdtemp(prefix="run-", dir=native.BUILD))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def double(directory: Path, models: Sequence[str]) -> Iterator[System]:
    command = [str(native.build("double")), *models]
    with running(Process(command, core=LOAD_CORE, log=directory / "double.log")) as process:
        yield System("double", process, int(process.wait_for("")))


def environment(data: Path) -> dict[str, str]:
    """The gateway's environment: its defaults, a directory of its own, a key that we know."""
    own = ("QWEN", "DASHSCOPE_", "OPENAI_", "DATABASE_URL", "DJANGO_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return env | {
        "QWENPROXY_DATA_DIR": str(data),
        "QWENPROXY_API_KEY": KEY,
        "QWENPROXY_DISCOVER": "false",
        # A benchmark fails on a failure.
        "QWENPROXY_UPSTREAM_RETRIES": "0",
    }


def _port(process: Process) -> int:
    return int(process.wait_for(_LISTENING).partition(_LISTENING)[2].split()[0])


@contextlib.contextmanager
def gateway(
    directory: Path,
    upstream: System,
    *,
    launcher: Sequence[str] = ("manage.py", "serve"),
    filled: Path | None = None,
) -> Iterator[System]:
    """`filled` is a data directory that an earlier one left, with rows that are nobody's answers."""
    name = "gateway" if "manage.py" in launcher else launcher[1].rpartition(".")[2]
    profile = directory / "profile"
    profile.mkdir(exist_ok=True)
    data = filled or directory / name
    if filled is None:
        shutil.rmtree(data, ignore_errors=True)
    env = environment(data) | {
        "OPENAI_COMPATIBLE_BASE_URL": f"http://127.0.0.1:{upstream.port}/v1",
        PROFILE_FOLDER: str(profile),
    }
    command = [_PYTHON, *launcher, "--port", "0"]
    log = directory / f"{name}.log"
    with running(Process(command, core=SYSTEM_CORE, log=log, env=env)) as process:
        port = _port(process)
        recorded = name != "unrecorded" and filled is None
        yield System(name, process, port, data / "qwenproxy.sqlite3" if recorded else None)


def unrecorded(directory: Path, upstream: System) -> contextlib.AbstractContextManager[System]:
    return gateway(directory, upstream, launcher=("-m", "benchmarks.unrecorded"))


@contextlib.contextmanager
def constant(directory: Path, *, chunks: int = 0, pace_ms: float = 0) -> Iterator[System]:
    """Control R."""
    schedule = ["--chunks", str(chunks), "--pace-ms", str(pace_ms)]
    command = [_PYTHON, "-m", "benchmarks.controls", "constant", *schedule]
    with running(Process(command, core=SYSTEM_CORE, log=directory / "R.log")) as process:
        yield System("R", process, _port(process))


@contextlib.contextmanager
def relay(directory: Path, upstream: System) -> Iterator[System]:
    """Control F."""
    to = f"http://127.0.0.1:{upstream.port}/v1"
    command = [_PYTHON, "-m", "benchmarks.controls", "relay", "--upstream", to]
    with running(Process(command, core=SYSTEM_CORE, log=directory / "F.log")) as process:
        yield System("F", process, _port(process))


_NGINX = """
daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log stderr;
events {{ worker_connections 20000; }}
http {{
  access_log off; client_body_temp_path {directory}; proxy_temp_path {directory};
  fastcgi_temp_path {directory}; uwsgi_temp_path {directory}; scgi_temp_path {directory};
  upstream double {{ server 127.0.0.1:{upstream}; keepalive 4096; }}
  server {{
    listen 127.0.0.1:{port}; keepalive_requests 1000000;
    location / {{
      proxy_pass http://double; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


def nginx_program() -> str | None:
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextlib.contextmanager
def nginx(directory: Path, upstream: System) -> Iterator[System]:
    program = nginx_program()
    assert program is not None
    # nginx cannot tell which free port it took.
    port = _free_port()
    config = directory / "nginx.conf"
    config.write_text(_NGINX.format(directory=directory, upstream=upstream.port, port=port))
    # It opens the compiled-in log before it reads its configuration.
    command = [program, "-e", "stderr", "-p", str(directory), "-c", str(config)]
    with running(Process(command, core=SYSTEM_CORE, log=directory / "nginx.log")) as process:
        _wait_for_port(port, process)
        yield System("nginx", process, port)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_for_port(port: int, process: Process) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        if not process.is_running:
            break
        time.sleep(0.02)
    raise RuntimeError(f"nginx did not start:\n{process.log.read_text()}")

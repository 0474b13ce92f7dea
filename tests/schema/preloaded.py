"""Commands in processes of their own that do not import the packages again: half of a command's time.

A process that has imported them (and nothing of ours, no settings) forks once for each command. The
child gets the command's environment, directory and pipes, and runs `python -m django` to its end.
What an interpreter reads from its environment at its start does not reach it: see `STARTUP`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

# Read at an interpreter's start; what `_become` sets afterwards is not among them.
STARTUP = ("PYTHONUNBUFFERED", "PYTHONUTF8", "PYTHONCOERCECLOCALE", "LC_ALL", "LANG")
_LARGEST = 128 * 1024
_PACKAGES = (
    "cryptography.fernet",
    "django.contrib.admin",
    "django.contrib.auth.hashers",
    "django.core.management",
    "django.db.backends.postgresql.base",
    "django.db.backends.sqlite3.base",
    "django.db.migrations.executor",
    "django.forms",
    "django.http",
    "django.template",
    "django.urls",
    "django.utils.translation.trans_real",
    "django.views.generic",
    "httpx_aiohttp",
    "orjson",
    "prometheus_client",
    "psycopg",
    "pydantic.types",
    "servestatic",
    "uvicorn",
)


class Command:
    """A running command; what tests use of `subprocess.Popen`, with the same meaning."""

    def __init__(self, args: tuple[str, ...], talk: socket.socket, out: int, err: int) -> None:
        self.args = args
        self.returncode: int | None = None
        self.stdout: IO[str] = os.fdopen(out, encoding="utf-8")
        self.stderr: IO[str] = os.fdopen(err, encoding="utf-8")
        self._talk = talk
        self._read: dict[int, bytes] = {out: b"", err: b""}
        self.pid = int(talk.recv(64))

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._talk.settimeout(timeout)
            try:
                status = self._talk.recv(64)
            except (TimeoutError, BlockingIOError) as exc:
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from exc
            self._talk.close()
            self.returncode = os.waitstatus_to_exitcode(int(status))
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it wrote, after what was read from `stdout` already."""
        ends_at = None if timeout is None else time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            for stream in (self.stdout, self.stderr):
                if not stream.closed:
                    selector.register(stream, selectors.EVENT_READ)
            while selector.get_map():
                left = None if ends_at is None else ends_at - time.monotonic()
                if left is not None and left <= 0:
                    raise subprocess.TimeoutExpired(self.args, timeout or 0)
                for key, _ in selector.select(left):
                    data = os.read(key.fd, 65536)
                    self._read[key.fd] += data
                    if not data:
                        selector.unregister(key.fileobj)
                        key.fileobj.close()  # type: ignore[union-attr]
        self.wait(None if ends_at is None else max(0.0, ends_at - time.monotonic()))
        out, err = (data.decode("utf-8") for data in self._read.values())
        return out, err

    def send_signal(self, number: int) -> None:
        # Its parent waits for it until we know its end: the id is still its own.
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Preloaded:
    """The process that has the packages; ends with the one that made it."""

    def __init__(self) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )

    def start(self, command: tuple[str, ...], cwd: Path, environ: Mapping[str, str]) -> Command:
        talk, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        (out, out_theirs), (err, err_theirs) = os.pipe(), os.pipe()
        task = json.dumps([command, str(cwd), dict(environ)]).encode()
        fds = [theirs.fileno(), out_theirs, err_theirs]
        socket.send_fds(self._ours, [task], fds)
        theirs.close()
        os.close(out_theirs)
        os.close(err_theirs)
        return Command(command, talk, out, err)

    def end(self) -> None:
        self._ours.close()
        self._process.wait(10)


def _serve(control: socket.socket) -> tuple[list[str], str, dict[str, str]]:
    """Fork a child for each task; return in the children alone, with their task."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Keepers are not waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        data, fds, _, _ = socket.recv_fds(control, _LARGEST, 3)
        if not data:
            os._exit(0)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            talk, out, err = fds
            child = os.fork()
            if child:
                _keep(child, socket.socket(fileno=talk), [out, err])
            os.close(talk)
            os.dup2(out, 1)
            os.dup2(err, 2)
            os.closerange(3, max(fds) + 1)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            return json.loads(data)
        for fd in fds:
            os.close(fd)


def _keep(child: int, talk: socket.socket, fds: list[int]) -> None:
    """Be the child's parent: tell its id, wait for its end, tell that."""
    for fd in (*fds, 1, 2):
        os.close(fd)
    # Whoever waits may be gone.
    with contextlib.suppress(OSError):
        talk.send(str(child).encode())
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        talk.send(str(status).encode())
    os._exit(0)


def _become(command: list[str], cwd: str, environ: dict[str, str]) -> None:
    """Be `python -m django <command>`, from here to the end of the process."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    own = str(Path(__file__).parent)
    paths = environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [cwd, *filter(None, paths), *(path for path in sys.path if path != own)]
    sys.dont_write_bytecode = bool(environ.get("PYTHONDONTWRITEBYTECODE"))
    # Those of the start were made for what stood at 1 and 2 then.
    encoding = environ.get("PYTHONIOENCODING", "utf-8")
    sys.stdout = os.fdopen(1, "w", encoding=encoding, closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, encoding=encoding, errors="backslashreplace", closefd=False)
    sys.argv = ["-m", *command]
    runpy.run_module("django", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    for package in _PACKAGES:
        importlib.import_module(package)
    # What is loaded stays: no child looks at it again, or copies it by that.
    gc.freeze()
    _become(*_serve(socket.socket(fileno=int(sys.argv[1]))))

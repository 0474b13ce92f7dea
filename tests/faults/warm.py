"""`manage.py serve` by a fork of a process that has loaded everything: a start without the imports.

Most of a start is Python reading modules, before a single file or row of ours is touched. `Warm` keeps
one process with the gateway's code and settings loaded and without threads or connections; each start
is a fork of it that runs the same command, in a process of its own with a log of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_POLL_S = 0.01


class Warm:
    """The loaded process; made by `Gateway`, ended by `close` together with all that it started."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.warm"],
            cwd=ROOT,
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C is for who runs the load.
            start_new_session=True,
        )

    def launch(self, port: int, log: Path) -> Forked:
        return Forked(self, int(self.ask(f"launch {port} {log}")))

    def ask(self, line: str) -> str:
        """Have it do one thing; return its answer.

        Raises:
            AssertionError: it is gone.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline().strip()
        assert answer, "the loaded process is gone"
        return answer

    def close(self) -> None:
        self._process.communicate()


class Forked:
    """One serving process, with what `subprocess.Popen` offers of it."""

    def __init__(self, warm: Warm, pid: int) -> None:
        self.pid = pid
        self._warm = warm
        self._status: int | None = None

    def poll(self) -> int | None:
        if self._status is None and (answer := self._warm.ask(f"poll {self.pid}")) != "running":
            self._status = int(answer)
        return self._status

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("serve", timeout)
            time.sleep(_POLL_S)
        return status

    def send_signal(self, number: int) -> None:
        # Until it is asked for its status it stays a zombie: the number is nobody else's.
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _serve(port: str, log: str) -> int:
    """In the fork: what `python manage.py serve` does from here on; its exit status."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((nothing, 0), (written, 1), (written, 2)):
        os.dup2(source, target)
    sys.argv = ["manage.py", "serve", "--port", port]
    try:
        importlib.import_module("manage").main()
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  # the process's edge: as the interpreter would
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    """Answer `launch PORT LOG` with a process id and `poll PID` with `running` or its exit status."""
    for name in ("qwenproxy.asgi", "qwenproxy.management.commands.serve"):
        importlib.import_module(name)
    ours = set[int]()
    while line := sys.stdin.readline():
        verb, *given = line.split(maxsplit=2)
        if verb == "launch":
            pid = os.fork()
            if not pid:
                status = _serve(given[0], given[1].rstrip("\n"))
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
            ours.add(pid)
            answer = str(pid)
        else:
            pid, status = os.waitpid(int(given[0]), os.WNOHANG)
            ours.discard(pid)
            answer = str(os.waitstatus_to_exitcode(status)) if pid else "running"
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()
    for pid in ours:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()

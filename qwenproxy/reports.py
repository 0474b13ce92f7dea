"""Long statistics, in a process of their own: `report`.

Most of what they take is Python's own work (30 days by the quarter of an hour: a second and 4 MB of JSON), and
in a thread of the server each chat would wait for it again and again, since one thread of a process runs at a
time. The process is started by the first of them, works on one at a time, below the server's priority where
the system has one, and ends by itself: when nothing was asked of it for a while, or when the server is gone,
whose end of its input then closes. It changes nothing, so that a call whose process died is made once more.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any, ParamSpec, TypeVar, cast

import django
from django.conf import settings
from django.db import Error, OperationalError

from qwenproxy.database import call_with_limits, wait_beside
from qwenproxy.errors import GatewayError

P = ParamSpec("P")
R = TypeVar("R")

# It holds about 90 MB, and takes some seconds to start.
IDLE_S = 600
_NICENESS = 10
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from qwenproxy import reports; reports.answer()"
)


async def report(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function that only reads in the process for reports, after those that were asked for before.

    Function, arguments and result travel between processes: a function of a module, and plain values.

    Raises:
        OperationalError: the process died twice, or cannot be started.
    """
    return cast("R", await wait_beside(_process.ask, (function, args, kwargs)))


def close_reports() -> None:
    """End the process; the next report starts another. Blocks for as long as a report runs."""
    _process.close()


class _Process:
    def __init__(self) -> None:
        self._popen: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, call: object) -> object:
        with self._lock:
            try:
                is_done, result = self._try(call)
            except (OSError, EOFError, pickle.UnpicklingError):
                # It had nothing to do for long, or was ended from outside.
                self._end()
                try:
                    is_done, result = self._try(call)
                except (OSError, EOFError, pickle.UnpicklingError) as exc:
                    self._end()
                    raise OperationalError("the process for reports ended") from exc
        if not is_done:
            raise result
        return result

    def _try(self, call: object) -> tuple[bool, Any]:
        if self._popen is None:
            self._popen = subprocess.Popen(  # noqa: S603  # this Python, our own code
                [sys.executable, "-P", "-c", _START, str(settings.BASE_DIR)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        pickle.dump(call, self._popen.stdin)
        self._popen.stdin.flush()
        return cast("tuple[bool, Any]", pickle.load(self._popen.stdout))  # noqa: S301  # our own process

    def close(self) -> None:
        with self._lock:
            self._end()

    def _end(self) -> None:
        popen, self._popen = self._popen, None
        if popen is None:
            return
        for pipe in (popen.stdin, popen.stdout):
            # What could not be flushed goes with it.
            with contextlib.suppress(OSError):
                cast("IO[bytes]", pipe).close()
        popen.terminate()
        popen.wait()


_process = _Process()


def answer() -> None:
    """What the process does: answer calls from its input, until that ends or nothing comes for long."""
    # Whatever else would write there must not come between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # Ctrl-C is for the server, which ends this with itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    django.setup()
    # Not before: whoever asked waits for the start.
    if sys.platform != "win32":
        os.nice(_NICENESS)
    calls = sys.stdin.buffer
    with contextlib.suppress(EOFError, BrokenPipeError):
        # One call at a time: nothing of the next one is in the buffer.
        while select.select([calls], [], [], IDLE_S)[0]:
            function, args, kwargs = pickle.load(calls)  # noqa: S301  # the server's
            try:
                result = (True, call_with_limits(function, *args, **kwargs))
            except (GatewayError, Error) as exc:
                result = (False, exc)
            pickle.dump(result, answers)
            answers.flush()

"""Processes that are pinned to a core, measured from /proc and always ended.

The system under test has core 0 for itself as far as the machine allows, the upstream double and the
load generator share core 1. What other programs take of both cores is reported, not hidden.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

SYSTEM_CORE, LOAD_CORE = 0, 1
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_START_S, _STOP_S = 30, 10
ROOT = Path(__file__).resolve().parent.parent


def raise_file_limit() -> int:
    """Raise the limit of open files as far as allowed, for this process and its children."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


class Process:
    """A program of ours and its descendants; `log` keeps what it prints."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        core: int,
        log: Path,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                ["taskset", "--cpu-list", str(core), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=ROOT,
                start_new_session=True,
            )
        self.pid = self._popen.pid

    def wait_for(self, text: str) -> str:
        """Return the first line of its output that holds the text.

        Raises:
            RuntimeError: it ended or took too long before.
        """
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            for line in self.log.read_text(errors="replace").splitlines():
                if text in line:
                    return line
            if self._popen.poll() is not None:
                break
            time.sleep(0.02)
        raise RuntimeError(f"{self.log.stem} did not start:\n{self.log.read_text()[-3000:]}")

    @property
    def is_running(self) -> bool:
        return self._popen.poll() is None

    def stop(self) -> None:
        """End it and its descendants; returns when they are gone."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(_STOP_S)
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def cpu_s(self) -> float:
        """User and system time of the whole tree so far, its dead members included."""
        total = 0
        for pid in self._tree():
            with contextlib.suppress(OSError):
                fields = _stat(pid)
                total += sum(int(field) for field in fields[11:15])
        return total * _TICK_S

    def rss_bytes(self) -> int:
        return sum(
            int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
            for pid in self._tree()
        )

    def _tree(self) -> list[int]:
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
        found, tree = [self.pid], []
        while found:
            pid = found.pop()
            tree.append(pid)
            found += children.get(pid, [])
        return tree


def _stat(pid: int) -> list[str]:
    # The program's name stands in parentheses and may hold blanks.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def busy_s(core: int) -> float:
    """Seconds that a core has not been idle, whoever used it."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name == f"cpu{core}":
            user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, fields)
            return (user + nice + system + irq + softirq + steal) * _TICK_S
    raise RuntimeError(f"this machine has no core {core}: the benchmarks need two")


@contextlib.contextmanager
def running(process: Process) -> Iterator[Process]:
    try:
        yield process
    finally:
        process.stop()

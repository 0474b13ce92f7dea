"""A client's program run for real: nothing of the developer's own, bounded in time, its processes ended.

Programs are where `tests/clients/install` puts them: `.clients/` of the checkout.
"""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

INSTALLED = Path(__file__).resolve().parents[2] / ".clients"
NODE = INSTALLED / "node_modules" / ".bin"
PYTHON = INSTALLED / "python" / "bin"
AIDER = INSTALLED / "aider" / "bin"

TIMEOUT_S = 90


def needs(program: Path) -> pytest.MarkDecorator:
    """Skip where the program is not installed; the end of a run says so (tests/conftest.py)."""
    reason = f"{program.name} is not installed: tests/clients/install"
    return pytest.mark.skipif(not program.exists(), reason=reason)


@dataclass
class Home:
    """An empty home directory and a directory to work in, with one file of notes."""

    path: Path
    work: Path
    notes: Path
    word: str

    def environment(self, **own: str) -> dict[str, str]:
        """`own`, and no way to anywhere but this machine."""
        return {
            "PATH": f"{PYTHON}:{os.environ['PATH']}",
            "HOME": str(self.path),
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "CI": "1",
            "NO_COLOR": "1",
            "DO_NOT_TRACK": "1",
            "HTTP_PROXY": "http://127.0.0.1:9",
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "NO_PROXY": "127.0.0.1",
            **own,
        }

    def run(self, program: Path, *arguments: str, **environment: str) -> str:
        """What it writes to standard output; fails where it fails or takes too long."""
        process = subprocess.Popen(
            [str(program), *arguments],
            cwd=self.work,
            env=self.environment(**environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            output, errors = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._end(process)
            output, errors = process.communicate()
            pytest.fail(f"{program.name} did not end:\n{output}\n{errors}")
        finally:
            self._end(process)
        assert process.returncode == 0, output + errors
        return output

    def _end(self, process: subprocess.Popen[str]) -> None:
        try:
            # Servers and shells that it started.
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

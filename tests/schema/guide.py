"""Runs the commands of a page of the documentation in a project, and compares what they print.

A page's `python` blocks that begin with a path are written to it, its `console` blocks are run, in
order. A line `…` in the page stands for any lines; times, names of machines and the like are not compared.
"""

from __future__ import annotations

import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.schema.conftest import ROOT, Project

_BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Guide:
    def __init__(self, project: Project, page: Path) -> None:
        self._project = project
        self._text = page.read_text("utf-8")
        self._code = 0
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = str(free.getsockname()[1])

    def steps(self) -> Iterator[tuple[str, str, str]]:
        """Each command, what the page says it prints, and what it prints."""
        for kind, block in _BLOCK.findall(self._text):
            first, _, rest = block.partition("\n")
            if kind == "python" and first.startswith("# "):
                (self._project.directory / first[2:]).write_text(rest)
            elif kind == "console":
                for command, told in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.M):
                    yield command, told, self._run(command)

    def _run(self, command: str) -> str:
        if command == "echo $?":
            return f"{self._code}\n"
        name, *arguments = shlex.split(command)
        assert name == "manage.py"
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(ROOT / "manage.py"), *arguments],
            cwd=self._project.directory,
            env=self._project.environ
            | {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "QWENPROXY_PORT": self._port},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )
        assert process.stdout is not None
        lines = []
        with process:
            for line in process.stdout:
                lines.append(line.replace(self._port, "8100").rstrip() + "\n")
                if line.startswith("Serving on "):
                    process.send_signal(signal.SIGTERM)
                    process.communicate(timeout=60)
                    break
        self._code = process.returncode
        return "".join(lines)


# What differs from run to run and from machine to machine.
_VARYING = (
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?", "TIME"),
    (r"qwen-\d{8}T\d+Z", "qwen-STAMP"),
    (r"\S+@\S+", "SOMEBODY"),
    (r"\b[0-9a-f]{8}\b", "RUN"),
    (r"(?<= )/\S*(?=/data/)", "DIRECTORY"),
    (r"Applying \d\d migrations", "Applying N migrations"),
    (r"\d+ ms", "N ms"),
    (r"[\d.]+ MB", "N MB"),
    (r"sqlite [\d.]+", "sqlite"),
    (r" +", " "),
)


def stable(text: str) -> str:
    for pattern, name in _VARYING:
        text = re.sub(pattern, name, text)
    return text


def matches(told: str, printed: str) -> bool:
    lines = stable(told).splitlines()
    pattern = "".join("(?:.*\n)*?" if line == "…" else re.escape(line) + "\n" for line in lines)
    return re.fullmatch(pattern, stable(printed)) is not None

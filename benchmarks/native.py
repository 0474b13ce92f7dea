"""Compiles the upstream double and the load generator at first use, and again when their source changes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

_HERE = Path(__file__).resolve().parent
BUILD = _HERE / ".build"


class NoCompiler(Exception):
    """There is no C compiler."""


def build(name: str) -> Path:
    """Return the compiled program.

    Raises:
        NoCompiler: what to install is in the message.
        subprocess.CalledProcessError: the compiler refused the source.
    """
    source, program = _HERE / f"{name}.c", BUILD / name
    if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
        return program
    compiler = shutil.which("cc")
    if compiler is None:
        raise NoCompiler(
            "The benchmarks need a C compiler named cc for their load generator "
            "(Debian, Ubuntu: apt install gcc libc6-dev)."
        )
    BUILD.mkdir(exist_ok=True)
    subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", program, source], check=True)
    return program

"""What a stranger does first: `make run` in a fresh copy, then the line that it prints."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.doubles.server import unused_port

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def fresh_copy(tmp_path) -> Path:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    copy = tmp_path / "copy"
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture
def start(fresh_copy):
    """Call `make run`, wait until it serves, return what it said."""
    running = []

    def start() -> str:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("QWEN", "DASHSCOPE_", "OPENAI_", "DJANGO_", "DATABASE_"))
        }
        environment |= {"QWENPROXY_PORT": str(unused_port()), "QWENPROXY_DISCOVER": "false"}
        process = subprocess.Popen(
            ["make", "run", f"PYTHON={sys.executable}"],
            cwd=fresh_copy,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        running.append(process)
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("Serving on"):
                return said
        raise AssertionError(f"make run ended without serving: {said}")

    def stop() -> None:
        while running:
            process = running.pop()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=60)

    start.stop = stop
    yield start
    stop()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_printed_line_is_answered_and_a_second_start_keeps_the_record(start):
    said = start()
    line = re.search(r"^  curl .*?(?=\n\S|\n\n|\Z)", said, re.MULTILINE | re.DOTALL)[0]
    answered = subprocess.run(
        ["bash", "-c", f"{line} -sS"], capture_output=True, text=True, check=True
    )
    assert "Hello!" in json.loads(answered.stdout)["choices"][0]["message"]["content"]

    start.stop()
    said_again = start()
    assert "API key" not in said_again
    address = re.search(r"Serving on (\S+)", said_again)[1]
    key = re.search(r"API key +(\S+)", said)[1]
    listed = subprocess.run(
        ["curl", "-sS", f"{address}/v1/requests", "-H", f"x-api-key: {key}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(listed.stdout)["total"] == 1

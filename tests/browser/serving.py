"""A gateway as an operator runs it, in processes of its own, for a browser to look at.

Nothing here uses Django's ORM in the tests' process: Playwright's loop runs in it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.browser.seed import PASSWORD
from tests.conftest import NO_TLS
from tests.doubles.server import unused_port

ROOT = Path(__file__).resolve().parents[2]
USER = "admin"
_CSRF = re.compile(r'name="csrfmiddlewaretoken" value="([^"]+)"')


class Gateway:
    """A data directory, and the server on it while it runs."""

    def __init__(self, directory: Path, **environ: str) -> None:
        self.directory = directory
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("QWEN", "DASHSCOPE_", "OPENAI_", "DJANGO_", "DATABASE_"))
        }
        self.environ = kept | {
            "DJANGO_SETTINGS_MODULE": "qwenproxy.settings",
            "QWENPROXY_DATA_DIR": str(directory),
            "QWENPROXY_ADMIN_USER": USER,
            "QWENPROXY_ADMIN_PASSWORD": PASSWORD,
            "QWENPROXY_DISCOVER": "false",
            **environ,
        }
        self.port = unused_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[str] | None = None

    def run(self, *arguments: str) -> str:
        """Run Python on this directory, to its end; return what it printed."""
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=self.environ, text=True, capture_output=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    def seed(self, *arguments: str) -> dict[str, Any]:
        return json.loads(self.run("-m", "tests.browser.seed", *arguments))

    def start(self, *arguments: str, until: str = "Serving on") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "manage.py", "serve", "--port", str(self.port), *arguments],
            cwd=ROOT, env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        said = ""
        for line in self._process.stdout or ():
            said += line
            if until in line:
                break
        else:
            raise AssertionError(f"the gateway did not start: {said[-2000:]}")
        for _ in range(400):
            try:
                httpx.get(f"{self.url}/healthz", verify=NO_TLS)
                return
            except httpx.TransportError:
                time.sleep(0.02)
        raise AssertionError("the gateway does not answer")

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.communicate(timeout=30)
            self._process = None

    def sign_in(self, user: str = USER) -> list[dict[str, str]]:
        """Cookies of a user who signed in by the form, as Playwright takes them."""
        with httpx.Client(base_url=self.url, verify=NO_TLS, timeout=60) as client:
            token = _CSRF.search(client.get("/admin/login/").text)
            assert token
            form = {"username": user, "password": PASSWORD, "csrfmiddlewaretoken": token[1]}
            answer = client.post("/admin/login/", data={**form, "next": "/admin/"})
            assert answer.status_code == 302, answer.status_code
            return [{"name": n, "value": v, "url": self.url} for n, v in client.cookies.items()]

    def cookies(self, facts: dict[str, Any], user: str = USER) -> list[dict[str, str]]:
        """Of a user who the seed signed in, here or in a copy of what it seeded."""
        value = facts["sessions"][user]
        return [{"name": "qwenproxy_session", "value": value, "url": self.url}]

    def ask(self, key: str, text: str, **fields: Any) -> httpx.Response:
        body = {"model": "qwen-demo", "messages": [{"role": "user", "content": text}], **fields}
        headers = {"Authorization": f"Bearer {key}"}
        url = f"{self.url}/v1/chat/completions"
        return httpx.post(url, json=body, headers=headers, verify=NO_TLS, timeout=60)

    def sql(self, statement: str, *params: Any) -> list[Any]:
        path = self.directory / "qwenproxy.sqlite3"
        with closing(sqlite3.connect(path, timeout=20)) as connection, connection:
            return connection.execute(statement, params).fetchall()


@contextmanager
def served(directory: Path, **environ: str) -> Iterator[Gateway]:
    gateway = Gateway(directory, **environ)
    try:
        yield gateway
    finally:
        gateway.stop()

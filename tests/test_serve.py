"""`manage.py serve` as an operator runs it: its first start, its stops, and what a kill leaves."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import httpx
import psycopg
import pytest

from tests.conftest import NO_TLS
from tests.doubles.openai_compatible import OpenAICompatibleDouble
from tests.doubles.server import Reply, serve_in_thread, unused_port

ROOT = Path(__file__).resolve().parents[1]
SERVER = os.environ.get("QWENPROXY_TEST_DATABASE_URL", "")


class Served:
    """A running `manage.py serve`; `said` is what it printed until it served."""

    def __init__(self, environ: dict[str, str], arguments: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", "serve", *arguments],
            cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.said = ""
        for line in self.process.stdout:
            self.said += line
            if line.startswith("Serving on"):
                self.url = line.split()[2]
                break

    def wait_until_ready(self) -> Served:
        for _ in range(300):
            try:
                if httpx.get(f"{self.url}/readyz", verify=NO_TLS).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError("it was never ready")

    @property
    def key(self) -> str:
        return re.search(r"API key +(qp-\S+)", self.said)[1]

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=30)
        return self.process.returncode


@pytest.fixture
def database_url():
    """A database of the test's own; none stands for a file in the data directory."""
    if not SERVER:
        yield ""
        return
    name = f"serve_{uuid4().hex[:12]}"
    with psycopg.connect(SERVER, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        yield f"{SERVER.rpartition('/')[0]}/{name}"
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def serve(tmp_path, database_url):
    """Start a server with a data directory of its own; the second start has the same one."""
    processes = []
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("QWEN", "DASHSCOPE_", "OPENAI_", "DJANGO_", "DATABASE_"))
    }
    environ |= {
        "QWENPROXY_DATA_DIR": str(tmp_path / "data"),
        "QWENPROXY_DISCOVER": "false",
        "DATABASE_URL": database_url,
    }
    if database_url:
        environ |= {"QWENPROXY_SECRET_KEY": "k" * 50, "QWENPROXY_ENCRYPTION_KEYS": "e" * 50}

    def serve(*arguments: str, port: int = 0, **more: str) -> Served:
        served = Served({**environ, **more}, [*arguments, "--port", str(port or unused_port())])
        processes.append(served.process)
        return served

    yield serve
    for process in processes:
        process.kill()
        process.communicate()


def test_a_first_start_tells_its_secrets_once_and_answers(serve):
    first = serve().wait_until_ready()
    assert "Qwen Proxy is set up." in first.said
    assert re.search(r"Password +\S{12,}", first.said)
    headers = {"Authorization": f"Bearer {first.key}"}
    body = {"messages": [{"role": "user", "content": "Hello!"}]}
    answer = httpx.post(
        f"{first.url}/v1/chat/completions", json=body, headers=headers, verify=NO_TLS
    )
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"]
    limits = Path(f"/proc/{first.process.pid}/limits")
    if limits.exists():
        # What its memory holds is left in no core dump.
        assert re.search("Max core file size +0 +0 ", limits.read_text())
    assert first.end(signal.SIGTERM) == 0
    second = serve().wait_until_ready()
    assert "API key" not in second.said
    assert "Password" not in second.said
    listed = httpx.get(f"{second.url}/v1/requests", headers=headers, verify=NO_TLS).json()
    assert json.dumps(listed).count('"completed"') == 1
    assert second.end(signal.SIGINT) == 0


def test_a_taken_port_is_named_with_the_way_out(serve, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        served = serve(port=port)
        _, complaint = served.process.communicate(timeout=30)
    assert served.process.returncode == 1
    assert f"Port {port} of 127.0.0.1 is taken" in complaint
    assert "QWENPROXY_PORT" in complaint
    assert "Traceback" not in complaint
    assert not (tmp_path / "data" / "qwenproxy.sqlite3").exists()


async def ask(client, number, on_end=lambda: None):
    """Ask for a stream; what was received when, and whether its end was."""
    received, is_whole = [], False
    body = {
        "model": "qwen3-8b",
        "stream": True,
        "messages": [{"role": "user", "content": f"question {number}"}],
    }
    response_id = ""
    try:
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                response_id = chunk["id"]
                choice = chunk["choices"][0]
                received.append((time.monotonic(), choice["delta"].get("content") or ""))
                if choice["finish_reason"] == "stop":
                    is_whole = True
                    on_end()
    except httpx.TransportError:
        pass
    return response_id, received, is_whole


def record_of(served, key, response_id):
    answer = httpx.get(
        f"{served.url}/v1/responses/{response_id}",
        headers={"Authorization": f"Bearer {key}"},
        verify=NO_TLS,
    )
    assert answer.status_code == 200, answer.text
    body = answer.json()
    answered = body["openai_response"]
    return body["status"], answered["choices"][0]["message"]["content"] if answered else ""


def text_of(received, *, until=float("inf")):
    return "".join(text for at, text in received if at < until)


def test_a_kill_loses_no_answer_whose_end_was_seen_and_a_second_of_the_others(serve):
    double = OpenAICompatibleDouble()
    words = " ".join(f"word{i}" for i in range(20))
    endless = " ".join(f"word{i}" for i in range(5000))
    # Half of them end before the kill, one about then; the others would run for minutes.
    for number in range(20):
        if number % 2:
            double.enqueue(Reply(text=f"{number}: {endless}", delay_s=0.02))
        else:
            double.enqueue(Reply(text=f"{number}: {words}", delay_s=0.004 * number))

    async def scenario(served):
        async with httpx.AsyncClient(
            base_url=served.url,
            headers={"Authorization": f"Bearer {served.key}"},
            timeout=30,
            verify=NO_TLS,
            limits=httpx.Limits(max_connections=50),
        ) as client:
            ended = asyncio.Semaphore(0)
            tasks = [
                asyncio.create_task(ask(client, number, ended.release)) for number in range(20)
            ]
            for _ in range(7):
                await asyncio.wait_for(ended.acquire(), 30)
            # Time for the running ones to be written more than once.
            await asyncio.sleep(2)
            killed_at = time.monotonic()
            served.process.kill()
            return killed_at, await asyncio.gather(*tasks)

    with serve_in_thread(double) as upstream_url:
        upstream = {"OPENAI_COMPATIBLE_BASE_URL": f"{upstream_url}/v1"}
        served = serve(**upstream).wait_until_ready()
        key = served.key
        killed_at, answers = asyncio.run(scenario(served))
        served.process.wait(10)
        again = serve(**upstream).wait_until_ready()
        finished = [answer for answer in answers if answer[2]]
        running = [answer for answer in answers if not answer[2]]
        assert len(finished) >= 5
        assert len(running) >= 10
        for response_id, received, _ in finished:
            assert record_of(again, key, response_id) == ("completed", text_of(received))
        for response_id, received, _ in running:
            status, text = record_of(again, key, response_id)
            if status == "completed":
                # Its end was on record, and on its way to the client.
                assert text.startswith(text_of(received))
                continue
            assert status == "interrupted"
            assert text.startswith(text_of(received, until=killed_at - 1))
        assert again.end(signal.SIGTERM) == 0


def test_a_stream_that_runs_at_a_stop_comes_to_its_end(serve):
    double = OpenAICompatibleDouble()
    held = Reply(text="one two three four", pause_after=3)
    double.enqueue(held)

    async def scenario(served):
        async with httpx.AsyncClient(
            base_url=served.url,
            headers={"Authorization": f"Bearer {served.key}"},
            timeout=30,
            verify=NO_TLS,
        ) as client:
            task = asyncio.create_task(ask(client, 0))
            assert await asyncio.to_thread(held.paused.wait, 10)
            served.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.3)
            assert served.process.poll() is None
            held.resume.set()
            return await task

    with serve_in_thread(double) as upstream_url:
        served = serve(OPENAI_COMPATIBLE_BASE_URL=f"{upstream_url}/v1").wait_until_ready()
        _, received, is_whole = asyncio.run(scenario(served))
        assert (text_of(received), is_whole) == ("one two three four", True)
        served.process.communicate(timeout=30)
        assert served.process.returncode == 0

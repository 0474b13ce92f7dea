"""The gateway stops: running turns end, late ones are interrupted on record, new ones are refused."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import openai
import pytest

from requests_app.models import Response, Worker
from tests.conftest import NO_TLS, sse_bodies
from tests.doubles.qwen_web import STOP
from tests.doubles.server import Reply, serve_in_thread
from tests.proxy.conftest import HELLO, ended_response, reply_text, wait_until

TEXT = "one two three four"


def drain(gateway, timeout_s):
    """Begin to drain on the gateway's loop; a future of how many were interrupted."""
    return asyncio.run_coroutine_threadsafe(
        gateway.gateway.drain(timeout_s), gateway.gateway.recorder._loop
    )


class Asking(threading.Thread):
    """Asks in the background; `answer` is what came."""

    def __init__(self, gateway, model, **fields):
        super().__init__(daemon=True)
        self._ask = lambda: gateway.ask(model, **fields)
        self.answer = None
        self.start()

    def run(self):
        self.answer = self._ask()

    def result(self):
        self.join(10)
        assert self.answer is not None
        return self.answer


@pytest.fixture
def held(upstream):
    """An answer that waits in its middle."""
    reply = Reply(text=TEXT, pause_after=4)
    upstream.enqueue(reply)
    return reply


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_running_turn_ends_and_new_ones_are_refused(open_gateway, upstream, held, stream):
    gateway = open_gateway()
    asking = Asking(gateway, upstream.model, stream=stream)
    assert held.paused.wait(5)
    draining = drain(gateway, 10)
    wait_until(lambda: gateway.gateway.draining)
    with pytest.raises(openai.InternalServerError) as caught:
        gateway.sdk.chat.completions.create(model=upstream.model, messages=HELLO, stream=stream)
    assert (caught.value.status_code, caught.value.code) == (503, "shutting_down")
    assert not draining.done()
    held.resume.set()
    assert draining.result(5) == 0
    answer = asking.result()
    assert answer.status_code == 200
    assert "four" in answer.text
    # The refused turn is not on record: nothing was asked.
    assert (Response.objects.get().status, len(upstream.turns)) == ("completed", 1)
    # What needs no turn is served to the end.
    assert gateway.http.get("/v1/models").status_code == 200


def test_a_late_stream_ends_with_an_error_event(open_gateway, upstream, held):
    gateway = open_gateway()
    asking = Asking(gateway, upstream.model, stream=True)
    assert held.paused.wait(5)
    assert drain(gateway, 0.05).result(5) == 1
    answer = asking.result()
    assert answer.status_code == 200
    assert "[DONE]" not in answer.text
    *chunks, last = sse_bodies(answer.text)
    assert last["error"]["code"] == "shutting_down"
    row = ended_response()
    assert (row.status, row.finish_reason, row.http_status) == ("interrupted", "error", 200)
    assert (row.error_code, row.client_left) == ("shutting_down", False)
    given = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
    assert reply_text(row) == given
    assert given.startswith("one")
    assert row.usage_source == "partial"
    if upstream.kind == "qwen_web":
        assert upstream.double.requests_to(STOP)
    else:
        assert upstream.double.left.get(timeout=5)


@pytest.mark.parametrize("pause_after", [0, 4], ids=["before-first-byte", "in-the-middle"])
def test_a_late_json_client_gets_503(open_gateway, upstream, pause_after):
    held = Reply(text=TEXT, pause_after=pause_after)
    upstream.enqueue(held)
    gateway = open_gateway()
    asking = Asking(gateway, upstream.model)
    assert held.paused.wait(5)
    assert drain(gateway, 0.05).result(5) == 1
    answer = asking.result()
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "shutting_down"
    row = ended_response()
    assert (row.status, row.http_status) == ("interrupted", 503)
    assert (row.reply is None) == (pause_after == 0)


def test_many_late_turns_all_end_on_record(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible")
    replies = [Reply(text=TEXT, pause_after=4) for _ in range(20)]
    upstream.enqueue(*replies)
    gateway = open_gateway()
    asking = [Asking(gateway, upstream.model, stream=True) for _ in replies]
    assert all(reply.paused.wait(10) for reply in replies)
    assert drain(gateway, 0.05).result(10) == 20
    assert all('"shutting_down"' in thread.result().text for thread in asking)
    assert set(Response.objects.values_list("status", flat=True)) == {"interrupted"}


def test_a_turn_that_fails_while_the_gateway_stops_still_answers(
    open_gateway, serve_upstream, monkeypatch
):
    upstream = serve_upstream("openai_compatible")
    upstream.enqueue(Reply(body={"error": {"message": "no"}}, status=400))
    gateway = open_gateway()
    recorder = gateway.gateway.recorder
    commit, reached, may_commit = recorder.commit, threading.Event(), asyncio.Event()

    async def slow_commit(closing):
        reached.set()
        await may_commit.wait()
        await commit(closing)

    monkeypatch.setattr(recorder, "commit", slow_commit)
    asking = Asking(gateway, upstream.model)
    assert reached.wait(5)
    draining = drain(gateway, 0.05)
    # The deadline has passed, and the late turn was told.
    wait_until(lambda: gateway.gateway.draining)
    assert asyncio.run_coroutine_threadsafe(asyncio.sleep(0.1), recorder._loop).result(5) is None
    recorder._loop.call_soon_threadsafe(may_commit.set)
    assert asking.result().status_code == 400
    assert ended_response().status == "failed"
    draining.result(5)


def test_nothing_is_left_in_progress_and_the_worker_signs_off(
    make_application, api_key, serve_upstream
):
    upstream = serve_upstream("openai_compatible")
    app = make_application()
    with serve_in_thread(app, lifespan="on") as url:
        with httpx.Client(headers={"Authorization": f"Bearer {api_key}"}, verify=NO_TLS) as client:
            body = {"model": upstream.model, "messages": HELLO}
            assert client.post(f"{url}/v1/chat/completions", json=body).status_code == 200
        assert Worker.objects.count() == 1
    assert app.gateway is None
    assert Worker.objects.count() == 0


class Served:
    """`manage.py serve` with a database of its own."""

    def __init__(self, directory: Path, upstream_url: str, **settings: str) -> None:
        self.database = directory / "qwenproxy.sqlite3"
        kept = ("QWENPROXY_", "QWEN_", "DASHSCOPE_", "OPENAI_", "DATABASE_URL", "DJANGO_")
        environment = {k: v for k, v in os.environ.items() if not k.startswith(kept)}
        environment |= {
            "QWENPROXY_DATA_DIR": str(directory),
            "QWENPROXY_API_KEY": "qp-shutdown-" + "k" * 40,
            "QWENPROXY_DISCOVER": "false",
            "OPENAI_COMPATIBLE_BASE_URL": upstream_url,
            **settings,
        }
        root = Path(__file__).resolve().parents[2]
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", "serve", "--port", "0"],
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = next(
            line.split()[2] for line in self.process.stdout if line.startswith("Serving on ")
        )
        self.headers = {"Authorization": f"Bearer {environment['QWENPROXY_API_KEY']}"}

    def rows(self):
        with sqlite3.connect(self.database) as connection:
            rows = connection.execute(
                "SELECT status, error_code FROM requests_app_response ORDER BY id"
            ).fetchall()
        connection.close()
        return rows


@pytest.fixture
def serve_process(tmp_path, openai_compatible_url):
    served = []

    def serve_process(**settings):
        served.append(Served(tmp_path, openai_compatible_url, **settings))
        return served[-1]

    yield serve_process
    for one in served:
        one.process.kill()
        one.process.wait(10)
        one.process.stdout.close()


def test_sigterm_lets_one_turn_end_and_interrupts_the_late_one(serve_process, openai_compatible):
    served = serve_process(QWENPROXY_DRAIN_TIMEOUT_S="1")
    quick, late = (Reply(text=TEXT, pause_after=4) for _ in range(2))
    openai_compatible.enqueue(quick, late)
    body = {"model": "qwen3-8b", "messages": HELLO, "stream": True}
    with (
        httpx.Client(base_url=served.url, headers=served.headers, verify=NO_TLS) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as first,
        client.stream("POST", "/v1/chat/completions", json=body) as second,
    ):
        assert quick.paused.wait(10)
        assert late.paused.wait(10)
        served.process.send_signal(signal.SIGTERM)
        quick.resume.set()
        texts = [first.read().decode(), second.read().decode()]
    assert served.process.wait(10) == 0
    assert [text.endswith("data: [DONE]\n\n") for text in texts] == [True, False]
    assert sse_bodies(texts[1])[-1]["error"]["code"] == "shutting_down"
    assert served.rows() == [("completed", None), ("interrupted", "shutting_down")]

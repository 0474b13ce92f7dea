"""Finding servers on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import time
from urllib.parse import urlsplit

import pytest

from qwenproxy.proxy import discovery
from tests.doubles.openai_compatible import MODELS, OpenAICompatibleDouble
from tests.doubles.server import Reply, serve_in_thread, unused_port


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    monkeypatch.setattr(discovery, "_found", [])


@pytest.fixture
def serve():
    with contextlib.ExitStack() as stack:

        def serve(*models, reply=None):
            double = OpenAICompatibleDouble(models=models)
            if reply is not None:
                double.enqueue(reply, path=MODELS)
            url = stack.enter_context(serve_in_thread(double))
            return urlsplit(url).port

        yield serve


def discover(*ports, own_port=0):
    named = [(f"server {index}", port) for index, port in enumerate(ports)]
    return asyncio.run(discovery.discover(own_port=own_port, ports=named))


def test_servers_with_qwen_models_are_found_with_those_models(serve):
    port = serve("Qwen/Qwen3-8B", "llama-3", "qwen2.5-coder:7b")
    (found,) = discover(unused_port(), port)
    assert (found.name, found.base_url) == ("server 1", f"http://127.0.0.1:{port}/v1")
    assert list(found.models) == ["Qwen/Qwen3-8B", "qwen2.5-coder:7b"]
    assert list(discovery.found()) == [found]


def test_the_own_port_is_not_asked(serve):
    port = serve("qwen3-8b")
    assert discover(port, own_port=port) == ()


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Reply(body={"object": "list", "data": []}), id="no-models"),
        pytest.param(Reply(body={"data": [{"id": "llama-3"}]}), id="others"),
        pytest.param(Reply(body={"error": {"message": "no key"}}, status=401), id="401"),
        pytest.param(Reply(body="Not Found", status=404), id="404"),
        pytest.param(Reply(body="<html>something else</html>"), id="page"),
        pytest.param(Reply(body=[1, 2]), id="list"),
        pytest.param(Reply(refused=True), id="closed"),
    ],
)
def test_whatever_else_answers_is_passed_over(serve, reply):
    assert discover(serve(reply=reply)) == ()


def test_nobody_is_waited_for(serve):
    ports = [serve(reply=Reply(silent=True)) for _ in range(3)]
    began = time.monotonic()
    (found,) = discover(*ports, serve("qwen3-8b"))
    assert time.monotonic() - began < 1.5
    assert found.name == "server 3"


def test_what_was_found_before_is_forgotten(serve):
    discover(serve("qwen3-8b"))
    discover(unused_port())
    assert discovery.found() == ()

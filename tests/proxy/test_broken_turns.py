"""Whatever breaks within a turn: its client hears of it, and its row has an end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from qwenproxy.proxy import chat
from qwenproxy.wire import json as wire_json
from qwenproxy.wire.openai_chat import ChatChunkEncoder
from requests_app.models import Response
from tests.doubles.server import Reply
from tests.proxy.conftest import ended_response

# More than Python's encoder can write, fewer than orjson refuses to read.
_LEVELS = 1015
# An answer that waits for nothing comes at once; one that nothing ends never.
_SOON_S = 20


@pytest.fixture
def upstream(serve_upstream):
    return serve_upstream("openai_compatible")


def with_deep_counts() -> Reply:
    """A whole answer with counts that can be read and not be written."""
    chunk = {"id": "c", "choices": [{"index": 0, "delta": {"content": "Hello"}}]}
    last = {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    deep = "[" * _LEVELS + "]" * _LEVELS
    counts = f'{{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2,"deep":{deep}}}'
    payloads = [json.dumps(chunk), f'{{"id":"c","choices":[],"usage":{counts}}}', json.dumps(last)]
    return Reply(raw="".join(f"data: {data}\n\n" for data in (*payloads, "[DONE]")).encode())


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_counts_that_nobody_could_write_are_an_error_of_the_upstream(
    open_gateway, upstream, stream
):
    upstream.enqueue(with_deep_counts())
    gateway = open_gateway(UPSTREAM_RETRIES=0)
    answer = gateway.ask(upstream.model, stream=stream)
    assert "upstream_protocol_error" in answer.text
    row = ended_response()
    assert (row.status, row.error_code) == ("failed", "upstream_protocol_error")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_an_end_that_cannot_be_made_is_recorded_bare(open_gateway, upstream, stream, monkeypatch):
    # The guard is off, so that neither the end nor its error can be written.
    monkeypatch.setattr(wire_json, "MAX_DEPTH", 10_000)
    upstream.enqueue(with_deep_counts())
    gateway = open_gateway(UPSTREAM_RETRIES=0)
    answer = gateway.ask(upstream.model, stream=stream)
    assert "internal error" in answer.text
    assert answer.status_code == (200 if stream else 500)
    row = ended_response()
    assert (row.status, row.error_type, row.upstream_response) == ("failed", "api_error", "")
    assert row.reply.content == '"Hello"'
    assert gateway.gateway.running == 0


class _Broken(ChatChunkEncoder):
    """Writes the first events and fails from then on, at an error's event and at the end too."""

    _has_written = False

    def encode(self, events: Any) -> bytes:
        if self._has_written:
            raise KeyError("broken")
        data = super().encode(events)
        self._has_written = bool(data)
        return data

    def finish(self, reason: str, usage: Any) -> bytes:
        raise KeyError("broken")

    def error(self, body: Any) -> bytes:
        raise KeyError("broken")


@pytest.fixture
def broken_protocol(monkeypatch) -> Callable[..., None]:
    monkeypatch.setattr(chat, "CHAT", replace(chat.CHAT, make_encoder=_Broken))


def test_a_protocol_that_cannot_even_tell_an_error_breaks_the_connection(
    open_gateway, upstream, broken_protocol
):
    gateway = open_gateway()
    began = time.monotonic()
    with (
        pytest.raises(httpx.RemoteProtocolError),
        gateway.open_stream(upstream.model) as answer,
    ):
        answer.read()
    assert time.monotonic() - began < _SOON_S
    row = ended_response()
    assert (row.status, row.error_message) == ("failed", "internal error")
    assert gateway.gateway.running == 0


def test_it_answers_500_where_nothing_was_handed_on(open_gateway, upstream, broken_protocol):
    upstream.enqueue(Reply(body={"error": {"message": "no"}}, status=400))
    gateway = open_gateway()
    answer = gateway.ask(upstream.model)
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "internal error")
    row = ended_response()
    # Why there was no answer was on record before it could not be told.
    assert (row.status, row.error_code) == ("failed", "upstream_refused")
    assert Response.objects.count() == 1

"""What becomes of a turn whose client leaves, and what the row says about it."""

from __future__ import annotations

import json
import socket
from urllib.parse import urlsplit

import httpx
import pytest

from tests.doubles.qwen_web import STOP
from tests.doubles.server import Reply
from tests.proxy.conftest import HELLO, attempts_of, ended_response, reply_text, wait_until

TEXT = "one two three four"
CANCELS = {"openai_compatible": True, "qwen_web": False}


def leave_while_waiting(gateway, model, *, stream):
    """Ask, and leave before anything came."""
    body = {"model": model, "messages": HELLO, "stream": stream}
    with pytest.raises(httpx.ReadTimeout):
        gateway.http.post("/v1/chat/completions", json=body, timeout=httpx.Timeout(5, read=0.2))


def left(gateway):
    """Whether the running turn knows that its client has left (or has ended already)."""
    turns = list(gateway.gateway._turns)
    return not turns or turns[0].client.left


def check_ending(gateway, upstream, held, *, cancels):
    if not cancels:
        wait_until(lambda: left(gateway))
        held.resume.set()
    row = ended_response()
    assert row.client_left is True
    if cancels:
        assert (row.status, row.finish_reason) == ("cancelled", "cancelled")
        assert (row.error_code, row.error_type) == ("client_left", "client_error")
        assert attempts_of(row)[-1]["cause"] == "cancelled"
    else:
        assert (row.status, row.finish_reason, row.http_status) == ("completed", "stop", 200)
        assert row.error_code is None
        assert reply_text(row) == TEXT
        assert attempts_of(row)[-1]["cause"] is None
    return row


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_the_client_leaves_before_the_first_byte(open_gateway, upstream, stream):
    held = Reply(text=TEXT, pause_after=0)
    upstream.enqueue(held)
    gateway = open_gateway()
    leave_while_waiting(gateway, upstream.model, stream=stream)
    row = check_ending(gateway, upstream, held, cancels=CANCELS[upstream.kind])
    if CANCELS[upstream.kind]:
        assert (row.http_status, row.reply, row.ttft_ms) == (499, None, None)
        assert upstream.double.left.get(timeout=5)


@pytest.mark.parametrize("setting", ["", "finish", "cancel"])
def test_the_client_leaves_in_the_middle_of_a_stream(open_gateway, upstream, setting):
    held = Reply(text=TEXT, pause_after=4)
    upstream.enqueue(held)
    gateway = open_gateway(ON_CLIENT_LEFT=setting)
    with gateway.open_stream(upstream.model) as response:
        next(response.iter_bytes())
        assert held.paused.wait(5)
    cancels = setting == "cancel" or (not setting and CANCELS[upstream.kind])
    row = check_ending(gateway, upstream, held, cancels=cancels)
    if cancels:
        assert row.http_status == 200
        assert TEXT.startswith(reply_text(row))
        assert row.usage_source == "partial"
        if upstream.kind == "qwen_web":
            assert upstream.double.requests_to(STOP)
        else:
            assert upstream.double.left.get(timeout=5)


def test_a_json_client_leaves_in_the_middle_of_its_answer(open_gateway, upstream):
    held = Reply(text=TEXT, pause_after=4)
    upstream.enqueue(held)
    gateway = open_gateway()
    leave_while_waiting(gateway, upstream.model, stream=False)
    row = check_ending(gateway, upstream, held, cancels=CANCELS[upstream.kind])
    if CANCELS[upstream.kind]:
        assert row.http_status == 499
        assert TEXT.startswith(reply_text(row))


def test_a_turn_whose_client_left_fails_as_any_other(open_gateway, serve_upstream):
    upstream = serve_upstream("qwen_web")
    held = Reply(text=TEXT, pause_after=4, cut_after=5)
    upstream.enqueue(held)
    gateway = open_gateway()
    with gateway.open_stream(upstream.model) as response:
        next(response.iter_bytes())
    wait_until(lambda: left(gateway))
    held.resume.set()
    row = ended_response()
    assert (row.status, row.error_code, row.client_left) == ("failed", "upstream_error", True)


def connect(gateway, body, *, receive_buffer=0):
    """A client that sends a request and then reads only what the test reads."""
    parts = urlsplit(gateway.url)
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.connect((parts.hostname, parts.port))
    client.settimeout(10)
    content = json.dumps(body).encode()
    client.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Authorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s"
        % (gateway.api_key.encode(), len(content), content)
    )
    return client


@pytest.mark.parametrize(
    "settings_",
    [
        pytest.param({"SEND_BUFFER_BYTES": 200_000}, id="full-buffer"),
        pytest.param({"SEND_TIMEOUT_S": 0.3}, id="no-progress"),
    ],
)
def test_a_client_that_reads_nothing_counts_as_left(open_gateway, serve_upstream, settings_):
    upstream = serve_upstream("openai_compatible")
    piece = json.dumps({"choices": [{"index": 0, "delta": {"content": "x" * 50_000}}]})
    # More than the sockets' buffers take; it goes on until the gateway hangs up.
    upstream.enqueue(Reply(raw=b"data: %s\n\n" % piece.encode() * 400, endless=True, delay_s=0.001))
    gateway = open_gateway(**settings_)
    body = {"model": upstream.model, "messages": HELLO, "stream": True}
    client = connect(gateway, body, receive_buffer=4096)
    with client:
        row = ended_response()
    assert (row.status, row.error_code, row.client_left) == ("cancelled", "client_left", True)
    assert row.http_status == 200
    assert len(reply_text(row)) > 100_000
    assert upstream.double.left.get(timeout=5)


def test_a_client_that_reads_slowly_gets_everything(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible")
    text = "word " * 20_000
    upstream.enqueue(Reply(text=text))
    gateway = open_gateway(SEND_TIMEOUT_S=2)
    body = {"model": upstream.model, "messages": HELLO, "stream": True}
    received = b""
    with connect(gateway, body, receive_buffer=8192) as client:
        row = ended_response()
        while not received.endswith(b"0\r\n\r\n"):
            received += client.recv(65536)
    assert received.count(b"word") == 20_000
    assert b"data: [DONE]" in received
    assert (row.status, row.client_left) == ("completed", False)


def test_a_client_that_leaves_while_it_sends_its_body_leaves_no_trace(open_gateway, serve_upstream):
    from requests_app.models import Request

    upstream = serve_upstream("openai_compatible")
    gateway = open_gateway()
    parts = urlsplit(gateway.url)
    with socket.create_connection((parts.hostname, parts.port)) as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\n{"
        )
    assert gateway.ask(upstream.model).status_code == 200
    assert Request.objects.count() == 1


def test_a_client_that_leaves_during_another_try_ends_it(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible")
    refused = Reply(body="oops", status=500)
    held = Reply(silent=True)
    upstream.enqueue(refused, held)
    gateway = open_gateway()
    leave_while_waiting(gateway, upstream.model, stream=True)
    row = ended_response()
    assert (row.status, row.http_status, row.client_left) == ("cancelled", 499, True)
    assert attempts_of(row)[0]["cause"].startswith("upstream_error: ")

"""What a client may take of the server before its request is whole, by raw sockets."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time

import pytest
import uvicorn
from uvicorn.server import ServerState

from qwenproxy import asgi_uploads
from qwenproxy.asgi_limits import MAX_HEAD_BYTES, BoundedProtocol, sweep
from qwenproxy.asgi_uploads import MAX_FORM_BYTES
from tests.doubles.server import _Server as _QuickServer

# More than any socket buffers.
LONG = 64 * 2**20
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"


class _Server(_QuickServer):
    """Looks at its connections as `serve` does, more often."""

    async def main_loop(self) -> None:
        while not self._stop.is_set():
            sweep(self.server_state.connections, asyncio.get_running_loop().time())
            await asyncio.sleep(0.02)


async def answer(scope, receive, send):
    sent = b""
    while (message := await receive()).get("more_body"):
        sent += message["body"]
    if message["type"] == "http.request":
        body = b"x" * LONG if scope["path"] == "/long" else b"ok"
        if scope["path"] == "/echo":
            asked = {
                "method": scope["method"],
                "query": scope["query_string"].decode(),
                "headers": sorted(name.decode() for name, _ in scope["headers"]),
                "body": (sent + message["body"]).decode(),
            }
            body = b"%b\n" % json.dumps(asked).encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def connect(settings):
    """Open connections to a server."""
    settings.REQUEST_TIMEOUT_S = 30
    config = uvicorn.Config(
        answer,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
    )
    server = _Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    assert server.ready.wait(30)
    opened = []

    def connect():
        opened.append(socket.create_connection(listener.getsockname(), 30))
        return opened[-1]

    connect.connections = server.server_state.connections
    yield connect
    for connection in opened:
        connection.close()
    server.stop()
    thread.join(30)
    listener.close()


def answer_of(connection):
    """Status and error of what comes until the server closes."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def drip(connection, data):
    """Send as slowly as the server lets us, until it closes."""
    connection.settimeout(0.02)
    for byte in data:
        try:
            connection.send(bytes([byte]))
            if connection.recv(65536, socket.MSG_PEEK):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    connection.settimeout(30)


def test_slow_clients_are_ended_and_say_why(connect, settings):
    settings.REQUEST_TIMEOUT_S = 0.3
    silent, head, body = connect(), connect(), connect()
    head.sendall(HEAD)
    body.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
    drip(body, b"x" * 200)
    for connection in (silent, head, body):
        status, error = answer_of(connection)
        assert status == 408
        assert error["type"] == "invalid_request_error"


def test_a_client_that_takes_nothing_of_its_answer_is_cut(connect, settings):
    settings.SEND_TIMEOUT_S = 0.1
    connection = connect()
    connection.sendall(b"GET /long HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert connection.recv(1, socket.MSG_PEEK)
    ends = time.monotonic() + 30
    while connect.connections and time.monotonic() < ends:
        time.sleep(0.01)
    assert not connect.connections


class Unsent:
    """A transport, as far as the sweep looks at it."""

    left = 0
    is_cut = False

    def get_write_buffer_size(self):
        return self.left

    def is_closing(self):
        return True

    def abort(self):
        self.is_cut = True


def test_a_client_that_takes_its_answer_slowly_is_not_cut(settings):
    settings.SEND_TIMEOUT_S = 60
    config = uvicorn.Config(answer, http=BoundedProtocol, log_config=None)
    loop = asyncio.new_event_loop()
    protocol = BoundedProtocol(config, ServerState(), {}, _loop=loop)
    loop.close()
    transport = protocol.transport = Unsent()
    for now_s, transport.left in ((0, 0), (100, 30), (150, 20), (200, 19), (259, 19)):
        sweep([protocol], now_s)
        assert not transport.is_cut
    sweep([protocol], 261)
    assert transport.is_cut


def test_blank_lines_do_not_hold_a_connection(connect, settings):
    connection = connect()
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    settings.REQUEST_TIMEOUT_S = 0.3
    drip(connection, b"\r\n" * 100)
    assert answer_of(connection)[0] == 408


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"X-A: " + b"a" * 2 * MAX_HEAD_BYTES, id="unfinished"),
        pytest.param(b"X-A: " + b"a" * 2 * MAX_HEAD_BYTES + b"\r\n\r\n", id="whole"),
        pytest.param(b"".join(b"X-%d: a\r\n" % n for n in range(20_000)), id="many"),
        pytest.param(
            b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 32 * MAX_HEAD_BYTES, id="chunk"
        ),
    ],
)
def test_a_head_that_is_too_long_is_refused(connect, data):
    connection = connect()
    try:
        connection.sendall(HEAD + data)
    except OSError:
        # It has answered before all was sent.
        pass
    status, error = answer_of(connection)
    assert status == 431
    assert error["message"]


def test_one_connection_too_many_is_503_and_a_free_place_is_taken(connect, settings):
    settings.MAX_CONNECTIONS = 2
    first, second = connect(), connect()
    for connection in (first, second):
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    assert answer_of(connect())[0] == 503
    first.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    while first.recv(65536):
        pass
    again = connect()
    again.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert again.recv(65536).startswith(b"HTTP/1.1 200")


def test_what_is_no_http_is_400(connect):
    connection = connect()
    connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
    assert answer_of(connection)[0] == 400


_SMUGGLED = b"GET /echo?smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
_H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
_LAST = b"GET /echo?last HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def requests_seen(connection, sent, pieces=1):
    """Send it in that many pieces, and a last request; return what the application was asked, in order."""
    size = -(-len(sent) // pieces)
    for start in range(0, len(sent), size):
        connection.sendall(sent[start : start + size])
        if pieces > 1:
            # So that the server reads it by itself, where the machine lets it.
            time.sleep(0.001)
    connection.sendall(_LAST)
    got = b""
    while data := connection.recv(65536):
        got += data
    return [json.loads(line) for line in re.findall(rb"^\{.*\}", got, re.MULTILINE)]


@pytest.mark.parametrize("pieces", [1, 40])
@pytest.mark.parametrize(
    ("framing", "body"),
    [
        pytest.param(b"Content-Length: %d\r\n\r\n" % len(_SMUGGLED), _SMUGGLED, id="length"),
        pytest.param(
            b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(_SMUGGLED),
            _SMUGGLED + b"\r\n0\r\n\r\n",
            id="chunked",
        ),
    ],
)
def test_a_wish_for_another_protocol_is_passed_over_and_its_body_is_no_request(
    connect, framing, body, pieces
):
    sent = HEAD.replace(b"/v1/chat/completions", b"/echo?a=1") + _H2C + b"X-A: b\r\n"
    seen = requests_seen(connect(), 2 * (sent + framing + body), pieces)
    asked = {
        "method": "POST",
        "query": "a=1",
        "headers": sorted(
            ["connection", framing.partition(b":")[0].decode().lower(), "host", "x-a"]
        ),
        "body": _SMUGGLED.decode(),
    }
    assert seen[:2] == [asked, asked]
    assert [one["query"] for one in seen[2:]] == ["last"]


def test_a_wish_without_a_body_is_passed_over_and_what_follows_is_read(connect):
    head = b"GET /echo HTTP/1.1\r\nHost: localhost\r\n"
    other = b"Connection: keep-alive, upgrade\r\nUpgrade: websocket\r\n\r\n"
    seen = requests_seen(connect(), head + _H2C + b"\r\n" + head + other)
    assert [one["query"] for one in seen] == ["", "", "last"]


def test_a_body_of_connect_is_not_read_as_a_request(connect):
    connection = connect()
    connection.sendall(
        b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
        % (len(_SMUGGLED), _SMUGGLED)
    )
    assert answer_of(connection)[0] == 400


def test_a_form_is_bounded(http):
    answer = http.post("/admin/login/", content=b"a" * (MAX_FORM_BYTES + 1))
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"
    assert http.post("/admin/login/", content=b"a" * 1000).status_code == 403


def test_long_forms_are_bounded_together_and_short_ones_are_always_taken(monkeypatch):
    monkeypatch.setattr(asgi_uploads, "MAX_HELD_BYTES", 300_000)
    statuses = []

    async def app(scope, receive, send):
        statuses.append(len((await receive())["body"]))

    async def send(message):
        if "status" in message:
            statuses.append(message["status"])

    async def post(form, *pieces):
        left = list(pieces)

        async def receive():
            piece = left.pop(0)
            if isinstance(piece, asyncio.Event):
                await piece.wait()
                piece = b""
            return {"type": "http.request", "body": piece, "more_body": bool(left)}

        scope = {"type": "http", "path": "/admin/", "headers": [(b"content-length", b"1")]}
        await form(scope, receive, send)

    async def run():
        form, goes_on = asgi_uploads.bounded(app), asyncio.Event()
        first = asyncio.create_task(post(form, b"a" * 200_000, goes_on))
        await asyncio.sleep(0)
        await post(form, b"b" * 150_000)
        await post(form, b"c" * 1000)
        goes_on.set()
        await first
        await post(form, b"d" * 150_000)

    asyncio.run(run())
    assert statuses == [503, 1000, 200_000, 150_000]


@pytest.mark.parametrize("path", ["//v1/models", "///v1/chat/completions", "/v1", "//api/schema/"])
def test_a_path_that_was_to_be_the_api_s_is_404_in_json(http, path):
    url = f"{str(http.base_url).rstrip('/')}{path}"
    answer = http.post(url, content=b"{}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_url"


def test_a_body_with_a_byte_order_mark_is_a_clear_400(http):
    answer = http.post("/v1/chat/completions", content=b'\xef\xbb\xbf{"messages": []}')
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"

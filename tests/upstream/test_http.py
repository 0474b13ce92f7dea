from __future__ import annotations

import asyncio
import contextlib
import gzip

import httpx
import pytest

from qwenproxy.errors import (
    UpstreamAuthExpired,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
)
from qwenproxy.upstream import http
from tests.doubles.openai_compatible import CHAT
from tests.doubles.server import Reply, unused_port

BODY = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}'


def post(*urls, headers=None):
    """Read the answers of several posts on one client; the last one's body."""

    async def main():
        async with http.open_client() as client:
            for url in urls:
                request = http.new_request(
                    client,
                    "POST",
                    url,
                    headers=http.checked_headers(headers or {}, account_name="house"),
                    account_name="house",
                    content=BODY,
                )
                async with http.open_response(client, request, account_name="house") as response:
                    body = await http.read_body(response, max_bytes=100_000)
            return body

    return asyncio.run(main())


def raw_server_post(answer: bytes, *, abort: bool = False):
    """Post to a server that says exactly these bytes."""

    async def main():
        async def serve(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            if abort:
                writer.transport.abort()
            else:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server, http.open_client() as client:
            port = server.sockets[0].getsockname()[1]
            request = http.new_request(
                client,
                "POST",
                f"http://127.0.0.1:{port}/",
                headers=httpx.Headers(),
                account_name="house",
                content=BODY,
            )
            async with http.open_response(client, request, account_name="house") as response:
                return await http.read_body(response, max_bytes=100_000)

    return asyncio.run(main())


def test_refused_connection_is_named_without_the_address():
    with pytest.raises(UpstreamError, match="connection refused") as caught:
        post(f"http://127.0.0.1:{unused_port()}/v1")
    assert "127.0.0.1" not in caught.value.message
    assert "127.0.0.1" in caught.value.body
    assert caught.value.__cause__ is not None
    assert type(caught.value) is UpstreamError


def test_unknown_host_is_named():
    with pytest.raises(UpstreamError, match="host name is not known"):
        post("http://nowhere.invalid/v1")


def test_tls_against_a_plain_server_is_named(openai_compatible):
    with pytest.raises(UpstreamError, match="no TLS connection"):
        post(openai_compatible.url.replace("http:", "https:"))


@pytest.mark.parametrize(
    ("reply", "error", "text"),
    [
        pytest.param(Reply(refused=True), UpstreamError, "without an answer", id="closed at once"),
        pytest.param(Reply(silent=True), UpstreamTimeout, "sent nothing", id="silence"),
        pytest.param(
            Reply(text="a b c", silent_after=2), UpstreamTimeout, "sent nothing", id="falls silent"
        ),
        pytest.param(
            Reply(text="a b c", cut_after=2), UpstreamError, "broke off", id="cut in a stream"
        ),
        pytest.param(
            Reply(body="short", headers={"content-length": "100"}),
            UpstreamError,
            "broke off",
            id="shorter than its length",
        ),
        pytest.param(
            Reply(body="nope", headers={"content-encoding": "gzip"}),
            UpstreamProtocolError,
            "broken HTTP",
            id="not the coding it says",
        ),
        pytest.param(
            Reply(
                body=gzip.compress(gzip.compress(b"{}")),
                headers={"content-encoding": "gzip, gzip"},
            ),
            UpstreamProtocolError,
            "broken HTTP",
            id="coded twice",
        ),
    ],
)
def test_failures_on_the_wire_are_mapped(openai_compatible, reply, error, text):
    openai_compatible.double.enqueue(reply)
    with pytest.raises(error, match=text) as caught:
        post(openai_compatible.url + CHAT)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("answer", "abort", "error"),
    [
        pytest.param(b"NOT HTTP\r\n\r\n", False, UpstreamProtocolError, id="no HTTP"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
            False,
            UpstreamProtocolError,
            id="bad chunk",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
            True,
            UpstreamError,
            id="reset",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nx: " + b"a" * 100_000 + b"\r\n\r\n",
            False,
            UpstreamProtocolError,
            id="endless header",
        ),
        pytest.param(b"", False, UpstreamError, id="nothing"),
    ],
)
def test_broken_http_is_mapped(answer, abort, error):
    with pytest.raises(error):
        raw_server_post(answer, abort=abort)


def test_long_response_headers_are_read():
    answer = b"HTTP/1.1 200 OK\r\nx: " + b"a" * 30_000 + b"\r\ncontent-length: 2\r\n\r\nok"
    assert raw_server_post(answer) == b"ok"


@pytest.mark.parametrize("url", ["", "nonsense", "ftp://127.0.0.1/", "http://[::1/", "http://"])
def test_unusable_url_is_an_upstream_error(url):
    with pytest.raises(UpstreamError, match="base URL"):
        post(url)


def test_cookies_are_not_kept(openai_compatible):
    openai_compatible.double.enqueue(
        Reply(body={}, headers={"set-cookie": "acw_tc=1; Path=/"}), Reply(body={})
    )
    post(openai_compatible.url + CHAT, openai_compatible.url + CHAT, headers={"cookie": "token=a"})
    assert [r.headers["cookie"] for r in openai_compatible.double.requests] == ["token=a"] * 2


def test_redirects_are_not_followed(openai_compatible):
    openai_compatible.double.enqueue(
        Reply(body="gone", status=302, headers={"location": "/v1/models"})
    )
    assert post(openai_compatible.url + CHAT) == b"gone"
    assert len(openai_compatible.double.requests) == 1


def test_only_decodable_codings_are_accepted(openai_compatible):
    post(openai_compatible.url + CHAT, headers={"accept-encoding": "gzip, deflate, br, zstd"})
    assert openai_compatible.double.requests[0].headers["accept-encoding"] == "gzip, deflate"


def test_header_values_are_sent_as_utf8(openai_compatible):
    post(openai_compatible.url + CHAT, headers={"cookie": " name=值 \n", "x-empty": " "})
    headers = openai_compatible.double.requests[0].headers
    assert headers["cookie"] == "name=值"
    assert "x-empty" not in headers


@pytest.mark.parametrize("headers", [{"cookie": "a=1\r\nx: y"}, {"bad name": "x"}, {"": "x"}])
def test_headers_that_cannot_be_sent_ask_for_another_paste(headers):
    with pytest.raises(UpstreamAuthExpired, match="Paste it again"):
        http.checked_headers(headers, account_name="house")


def test_a_body_is_read_up_to_the_limit_only(openai_compatible):
    openai_compatible.double.enqueue(Reply(text="x", endless=True))

    async def main():
        async with http.open_client() as client:
            request = http.new_request(
                client,
                "POST",
                openai_compatible.url + CHAT,
                headers=httpx.Headers(),
                account_name="house",
                content=BODY,
            )
            async with http.open_response(client, request, account_name="house") as response:
                return await http.read_body(response, max_bytes=50_000)

    assert 50_000 < len(asyncio.run(main())) < 200_000
    assert openai_compatible.double.left.get(timeout=5) == CHAT


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param({"retry-after": "7"}, 7.0, id="seconds"),
        pytest.param({"retry-after-ms": "1500", "retry-after": "9"}, 1.5, id="milliseconds first"),
        pytest.param({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0.0, id="date gone by"),
        pytest.param({"retry-after": "-1"}, None, id="negative"),
        pytest.param({"retry-after": "nan"}, None, id="nan"),
        pytest.param({"retry-after": "inf"}, None, id="inf"),
        pytest.param({"retry-after": "soon"}, None, id="text"),
        pytest.param({"retry-after": f"Mon, 01 Jan {10**20} 00:00:00 GMT"}, None, id="no time"),
        pytest.param({}, None, id="none"),
    ],
)
def test_retry_after_is_read(headers, expected):
    assert http.retry_after_s(httpx.Headers(headers)) == expected


@pytest.mark.parametrize(
    ("proxies", "expected"),
    [
        pytest.param({}, {}, id="none"),
        pytest.param({"no": "example.com"}, {}, id="exceptions alone"),
        pytest.param({"https": "http://p:1", "no": "*"}, {}, id="exception for all"),
        pytest.param(
            {"https": "p:1", "no": "example.com, 10.0.0.1"},
            {
                "https://": "http://p:1",
                "all://localhost": None,
                "all://127.0.0.1": None,
                "all://[::1]": None,
                "all://*example.com": None,
                "all://10.0.0.1": None,
            },
            id="exceptions",
        ),
    ],
)
def test_proxy_routes(proxies, expected):
    assert http._proxy_routes(proxies) == expected


def test_proxies_of_the_environment_never_get_loopback(openai_compatible, monkeypatch):
    dead = f"http://127.0.0.1:{unused_port()}"
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, dead)
        monkeypatch.setenv(name.upper(), dead)
    assert b"[DONE]" in post(openai_compatible.url + CHAT)
    with pytest.raises(UpstreamError, match="the proxy cannot be reached"):
        post("http://upstream.invalid/v1")

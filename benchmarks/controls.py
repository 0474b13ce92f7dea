"""The controls: what the server and the loop cost without us.

R (`constant`) answers a constant: JSON, or a stream of so many chunks at so many milliseconds. F (`relay`)
hands the request to the upstream with aiohttp and its answer back, and records nothing: the least
that Python can do for this job. Run as a module, each is served exactly as the gateway is.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import aiohttp
import uvicorn

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_JSON = (
    b'{"id":"chatcmpl-bench","object":"chat.completion","created":1,"model":"bench","choices":[{"index"'
    b':0,"message":{"role":"assistant","content":" token0 token1 token2 token3"},"finish_reason":'
    b'"stop"}],"usage":{"prompt_tokens":20,"completion_tokens":4,"total_tokens":24}}'
)
_CHUNK = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1,"model":"bench",'
    b'"choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}]}\n\n'
)
_EVENT_STREAM = (b"content-type", b"text/event-stream; charset=utf-8")


async def _read(receive: Receive) -> bytes:
    pieces = []
    while True:
        message = await receive()
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(pieces)


async def _send_whole(send: Send, body: bytes, status: int = 200) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def constant(chunks: int, pace_s: float) -> App:
    """R: JSON where `chunks` is 0."""

    async def app(scope: Message, receive: Receive, send: Send) -> None:
        await _read(receive)
        if not chunks:
            await _send_whole(send, _JSON)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [_EVENT_STREAM]})
        for number in range(chunks):
            if number:
                await asyncio.sleep(pace_s)
            await send({"type": "http.response.body", "body": _CHUNK, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    return app


class Relay:
    """F."""

    def __init__(self, upstream: str) -> None:
        self._url = f"{upstream}/chat/completions"
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(total=None),
                skip_auto_headers=("accept", "accept-encoding", "user-agent"),
                headers={"content-type": "application/json"},
            )
        body = await _read(receive)
        async with self._session.post(self._url, data=body) as answer:
            if b'"stream":true' not in body[:200]:
                await _send_whole(send, await answer.read(), answer.status)
                return
            head = {"status": answer.status, "headers": [_EVENT_STREAM]}
            await send({"type": "http.response.start", **head})
            async for piece in answer.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("control", choices=("constant", "relay"))
    parser.add_argument("--chunks", type=int, default=0)
    parser.add_argument("--pace-ms", type=float, default=0)
    parser.add_argument("--upstream", default="")
    args = parser.parse_args()
    app: App
    if args.control == "constant":
        app = constant(args.chunks, args.pace_ms / 1000)
    else:
        app = Relay(args.upstream)
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,
    )
    print(f"Serving on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()

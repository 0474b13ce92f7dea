"""Upstreams that answer as no upstream should, where the question says so.

A request whose JSON holds `fuzz-<word>-` gets what that word seeds: streams and documents with members
bent and bytes spoiled, wrong statuses and headers, connections that break. Others are answered as ever.
"""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from random import Random
from typing import Any

from tests.doubles import openai_compatible, qwen_web
from tests.doubles.server import Exchange, Recorded, Reply
from tests.fuzz import hostile

_FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "synthetic"
_WORD = re.compile(r"fuzz-(\w+)-")
_STATUSES = (
    201,
    204,
    206,
    301,
    302,
    304,
    400,
    401,
    402,
    403,
    404,
    405,
    408,
    409,
    410,
    413,
    418,
    422,
)
_ERRORS = (429, 429, 451, 500, 501, 502, 503, 504, 529, 599)
_HEADERS = {
    "content-type": ("text/html", "application/json", "", "text/event-stream; charset=utf-16", "x"),
    "retry-after": (
        "-1",
        "1e9",
        "never",
        "Wed, 21 Oct 2099 07:28:00 GMT",
        "9" * 400,
        "nan",
        "\xff",
    ),
    "content-encoding": ("gzip", "deflate", "br", "identity, gzip", "zstd", "nonsense"),
    "set-cookie": ("token=; Max-Age=-1", "\xff=\xff; expires=never", "=" * 3000),
    "location": ("http://169.254.169.254/", "/", "//x"),
    "x-request-id": ("\xff\xfe", "x" * 5000, ""),
    "transfer-encoding": ("gzip", "chunked, chunked"),
    "content-length": ("0", "-1", "5", "99999", "x"),
}
_RAW = (
    b"",
    b"\0\0\0\0",
    b"HTTP/1.1\r\n\r\n",
    b"HTTP/9.9 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\nx\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffff\r\ndata: {}\n\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\ncontent-length: 20\r\n\r\n0123456789",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 30,
    b"HTTP/1.1 200 " + b"x" * 200_000,
)


def word(request: Recorded) -> str | None:
    found = _WORD.search(json.dumps(request.body) if not isinstance(request.body, bytes) else "")
    return found[1] if found else None


def _bent_stream(rng: Random, stream: bytes) -> bytes:
    """An event stream with the JSON of some events bent, and with bytes spoiled."""
    lines = []
    for line in stream.split(b"\n"):
        changed = line
        if line.startswith(b"data:") and rng.random() < 0.25:
            try:
                document = json.loads(line[5:])
            except ValueError:
                document = {}
            changed = b"data: " + hostile.encode(
                rng, hostile.bend(rng, document, rng.choice((1, 3)))
            )
        lines += [changed] * (0 if rng.random() < 0.03 else 2 if rng.random() < 0.03 else 1)
    if rng.random() < 0.2:
        rng.shuffle(lines)
    data = b"\n".join(lines)
    return hostile.spoil(rng, data) if rng.random() < 0.4 else data


async def answer(rng: Random, exchange: Exchange, streams: list[bytes], document: Any) -> None:
    """Give the one hostile answer that `rng` draws, from valid streams and a valid document."""
    if rng.random() < 0.06:
        exchange._transport.write(rng.choice(_RAW))
        exchange.drop()
        return
    headers = {"content-type": "text/event-stream; charset=utf-8"}
    status = 200
    if rng.random() < 0.3:
        name = rng.choice(list(_HEADERS))
        headers[name] = rng.choice(_HEADERS[name]).encode("latin-1").decode("latin-1")
    if rng.random() < 0.25:
        status = rng.choice(_STATUSES + _ERRORS)
    if status != 200 or rng.random() < 0.25:
        headers.setdefault("content-type", "application/json")
        body = hostile.encode(rng, hostile.bend(rng, document, rng.choice((1, 3))))
    else:
        body = _bent_stream(rng, rng.choice(streams))
    await _send(rng, exchange, status, headers, body)


async def _send(
    rng: Random, exchange: Exchange, status: int, headers: dict[str, str], body: bytes
) -> None:
    """Written past the server, which would refuse to send much of it."""
    head = f"HTTP/1.1 {status} x\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items())
    if not {"content-length", "transfer-encoding"} & set(headers):
        head += "connection: close\r\n"
    transport = exchange._transport
    transport.write(head.encode("latin-1", "replace") + b"\r\n")
    pieces = rng.choice((1, 1, 7))
    for at in range(pieces):
        if transport.is_closing():
            return
        transport.write(body[at * len(body) // pieces : (at + 1) * len(body) // pieces])
        await asyncio.sleep(0)
    exchange.drop()


def _streams(*names: str) -> list[bytes]:
    return [path.read_bytes() for name in names for path in sorted(_FIXTURES.glob(name))]


class HostileOpenAI(openai_compatible.OpenAICompatibleDouble):
    _known = _streams("openai_compat/*.sse")

    async def answer(self, request: Recorded, exchange: Exchange) -> None:
        said = word(request)
        if said is None or request.method != "POST":
            await super().answer(request, exchange)
            return
        rng = Random(said)
        if request.path == openai_compatible.EMBEDDINGS:
            document: Any = {
                "object": "list",
                "data": [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}],
                "model": "m",
                "usage": {"prompt_tokens": 1, "total_tokens": 1},
            }
            streams = [json.dumps(document).encode()]
        else:
            document = {"error": {"message": "m", "type": "t", "param": None, "code": "c"}}
            if rng.random() < 0.3:
                document = self._whole(request, Reply(text="An answer.", reasoning="Hm."))
            calls = [
                {
                    "id": f"call_{i}",
                    "type": "function",
                    "function": {"name": "f", "arguments": '{"a": 1}'},
                }
                for i in range(2)
            ]
            reply = Reply(text="An answer.", reasoning="Hm.", tool_calls=calls)
            streams = [b"".join(self._records(request, reply)), *self._known]
        await answer(rng, exchange, streams, document)


class HostileWeb(qwen_web.QwenWebDouble):
    _known = _streams("*.sse")

    async def answer(self, request: Recorded, exchange: Exchange) -> None:
        said = word(request)
        if said is None or request.path != qwen_web.COMPLETIONS:
            await super().answer(request, exchange)
            return
        rng = Random(said)
        chat_id = request.query.get("chat_id", "x").encode()
        streams = [stream.replace(qwen_web._FIXTURE_CHAT, chat_id) for stream in self._known]
        errors = [case["body"] for case in qwen_web.WEB_ERRORS.values()]
        await answer(rng, exchange, streams, rng.choice(errors))

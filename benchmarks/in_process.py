"""What is measured inside one process, without HTTP: turns of an agent against a real SQLite file.

Run as a module with a scenario's name; the result is one line of JSON. Everything from the body's bytes to
the committed end is the product's own code; the upstream is a stub that answers at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
import statistics
import string
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "qwenproxy.settings")
django.setup()

from django.conf import settings  # noqa: E402  # after setup
from django.db import connections  # noqa: E402

from qwenproxy.access.keys import create_api_key  # noqa: E402
from qwenproxy.access.models import UpstreamAccount  # noqa: E402
from qwenproxy.asgi import _turn_settings  # noqa: E402
from qwenproxy.proxy import schemas  # noqa: E402
from qwenproxy.proxy.account_health import AccountHealth  # noqa: E402
from qwenproxy.proxy.chat import CHAT  # noqa: E402
from qwenproxy.proxy.gateway import Gateway  # noqa: E402
from qwenproxy.proxy.lanes import Lane, Route  # noqa: E402
from qwenproxy.proxy.routing import Routing  # noqa: E402
from qwenproxy.proxy.turn import Caller, Turn  # noqa: E402
from qwenproxy.schema.startup import bring_up_to_date  # noqa: E402
from qwenproxy.upstream.protocol import Account, ModelInfo, UpstreamCall  # noqa: E402
from qwenproxy.wire.events import (  # noqa: E402
    Event,
    Finished,
    Sent,
    Started,
    TextDelta,
    ToolCallDelta,
    UsageReport,
)
from requests_app.recorder import Recorder  # noqa: E402

_random = random.Random(1)
Body = dict[str, Any]


class StubUpstream:
    """Answers at once with `answer`; `sent` is what it claims to have sent."""

    keeps_chats = False
    on_client_left: Literal["finish", "cancel"] = "cancel"

    def __init__(self, account_id: int) -> None:
        self._account = Account(account_id, "stub", "openai_compatible", "http://127.0.0.1/v1")
        self.answer: Sequence[Event] = ()
        self.sent = Sent({}, "")

    @property
    def account(self) -> Account:
        return self._account

    async def stream(self, call: UpstreamCall) -> AsyncGenerator[Sequence[Event], None]:
        yield (self.sent,)
        # As servers do that are asked for it.
        usage = UsageReport(90_000, 400, 90_400)
        yield (Started("stub"), *self.answer, usage, Finished("stop"))

    async def stop(self, started: Started) -> None:
        return

    async def list_models(self) -> list[ModelInfo]:
        return []


class Bench:
    """The gateway's turn path around a stub upstream, on a fresh database."""

    def __init__(self, api_key_id: int, account_id: int) -> None:
        self.upstream = StubUpstream(account_id)
        self._caller = Caller(
            api_key_id, "POST", "/v1/chat/completions", "benchmarks", None, "everything"
        )
        self._recorder = Recorder(
            lock_directory=settings.DATA_DIR / "workers",
            queue_turns=settings.RECORDER_QUEUE_TURNS,
            deadline_s=settings.RECORDER_DEADLINE_S,
            session_ttl=timedelta(hours=settings.SESSION_TTL_H),
        )
        self._lane = Lane(self.upstream, AccountHealth(lambda: None))
        routing = Routing(lambda stored: self.upstream, models_ttl_s=300)
        self._gateway = Gateway(self._recorder, routing, _turn_settings())

    async def __aenter__(self) -> Bench:
        await self._recorder.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._recorder.stop()

    async def turn(self, raw: bytes) -> None:
        """One turn, from the body's bytes to the answer's last byte."""
        body = schemas.parse_chat(raw)
        route = Route(body.model, [self._lane])
        turn = Turn(self._gateway, CHAT, self._caller, body, route)
        stream = await turn.start()
        statuses: list[int] = []

        async def receive() -> dict[str, Any]:
            return await asyncio.Future()

        async def send(message: dict[str, Any]) -> None:
            if "status" in message:
                statuses.append(message["status"])

        await stream.drive(receive, send)
        assert statuses == [200], statuses


def text(size: int) -> str:
    words = ("".join(_random.choices(string.ascii_lowercase, k=7)) for _ in range(size // 8))
    return " ".join(words).ljust(size, ".")


def tools(count: int, total_bytes: int) -> list[Body]:
    size = total_bytes // count - 220
    return [
        {
            "type": "function",
            "function": {
                "name": f"tool_{number}",
                "description": text(size),
                "parameters": {
                    "type": "object",
                    "properties": {"path": {"type": "string"}, "pattern": {"type": "string"}},
                    "required": ["path"],
                },
            },
        }
        for number in range(count)
    ]


def call(number: int, size: int) -> tuple[Body, tuple[Event, ...]]:
    """An assistant message with a tool call, as a client sends it back, and the events it came in."""
    said, arguments = text(size // 2), json.dumps({"path": text(size // 2)})
    call_id = f"call_{number:06d}"
    message = {
        "role": "assistant",
        "content": said,
        "tool_calls": [
            {
                "id": call_id,
                "type": "function",
                "function": {"name": "tool_1", "arguments": arguments},
            }
        ],
    }
    return message, (TextDelta(said), ToolCallDelta(0, call_id, "tool_1", arguments))


def result(number: int, size: int) -> Body:
    return {"role": "tool", "tool_call_id": f"call_{number:06d}", "content": text(size)}


def encode(body: Body) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode()


def _database() -> Path:
    return Path(str(settings.DATABASES["default"]["NAME"]))


def _stored_bytes() -> int:
    connections.close_all()
    path = _database()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


def _rows(table: str) -> int:
    connection = sqlite3.connect(_database())
    try:
        count = connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()
    finally:
        connection.close()
    return int(count[0])


async def agent_request(bench: Bench) -> Body:
    """Target 10: CPU of one turn, continued and first seen, over that of `json.loads` of its bytes."""
    messages: list[Body] = [
        {"role": "system", "content": text(4000)},
        {"role": "user", "content": text(800)},
    ]
    for number in range(99):
        messages += [call(number, 700)[0], result(number, 2540)]
    body = {"model": "bench", "tools": tools(15, 20_000), "messages": messages}
    ratios, turn_us, loads_us, imported = [], [], [], 0.0
    size = len(encode(body))
    for number in range(1000, 1031):
        raw = encode(body)
        bench.upstream.sent = Sent({"model": "bench"}, json.dumps(messages, ensure_ascii=False))
        answered, bench.upstream.answer = call(number, 700)
        loads = statistics.median(_cpu_of_loads(raw) for _ in range(5))
        began = time.process_time()
        await bench.turn(raw)
        cpu = time.process_time() - began
        if number == 1000:
            imported = cpu / loads
        else:
            ratios.append(cpu / loads)
            turn_us.append(cpu * 1e6)
            loads_us.append(loads * 1e6)
        # As an agent's history does, the line grows: by 1 % a turn.
        messages += [answered, result(number, 2540)]
    return {
        "body_bytes": size,
        "ratios": ratios,
        "imported_ratio": imported,
        "turn_us": statistics.median(turn_us),
        "loads_us": statistics.median(loads_us),
    }


def _cpu_of_loads(raw: bytes) -> float:
    began = time.process_time()
    json.loads(raw)
    return time.process_time() - began


async def agent(bench: Bench, *, varies: str = "") -> Body:
    """Target 12: 100 turns, 40 kB of tools, 12 kB of new text each."""
    system = text(8000)
    messages: list[Body] = [{"role": "user", "content": text(1000)}]
    offered, naive = tools(20, 40_000), 0
    for number in range(100):
        head = f"Today is day {number}.\n{system}" if varies == "date" else system
        body: Body = {
            "model": "bench",
            "tools": offered,
            "messages": [{"role": "system", "content": head}, *messages],
        }
        if varies == "parameters":
            body |= {"temperature": number / 100, "metadata": {"turn": str(number)}}
        answered, bench.upstream.answer = call(number, 2000)
        raw = encode(body)
        naive += len(raw) + len(encode(answered))
        await bench.turn(raw)
        messages += [answered, result(number, 10_000)]
    return {"naive_bytes": naive}


async def one_shots(bench: Bench) -> Body:
    """10,000 calls with one 8 kB system prompt."""
    system, naive = text(8000), 0
    bench.upstream.answer = (TextDelta(text(100)),)

    async def one(number: int) -> int:
        said = {"role": "user", "content": f"Question {number}: {text(80)}"}
        raw = encode({"model": "bench", "messages": [{"role": "system", "content": system}, said]})
        await bench.turn(raw)
        return len(raw) + 100

    for start in range(0, 10_000, 50):
        naive += sum(await asyncio.gather(*(one(start + offset) for offset in range(50))))
    return {"naive_bytes": naive}


_SCENARIOS: dict[str, Callable[[Bench], Awaitable[Body]]] = {
    "agent_request": agent_request,
    "agent": agent,
    "agent_parameters": lambda bench: agent(bench, varies="parameters"),
    "agent_date": lambda bench: agent(bench, varies="date"),
    "one_shots": one_shots,
}


def startup() -> Body:
    """What a start pays to find that nothing is pending; the first call opens the connection."""
    took_ms = []
    for _ in range(20):
        connections.close_all()
        began = time.perf_counter()
        bring_up_to_date(lambda line: None)
        took_ms.append((time.perf_counter() - began) * 1000)
    return {"first_ms": took_ms[0], "median_ms": statistics.median(took_ms)}


def scenario(name: str) -> Body:
    bring_up_to_date(lambda line: None)
    api_key, _ = create_api_key(name="benchmarks", scopes=("chat",))
    account = UpstreamAccount.objects.create(
        name="stub", kind="openai_compatible", base_url="http://127.0.0.1/v1"
    )
    empty = _stored_bytes()

    async def run() -> Body:
        async with Bench(api_key.pk, account.pk) as bench:
            return await _SCENARIOS[name](bench)

    found = asyncio.run(run())
    found["stored_bytes"] = _stored_bytes() - empty
    found["blobs"] = _rows("requests_app_blob")
    return found


if __name__ == "__main__":
    print(json.dumps(startup() if sys.argv[1] == "startup" else scenario(sys.argv[1])))

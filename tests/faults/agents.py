"""Agents in conversation over several gateways, each call through another one than the call before.

A turn is a question, the model's call of a tool, the tool's result and the answer: two calls of the
gateway. Every text carries its conversation's secret and says which it is, so that the upstreams (`script`)
see whether a history is whole and nobody else's, and the clients whether an answer is the one to their
question. A call that a gateway refuses or breaks off is made again, through the next one, in other words.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.conftest import NO_TLS
from tests.doubles.openai_compatible import OpenAICompatibleDouble
from tests.doubles.qwen_web import QwenWebDouble
from tests.doubles.server import Exchange, Recorded, Reply
from tests.faults.load import Answer, read_rows

# By the upstream that serves it.
MODELS = {"openai_compatible": "qwen3-8b", "qwen_web": "qwen3-max"}
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look a word up.",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string"}, "turn": {"type": "integer"}},
        },
    },
}
_MARK = re.compile(r"(secret-[0-9a-f]{16}) (question|result) (\d+)")
_WORDS = " ".join(f"word{number}" for number in range(12))
# Of a gateway that is away: then the next try.
_PAUSE_S = 0.1
_CALLS = """
SELECT r.response_id, r.session_id, m.content FROM requests_app_response r
JOIN sessions_app_message m ON m.id = r.reply_id
"""


def _arguments(secret: str, turn: int) -> dict[str, Any]:
    return {"word": secret, "turn": turn}


def _answer(secret: str, turn: int) -> str:
    return f"answer {secret} {turn} {_WORDS}"


@dataclass(slots=True)
class Script:
    """What both upstreams say, and what they saw that they should not have."""

    pace_s: float
    mixed: list[str] = field(default_factory=list)

    def next(self, history: str) -> tuple[str, int, bool]:
        """(secret, turn, whether the tool is to be called) after all texts of a history, which it checks."""
        marks = _MARK.findall(history)
        secret, kind, turn = marks[-1][0], marks[-1][1], int(marks[-1][2])
        wanted = {(secret, name, str(n)) for n in range(turn) for name in ("question", "result")}
        wanted |= {(secret, "question", str(turn)), marks[-1]}
        if set(marks) != wanted:
            self.mixed.append(
                f"{secret} {kind} {turn}: the upstream had {len(set(marks) - wanted)} texts too many, "
                f"{len(wanted - set(marks))} too few"
            )
        return secret, turn, kind == "question"


class OpenAIAgents(OpenAICompatibleDouble):
    """The script as an OpenAI-compatible server."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        self._script = script

    def _model_reply(self, request: Recorded) -> Reply:
        self.requests.clear()
        history = json.dumps(request.body["messages"])
        secret, turn, is_call = self._script.next(history)
        if not is_call:
            return Reply(text=_answer(secret, turn), delay_s=self._script.pace_s)
        function = {"name": "look_up", "arguments": json.dumps(_arguments(secret, turn))}
        call = {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}
        return Reply(text="", tool_calls=[call], delay_s=self._script.pace_s)


class WebAgents(QwenWebDouble):
    """The script as the web API, whose chats hold the history and whose calls are text."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        self._script = script

    async def _complete(self, request: Recorded, exchange: Exchange, reply: Reply | None) -> None:
        self.requests.clear()
        body = request.body
        path = self.chats[body["chat_id"]].path(body["parent_id"])
        texts = [*(text for _, text in path), body["messages"][0]["content"]]
        secret, turn, is_call = self._script.next("\n".join(texts))
        text = _answer(secret, turn)
        if is_call:
            call = json.dumps({"name": "look_up", "arguments": _arguments(secret, turn)})
            text = f"<tool_call>\n{call}\n</tool_call>"
        await super()._complete(request, exchange, Reply(text=text, delay_s=self._script.pace_s))


@dataclass(slots=True, eq=False)
class Call(Answer):
    """A call and its answer; `calls` are the function calls in it, by their index."""

    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    session_id: str = ""
    status: int = 0
    took_s: float = 0.0


class Agents:
    """Conversations that all run at the same time, some turns each."""

    def __init__(self, urls: Sequence[str], key: str, *, conversations: int, turns: int) -> None:
        self.urls = urls
        self.turns = turns
        self.conversations = conversations
        # Those that came to an end of any kind.
        self.calls: list[Call] = []
        self.complaints: list[str] = []
        # Secret -> the sessions that answers which came whole were of.
        self.sessions: dict[str, set[str]] = {}
        self.running = self.most_running = 0
        # What a gateway says that stops, or a proxy that does not reach one.
        self.refusals = {503}
        self._key = key

    async def run(self) -> None:
        limits = httpx.Limits(max_connections=self.conversations, keepalive_expiry=30)
        async with httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"},
            timeout=300,
            verify=NO_TLS,
            limits=limits,
        ) as client:
            await asyncio.gather(
                *(self._converse(client, number) for number in range(self.conversations))
            )

    async def _converse(self, client: httpx.AsyncClient, number: int) -> None:
        secret = f"secret-{uuid.uuid4().hex[:16]}"
        # Half of them with either upstream, half of these streamed.
        model = tuple(MODELS.values())[number % 2]
        body: dict[str, Any] = {"model": model, "stream": number % 4 < 2, "tools": [TOOL]}
        history: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
        gateways = number
        for turn in range(self.turns):
            for kind in ("question", "result"):
                for attempt in range(1000):
                    asked = self._asked(history, f"{secret} {kind} {turn} try {attempt}", kind)
                    call = Call(secret, asked["content"], self.urls[gateways % len(self.urls)])
                    gateways += 1
                    await self._call(client, {**body, "messages": [*history, asked]}, call)
                    if call.is_whole:
                        break
                    await asyncio.sleep(_PAUSE_S)
                self.sessions.setdefault(secret, set()).add(call.session_id)
                history += [asked, self._answered(call, turn, kind)]

    def _asked(self, history: list[dict[str, Any]], text: str, kind: str) -> dict[str, Any]:
        if kind == "question":
            return {"role": "user", "content": text}
        (call,) = history[-1].get("tool_calls") or [{"id": "none"}]
        return {"role": "tool", "tool_call_id": call["id"], "content": text}

    def _answered(self, call: Call, turn: int, kind: str) -> dict[str, Any]:
        """The answer as the history's next message, compared with the one that was to come."""
        message: dict[str, Any] = {"role": "assistant", "content": call.text() or None}
        if call.calls:
            message["tool_calls"] = list(call.calls.values())
        if kind == "question":
            found = [json.loads(c["function"]["arguments"]) for c in call.calls.values()]
            is_right = found == [_arguments(call.secret, turn)] and not call.text().strip()
        else:
            is_right = call.text() == _answer(call.secret, turn) and not call.calls
        if not is_right:
            self.complaints.append(f"{call.question} was answered {json.dumps(message)[:300]}")
        return message

    async def _call(self, client: httpx.AsyncClient, body: dict[str, Any], call: Call) -> None:
        began = time.monotonic()
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        url = f"{call.url}/v1/chat/completions"
        try:
            async with client.stream("POST", url, json=body) as response:
                call.status = response.status_code
                call.session_id = response.headers.get("x-session-id", "")
                if response.status_code != 200:
                    text = (await response.aread()).decode("utf-8", "replace")
                    if response.status_code not in self.refusals:
                        self.complaints.append(f"status {response.status_code}: {text[:300]}")
                elif body["stream"]:
                    await self._read_stream(response, call)
                else:
                    self._read_whole(json.loads(await response.aread()), call)
        except httpx.TransportError:
            pass
        finally:
            self.running -= 1
            call.took_s = time.monotonic() - began
            self.calls.append(call)

    def _read_whole(self, found: dict[str, Any], call: Call) -> None:
        call.response_id = found["id"]
        message = found["choices"][0]["message"]
        call.pieces.append((time.monotonic(), message["content"] or ""))
        call.calls = dict(enumerate(message.get("tool_calls") or []))
        call.is_whole = True

    async def _read_stream(self, response: httpx.Response, call: Call) -> None:
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                return
            call.response_id = chunk["id"]
            for choice in chunk["choices"]:
                delta = choice["delta"]
                call.pieces.append((time.monotonic(), delta.get("content") or ""))
                for piece in delta.get("tool_calls") or []:
                    self._add_piece(call, piece)
                if choice["finish_reason"] in ("stop", "tool_calls"):
                    call.is_whole = True

    def _add_piece(self, call: Call, piece: dict[str, Any]) -> None:
        if piece["index"] not in call.calls:
            call.calls[piece["index"]] = {
                "id": piece["id"],
                "type": "function",
                "function": {"name": piece["function"]["name"], "arguments": ""},
            }
        function = call.calls[piece["index"]]["function"]
        function["arguments"] += piece["function"].get("arguments") or ""

    def differences(self, database_url: str) -> list[str]:
        """What of the answers that came whole is otherwise on record: calls, sessions, how many there are."""
        rows = {row[0]: row[1:] for row in read_rows(database_url, _CALLS)}
        found = []
        for call in self.calls:
            if not call.is_whole:
                continue
            session_id, content = rows.get(call.response_id, ("", '""'))
            if session_id != call.session_id:
                found.append(f"{call.response_id} is in session {session_id}: {call.session_id}")
            stored = json.loads(content)
            calls = stored.get("tool_calls") or [] if isinstance(stored, dict) else []
            if calls != list(call.calls.values()):
                found.append(f"{call.response_id} has other calls on record: {content[:200]}")
        for secret, sessions in self.sessions.items():
            if len(sessions) != 1:
                found.append(f"{secret} is spread over {len(sessions)} sessions")
        if len(set.union(*self.sessions.values())) != len(self.sessions):
            found.append("a session holds two conversations")
        return found

"""Conversations under way while things break, and what each client has to find in the record afterwards.

Every conversation has a secret word, in each of its messages and answers: one that turns up elsewhere
was mixed up. Every question is asked once and says which try it is, so that two requests for one
question are a double row. What a client received is remembered with its time and compared by `check`.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sqlite3
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import psycopg

from qwenproxy.wire.history import decode_content, text_of
from tests.conftest import NO_TLS
from tests.doubles.openai_compatible import OpenAICompatibleDouble
from tests.doubles.server import Recorded, Reply

MODEL = "qwen3-8b"
SECRET = re.compile(r"secret-[0-9a-f]{16}")
# What is promised. Both times are the client's: that of a piece is when it was read, which is later than
# when it was sent, and that of the kill is just before it; neither makes a loss look shorter by itself.
LOSS_S = 1.0
_TOOLS = [
    {
        "type": "function",
        "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}},
    }
]
# Of a gateway that is away: then the next try.
_PAUSE_S = 0.25
_MORE_S = 120.0


class EchoDouble(OpenAICompatibleDouble):
    """Answers each question with itself and some words, at a pace; notes histories of two conversations."""

    def __init__(
        self, *, words: tuple[int, int] = (3, 60), delay_s: float = 0.02, quick: float = 0.0
    ) -> None:
        super().__init__()
        # The share of answers that come without a pause.
        self.quick = quick
        self.words = words
        self.pace_s = delay_s
        self.mixed: list[str] = []

    def _model_reply(self, request: Recorded) -> Reply:
        messages = request.body["messages"]
        self.requests.clear()
        secrets = set(SECRET.findall(json.dumps(messages)))
        if len(secrets) != 1:
            self.mixed.append(f"the upstream was sent messages of {len(secrets)} conversations")
        words = " ".join(f"word{i}" for i in range(random.randint(*self.words)))
        delay_s = 0 if random.random() < self.quick else self.pace_s
        return Reply(text=f"answer to {messages[-1]['content']} {words}", delay_s=delay_s)


@dataclass(slots=True, eq=False)
class Answer:
    """What one client knows of one answer."""

    secret: str
    question: str
    url: str
    response_id: str = ""
    # Text and when it came, by the monotonic clock.
    pieces: list[tuple[float, str]] = field(default_factory=list)
    # Its end was received.
    is_whole: bool = False
    # When its process was killed; null: it was not, so far.
    killed_at: float | None = None

    def text(self, until: float = float("inf")) -> str:
        return "".join(text for at, text in self.pieces if at < until)


class Load:
    """N conversations over one or more gateways until `stop`; each goes on where one is away."""

    def __init__(
        self,
        urls: Sequence[str],
        key: str,
        *,
        conversations: int = 16,
        turns: int = 4,
        max_conversations: int | None = None,
    ) -> None:
        self.urls = urls
        self.key = key
        self.turns = turns
        # Those that came to an end of any kind.
        self.answers: list[Answer] = []
        # Clear text of what no gateway may say, first of all an error 500.
        self.complaints: list[str] = []
        self._conversations = conversations
        # Null: new ones begin until `stop`.
        self._left = max_conversations
        self._stopped = asyncio.Event()
        self._running: list[Answer] = []

    def stop(self) -> None:
        """Let the answers that run come to their end, and ask nothing more."""
        self._stopped.set()

    def note_kill(self, url: str) -> None:
        """Call it just before a SIGKILL: what came more than a second ago is to be kept."""
        now = time.monotonic()
        for answer in self._running:
            if answer.url == url and answer.killed_at is None:
                answer.killed_at = now

    def take(self) -> list[Answer]:
        """Remove and return the answers that ended so far."""
        ended, self.answers = self.answers, []
        return ended

    async def more(self, count: int) -> None:
        """Wait until so many answers more have come to an end.

        Raises:
            TimeoutError: they do not come.
        """
        wanted = len(self.answers) + count
        async with asyncio.timeout(_MORE_S):
            while len(self.answers) < wanted:  # noqa: ASYNC110  # many tasks bring them
                await asyncio.sleep(0.02)

    async def run(self) -> None:
        limits = httpx.Limits(max_connections=self._conversations + 4)
        async with httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=60,
            verify=NO_TLS,
            limits=limits,
        ) as client:
            await asyncio.gather(*(self._converse(client) for _ in range(self._conversations)))

    async def _converse(self, client: httpx.AsyncClient) -> None:
        while not self._stopped.is_set():
            if self._left is not None:
                if self._left == 0:
                    return
                self._left -= 1
            await self._conversation(client, f"secret-{uuid.uuid4().hex[:16]}")

    async def _conversation(self, client: httpx.AsyncClient, secret: str) -> None:
        history: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}]
        is_stream, has_tools = random.random() < 0.7, random.random() < 0.3
        for turn in range(self.turns):
            attempt = 0
            while not self._stopped.is_set():
                question = f"{secret} turn {turn} try {attempt}"
                asked = {"role": "user", "content": question}
                body = {"model": MODEL, "stream": is_stream, "messages": [*history, asked]}
                if has_tools:
                    body["tools"] = _TOOLS
                answer = Answer(secret, question, random.choice(self.urls))
                await self._ask(client, body, answer)
                if answer.is_whole:
                    history += [asked, {"role": "assistant", "content": answer.text()}]
                    break
                attempt += 1
                await asyncio.sleep(_PAUSE_S)

    async def _ask(self, client: httpx.AsyncClient, body: dict[str, Any], answer: Answer) -> None:
        self._running.append(answer)
        url = f"{answer.url}/v1/chat/completions"
        try:
            async with client.stream("POST", url, json=body) as response:
                if response.status_code != 200:
                    text = (await response.aread()).decode("utf-8", "replace")
                    # A gateway that stops, or cannot record, refuses.
                    if response.status_code != 503:
                        self.complaints.append(f"status {response.status_code}: {text[:300]}")
                elif body["stream"]:
                    await self._read_stream(response, answer)
                else:
                    self._read_whole(json.loads(await response.aread()), answer)
        except httpx.TransportError:
            pass
        finally:
            self._running.remove(answer)
            self.answers.append(answer)

    def _read_whole(self, found: dict[str, Any], answer: Answer) -> None:
        answer.response_id = found["id"]
        answer.pieces.append((time.monotonic(), found["choices"][0]["message"]["content"]))
        answer.is_whole = True

    async def _read_stream(self, response: httpx.Response, answer: Answer) -> None:
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                return
            answer.response_id = chunk["id"]
            for choice in chunk["choices"]:
                answer.pieces.append((time.monotonic(), choice["delta"].get("content") or ""))
                if choice["finish_reason"] == "stop":
                    answer.is_whole = True


@dataclass(slots=True)
class Findings:
    """What a comparison saw; `differences` is empty where the promises held."""

    differences: list[str] = field(default_factory=list)
    whole: int = 0
    partial: int = 0
    # Of answers that were killed: the longest time before the kill of which text is missing, in seconds.
    longest_loss_s: float = 0.0

    def add(self, other: Findings) -> None:
        self.differences += other.differences
        self.whole += other.whole
        self.partial += other.partial
        self.longest_loss_s = max(self.longest_loss_s, other.longest_loss_s)


def read_rows(database_url: str, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
    """Ask the database without any code of the gateway; `%s` marks parameters on both engines."""
    if database_url.startswith("sqlite:///"):
        path = database_url.removeprefix("sqlite:///")
        # Not read-only: SQLite may have to recover the log of a killed process first.
        connection = sqlite3.connect(path, timeout=30)
        try:
            return connection.execute(sql.replace("%s", "?"), tuple(parameters)).fetchall()
        finally:
            connection.close()
    with psycopg.connect(database_url) as server:
        return server.execute(sql, tuple(parameters)).fetchall()  # type: ignore[arg-type]  # a constant


_RECORDED = """
SELECT r.response_id, r.status, r.session_id, m.role, m.content, p.content
FROM requests_app_response r JOIN requests_app_request q ON q.id = r.request_id
LEFT JOIN sessions_app_message m ON m.id = r.reply_id
LEFT JOIN sessions_app_message p ON p.id = q.prompt_id
WHERE r.response_id IN ({})
"""
_BROKEN = {
    "requests without a response": """
SELECT q.request_id FROM requests_app_request q
LEFT JOIN requests_app_response r ON r.request_id = q.id WHERE r.id IS NULL""",
    "ended responses without an end": """
SELECT response_id FROM requests_app_response WHERE status <> 'in_progress'
 AND (completed_at IS NULL OR finish_reason IS NULL OR http_status IS NULL)""",
    "parts of ended answers": """
SELECT r.response_id FROM requests_app_partial p
JOIN requests_app_response r ON r.id = p.response_id WHERE r.status <> 'in_progress'""",
    "questions with two requests": """
SELECT m.content FROM requests_app_request q JOIN sessions_app_message m ON m.id = q.prompt_id
GROUP BY m.id, m.content HAVING COUNT(*) > 1""",
    "responses without an end state": """
SELECT response_id FROM requests_app_response WHERE status = 'in_progress'""",
}
_CONTENTS = "SELECT session_id, content FROM sessions_app_message"


def compare(
    database_url: str, answers: Iterable[Answer], *, later: list[Answer] | None = None
) -> Findings:
    """Compare what clients received with the record.

    Broken answers that are still in progress there are put into `later`: a dead process is settled by
    the next start or within 15 s. Without it they count as they are.
    """
    found = Findings()
    known = [answer for answer in answers if answer.response_id]
    for start in range(0, len(known), 500):
        part = known[start : start + 500]
        marks = ", ".join(["%s"] * len(part))
        rows = read_rows(database_url, _RECORDED.format(marks), [a.response_id for a in part])
        recorded = {row[0]: row[1:] for row in rows}
        for answer in part:
            row = recorded.get(answer.response_id)
            if later is not None and row and row[0] == "in_progress" and not answer.is_whole:
                later.append(answer)
            else:
                _compare(answer, row, found)
    return found


def check(database_url: str, answers: Iterable[Answer]) -> Findings:
    """Do that and look at all rows; no gateway has anything to do any more."""
    found = compare(database_url, answers)
    for what, sql in _BROKEN.items():
        found.differences += [f"{what}: {row[0]}" for row in read_rows(database_url, sql)]
    secrets: dict[str, set[str]] = {}
    for session_id, content in read_rows(database_url, _CONTENTS):
        secrets.setdefault(session_id, set()).update(SECRET.findall(content))
    found.differences += [
        f"session {session_id} holds {len(words)} conversations"
        for session_id, words in secrets.items()
        if len(words) > 1
    ]
    return found


def _compare(answer: Answer, row: Sequence[Any] | None, found: Findings) -> None:
    """One answer that a client received some of."""
    if row is None:
        found.differences.append(f"{answer.response_id} is not on record ({answer.question})")
        return
    status, _, role, content, prompt = row
    stored = text_of(decode_content(role, content)) if content is not None else ""
    if answer.question not in (prompt or ""):
        found.differences.append(f"{answer.response_id} answers another question: {prompt}")
    if answer.is_whole:
        found.whole += 1
        if status != "completed" or stored != answer.text():
            found.differences.append(
                f"{answer.response_id} was received whole and is {status},"
                f" {len(stored)} of {len(answer.text())} characters ({answer.question})"
            )
        return
    found.partial += 1
    if answer.killed_at is None:
        # It ended by an error that the gateway told: all that was sent is on record.
        if not stored.startswith(answer.text()):
            found.differences.append(f"{answer.response_id} broke off and lost text")
        return
    length = 0
    for at, text in answer.pieces:
        length += len(text)
        if length > len(stored):
            found.longest_loss_s = max(found.longest_loss_s, answer.killed_at - at)
            break
    if not stored.startswith(answer.text(answer.killed_at - LOSS_S)):
        found.differences.append(
            f"{answer.response_id} lost what came more than {LOSS_S} s before the kill"
        )

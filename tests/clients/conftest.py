"""A home for a client, and a gateway behind which a model reads a file."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import pytest

from requests_app.models import Request
from tests.clients.running import Home
from tests.clients.scripted_agent import ReadingAgent
from tests.proxy.conftest import open_gateway, serve_upstream, upstream  # noqa: F401  # fixtures

TASK = "What is in the file notes.txt?"


@pytest.fixture
def home(tmp_path) -> Home:
    path, work = tmp_path / "home", tmp_path / "work"
    path.mkdir()
    work.mkdir()
    word = f"heron-{secrets.token_hex(6)}"
    notes = work / "notes.txt"
    notes.write_text(f"The word is {word}.\n", "utf-8")
    return Home(path, work, notes, word)


@dataclass
class ReadingTask:
    """To read `home.notes` with a model of the gateway at `url`."""

    home: Home
    agent: ReadingAgent
    kind: str
    model: str
    url: str
    api_key: str

    def check(self, answer: str, dialect: str = "chat") -> None:
        """The answer tells the word, after one call; its turns are one session, and one web chat."""
        assert self.home.word in answer, (answer, self.agent.asked)
        assert len(self.agent.calls) == 1
        rows = list(Request.objects.filter(tools__isnull=False).order_by("id"))
        assert {row.dialect for row in rows} == {dialect}
        assert len({row.session_id for row in rows}) == 1
        if self.kind == "qwen_web":
            # Qwen Code begins with an answer of its own making.
            assert rows[0].upstream in ("new", "rebuilt:unknown")
            assert [row.upstream for row in rows[1:]] == ["continued"]


@pytest.fixture
def reading(home, open_gateway, upstream) -> ReadingTask:  # noqa: F811
    agent = ReadingAgent(upstream, str(home.notes))
    gateway = open_gateway()
    return ReadingTask(home, agent, upstream.kind, upstream.model, gateway.url, gateway.api_key)

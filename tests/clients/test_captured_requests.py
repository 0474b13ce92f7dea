"""Requests as agents sent them: accepted, recorded, given back, and gone on from.

The captures are no part of this repository: they are read where a checkout has `shared/` beside it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from requests_app.models import Request
from sessions_app.models import Session
from tests.doubles.server import Reply
from tests.proxy.conftest import open_gateway, serve_upstream, upstream  # noqa: F401  # fixtures

CAPTURES = Path(__file__).resolve().parents[3] / "shared" / "reference" / "fixtures" / "clients"


def captured() -> list[Any]:
    found = []
    for path in sorted(CAPTURES.rglob("*.json")):
        body = json.loads(path.read_text("utf-8"))
        # The scenarios have the single tools too.
        if "messages" in body and not path.name.startswith(("tools_", "models_")):
            found.append(pytest.param(body, id=str(path.relative_to(CAPTURES).with_suffix(""))))
    skip = pytest.mark.skip(reason="there are no captures here: shared/reference/fixtures/clients")
    return found or [pytest.param({}, id="none", marks=skip)]


def text_of(answer: Any) -> str:
    """An answer's text, streamed or whole."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return answer.json()["choices"][0]["message"]["content"]
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    deltas = [choice["delta"] for line in lines for choice in json.loads(line)["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


@pytest.mark.parametrize("body", captured())
def test_a_captured_request_is_recorded_whole_and_gone_on_from(open_gateway, upstream, body):  # noqa: F811
    gateway = open_gateway()
    body = {**body, "model": upstream.model}
    upstream.enqueue(Reply(text="I see."), Reply(text="And more."))
    answer = gateway.http.post("/v1/chat/completions", json=body)
    assert (answer.status_code, text_of(answer)) == (200, "I see."), answer.text
    record = gateway.http.get(f"/v1/requests/{answer.headers['x-request-id']}").json()
    assert record["openai_request"] == body
    assert record["qwen_request_exact"] is True
    said = [{"role": "assistant", "content": "I see."}, {"role": "user", "content": "Go on."}]
    following = {**body, "messages": [*body["messages"], *said]}
    answer = gateway.http.post("/v1/chat/completions", json=following)
    assert (answer.status_code, text_of(answer)) == (200, "And more."), answer.text
    record = gateway.http.get(f"/v1/requests/{answer.headers['x-request-id']}").json()
    assert record["openai_request"] == following
    assert Session.objects.count() == 1
    if upstream.kind == "qwen_web":
        rows = Request.objects.order_by("id")
        assert [row.upstream for row in rows][1:] == ["continued"]

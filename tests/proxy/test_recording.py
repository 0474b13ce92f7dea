"""What a key lets be recorded, and redaction rules: nothing planted reaches the database or the log,
while conversations go on as ever."""

from __future__ import annotations

import json
import logging

import httpx
import pytest
from django.apps import apps

from qwenproxy.access.auth import invalidate
from qwenproxy.access.models import ApiKey
from qwenproxy.wire.redaction import Redaction, compile_rules
from requests_app.models import Partial, Request, Response
from sessions_app.models import Message, Session
from tests.doubles.server import Reply
from tests.proxy.conftest import ended_response, wait_until

PLANTED = "EMP123456"
SYSTEM = {"role": "system", "content": f"Serve {PLANTED} well."}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": f"about {PLANTED}",
            "parameters": {"type": "object", "properties": {}},
        },
    }
]
HEADERS = {"user-agent": f"agent/1 {PLANTED}", "x-team": f"blue {PLANTED}"}


def database_text() -> str:
    """Every value of every table."""
    return "\n".join(
        str(list(model.objects.values()))
        for app in ("sessions_app", "requests_app")
        for model in apps.get_app_config(app).get_models()
    )


def converse(running, upstream, *, turns=3, headers=None):
    messages = [SYSTEM]
    for turn in range(turns):
        messages.append(
            {"role": "user", "content": f"I am {PLANTED}, turn {turn}. Please pick a word."}
        )
        answer = running.http.post(
            "/v1/chat/completions",
            json={
                "model": upstream.model,
                "messages": messages,
                "tools": TOOLS,
                "temperature": 0.5,
                "metadata": {"who": PLANTED},
                "user": f"u-{PLANTED}",
            },
            headers=headers or {},
        )
        assert answer.status_code == 200, answer.text
        messages.append(answer.json()["choices"][0]["message"])
    return messages


@pytest.fixture
def no_content(api_key):
    ApiKey.objects.update(recorded="metadata")
    invalidate()


def test_a_key_may_keep_no_content_and_conversations_go_on(
    no_content, upstream, open_gateway, caplog
):
    running = open_gateway()
    messages = converse(running, upstream)
    stored = database_text()
    assert PLANTED not in stored.replace(f"u-{PLANTED}", "")
    for message in messages:
        assert message["content"] not in stored
    assert PLANTED not in caplog.text
    session = Session.objects.get()
    assert (session.message_count, session.request_count, session.title) == (6, 3, "")
    assert set(Message.objects.values_list("content", flat=True)) == {"{}"}
    requests = Request.objects.order_by("id")
    assert [row.match for row in requests] == ["new", "continued", "continued"]
    if upstream.kind == "qwen_web":
        assert [row.upstream for row in requests] == ["new", "continued", "continued"]
        assert len(upstream.double.chats) == 1
    row = Response.objects.order_by("id").last()
    assert row.total_tokens > 0
    assert row.duration_ms is not None
    detail = running.http.get(f"/v1/requests/{requests[0].pk}").json()
    assert detail["recorded"] == "metadata"
    assert detail["openai_request"] is detail["qwen_request"] is None
    assert detail["response"]["openai_response"] is None
    assert detail["account"] == upstream.account.name
    assert json.loads(requests[0].parameters)["temperature"] == 0.5
    assert running.http.get(f"/v1/sessions/{session.pk}").status_code == 200
    assert running.http.get("/v1/sessions").status_code == 200


@pytest.mark.parametrize(
    "more", [pytest.param({}, id="message"), pytest.param({"code": f"bad {PLANTED}"}, id="code")]
)
def test_a_failure_that_quotes_the_prompt_keeps_its_code_alone(
    more, no_content, serve_upstream, open_gateway
):
    upstream = serve_upstream("openai_compatible")
    upstream.enqueue(Reply(body={"error": {"message": f"bad {PLANTED}", **more}}, status=400))
    running = open_gateway(UPSTREAM_RETRIES=0)
    answer = running.ask(upstream.model)
    assert PLANTED in answer.text
    assert PLANTED not in database_text()
    assert ended_response().error_message == "upstream_refused"


def test_rules_replace_what_is_stored_and_change_nothing_else(upstream, open_gateway, caplog):
    running = open_gateway(
        REDACTION=compile_rules([r"EMP\d{6}"]), RECORD_HEADERS=frozenset({"user-agent", "x-team"})
    )
    converse(running, upstream, headers=HEADERS)
    logging.getLogger("qwenproxy").warning("about %s", "nothing")
    stored = database_text()
    assert PLANTED not in stored
    assert "I am [redacted], turn 0" in stored
    if upstream.kind == "openai_compatible":
        sent = upstream.turns[-1].body["messages"]
        assert sent[0] == SYSTEM
        assert PLANTED in sent[1]["content"]
    requests = Request.objects.order_by("id")
    assert [row.match for row in requests] == ["new", "continued", "continued"]
    detail = running.http.get(f"/v1/requests/{requests[0].pk}").json()
    assert detail["user_agent"] == "agent/1 [redacted]"
    assert detail["headers"] == {"x-team": "blue [redacted]"}
    assert detail["openai_request"]["messages"][0]["content"] == "Serve [redacted] well."
    assert detail["openai_request"]["tools"][0]["function"]["description"] == "about [redacted]"
    assert Session.objects.get().user_id.startswith("redacted-")


def test_two_redacted_users_stay_two(serve_upstream, open_gateway):
    upstream = serve_upstream("openai_compatible")
    running = open_gateway(REDACTION=compile_rules(["@email"]))
    for name in ("ann@example.org", "bob@example.org", "ann@example.org"):
        assert running.ask(upstream.model, user=name).status_code == 200
    assert len(set(Session.objects.values_list("user_id", flat=True))) == 2


def test_rules_hold_for_what_a_key_without_content_leaves(no_content, upstream, open_gateway):
    running = open_gateway(
        REDACTION=compile_rules([r"EMP\d{6}"]), RECORD_HEADERS=frozenset({"user-agent", "x-team"})
    )
    converse(running, upstream, headers={**HEADERS, "x-session-id": f"s-{PLANTED}"})
    assert PLANTED not in database_text()
    assert Request.objects.first().headers == '{"x-team":"blue [redacted]"}'
    assert Session.objects.get().external_id.startswith("redacted-")


def test_what_comes_with_every_request_is_redacted_once(serve_upstream, open_gateway, monkeypatch):
    looked_at = []
    find = Redaction.text
    monkeypatch.setattr(
        Redaction, "text", lambda self, text: looked_at.append(text) or find(self, text)
    )
    upstream = serve_upstream("openai_compatible")
    running = open_gateway(REDACTION=compile_rules([r"EMP\d{6}"]))
    converse(running, upstream)
    assert looked_at.count(SYSTEM["content"]) == 1


@pytest.mark.parametrize("mode", ["metadata", "rules"])
def test_what_a_running_answer_stores_holds_nothing_planted(
    mode, request, serve_upstream, open_gateway
):
    overrides = {"REDACTION": compile_rules([r"EMP\d{6}"])} if mode == "rules" else {}
    upstream = serve_upstream("openai_compatible")
    if mode == "metadata":
        request.getfixturevalue("no_content")
    held = Reply(text=f"All about {PLANTED}. " + "word " * 600, pause_after=500)
    upstream.enqueue(held)
    running = open_gateway(**overrides)
    with running.open_stream(upstream.model) as answer:
        assert held.paused.wait(10)
        stored = "word word" if mode == "rules" else "upstream"
        wait_until(lambda: stored in database_text() and Partial.objects.count())
        assert PLANTED not in database_text()
        held.resume.set()
        text = answer.read().decode()
    assert PLANTED in text
    assert PLANTED not in database_text()


def test_only_listed_headers_are_recorded(serve_upstream, open_gateway):
    upstream = serve_upstream("openai_compatible")
    running = open_gateway(RECORD_HEADERS=frozenset())
    answer = running.http.post(
        "/v1/chat/completions",
        json={"model": upstream.model, "messages": [{"role": "user", "content": "Hi"}]},
        headers=HEADERS,
    )
    assert answer.status_code == httpx.codes.OK
    row = Request.objects.get()
    assert (row.user_agent, row.headers) == ("", "")

"""The record of real turns, read over the API of the running gateway."""

from __future__ import annotations

import json

import pytest

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Look it up.",
            "parameters": {"type": "object", "properties": {"q": {"type": "string"}}},
        },
    }
]


@pytest.fixture
def web_account(make_account, qwen_web_url):
    return make_account("qwen_web", qwen_web_url, secrets={"cookies": "token=secret-cookie"})


@pytest.fixture
def chat_account(make_account, openai_compatible_url):
    return make_account(
        "openai_compatible", openai_compatible_url, secrets={"api_key": "secret-key"}
    )


def ask(http, body):
    """Ask, and return the answer with the record of its request."""
    response = http.post("/v1/chat/completions", content=json.dumps(body))
    assert response.status_code == 200, response.text
    record = http.get(f"/v1/requests/{response.headers['x-request-id']}")
    assert record.status_code == 200, record.text
    assert "secret" not in record.text
    return response.json(), record.json()


def web_text(record):
    return record["qwen_request"]["messages"][0]["content"]


@pytest.mark.usefixtures("chat_account")
def test_a_call_to_an_openai_compatible_server(http, openai_compatible):
    body = {
        "model": "qwen3-8b",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi \0 你好"}]},
        ],
        "tools": TOOLS,
        "temperature": 0.25,
        "seed": 123456789012345678901234567890,
    }
    answer, record = ask(http, body)
    assert record["openai_request"] == body
    assert record["qwen_request_exact"] is True
    assert record["qwen_request"] == openai_compatible.turns[-1].body
    assert record["response"]["openai_response"] == answer


@pytest.mark.usefixtures("web_account")
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["plain", "tools"])
def test_a_conversation_with_the_web_upstream(http, qwen_web, tools):
    body = {"model": "qwen3-max", "messages": [{"role": "user", "content": "Please pick a word."}]}
    if tools:
        body["tools"] = tools
    answer, first = ask(http, body)
    text = answer["choices"][0]["message"]["content"]
    body["messages"] += [
        {"role": "assistant", "content": text},
        {"role": "user", "content": "Which?"},
    ]
    answer, second = ask(http, body)
    assert second["openai_request"]["messages"] == body["messages"]
    for record, turn in zip((first, second), qwen_web.turns, strict=True):
        assert record["qwen_request_exact"] is True
        assert web_text(record) == turn.body["messages"][0]["content"]
        assert record["qwen_request"]["chat_id"] == turn.body["chat_id"]
        assert record["response"]["parent_id"]
    assert second["session_id"] == first["session_id"]
    session = http.get(f"/v1/sessions/{first['session_id']}").json()
    assert session["first_user_message"] == "Please pick a word."
    assert (session["message_count"], session["request_count"]) == (4, 2)
    assert session["chat_id"] == second["qwen_request"]["chat_id"]
    assert session["parent_id"] == second["response"]["parent_id"]
    stats = http.get(f"/v1/sessions/{first['session_id']}/stats").json()["usage"]
    assert stats["total_responses"] == 2
    assert stats["total_tokens"] == sum(r["response"]["total_tokens"] for r in (first, second))


@pytest.mark.usefixtures("web_account")
def test_a_session_deleted_over_the_api_is_gone(http):
    body = {"model": "qwen3-max", "messages": [{"role": "user", "content": "Hello"}]}
    _, record = ask(http, body)
    url = f"/v1/sessions/{record['session_id']}"
    assert http.delete(url).json() == {"deleted": True, "session_id": record["session_id"]}
    assert http.get(url).status_code == 404
    assert http.get(f"/v1/requests/{record['id']}").status_code == 404
    assert http.get("/v1/responses").json()["total"] == 0


def test_errors_have_openais_form(http):
    for path, status, code in (
        ("/v1/requests?limit=0", 400, "invalid_limit"),
        ("/v1/sessions?offset=99999999999999999999", 400, "invalid_offset"),
        ("/v1/requests/nope", 400, "invalid_id"),
        ("/v1/sessions/nope", 404, "session_not_found"),
        ("/v1/sessions/%00", 404, "session_not_found"),
        ("/v1/requests?model=%00", 400, "invalid_model"),
    ):
        response = http.get(path)
        assert response.status_code == status, path
        assert response.json()["error"]["code"] == code

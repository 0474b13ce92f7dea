from __future__ import annotations

import json

import openai
import pytest

from requests_app.models import Partial, Request, Response
from sessions_app.models import Message, Session
from tests.conftest import sse_bodies

HELLO = [{"role": "user", "content": "Hello 你好"}]


@pytest.fixture(autouse=True)
def account(make_account, openai_compatible_url):
    return make_account("openai_compatible", openai_compatible_url)


def test_a_whole_answer_is_recorded_before_the_client_has_it(openai_client):
    answer = openai_client.chat.completions.create(model="qwen3-8b", messages=HELLO)
    assert answer.choices[0].message.content == "You said: Hello 你好"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "qwen3-8b"
    response = Response.objects.get()
    assert response.response_id == answer.id
    assert (response.status, response.finish_reason, response.http_status) == (
        "completed",
        "stop",
        200,
    )
    assert response.total_tokens == answer.usage.total_tokens
    assert response.usage_source == "reported"
    assert json.loads(response.reply.content) == "You said: Hello 你好"
    request = Request.objects.get()
    assert (request.match, request.upstream, request.dialect) == ("new", "whole", "chat")
    assert request.prompt.role == "user"
    session = Session.objects.get()
    assert (session.message_count, session.request_count) == (2, 1)
    assert session.title == "Hello 你好"
    assert Partial.objects.count() == 0


def test_a_whole_answer_tells_its_length(http):
    answer = http.post("/v1/chat/completions", json={"model": "qwen3-8b", "messages": HELLO})
    assert int(answer.headers["content-length"]) == len(answer.content)


def test_a_stream_has_role_first_and_the_end_mark_last(http):
    with http.stream(
        "POST",
        "/v1/chat/completions",
        json={"model": "qwen3-8b", "messages": HELLO, "stream": True},
    ) as response:
        text = response.read().decode()
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    chunks = sse_bodies(text)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks) == (
        "You said: Hello 你好"
    )
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert all("usage" not in chunk for chunk in chunks)
    assert text.endswith("data: [DONE]\n\n")
    row = Response.objects.get()
    assert row.status == "completed"
    assert row.response_id == chunks[0]["id"]
    assert response.headers["x-request-id"] == row.request.request_id
    assert response.headers["x-session-id"] == row.session_id


def test_usage_comes_in_a_last_chunk_when_asked_for(openai_client):
    stream = openai_client.chat.completions.create(
        model="qwen3-8b", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == Response.objects.get().total_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_conversation_of_ten_turns_is_one_session_with_each_message_once(openai_client):
    messages = []
    for turn in range(10):
        messages.append({"role": "user", "content": f"turn {turn}"})
        answer = openai_client.chat.completions.create(model="qwen3-8b", messages=messages)
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})
    session = Session.objects.get()
    assert (session.message_count, session.request_count) == (20, 10)
    assert Message.objects.count() == 20
    assert [r.match for r in Request.objects.order_by("id")] == ["new"] + ["continued"] * 9


def test_regenerating_and_editing_fork_the_same_session(openai_client, openai_compatible):
    first = [{"role": "user", "content": "one"}]
    answer = openai_client.chat.completions.create(model="qwen3-8b", messages=first)
    history = [*first, {"role": "assistant", "content": answer.choices[0].message.content}]
    openai_compatible.enqueue("answer a", "answer b", "answer c")
    for text in ("two", "two", "two, edited"):
        openai_client.chat.completions.create(
            model="qwen3-8b", messages=[*history, {"role": "user", "content": text}]
        )
    assert Session.objects.count() == 1
    assert [r.match for r in Request.objects.order_by("id")] == [
        "new", "continued", "forked", "forked",
    ]  # fmt: skip
    two = Message.objects.get(content='"two"')
    assert sorted(two.children.values_list("content", flat=True)) == ['"answer a"', '"answer b"']


def test_an_unknown_history_is_imported_whole(openai_client):
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "canned"},
        {"role": "user", "content": "b"},
    ]
    openai_client.chat.completions.create(model="qwen3-8b", messages=messages)
    assert Request.objects.get().match == "imported"
    assert Message.objects.filter(given=True).count() == 1
    assert Session.objects.get().message_count == 4


@pytest.mark.parametrize(
    ("body", "param"),
    [
        pytest.param({"messages": []}, "messages", id="empty"),
        pytest.param({"messages": "hi"}, "messages", id="text"),
        pytest.param({"messages": ["hi"]}, "messages.0", id="no-object"),
        pytest.param(
            {"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", id="role"
        ),
        pytest.param(
            {"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id", id="tool"
        ),
        pytest.param({"messages": [{"role": "user"}]}, "messages.0.content", id="no-content"),
        pytest.param(
            {"messages": [{"role": "user", "content": 5}]}, "messages.0.content", id="number"
        ),
        pytest.param({"messages": HELLO, "max_tokens": -1}, "max_tokens", id="negative"),
        pytest.param({"messages": HELLO, "temperature": "hot"}, "temperature", id="temperature"),
        pytest.param({"messages": HELLO, "n": 2}, "n", id="n"),
        pytest.param({"messages": HELLO, "stream": "yes"}, "stream", id="stream"),
        pytest.param({"messages": HELLO, "tools": {}}, "tools", id="tools"),
        pytest.param({"messages": HELLO, "model": 4}, "model", id="model"),
        pytest.param(
            {"messages": [{"role": "tool", "tool_call_id": "", "content": "x"}]},
            "messages.0.tool_call_id",
            id="tool-empty",
        ),
        pytest.param(
            {"messages": HELLO, "stream_options": {"include_usage": "yes"}},
            "stream_options.include_usage",
            id="include-usage",
        ),
        pytest.param({"messages": HELLO, "user": "u" * 513}, "user", id="user"),
        pytest.param({"messages": HELLO, "stop": 7}, "stop", id="stop"),
        pytest.param({"messages": HELLO, "stop": ["a", None]}, "stop", id="stop-null"),
        pytest.param(
            {"messages": HELLO, "response_format": "json"}, "response_format", id="format"
        ),
        pytest.param(
            {"messages": HELLO, "response_format": {}}, "response_format.type", id="format-type"
        ),
        pytest.param(
            {"messages": HELLO, "response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            id="json-schema",
        ),
        pytest.param(
            {
                "messages": HELLO,
                "response_format": {"type": "json_schema", "json_schema": {"schema": []}},
            },
            "response_format.json_schema.schema",
            id="schema",
        ),
    ],
)
def test_a_wrong_body_is_refused_naming_the_field_and_leaves_nothing(http, body, param):
    answer = http.post("/v1/chat/completions", json={"model": "qwen3-8b", **body})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert Request.objects.count() == Session.objects.count() == Message.objects.count() == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": False, "top_logprobs": None},
        {"user": "u" * 512},
        {"stream_options": {"include_usage": None}},
    ],
    ids=["no-logprobs", "long-user", "null-usage"],
)
def test_what_asks_for_nothing_more_is_served(http, fields):
    body = {"model": "qwen3-8b", "messages": HELLO, **fields}
    assert http.post("/v1/chat/completions", json=body).status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="cut"),
        pytest.param(b"[]", id="list"),
        pytest.param(b'{"messages": "\xff\xfe"}', id="broken-utf8"),
        pytest.param(b'{"temperature": NaN}', id="nan"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(
            b'{"messages":[{"role":"user","content":"x"}],"metadata":'
            + b"[" * 300
            + b"]" * 300
            + b"}",
            id="nested",
        ),
    ],
)
def test_what_is_not_json_is_refused(http, content):
    answer = http.post("/v1/chat/completions", content=content)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"


def test_an_unknown_model_is_404_as_openai_has_it(openai_client):
    with pytest.raises(openai.NotFoundError) as caught:
        openai_client.chat.completions.create(model="qwen9-imaginary", messages=HELLO)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"


def test_a_wrong_key_is_401(gateway_url):
    client = openai.OpenAI(base_url=f"{gateway_url}/v1", api_key="qp-wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError), client:
        client.chat.completions.create(model="qwen3-8b", messages=HELLO)


def test_a_body_over_the_limit_is_413(http, settings):
    settings.MAX_BODY_BYTES = 1000
    body = {"model": "qwen3-8b", "messages": [{"role": "user", "content": "x" * 5000}]}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('"a\\ud800b"', id="lone-surrogate"),
        pytest.param('"a\\u0000b"', id="nul"),
        pytest.param('"\\u2028 \U0001f600 你好"', id="unicode"),
    ],
)
def test_any_text_survives(http, openai_compatible, text):
    openai_compatible.enqueue("fine")
    body = '{"model":"qwen3-8b","messages":[{"role":"user","content":%s}],"seed":123456789012345678901234567890,"temperature":1.0}'
    answer = http.post("/v1/chat/completions", content=(body % text).encode())
    assert answer.status_code == 200
    sent = openai_compatible.requests_to("/v1/chat/completions")[-1].body
    assert sent["messages"][0]["content"] == json.loads(text)
    assert sent["seed"] == 123456789012345678901234567890
    assert json.loads(Message.objects.get(role="user").content) == json.loads(text)
    parameters = Request.objects.get().parameters
    assert '"seed":123456789012345678901234567890' in parameters
    assert '"temperature":1.0' in parameters


def test_the_record_shows_the_answer_that_the_client_got(http):
    body = {"model": "gpt-4o", "messages": HELLO}
    answer = http.post("/v1/chat/completions", json=body).json()
    assert answer["model"] == "qwen3-8b"
    assert http.get(f"/v1/responses/{answer['id']}").json()["openai_response"] == answer
    recorded = http.get("/v1/requests").json()["data"][0]
    detail = http.get(f"/v1/requests/{recorded['request_id']}").json()
    assert detail["openai_request"] == body


def test_reasoning_comes_apart_and_is_recorded_apart(openai_client, openai_compatible):
    from tests.doubles.server import Reply

    openai_compatible.enqueue(Reply(text="42", reasoning="Let me think."))
    answer = openai_client.chat.completions.create(model="qwen3-8b", messages=HELLO)
    assert answer.choices[0].message.content == "42"
    assert answer.choices[0].message.reasoning_content == "Let me think."
    row = Response.objects.get()
    assert row.reasoning == "Let me think."
    assert json.loads(row.reply.content) == "42"


def test_native_tools_pass_through(openai_client, openai_compatible):
    from tests.doubles.server import Reply

    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    openai_compatible.enqueue(Reply(text="", tool_calls=[call]))
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    answer = openai_client.chat.completions.create(
        model="qwen3-8b", messages=HELLO, tools=tools, tool_choice="auto"
    )
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"a":1}'
    sent = openai_compatible.requests_to("/v1/chat/completions")[-1].body
    assert sent["tools"] == tools
    assert sent["tool_choice"] == "auto"
    assert json.loads(Request.objects.get().tools.body) == tools

"""`POST /v1/messages` and `/count_tokens` against both kinds of upstream, by plain HTTP."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from qwenproxy.access import auth
from qwenproxy.access.models import ApiKey
from qwenproxy.wire.anthropic_bodies import SIGNATURE
from requests_app.models import Request
from sessions_app.models import Message, Session
from tests.conftest import sse_bodies
from tests.doubles.server import Reply
from tests.proxy.conftest import HELLO, ended_response

TOOL = {
    "name": "read_file",
    "description": "Reads a file.",
    "input_schema": {
        "type": "object",
        "properties": {"path": {"type": "string"}},
        "required": ["path"],
    },
}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "read_file", "arguments": '{"path": "/a"}'},
}


def ask(gateway, model: str, messages: Any = HELLO, **fields: Any) -> Any:
    body = {"model": model, "max_tokens": 100, "messages": messages, **fields}
    return gateway.http.post("/v1/messages?beta=true", json=body)


def stream(gateway, model: str, messages: Any = HELLO, **fields: Any) -> list[Any]:
    """The stream's bodies, each of which has to be named by its `event:` line."""
    answer = ask(gateway, model, messages, stream=True, **fields)
    assert answer.status_code == 200, answer.text
    bodies = sse_bodies(answer.text)
    names = [line[7:] for line in answer.text.splitlines() if line.startswith("event: ")]
    assert names == [body["type"] for body in bodies]
    return bodies


def folded(bodies: list[Any]) -> Any:
    """The message that a stream's events add up to; fails where their order is not Anthropic's."""
    first, *rest, last = [body for body in bodies if body["type"] != "ping"]
    assert (first["type"], last["type"]) == ("message_start", "message_stop")
    message, is_open, texts = first["message"], False, []
    for body in rest:
        kind = body["type"]
        if kind == "content_block_start":
            assert not is_open
            assert body["index"] == len(message["content"])
            message["content"].append(body["content_block"])
            is_open, texts = True, []
        elif kind == "content_block_delta":
            assert is_open
            assert body["index"] == len(message["content"]) - 1
            block, delta = message["content"][-1], body["delta"]
            name = {
                "text_delta": "text",
                "thinking_delta": "thinking",
                "signature_delta": "signature",
            }.get(delta["type"])
            if name is None:
                texts.append(delta["partial_json"])
            else:
                block[name] += delta[name]
        elif kind == "content_block_stop":
            assert is_open
            is_open = False
            if texts:
                message["content"][-1]["input"] = json.loads("".join(texts))
        else:
            assert kind == "message_delta"
            assert not is_open
            message |= body["delta"]
            message["usage"] = body["usage"]
    return message


def call_reply(upstream) -> Any:
    if upstream.kind == "qwen_web":
        call = {"name": "read_file", "arguments": {"path": "/a"}}
        return f"Let me look.\n<tool_call>\n{json.dumps(call)}\n</tool_call>"
    return Reply(text="Let me look.", tool_calls=[CALL])


def test_a_whole_answer_is_a_message(open_gateway, upstream):
    answer = ask(open_gateway(), upstream.model)
    assert answer.status_code == 200
    body = answer.json()
    row = ended_response()
    assert body["id"] == row.response_id
    assert body["id"].startswith("msg_")
    assert (body["type"], body["role"], body["model"]) == ("message", "assistant", upstream.model)
    assert body["content"] == [{"type": "text", "text": "You said: Hello"}]
    assert (body["stop_reason"], body["stop_sequence"]) == ("end_turn", None)
    assert body["usage"] == {
        "input_tokens": row.prompt_tokens,
        "output_tokens": row.completion_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
    }
    assert answer.headers["request-id"] == answer.headers["x-request-id"] == row.request.request_id
    assert row.request.dialect == "anthropic"
    assert row.request.path == "/v1/messages"


def test_a_stream_adds_up_to_the_whole_answer(open_gateway, upstream):
    for _ in range(2):
        upstream.enqueue(Reply(text="one two three", reasoning="hm hm"))
    gateway = open_gateway()
    thinking = {"type": "enabled", "budget_tokens": 1024}
    streamed = folded(stream(gateway, upstream.model, thinking=thinking))
    whole = ask(gateway, upstream.model, thinking=thinking).json()
    assert streamed.pop("id") != whole.pop("id")
    assert streamed == whole
    assert whole["content"] == [
        {"type": "thinking", "thinking": "hm hm", "signature": SIGNATURE},
        {"type": "text", "text": "one two three"},
    ]


@pytest.mark.parametrize("thinking", [None, {"type": "disabled"}])
def test_thinking_that_was_not_asked_for_is_recorded_only(open_gateway, upstream, thinking):
    upstream.enqueue(Reply(text="one", reasoning="hm hm"))
    body = ask(open_gateway(), upstream.model, thinking=thinking).json()
    assert [block["type"] for block in body["content"]] == ["text"]
    assert ended_response().reasoning == "hm hm"


def test_a_tool_loop_goes_on_in_one_conversation(open_gateway, upstream):
    gateway = open_gateway()
    upstream.enqueue(call_reply(upstream))
    first = folded(stream(gateway, upstream.model, tools=[TOOL]))
    assert first["stop_reason"] == "tool_use"
    text, call = first["content"]
    assert text["text"].strip() == "Let me look."
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "read_file", {"path": "/a"})
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "The file says 42."}
    history = [
        *HELLO,
        {"role": "assistant", "content": first["content"]},
        {"role": "user", "content": [result]},
    ]
    second = ask(gateway, upstream.model, history, tools=[TOOL])
    assert second.status_code == 200, second.text
    assert "42" in second.json()["content"][0]["text"]
    assert list(Request.objects.order_by("id").values_list("match", flat=True)) == [
        "new",
        "continued",
    ]
    assert Session.objects.count() == 1
    if upstream.kind == "qwen_web":
        assert len(upstream.double.chats) == 1
        assert Request.objects.latest("id").upstream == "continued"
    else:
        sent = upstream.turns[-1].body["messages"]
        assert [message["role"] for message in sent] == ["user", "assistant", "tool"]
        assert sent[2] == {
            "role": "tool",
            "tool_call_id": call["id"],
            "content": "The file says 42.",
        }


def test_two_protocols_share_one_conversation(open_gateway, upstream):
    gateway = open_gateway()
    said = gateway.ask(upstream.model).json()["choices"][0]["message"]["content"]
    history = [*HELLO, {"role": "assistant", "content": [{"type": "text", "text": said}]}]
    history.append({"role": "user", "content": "More."})
    assert ask(gateway, upstream.model, history).status_code == 200
    assert Session.objects.count() == 1
    assert Request.objects.latest("id").match == "continued"
    assert set(Message.objects.values_list("dialect", flat=True)) == {"chat", "anthropic"}


def test_what_the_upstream_gets(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible")
    answer = ask(
        open_gateway(),
        upstream.model,
        system=[
            {"type": "text", "text": "x-anthropic-billing-header: cch=1;"},
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
        ],
        tools=[TOOL],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        stop_sequences=["END"],
        temperature=0.5,
        top_p=0.9,
        top_k=20,
        metadata={"user_id": "u1"},
        thinking={"type": "enabled", "budget_tokens": 2000},
        context_management={"edits": []},
        seed=7,
    )
    assert answer.status_code == 200
    sent = upstream.turns[-1].body
    assert sent["messages"] == [{"role": "system", "content": "Be brief."}, *HELLO]
    (tool,) = sent["tools"]
    assert tool["function"]["parameters"] == TOOL["input_schema"]
    assert {name: sent[name] for name in sent if name not in ("messages", "tools")} == {
        "model": upstream.model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 100,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "stop": ["END"],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 20,
        "enable_thinking": True,
        "thinking_budget": 2000,
        "chat_template_kwargs": {"enable_thinking": True},
        "seed": 7,
    }
    assert ended_response().session.user_id == "u1"


def test_the_record_holds_all_that_was_sent(open_gateway, upstream):
    gateway = open_gateway()
    marker = {"type": "ephemeral"}
    body = {
        "model": upstream.model,
        "max_tokens": 100,
        "system": "Be brief.",
        "tools": [TOOL],
        "tool_choice": {"type": "auto"},
        "metadata": {"user_id": "u1", "more": [1.0]},
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": []},
        "messages": [
            {"role": "user", "content": "Read /a."},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "I read it.", "signature": "theirs"},
                    {"type": "redacted_thinking", "data": "xyz"},
                    {"type": "tool_use", "id": "t1", "name": "read_file", "input": {"path": "/a"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "no", "is_error": True},
                    {"type": "text", "text": "Again.", "cache_control": marker},
                ],
            },
        ],
    }
    answer = gateway.http.post("/v1/messages", json=body)
    assert answer.status_code == 200, answer.text
    record = gateway.http.get(f"/v1/requests/{answer.headers['request-id']}").json()
    shown = record["openai_request"]
    assert shown.pop("_unmapped") == {
        "messages.1.content.0.signature": "theirs",
        "messages.1.content.1": {"type": "redacted_thinking", "data": "xyz"},
        "messages.2.content.0.is_error": True,
        "messages.2.content.1.cache_control": marker,
    }
    first, second, third = body["messages"]
    second["content"][0]["signature"] = SIGNATURE
    del second["content"][1]
    third["content"][0] = {"type": "tool_result", "tool_use_id": "t1", "content": "Error: no"}
    del third["content"][1]["cache_control"]
    assert shown == body
    assert record["qwen_request_exact"] is True
    assert record["response"]["openai_response"] == answer.json()
    reference = answer.json()["id"]
    assert gateway.http.get(f"/v1/responses/{reference}").json()["response_id"] == reference


def test_a_body_of_the_record_can_be_sent_again(open_gateway, upstream):
    gateway = open_gateway()
    blocks = [{"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}]
    answer = ask(gateway, upstream.model, [{"role": "user", "content": blocks}])
    shown = gateway.http.get(f"/v1/requests/{answer.headers['request-id']}").json()
    assert gateway.http.post("/v1/messages", json=shown["openai_request"]).status_code == 200
    first, second = Request.objects.select_related("prompt").order_by("id")
    assert first.prompt.content == second.prompt.content
    assert first.prompt.digest == second.prompt.digest


def test_images_go_to_upstreams_that_take_them(open_gateway, upstream):
    image = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
    }
    content = [{"type": "text", "text": "What is it?"}, image]
    upstream.enqueue("A picture.")
    answer = ask(open_gateway(), upstream.model, [{"role": "user", "content": content}])
    if upstream.kind == "qwen_web":
        assert answer.status_code == 200
        (upload,) = upstream.double.uploads.values()
        assert (upload.content, upload.content_type) == (b"\x89PNG\r\n\x1a\n", "image/png")
    else:
        (message,) = upstream.turns[-1].body["messages"]
        assert message["content"][1] == {
            "type": "image_url",
            "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="},
        }


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        pytest.param({"max_tokens": None}, "max_tokens", id="no max_tokens"),
        pytest.param({"max_tokens": 0}, "max_tokens", id="no room"),
        pytest.param({"messages": []}, "messages", id="no messages"),
        pytest.param({"top_k": 1.5}, "top_k", id="half a top_k"),
        pytest.param(
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "tools.0.type",
            id="server tool",
        ),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "container_upload"}]}]},
            "messages.0.content.0.type",
            id="unknown block",
        ),
        pytest.param({"stream": "yes"}, "stream", id="stream"),
    ],
)
def test_what_is_wrong_is_named_in_anthropics_form(open_gateway, upstream, fields, said):
    body = {"model": upstream.model, "max_tokens": 100, "messages": HELLO, **fields}
    answer = open_gateway().http.post("/v1/messages", json=body)
    assert answer.status_code == 400
    found = answer.json()
    assert found["type"] == "error"
    assert found["error"]["type"] == "invalid_request_error"
    assert found["error"]["message"].startswith(said)
    assert not upstream.turns
    assert not Request.objects.exists()


def test_errors_before_the_turn_have_anthropics_form(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible")
    gateway = open_gateway()
    missing = ask(gateway, "nope")
    gateway.http.headers = {"x-api-key": "wrong"}
    unknown = ask(gateway, upstream.model)
    wrong_method = gateway.http.get("/v1/messages")
    elsewhere = gateway.http.post("/v1/messages/batches", json={})
    found = [
        (answer.status_code, answer.json()["type"], answer.json()["error"]["type"])
        for answer in (missing, unknown, wrong_method, elsewhere)
    ]
    assert found == [
        (404, "error", "not_found_error"),
        (401, "error", "authentication_error"),
        (405, "error", "invalid_request_error"),
        (404, "error", "not_found_error"),
    ]


def test_the_key_comes_as_x_api_key(open_gateway, upstream):
    gateway = open_gateway()
    gateway.http.headers = {"x-api-key": gateway.api_key, "anthropic-version": "2023-06-01"}
    assert ask(gateway, upstream.model).status_code == 200


@pytest.mark.parametrize("streamed", [False, True])
def test_an_upstreams_refusal_before_the_first_byte_is_a_status(
    open_gateway, serve_upstream, streamed
):
    upstream = serve_upstream("openai_compatible")
    upstream.enqueue(
        Reply(
            status=400,
            body={"error": {"message": "maximum context length is 10", "code": "x"}},
        )
    )
    answer = ask(open_gateway(), upstream.model, stream=streamed)
    assert answer.status_code == 400
    assert answer.json() == {
        "type": "error",
        "error": {
            "type": "invalid_request_error",
            "message": "prompt is too long: maximum context length is 10",
        },
    }


def test_an_upstreams_limit_tells_when_to_come_again(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible")
    upstream.enqueue(
        Reply(status=429, body={"error": {"message": "slow"}}, headers={"retry-after": "7"})
    )
    answer = ask(open_gateway(), upstream.model)
    assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limit_error")
    assert answer.headers["retry-after"] == "7"


def test_a_limited_key_hears_it_in_anthropics_form(open_gateway, upstream):
    gateway = open_gateway()
    ApiKey.objects.update(requests_per_minute=1)
    auth.invalidate()
    first = ask(gateway, upstream.model)
    assert first.status_code == 200
    answer = ask(gateway, upstream.model, stream=True)
    assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limit_error")
    for told in (first, answer):
        assert told.headers["anthropic-ratelimit-requests-limit"] == "1"
        assert told.headers["anthropic-ratelimit-requests-remaining"] == "0"
        reset = datetime.fromisoformat(told.headers["anthropic-ratelimit-requests-reset"])
        assert 0 < (reset - datetime.now(UTC)).total_seconds() <= 62
    assert int(answer.headers["retry-after"]) >= 1


def test_an_error_within_the_answer_is_an_event(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible")
    upstream.enqueue(Reply(text="one two three", cut_after=3))
    bodies = stream(open_gateway(), upstream.model)
    assert bodies[0]["type"] == "message_start"
    assert bodies[-1]["type"] == "error"
    assert bodies[-1]["error"]["type"] == "api_error"
    assert ended_response().status == "failed"


def test_silence_is_filled_with_pings_after_the_beginning(open_gateway, upstream):
    upstream.enqueue(Reply(text="one two", first_delay_s=0.2))
    bodies = stream(open_gateway(KEEP_ALIVE_S=0.05), upstream.model)
    kinds = [body["type"] for body in bodies]
    assert kinds[:2] == ["message_start", "ping"]
    assert kinds.count("message_start") == 1
    assert folded(bodies)["content"] == [{"type": "text", "text": "one two"}]


def test_a_client_that_leaves_is_recorded(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible")
    held = Reply(text="one two three", pause_after=2)
    upstream.enqueue(held)
    gateway = open_gateway()
    body = {"model": upstream.model, "max_tokens": 9, "messages": HELLO, "stream": True}
    with gateway.http.stream("POST", "/v1/messages", json=body) as answer:
        next(answer.iter_lines())
    row = ended_response()
    held.resume.set()
    assert row.status == "cancelled"


def test_tokens_are_counted_without_asking_the_upstream(open_gateway, upstream):
    gateway = open_gateway()
    body = {"model": upstream.model, "messages": [{"role": "user", "content": "x" * 400}]}
    answer = gateway.http.post("/v1/messages/count_tokens?beta=true", json=body)
    assert (answer.status_code, answer.json()) == (200, {"input_tokens": 100})
    more = gateway.http.post("/v1/messages/count_tokens", json={**body, "tools": [TOOL]})
    assert more.json()["input_tokens"] > 100
    assert not upstream.turns
    assert not Request.objects.exists()
    call = {"type": "tool_use", "id": "t1", "name": "read_file", "input": {"path": "y" * 400}}
    body["messages"].append({"role": "assistant", "content": [call]})
    called = gateway.http.post("/v1/messages/count_tokens", json=body)
    assert 200 <= called.json()["input_tokens"] < 250
    wrong = gateway.http.post("/v1/messages/count_tokens", json={**body, "messages": 1})
    assert (wrong.status_code, wrong.json()["type"]) == (400, "error")


def test_the_demo_answers_too(open_gateway, make_account):
    make_account("demo")
    message = folded(stream(open_gateway(), "qwen-demo"))
    assert message["content"][0]["text"].startswith("[demo] You said: Hello")


def test_other_paths_keep_openais_form(open_gateway, upstream):
    answer = open_gateway().http.post("/v1/chat/completions", json={})
    assert "type" not in answer.json()


def test_an_upstreams_failure_is_anthropics_api_error(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible")
    for _ in range(5):
        upstream.enqueue(Reply(status=500, body={"error": {"message": "no"}}))
    answer = ask(open_gateway(UPSTREAM_RETRIES=0), upstream.model)
    assert (answer.status_code, answer.json()["error"]["type"]) == (502, "api_error")


@pytest.mark.parametrize("streamed", [False, True])
def test_the_stop_sequence_that_ended_a_message_is_named(open_gateway, serve_upstream, streamed):
    served, gateway = serve_upstream("qwen_web"), open_gateway()
    served.enqueue(Reply(text="one END two"))
    fields = {"stop_sequences": ["STOP", "END"]}
    if streamed:
        message = folded(stream(gateway, served.model, **fields))
    else:
        message = ask(gateway, served.model, **fields).json()
    assert message["content"][0]["text"] == "one "
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "END")


@pytest.mark.parametrize("in_result", [False, True])
def test_a_file_that_the_web_refuses_is_named_as_it_was_sent(
    open_gateway, serve_upstream, in_result
):
    served, gateway = serve_upstream("qwen_web"), open_gateway()
    source = {"type": "base64", "media_type": "image/png", "data": "%%%"}
    block: Any = {"type": "image", "source": source}
    place = "messages.2.content.1.source"
    if in_result:
        block = {"type": "tool_result", "tool_use_id": "a", "content": [block]}
        place = "messages.2.content.1.content.0.source"
    call = {"type": "tool_use", "id": "a", "name": "read_file", "input": {}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [{"type": "text", "text": "See"}, block]},
    ]
    answer = ask(gateway, served.model, messages, system="Be brief.")
    assert (answer.status_code, served.turns) == (400, [])
    assert answer.json()["error"]["message"] == f"{place}: it is not base64."


def test_a_format_without_a_schema_is_named(open_gateway, serve_upstream):
    served = serve_upstream("openai_compatible")
    wanted = {"format": {"type": "json_schema", "schema": 5}}
    answer = ask(open_gateway(), served.model, output_config=wanted)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("output_config.format.schema: ")

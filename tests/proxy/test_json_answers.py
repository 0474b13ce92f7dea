"""`response_format`, `stop` and log probabilities through the running gateway."""

from __future__ import annotations

import json

import pytest

from qwenproxy.wire.events import unpack
from qwenproxy.wire.redaction import compile_rules
from requests_app.models import Request
from tests.doubles.server import Reply
from tests.proxy.conftest import HELLO, attempts_of, ended_response

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FORM = {"type": "json_schema", "json_schema": {"name": "thing", "strict": True, "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}


def prompts(served):
    return [turn.body["messages"][0]["content"] for turn in served.turns]


@pytest.fixture
def web(serve_upstream):
    return serve_upstream("qwen_web")


def answer_of(response):
    return response.json()["choices"][0]["message"]["content"]


def test_json_is_asked_for_in_words_and_only_it_is_handed_on(open_gateway, web):
    web.enqueue(Reply(text='Sure:\n```json\n{"a": 1}\n```\nAnything else?'))
    response = open_gateway().ask(web.model, response_format=FORM)
    assert answer_of(response) == '{"a": 1}'
    (prompt,) = prompts(web)
    assert prompt.startswith("Answer with JSON")
    assert '"required":["a"]' in prompt
    assert prompt.endswith("Hello")
    row = ended_response()
    assert "Anything else?" in json.loads(row.upstream_response)["raw_text"]


def test_a_stream_says_nothing_before_the_answer_is_known_to_fit(open_gateway, web):
    web.enqueue(Reply(text='Here you go: {"a": "no"}'), Reply(text='{"a": 2}'))
    sdk = open_gateway().sdk
    stream = sdk.chat.completions.create(
        model=web.model, messages=HELLO, stream=True, response_format=FORM
    )
    texts = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(texts) == '{"a": 2}'


def test_a_second_answer_is_asked_for_beside_the_first_with_what_was_wrong(open_gateway, web):
    web.enqueue(Reply(text='{"a": "no"}'), Reply(text='{"a": 2}'))
    response = open_gateway().ask(web.model, response_format=FORM)
    assert answer_of(response) == '{"a": 2}'
    first, second = web.turns
    assert first.query["chat_id"] == second.query["chat_id"]
    assert first.body["parent_id"] is second.body["parent_id"] is None
    assert "$.a: 'no' is not of type 'integer'" in prompts(web)[1]
    assert '{"a": "no"}' in prompts(web)[1]


def test_both_tries_are_on_record_and_their_counts_added_up(open_gateway, web):
    web.enqueue(Reply(text="no JSON"), Reply(text='{"a": 2}'))
    response = open_gateway().ask(web.model, response_format=FORM)
    row = ended_response()
    told = json.loads(row.upstream_response)["usage"]
    assert len(told) == 2
    assert all(usage["output_tokens"] > 0 for usage in told)
    spent = sum(usage["input_tokens"] + usage["output_tokens"] for usage in told)
    assert response.json()["usage"]["total_tokens"] == row.total_tokens == spent
    causes = [attempt["cause"] for attempt in attempts_of(row)]
    assert causes == ["invalid_json_answer: $: it is not JSON", None]
    assert all(attempt["ms"] is not None for attempt in attempts_of(row))
    stored = json.loads(row.upstream_response)
    assert stored["refused"] == [{"text": "no JSON", "cause": causes[0]}]
    assert stored["raw_text"] == '{"a": 2}'


@pytest.mark.parametrize("stream", [False, True])
def test_two_answers_that_do_not_fit_are_an_error(open_gateway, web, stream):
    web.enqueue(Reply(text='{"a": "x"}'), Reply(text='{"b": 1}'))
    response = open_gateway().ask(web.model, stream=stream, response_format=FORM)
    assert response.status_code == 502
    assert response.headers["x-should-retry"] == "false"
    error = response.json()["error"]
    assert error["code"] == "invalid_json_answer"
    assert "$: 'a' is a required property" in error["message"]
    assert len(web.turns) == 2
    row = ended_response()
    assert row.status == "failed"
    stored = json.loads(row.upstream_response)
    assert (stored["refused"][0]["text"], stored["raw_text"]) == ('{"a": "x"}', '{"b": 1}')


def test_an_answer_that_does_not_fit_says_nothing_about_the_account(open_gateway, web):
    gateway = open_gateway()
    for _ in range(4):
        web.enqueue(Reply(text="no"), Reply(text="no"))
        assert gateway.ask(web.model, response_format=FORM).status_code == 502
    assert gateway.ask(web.model).status_code == 200


def test_the_second_try_keeps_the_accounts_pace(open_gateway, serve_upstream):
    web = serve_upstream("qwen_web", min_interval_ms=300)
    web.enqueue(Reply(text="no"), Reply(text='{"a": 2}'))
    assert open_gateway().ask(web.model, response_format=FORM).status_code == 200
    first, second = attempts_of(ended_response())
    assert second["started"] - first["started"] >= 295


def test_an_answer_that_was_cut_off_is_handed_on_as_it_is(open_gateway, serve_upstream):
    native = serve_upstream("openai_compatible", name="old")
    native.enqueue(Reply(text='{"a": ', finish_reason="length"))
    gateway = open_gateway(JSON_BY_INSTRUCTION_ACCOUNTS=["old"])
    choice = gateway.ask(native.model, response_format=FORM).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ('{"a": ', "length")
    assert len(native.turns) == 1


def test_a_failure_within_a_held_answer_is_asked_for_anew(open_gateway, serve_upstream):
    native = serve_upstream("openai_compatible", name="old")
    half = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"{"}}]}\n\n'
    native.enqueue(Reply(raw=half), Reply(text='{"a": 1}'))
    gateway = open_gateway(JSON_BY_INSTRUCTION_ACCOUNTS=["old"])
    assert answer_of(gateway.ask(native.model, response_format=FORM)) == '{"a": 1}'
    causes = [attempt["cause"] for attempt in attempts_of(ended_response())]
    assert causes[0].startswith("upstream_error: ")


def test_an_object_is_any_object(open_gateway, web):
    web.enqueue(Reply(text="[1]"), Reply(text='{"x": [1]}'))
    response = open_gateway().ask(web.model, response_format={"type": "json_object"})
    assert answer_of(response) == '{"x": [1]}'
    assert "it is not a JSON object" in prompts(web)[1]


def test_a_plain_text_format_asks_for_nothing(open_gateway, web):
    response = open_gateway().ask(web.model, response_format={"type": "text"})
    assert response.status_code == 200
    assert prompts(web) == ["Hello"]


def test_a_turn_that_calls_tools_is_not_checked(open_gateway, web):
    call = 'Let me look. <tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>'
    web.enqueue(Reply(text=call))
    response = open_gateway().ask(web.model, response_format=FORM, tools=[TOOL])
    choice = response.json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "look"
    assert choice["message"]["content"].strip() == "Let me look."


def test_with_tools_the_text_alone_is_checked(open_gateway, web):
    web.enqueue(Reply(text="nothing"), Reply(text='{"a": 1}'))
    response = open_gateway().ask(web.model, response_format=FORM, tools=[TOOL])
    assert answer_of(response) == '{"a": 1}'
    assert "look" in prompts(web)[1]
    assert json.loads(ended_response().upstream_response)["raw_text"] == '{"a": 1}'


def test_the_form_is_told_with_its_turn_and_the_chat_goes_on(open_gateway, web):
    gateway = open_gateway()
    web.enqueue(Reply(text='{"a": 1}'))
    gateway.ask(web.model, response_format=FORM)
    messages = [*HELLO, {"role": "assistant", "content": '{"a": 1}'}]
    messages.append({"role": "user", "content": "And now?"})
    assert gateway.ask(web.model, messages=messages).status_code == 200
    assert Request.objects.order_by("-pk")[0].upstream == "continued"
    assert prompts(web)[1] == "And now?"


def test_a_chat_goes_on_from_a_second_answer(open_gateway, web):
    gateway = open_gateway()
    gateway.ask(web.model)
    messages = [*HELLO, {"role": "assistant", "content": "You said: Hello"}]
    messages.append({"role": "user", "content": "As JSON"})
    web.enqueue(Reply(text="no"), Reply(text='{"a": 1}'))
    gateway.ask(web.model, messages=messages, response_format=FORM)
    assert Request.objects.order_by("-pk")[0].upstream == "continued"
    _, first, second = web.turns
    assert first.body["parent_id"] == second.body["parent_id"] is not None


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"type": "grammar"}, "response_format.type"),
        (
            {"type": "json_schema", "json_schema": {"schema": {"type": "text"}}},
            "response_format.json_schema.schema",
        ),
    ],
)
def test_a_form_that_cannot_be_checked_is_refused_before_anything_is_asked(
    open_gateway, web, form, param
):
    response = open_gateway().ask(web.model, response_format=form)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert not web.turns


def test_anthropics_form_goes_the_same_way(open_gateway, web):
    web.enqueue(Reply(text='```\n{"a": 1}\n```'))
    body = {
        "model": web.model,
        "messages": HELLO,
        "max_tokens": 100,
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}},
    }
    response = open_gateway().http.post("/v1/messages", json=body)
    assert response.json()["content"] == [{"type": "text", "text": '{"a": 1}'}]


def test_a_server_without_response_format_is_told_in_words(open_gateway, serve_upstream):
    native = serve_upstream("openai_compatible", name="old")
    native.enqueue(Reply(text="hm"), Reply(text='Well: {"a": 1}'))
    gateway = open_gateway(JSON_BY_INSTRUCTION_ACCOUNTS=["o*"])
    response = gateway.ask(native.model, response_format=FORM, seed=3)
    assert answer_of(response) == '{"a": 1}'
    for turn in native.turns:
        assert "response_format" not in turn.body
        assert turn.body["seed"] == 3
        assert turn.body["messages"][-1]["content"].startswith("Hello\n\nAnswer with JSON")


def test_other_servers_get_the_form_as_it_is(open_gateway, serve_upstream):
    native = serve_upstream("openai_compatible", name="new")
    gateway = open_gateway(JSON_BY_INSTRUCTION_ACCOUNTS=["o*"])
    assert gateway.ask(native.model, response_format=FORM).status_code == 200
    assert native.turns[0].body["response_format"] == FORM


# Stop texts.


@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_ends_before_the_first_stop_text_and_is_stopped_upstream(
    open_gateway, web, stream
):
    web.enqueue(Reply(text="Think.\nObservation: made up", delay_s=0.01))
    sdk = open_gateway().sdk
    ask = {"model": web.model, "messages": HELLO, "stop": ["\nObservation:"]}
    if stream:
        chunks = [c.choices[0] for c in sdk.chat.completions.create(**ask, stream=True)]
        text = "".join(choice.delta.content or "" for choice in chunks)
        reason = chunks[-1].finish_reason
    else:
        choice = sdk.chat.completions.create(**ask).choices[0]
        text, reason = choice.message.content, choice.finish_reason
    assert (text, reason) == ("Think.", "stop")
    assert any(r.path.endswith("/completions/stop") for r in web.double.requests)


def test_a_chat_does_not_go_on_from_an_answer_that_was_cut(open_gateway, web):
    gateway = open_gateway()
    web.enqueue(Reply(text="One. END Two."))
    gateway.ask(web.model, stop="END")
    messages = [*HELLO, {"role": "assistant", "content": "One. "}]
    messages.append({"role": "user", "content": "And?"})
    gateway.ask(web.model, messages=messages)
    assert Request.objects.order_by("-pk")[0].upstream == "rebuilt:unknown"
    assert "Two." not in prompts(web)[1]


def test_too_many_stop_texts_are_refused_where_they_are_imitated(open_gateway, web):
    response = open_gateway().ask(web.model, stop=["x"] * 17)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "stop"


# Log probabilities.


def logprobs_of(text):
    return {"content": [{"token": text, "logprob": -0.5, "bytes": None, "top_logprobs": []}]}


def logprobs_stream(*texts):
    chunks = [
        {"choices": [{"index": 0, "delta": {"content": text}, "logprobs": logprobs_of(text)}]}
        for text in texts
    ]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    lines = [b"data: %s\n\n" % json.dumps({"id": "x", "model": "m", **c}).encode() for c in chunks]
    return b"".join([*lines, b"data: [DONE]\n\n"])


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_carried_whole(open_gateway, serve_upstream, stream):
    native = serve_upstream("openai_compatible")
    texts = ["<think", "ing", " a", " a", "loud", "loud", " on"]
    native.enqueue(Reply(raw=logprobs_stream(*texts)))
    sdk = open_gateway().sdk
    ask = {"model": native.model, "messages": HELLO, "logprobs": True, "top_logprobs": 1}
    if stream:
        chunks = [c.choices[0] for c in sdk.chat.completions.create(**ask, stream=True)]
        tokens = [t for c in chunks if c.logprobs for t in c.logprobs.content]
        assert "".join(chunk.delta.content or "" for chunk in chunks) == "".join(texts)
    else:
        tokens = sdk.chat.completions.create(**ask).choices[0].logprobs.content
    assert [token.token for token in tokens] == texts
    assert native.turns[0].body["top_logprobs"] == 1
    stored = json.loads(ended_response().upstream_response)["logprobs"]["content"]
    assert [token["token"] for token in stored] == texts


def test_those_of_legacy_completions_have_their_own_form(open_gateway, serve_upstream):
    native = serve_upstream("openai_compatible")
    pieces = [
        {"choices": [{"index": 0, "text": t, "logprobs": {"tokens": [t], "text_offset": [i]}}]}
        for i, t in enumerate("ab")
    ]
    pieces.append({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]})
    raw = b"".join(b"data: %s\n\n" % json.dumps(piece).encode() for piece in pieces)
    reply = Reply(raw=raw + b"data: [DONE]\n\n")
    native.enqueue(reply, reply, path="/v1/completions")
    http = open_gateway().http
    body = {"model": native.model, "prompt": "x", "logprobs": 1}
    whole = http.post("/v1/completions", json=body).json()["choices"][0]
    assert whole["logprobs"] == {"tokens": ["a", "b"], "text_offset": [0, 1]}
    streamed = http.post("/v1/completions", json={**body, "stream": True}).text
    assert '"logprobs":{"tokens":["a"],"text_offset":[0]}' in streamed
    assert '"logprobs":{"tokens":["b"],"text_offset":[1]}' in streamed


def test_no_rule_of_redaction_is_passed_by_token_after_token(open_gateway, serve_upstream):
    native = serve_upstream("openai_compatible")
    native.enqueue(Reply(raw=logprobs_stream("the ", "sec", "ret")))
    gateway = open_gateway(REDACTION=compile_rules(["secret"]))
    response = gateway.ask(native.model, logprobs=True)
    assert response.json()["choices"][0]["logprobs"]["content"][1]["token"] == "sec"
    assert "logprobs" not in json.loads(ended_response().upstream_response)


def test_packed_events_keep_what_is_new_of_them():
    packed = '[["l",{"content":[1]}],["n","code: why"],["f","stop",true]]'
    assert [type(event).__name__ for event in unpack(packed)] == ["LogProbs", "Again", "Finished"]

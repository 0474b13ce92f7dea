"""Thinking from the client's wish to its answer and record, on every kind of upstream."""

from __future__ import annotations

import json

import pytest

from requests_app.models import Request, Response
from tests.conftest import sse_bodies
from tests.doubles.server import Reply
from tests.proxy.conftest import ended_response

THOUGHT = Reply(text="Hi", reasoning="Let me see")


def features(upstream):
    return upstream.turns[-1].body["messages"][0]["feature_config"]


def switch(upstream):
    """What the upstream was asked: to think or not; null: nothing."""
    body = upstream.turns[-1].body
    if upstream.kind == "qwen_web":
        return features(upstream)["thinking_enabled"]
    return body.get("chat_template_kwargs", {}).get("enable_thinking")


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("reasoning_content", {"reasoning_content"}),
        ("reasoning", {"reasoning"}),
        ("both", {"reasoning_content", "reasoning"}),
        ("none", set()),
    ],
)
def test_thinking_is_where_the_setting_says(open_gateway, upstream, field, names):
    gateway = open_gateway(REASONING_FIELD=field)
    upstream.enqueue(THOUGHT, THOUGHT)
    message = gateway.ask(upstream.model).json()["choices"][0]["message"]
    assert {name for name in message if name.startswith("reasoning")} == names
    assert all(message[name] == "Let me see" for name in names)
    with gateway.open_stream(upstream.model) as response:
        deltas = [c["choices"][0]["delta"] for c in sse_bodies(response.read().decode())]
    for name in ("reasoning_content", "reasoning"):
        told = "".join(delta.get(name) or "" for delta in deltas)
        assert told == ("Let me see" if name in names else "")
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content") or "" for delta in deltas) == "Hi"


@pytest.mark.parametrize("hides", [{"reasoning": {"exclude": True}}, {"include_reasoning": False}])
def test_a_client_that_does_not_want_it_gets_none_and_it_is_recorded(open_gateway, upstream, hides):
    gateway = open_gateway()
    upstream.enqueue(THOUGHT)
    answer = gateway.ask(upstream.model, **hides)
    assert "reasoning_content" not in answer.json()["choices"][0]["message"]
    assert ended_response().reasoning == "Let me see"


@pytest.mark.parametrize(("suffix", "thinking"), [("-thinking", True), ("-no-thinking", False)])
def test_the_models_name_switches_thinking(open_gateway, upstream, suffix, thinking):
    gateway = open_gateway()
    answer = gateway.ask(upstream.model + suffix)
    assert answer.json()["model"] == upstream.turns[-1].body["model"] == upstream.model
    assert switch(upstream) is thinking
    assert Request.objects.get().model == upstream.model + suffix
    listed = [model["id"] for model in gateway.http.get("/v1/models").json()["data"]]
    assert upstream.model + suffix not in listed


def test_a_model_that_is_listed_under_such_a_name_is_that_model(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible")
    upstream.double.models = [{"id": "qwen3-max"}, {"id": "qwen3-max-thinking"}]
    gateway = open_gateway()
    assert gateway.ask("qwen3-max-thinking").json()["model"] == "qwen3-max-thinking"
    assert switch(upstream) is None


def test_an_alias_keeps_the_end_of_the_name_unless_it_is_part_of_the_alias(
    open_gateway, serve_upstream
):
    upstream = serve_upstream("openai_compatible")
    gateway = open_gateway(MODEL_ALIASES=[("deep-thinking", "qwen3-8b"), ("gpt-*", "qwen3-8b")])
    assert gateway.ask("gpt-5-no-thinking").status_code == 200
    assert switch(upstream) is False
    assert gateway.ask("deep-thinking").status_code == 200
    assert switch(upstream) is None


@pytest.mark.parametrize(
    ("suffix", "wish", "param"),
    [
        ("", {"reasoning_effort": "none", "enable_thinking": True}, "reasoning_effort"),
        ("", {"reasoning_effort": "much"}, "reasoning_effort"),
        ("-no-thinking", {"enable_thinking": True}, "enable_thinking"),
        ("-thinking", {"reasoning": {"effort": "none"}}, "reasoning.effort"),
    ],
)
def test_a_contradiction_is_refused_by_its_field(open_gateway, upstream, suffix, wish, param):
    answer = open_gateway().ask(upstream.model + suffix, **wish)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert not upstream.turns
    assert Request.objects.count() == 0


def test_switching_thinking_on_in_the_middle_goes_on_in_the_same_chat(open_gateway, serve_upstream):
    upstream = serve_upstream("qwen_web")
    gateway = open_gateway()
    messages = []
    for model, wish in (
        (upstream.model, {}),
        (upstream.model, {"enable_thinking": True}),
        (f"{upstream.model}-thinking", {}),
        (upstream.model, {"reasoning_effort": "none"}),
    ):
        messages.append({"role": "user", "content": f"turn {len(messages)}"})
        answer = gateway.ask(model, messages=messages, **wish).json()
        messages.append(answer["choices"][0]["message"])
    assert [
        t.body["messages"][0]["feature_config"]["thinking_enabled"] for t in upstream.turns
    ] == [
        False,
        True,
        True,
        False,
    ]
    assert len(upstream.double.chats) == 1
    used = list(Request.objects.order_by("id").values_list("upstream", flat=True))
    assert used == ["new", "continued", "continued", "continued"]


def test_tokens_of_thinking_are_counted_where_nobody_reports_them(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible")
    gateway = open_gateway()
    upstream.enqueue(Reply(text="x" * 30, reasoning="y" * 90))
    usage = gateway.ask(upstream.model).json()["usage"]
    row = ended_response()
    assert 0 < row.reasoning_tokens <= row.completion_tokens == usage["completion_tokens"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == row.reasoning_tokens
    assert row.reasoning == "y" * 90
    assert json.loads(row.reply.content) == "x" * 30
    assert Response.objects.get().usage_source == "reported"

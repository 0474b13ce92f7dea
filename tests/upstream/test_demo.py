from __future__ import annotations

import asyncio

import pytest

from qwenproxy.errors import NotFound
from qwenproxy.upstream.demo import MODEL, Demo
from qwenproxy.upstream.protocol import Upstream, UpstreamCall
from qwenproxy.wire.events import Finished, Sent, Started, TextDelta, UsageReport
from tests.upstream.conftest import make_account, read_outcome


def ask_demo(*messages, model=MODEL):
    upstream: Upstream = Demo(make_account("", kind="demo"), word_delay_s=0)
    return asyncio.run(read_outcome(upstream, UpstreamCall(model, list(messages))))


def test_answer_is_labelled_and_says_how_to_go_on():
    outcome = ask_demo({"role": "user", "content": "Hello there"})
    assert outcome.answer.text.startswith("[demo] You said: Hello there")
    assert "/admin" in outcome.answer.text
    kinds = [type(event) for event in outcome.events]
    assert kinds[:2] == [Sent, Started]
    assert kinds[-2:] == [UsageReport, Finished]
    assert kinds.count(TextDelta) > 20


def test_earlier_text_is_remembered():
    outcome = ask_demo(
        {"role": "system", "content": "S"},
        {"role": "user", "content": "first words"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": [{"type": "text", "text": "second words"}]},
    )
    assert "You said: second words" in outcome.answer.text
    assert "Before that you said: first words" in outcome.answer.text


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([], id="none"),
        pytest.param([{"role": "user", "content": None}], id="null"),
        pytest.param([{"role": "user", "content": [{"type": "image_url"}]}], id="image"),
    ],
)
def test_it_answers_without_a_text(messages):
    text = ask_demo(*messages).answer.text
    assert text.startswith("[demo] ")
    assert "This is the built-in demo" in text


def test_it_says_that_it_looks_at_no_files():
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 40_000}}
    content = [{"type": "text", "text": "What is it?"}, part]
    answer = ask_demo({"role": "user", "content": content}).answer
    assert "You said: What is it?" in answer.text
    assert "does not look at images" in answer.text
    assert answer.usage.prompt_tokens < 200
    assert "does not look" not in ask_demo({"role": "user", "content": "Hi"}).answer.text


def test_usage_is_an_estimate():
    usage = ask_demo({"role": "user", "content": "x" * 4000}).answer.usage
    assert usage.prompt_tokens > 1000
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.raw is None


def test_only_its_own_model_is_served():
    demo = Demo(make_account("", kind="demo"))
    assert [model.id for model in asyncio.run(demo.list_models())] == [MODEL]
    assert isinstance(ask_demo(model="qwen3-max").error, NotFound)

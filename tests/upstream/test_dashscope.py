from __future__ import annotations

import pytest

from qwenproxy.upstream.dashscope import DashScope
from qwenproxy.upstream.protocol import UpstreamCall
from qwenproxy.wire.reasoning import read_reasoning
from tests.doubles.openai_compatible import CHAT, FIXTURES
from tests.doubles.server import Reply
from tests.upstream.conftest import ask, make_account


@pytest.mark.parametrize(
    ("base_url", "resolved"),
    [
        ("", "https://dashscope-intl.aliyuncs.com/compatible-mode/v1"),
        ("cn", "https://dashscope.aliyuncs.com/compatible-mode/v1"),
        ("US", "https://dashscope-us.aliyuncs.com/compatible-mode/v1"),
        ("hk", "https://cn-hongkong.dashscope.aliyuncs.com/compatible-mode/v1"),
        (
            "https://dashscope-us.aliyuncs.com",
            "https://dashscope-us.aliyuncs.com/compatible-mode/v1",
        ),
        (
            "https://ws.cn-beijing.maas.aliyuncs.com/compatible-mode/v1/",
            "https://ws.cn-beijing.maas.aliyuncs.com/compatible-mode/v1",
        ),
        (
            "https://coding-intl.dashscope.aliyuncs.com",
            "https://coding-intl.dashscope.aliyuncs.com/v1",
        ),
    ],
)
def test_base_url_is_completed(base_url, resolved):
    assert DashScope.resolve_base_url(base_url) == resolved


def test_thinking_fields_pass_and_reasoning_arrives(openai_compatible):
    raw = (FIXTURES / "dashscope_reasoning.sse").read_bytes()
    openai_compatible.double.enqueue(Reply(raw=raw))
    parameters = {"enable_thinking": True, "thinking_budget": 512, "top_k": 20}
    call = UpstreamCall(
        "qwen-plus",
        [{"role": "user", "content": "x"}],
        parameters=parameters,
        reasoning=read_reasoning(parameters),
    )
    account = make_account(f"{openai_compatible.url}/v1", kind="dashscope")
    outcome = ask(DashScope, account, call)
    assert outcome.error is None
    assert outcome.answer.reasoning
    body = openai_compatible.double.requests[0].body
    assert {name: body[name] for name in parameters} == parameters


def test_prompt_is_sent_as_a_chat(openai_compatible):
    call = UpstreamCall(
        "qwen-plus",
        [{"role": "user", "content": "Say hello"}],
        parameters={"echo": True, "logprobs": None, "temperature": 0},
        prompt="Say hello",
    )
    account = make_account(f"{openai_compatible.url}/v1", kind="dashscope")
    outcome = ask(DashScope, account, call)
    assert outcome.answer.text == "You said: Say hello"
    request = openai_compatible.double.requests[0]
    assert request.path == CHAT
    assert "prompt" not in request.body
    assert not {"echo", "logprobs"} & set(request.body)
    assert request.body["temperature"] == 0

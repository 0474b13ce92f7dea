from __future__ import annotations

import pytest

from qwenproxy.upstream.reasoning import for_dashscope, for_server, for_web
from qwenproxy.wire.reasoning import read_reasoning

ON, OFF = {"enable_thinking": True}, {"enable_thinking": False}


@pytest.mark.parametrize(
    ("body", "owner", "sent"),
    [
        pytest.param({"seed": 1}, "vllm", {"seed": 1}, id="nothing"),
        pytest.param(OFF, "vllm", {**OFF, "chat_template_kwargs": OFF}, id="vllm-switch"),
        pytest.param(
            {"reasoning_effort": "none"}, "sglang", {"chat_template_kwargs": OFF}, id="sglang-none"
        ),
        pytest.param(
            {"reasoning_effort": "low", "chat_template_kwargs": {"x": 1}},
            "vllm",
            {"reasoning_effort": "low", "chat_template_kwargs": {"x": 1, **ON}},
            id="vllm-effort",
        ),
        pytest.param(OFF, "library", {**OFF, "reasoning_effort": "none"}, id="ollama-off"),
        pytest.param(ON, "library", ON, id="ollama-on"),
        pytest.param(OFF, "acme", {**OFF, "chat_template_kwargs": OFF}, id="unknown-switch"),
        pytest.param(
            {"reasoning_effort": "none"}, "acme", {"reasoning_effort": "none"}, id="unknown-effort"
        ),
        pytest.param(
            {"reasoning": {"effort": "low"}},
            "acme",
            {"reasoning": {"effort": "low"}},
            id="unknown-nested",
        ),
    ],
)
def test_a_server_gets_the_switch_that_it_has(body, owner, sent):
    before = dict(body)
    assert for_server(body, read_reasoning(body), owner) == sent
    assert body == before


def test_the_models_name_reaches_a_server_that_nobody_knows():
    reasoning = read_reasoning({}).with_model_suffix(False)
    assert for_server({}, reasoning, "") == {"chat_template_kwargs": OFF}


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        pytest.param({"seed": 1}, {"seed": 1}, id="nothing"),
        pytest.param({**ON, "thinking_budget": 9}, {**ON, "thinking_budget": 9}, id="its-own"),
        pytest.param({"reasoning_effort": "none"}, OFF, id="none"),
        pytest.param({"reasoning_effort": "high"}, ON, id="high"),
        pytest.param({"reasoning_effort": "low"}, {**ON, "thinking_budget": 2048}, id="low"),
        pytest.param({"chat_template_kwargs": OFF}, OFF, id="template"),
        pytest.param(
            {"chat_template_kwargs": {**OFF, "x": 1}},
            {**OFF, "chat_template_kwargs": {**OFF, "x": 1}},
            id="template-with-more",
        ),
        pytest.param({"reasoning": {"max_tokens": 7}}, {**ON, "thinking_budget": 7}, id="nested"),
        pytest.param({"include_reasoning": False}, {}, id="hidden"),
    ],
)
def test_model_studio_gets_its_own_members(body, sent):
    assert for_dashscope(body, read_reasoning(body)) == sent


def test_the_web_upstream_thinks_only_when_asked():
    assert for_web(read_reasoning({})) == (False, None)
    assert for_web(read_reasoning({"reasoning_effort": "medium"})) == (True, 8192)
    assert for_web(read_reasoning({"reasoning_effort": "high"})) == (True, None)
    assert for_web(read_reasoning({**OFF, "thinking_budget": 5})) == (False, None)

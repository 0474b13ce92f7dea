from __future__ import annotations

import pytest

from qwenproxy.wire.reasoning import NOTHING, ReasoningError, read_reasoning, split_suffix


@pytest.mark.parametrize(
    ("body", "is_on", "budget", "effort"),
    [
        pytest.param({"temperature": 1}, None, None, None, id="nothing"),
        pytest.param({"reasoning_effort": None, "reasoning": None}, None, None, None, id="null"),
        pytest.param({"reasoning_effort": "none"}, False, None, "none", id="effort-none"),
        pytest.param({"reasoning_effort": "minimal"}, False, None, "minimal", id="minimal"),
        pytest.param({"reasoning_effort": "xhigh"}, True, None, "xhigh", id="effort"),
        pytest.param({"enable_thinking": False}, False, None, None, id="off"),
        pytest.param({"enable_thinking": False, "thinking_budget": 9}, False, 9, None, id="bound"),
        pytest.param({"thinking_budget": 9}, True, 9, None, id="budget"),
        pytest.param(
            {"chat_template_kwargs": {"enable_thinking": True, "x": 1}},
            True,
            None,
            None,
            id="kwargs",
        ),
        pytest.param({"reasoning": {"effort": "low"}}, True, None, "low", id="nested-effort"),
        pytest.param({"reasoning": {"max_tokens": 5}}, True, 5, None, id="nested-budget"),
        pytest.param({"reasoning": {"enabled": False}}, False, None, None, id="nested-switch"),
        pytest.param(
            {"reasoning_effort": "high", "enable_thinking": True}, True, None, "high", id="agreeing"
        ),
        pytest.param(
            {"reasoning_effort": "minimal", "enable_thinking": True},
            True,
            None,
            "minimal",
            id="minimal-and-on",
        ),
    ],
)
def test_every_form_says_the_same(body, is_on, budget, effort):
    reasoning = read_reasoning(body)
    assert (reasoning.is_on, reasoning.budget, reasoning.effort) == (is_on, budget, effort)


def test_a_body_without_a_wish_asks_for_nothing():
    assert read_reasoning({"messages": []}) is NOTHING


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"reasoning_effort": "none", "enable_thinking": True}, "reasoning_effort"),
        ({"reasoning_effort": "high", "enable_thinking": False}, "reasoning_effort"),
        ({"reasoning_effort": "none", "thinking_budget": 5}, "thinking_budget"),
        ({"reasoning_effort": "low", "reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"thinking_budget": 5, "reasoning": {"max_tokens": 6}}, "reasoning.max_tokens"),
        (
            {"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}},
            "chat_template_kwargs.enable_thinking",
        ),
        ({"reasoning_effort": "much"}, "reasoning_effort"),
        ({"reasoning_effort": 3}, "reasoning_effort"),
        ({"enable_thinking": "yes"}, "enable_thinking"),
        ({"thinking_budget": 0}, "thinking_budget"),
        ({"thinking_budget": True}, "thinking_budget"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"reasoning": "high"}, "reasoning"),
        ({"reasoning": {"enabled": 1}}, "reasoning.enabled"),
        ({"include_reasoning": 0}, "include_reasoning"),
    ],
)
def test_what_is_wrong_or_contradicts_is_named(body, param):
    with pytest.raises(ReasoningError, match=param) as caught:
        read_reasoning(body)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("model", "base", "thinking"),
    [
        ("qwen3-max-thinking", "qwen3-max", True),
        ("qwen3-max-no-thinking", "qwen3-max", False),
        ("qwen3-max", "qwen3-max", None),
        ("qwen3-235b-a22b-thinking-2507", "qwen3-235b-a22b-thinking-2507", None),
        ("-thinking", "-thinking", None),
        ("", "", None),
    ],
)
def test_the_end_of_a_models_name_is_split_off(model, base, thinking):
    assert split_suffix(model) == (base, thinking)


def test_the_models_name_may_not_contradict_the_body():
    assert NOTHING.with_model_suffix(False).is_on is False
    assert read_reasoning({"thinking_budget": 5}).with_model_suffix(True).budget == 5
    with pytest.raises(ReasoningError) as caught:
        read_reasoning({"reasoning_effort": "high"}).with_model_suffix(False)
    assert caught.value.param == "reasoning_effort"


def test_a_client_can_ask_not_to_see_it():
    assert read_reasoning({"reasoning": {"exclude": True}}).is_hidden
    assert read_reasoning({"include_reasoning": False}).is_hidden
    assert read_reasoning({"include_reasoning": True}).is_on is None

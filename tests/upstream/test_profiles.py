from __future__ import annotations

import pytest

from qwenproxy.upstream.profiles import Profile, profile_for


@pytest.mark.parametrize(
    "model",
    [
        "qwen3-coder-plus",
        "qwen3-coder-30b-a3b-instruct",
        "Qwen/Qwen3-Coder-480B-A35B-Instruct-FP8",
        "hf.co/unsloth/Qwen3-Coder-30B-A3B-Instruct-GGUF:Q4_K_M",
        "qwen3-coder:30b",
        "qwen3.5-plus",
        "qwen3.5:9b",
        "Qwen3.6-35B-A3B",
        "qwen3.7-max",
        "qwen3p5-plus",
        "qwen4",
        "qwen3.10-plus",
    ],
)
def test_coder_and_newer_models_write_calls_as_tags(model):
    assert profile_for(model).tool_form == "qwen3_coder"


@pytest.mark.parametrize(
    "model",
    [
        "qwen3-max",
        "qwen3-vl-plus",
        "Qwen/Qwen3-235B-A22B-Thinking-2507",
        "qwen3-next-80b-a3b-instruct",
        "qwen2.5-72b-instruct",
        "qwen2.5-coder-32b-instruct",
        "qwen2p5-7b",
        "qwen7b-chat",
        "qwen30b",
        "Qwen/QwQ-32B",
        "qwen-plus-latest",
        "something-else",
        "",
    ],
)
def test_general_and_unknown_models_write_calls_as_json(model):
    assert profile_for(model) == Profile(tool_form="hermes")

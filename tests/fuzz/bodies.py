"""Valid bodies of every endpoint that takes one: what cases are bent from."""

from __future__ import annotations

import json
from random import Random
from typing import Any

_PICTURE = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
_FUNCTION = {"name": "look", "description": "Looks.", "parameters": _SCHEMA}
_CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "count_tokens": "/v1/messages/count_tokens",
    "embeddings": "/v1/embeddings",
}


def dump(document: Any) -> bytes:
    return json.dumps(document).encode()


def _chat(model: str) -> dict[str, Any]:
    parts = [
        {"type": "text", "text": "Hello"},
        {"type": "image_url", "image_url": {"url": _PICTURE, "detail": "low"}},
    ]
    return {
        "model": model,
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": parts, "name": "ann"},
            {"role": "assistant", "content": None, "tool_calls": [_CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "2"},
            {"role": "assistant", "content": "Two.", "reasoning_content": "Hm."},
            {"role": "user", "content": "Again"},
        ],
        "tools": [{"type": "function", "function": _FUNCTION}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "parallel_tool_calls": True,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA, "strict": True}},
        "stop": ["END"],
        "temperature": 0.5,
        "max_tokens": 50,
        "n": 1,
        "logit_bias": {"5": -1},
        "metadata": {"a": "b"},
        "reasoning_effort": "low",
        "user": "u",
        "stream_options": {"include_usage": True},
    }  # fmt: skip


def _responses(model: str) -> dict[str, Any]:
    return {
        "model": model,
        "instructions": "Be short.",
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
            {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"a":1}'},
            {"type": "function_call_output", "call_id": "c1", "output": "2"},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hm."}]},
            {"role": "user", "content": "Again"},
        ],
        "tools": [{"type": "function", **_FUNCTION}],
        "tool_choice": "auto",
        "text": {"format": {"type": "json_schema", "name": "x", "schema": _SCHEMA}},
        "reasoning": {"effort": "low", "summary": "auto"},
        "previous_response_id": "resp_unknown",
        "include": ["reasoning.encrypted_content"],
        "max_output_tokens": 50,
        "truncation": "auto",
        "metadata": {"a": "b"},
        "store": True,
        "background": False,
    }  # fmt: skip


def _messages(model: str) -> dict[str, Any]:
    picture = {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": _PICTURE[22:]},
    }
    return {
        "model": model,
        "max_tokens": 50,
        "system": [{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hello"}, picture]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": "s"}, {"type": "tool_use", "id": "t1", "name": "look", "input": {"a": 1}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "2"}]}]},
        ],
        "tools": [{"name": "look", "description": "Looks.", "input_schema": _SCHEMA}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "stop_sequences": ["END"],
        "metadata": {"user_id": "u"},
        "temperature": 0.5,
        "top_k": 5,
    }  # fmt: skip


def _full(shape: str, model: str) -> dict[str, Any]:
    if shape == "chat":
        return _chat(model)
    if shape == "responses":
        return _responses(model)
    if shape in ("messages", "count_tokens"):
        return _messages(model)
    if shape == "completions":
        return {"model": model, "prompt": "Once", "max_tokens": 5, "stop": ["x"], "logprobs": 1, "echo": False, "n": 1, "suffix": "s", "user": "u"}  # fmt: skip
    return {
        "model": model,
        "input": ["a", "b"],
        "encoding_format": "float",
        "dimensions": 3,
        "user": "u",
    }


def valid(rng: Random, shape: str, model: str) -> tuple[str, dict[str, Any]]:
    """Path and a body that uses many members; half of the optional ones are left out."""
    document = _full(shape, model)
    needed = {"model", "messages", "input", "prompt", "max_tokens"}
    document = {k: v for k, v in document.items() if k in needed or rng.random() < 0.5}
    # Most answer from the record alone where it is unknown.
    if rng.random() < 0.9:
        document.pop("previous_response_id", None)
    if shape not in ("embeddings", "count_tokens"):
        document["stream"] = rng.random() < 0.5
    return PATHS[shape], document


def plain(rng: Random, shape: str, model: str, said: str) -> tuple[str, dict[str, Any]]:
    """Path and a small body without faults that says `said`."""
    document: dict[str, Any] = {"model": model, "stream": rng.random() < 0.5}
    if shape == "completions":
        document["prompt"] = said
    elif shape == "responses":
        document["input"] = said
    elif shape == "embeddings":
        document = {"model": model, "input": said}
    else:
        document["messages"] = [{"role": "user", "content": said}]
    if shape == "messages":
        document["max_tokens"] = 50
    if shape == "chat" and rng.random() < 0.3:
        document["tools"] = [{"type": "function", "function": _FUNCTION}]
    return PATHS[shape], document


def of_operation(rng: Random, template: str) -> Any:
    """A valid body for a path of the API that is not a question."""
    if template.startswith("/v1/keys"):
        limits = {
            name: rng.choice((None, 10**6))
            for name in (
                "requests_per_minute",
                "tokens_per_minute",
                "tokens_per_day",
                "max_concurrent",
                "content_days",
            )
        }
        return {"name": f"k{rng.randrange(10**9)}", "scopes": ["chat"], "allowed_models": ["qwen*"], "expires_in_days": 3, **limits}  # fmt: skip
    if template.startswith("/v1/accounts"):
        return {"name": f"a{rng.randrange(10**9)}", "kind": rng.choice(("openai_compatible", "qwen_web", "dashscope")), "base_url": "http://127.0.0.1:9/v1", "enabled": False, "priority": 900, "weight": 1, "max_concurrent": 1, "min_interval_ms": 0, "secrets": {"api_key": "x", "headers": {"a": "b"}}}  # fmt: skip
    return {}

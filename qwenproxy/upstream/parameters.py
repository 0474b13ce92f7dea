"""What each kind of upstream does with each parameter of a request: one table, held to by tests.

`passed` as it is; `emulated` by the gateway; `gateway`: the gateway's own business, wherever it goes;
`ignored`: no effect there, and the answer's header says so; `refused` with a 400 that names it.
Parameters that the table does not have are passed where anything is, and ignored elsewhere. The same
table is in docs/parameters.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from qwenproxy.errors import InvalidRequest
from qwenproxy.upstream.protocol import Kind
from qwenproxy.wire.json import JSONObject, JSONValue

Treatment = Literal["passed", "emulated", "gateway", "ignored", "refused"]
_Row: TypeAlias = tuple[Treatment, Treatment, Treatment, Treatment]

KINDS: Final[tuple[Kind, ...]] = ("openai_compatible", "dashscope", "qwen_web", "demo")
_OURS: _Row = ("gateway", "gateway", "gateway", "gateway")
_NATIVE: _Row = ("passed", "passed", "ignored", "ignored")
_NATIVE_ONLY: _Row = ("passed", "passed", "refused", "refused")
_BY_TEXT: _Row = ("passed", "passed", "emulated", "ignored")

TABLE: Final[Mapping[str, _Row]] = {
    "n": _OURS,
    "user": _OURS,
    "metadata": _OURS,
    "store": _OURS,
    "temperature": _NATIVE,
    "top_p": _NATIVE,
    "top_k": _NATIVE,
    "min_p": _NATIVE,
    "presence_penalty": _NATIVE,
    "frequency_penalty": _NATIVE,
    "repetition_penalty": _NATIVE,
    "seed": _NATIVE,
    "max_tokens": _NATIVE,
    "max_completion_tokens": _NATIVE,
    "prediction": _NATIVE,
    "service_tier": _NATIVE,
    "verbosity": _NATIVE,
    "stop": _BY_TEXT,
    "response_format": ("passed", "passed", "emulated", "refused"),
    "logprobs": _NATIVE_ONLY,
    "top_logprobs": _NATIVE_ONLY,
    "logit_bias": _NATIVE_ONLY,
    "modalities": _NATIVE_ONLY,
    "audio": _NATIVE_ONLY,
    "web_search_options": _NATIVE_ONLY,
    "functions": _NATIVE_ONLY,
    "function_call": _NATIVE_ONLY,
    # Of legacy completions; Model Studio has none of its own.
    "suffix": ("passed", "refused", "refused", "refused"),
    "tool_choice": _BY_TEXT,
    "parallel_tool_calls": _BY_TEXT,
    "reasoning_effort": ("passed", "emulated", "emulated", "ignored"),
    "enable_thinking": _BY_TEXT,
    "thinking_budget": _BY_TEXT,
    "chat_template_kwargs": ("passed", "emulated", "emulated", "ignored"),
    "reasoning": ("passed", "emulated", "emulated", "ignored"),
    "include_reasoning": _OURS,
}

# Values that ask for nothing beyond what an answer is anyway.
_ASKS_NOTHING: Final[Mapping[str, tuple[JSONValue, ...]]] = {
    "modalities": (["text"],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
}
# An empty object turns it on.
_ON_WHEN_EMPTY = ("web_search_options",)
# Names are the client's: a header holds none that could break it.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", re.ASCII)
_MAX_NAMED = 30


def treatment(kind: Kind, name: str) -> Treatment:
    """What this kind of upstream does with a parameter, known or not."""
    row = TABLE.get(name, _NATIVE)
    return row[KINDS.index(kind)]


def refuse(kind: Kind, parameters: JSONObject) -> None:
    """Refuse a request that asks for what this kind of upstream can neither do nor imitate.

    Raises:
        InvalidRequest: naming the parameter, and the kinds that take it.
    """
    for name, value in parameters.items():
        if _is_refused(kind, name, value):
            takers = [other for other in KINDS if treatment(other, name) == "passed"]
            raise InvalidRequest(
                f"{name} is not supported by this upstream ({kind}); use a model of an account of the"
                f" kind {' or '.join(takers)}",
                param=name,
                code="unsupported_parameter",
            )


def takes(kind: Kind, parameters: JSONObject) -> bool:
    """Whether this kind of upstream refuses none of a request's parameters."""
    return not any(_is_refused(kind, name, value) for name, value in parameters.items())


def ignored(kind: Kind, parameters: JSONObject) -> list[str]:
    """The parameters of a request that have no effect with this kind of upstream, in their order."""
    if kind in ("openai_compatible", "dashscope"):
        return []
    named = [
        name
        for name, value in parameters.items()
        if treatment(kind, name) == "ignored" and _asks(name, value) and _NAME.fullmatch(name)
    ]
    return named[:_MAX_NAMED]


def _is_refused(kind: Kind, name: str, value: JSONValue) -> bool:
    return treatment(kind, name) == "refused" and _asks(name, value)


def _asks(name: str, value: JSONValue) -> bool:
    if value is None or value is False:
        return False
    if value in ({}, [], "") and name not in _ON_WHEN_EMPTY:
        return False
    if name == "top_logprobs" and value == 0:
        return False
    return value not in _ASKS_NOTHING.get(name, ())

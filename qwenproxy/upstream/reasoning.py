"""A request's wish for thinking in the words of each kind of upstream; the table is in docs/upstreams.md.

A request without a wish is passed on as it is.
"""

from __future__ import annotations

from qwenproxy.wire.json import JSONObject
from qwenproxy.wire.reasoning import FIELDS, Reasoning

# Servers that switch thinking by the chat template, by how they name the owner of their models.
TEMPLATE_OWNERS = frozenset({"vllm", "sglang", "llamacpp"})
# Ollama's.
_EFFORT_OWNER = "library"
# Tokens of thinking for an effort, where only a budget can be set; higher ones have no bound.
_BUDGETS = {"low": 2_048, "medium": 8_192}
_TEMPLATE = "chat_template_kwargs"
_REPLACED = frozenset(FIELDS) - {_TEMPLATE}


def for_dashscope(parameters: JSONObject, reasoning: Reasoning) -> JSONObject:
    """As Model Studio has it: `enable_thinking` and `thinking_budget`, which every model there takes."""
    if not any(name in parameters for name in FIELDS) and reasoning.is_on is None:
        return parameters
    rest = {name: value for name, value in parameters.items() if name not in _REPLACED}
    kwargs = rest.get(_TEMPLATE)
    if isinstance(kwargs, dict) and kwargs.keys() <= {"enable_thinking"}:
        del rest[_TEMPLATE]
    if reasoning.is_on is not None:
        rest["enable_thinking"] = reasoning.is_on
    if (budget := budget_of(reasoning)) is not None:
        rest["thinking_budget"] = budget
    return rest


def for_server(parameters: JSONObject, reasoning: Reasoning, owner: str) -> JSONObject:
    """As a server of one's own has it; `owner` is whom its list names as the model's owner.

    What the client sent passes, and what the server understands comes besides: the chat template's
    switch, with Ollama the effort. A server that nobody knows gets the switch unless the client used
    a form that such servers have themselves.
    """
    is_on = reasoning.is_on
    if is_on is None:
        return parameters
    sent, effort = dict(parameters), parameters.get("reasoning_effort")
    if owner == _EFFORT_OWNER:
        if said := "none" if not is_on else reasoning.effort:
            sent["reasoning_effort"] = said
        return sent
    if owner not in TEMPLATE_OWNERS and reasoning.enabled is None:
        return parameters
    if owner in TEMPLATE_OWNERS and effort in ("none", "minimal"):
        # Older ones refuse these; the switch says the same.
        del sent["reasoning_effort"]
    kwargs = sent.get(_TEMPLATE)
    sent[_TEMPLATE] = {**(kwargs if isinstance(kwargs, dict) else {}), "enable_thinking": is_on}
    return sent


def for_web(reasoning: Reasoning) -> tuple[bool, int | None]:
    """Whether the web upstream thinks, and with which budget of tokens: off unless it is asked for."""
    is_on = bool(reasoning.is_on)
    return is_on, budget_of(reasoning)


def budget_of(reasoning: Reasoning) -> int | None:
    """The tokens of thinking that a wish allows; null: no bound, or no thinking."""
    if not reasoning.is_on:
        return None
    return reasoning.budget or _BUDGETS.get(reasoning.effort or "")

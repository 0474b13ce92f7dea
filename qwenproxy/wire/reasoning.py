"""How much a model shall think, as every client protocol asks for it: one form.

Clients say it as `reasoning_effort` (OpenAI), `enable_thinking` and `thinking_budget` (Model Studio),
`chat_template_kwargs` (vLLM, SGLang), `reasoning` (OpenRouter) or in the model's name. What was said twice
has to agree. `/think` and `/no_think` in a message are the model's own and left alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qwenproxy.wire.json import JSONObject, JSONValue

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
# The members of a body that are read here.
FIELDS = (
    "reasoning_effort",
    "enable_thinking",
    "thinking_budget",
    "chat_template_kwargs",
    "reasoning",
    "include_reasoning",
)
SUFFIXES = (("-no-thinking", False), ("-thinking", True))


class ReasoningError(ValueError):
    """A wish that is malformed, or contradicts another; `param` is its path in the body."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param} {message}")
        self.param = param


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What a request asks for; all null: nothing, the model's default counts."""

    enabled: bool | None = None
    # One of `EFFORTS`.
    effort: str | None = None
    # Tokens.
    budget: int | None = None
    # The client does not want to see it.
    is_hidden: bool = False
    # The member that said whether to think, for the error of one that says otherwise.
    said_by: str = ""

    @property
    def is_on(self) -> bool | None:
        """Whether to think, said or implied; null: not asked."""
        if self.enabled is not None:
            return self.enabled
        if self.effort is not None:
            return self.effort not in ("none", "minimal")
        return True if self.budget is not None else None

    def with_model_suffix(self, thinking: bool | None) -> Reasoning:
        """Add what the model's name says.

        Raises:
            ReasoningError: the body says the contrary.
        """
        if thinking is None:
            return self
        if self.is_on is not None and self.is_on is not thinking:
            suffix = "-thinking" if thinking else "-no-thinking"
            raise ReasoningError(
                self.said_by, f"contradicts the end of the model's name, {suffix}: leave one out"
            )
        return replace(self, enabled=thinking, said_by="model")


NOTHING = Reasoning()


def read_reasoning(body: JSONObject) -> Reasoning:
    """Read a body's wishes.

    Raises:
        ReasoningError: malformed, or two that contradict each other; naming the field.
    """
    if not any(name in body for name in FIELDS):
        return NOTHING
    nested = _object(body, "reasoning")
    kwargs = _object(body, "chat_template_kwargs")
    efforts = _said(
        ("reasoning_effort", _effort(body.get("reasoning_effort"), "reasoning_effort")),
        ("reasoning.effort", _effort(nested.get("effort"), "reasoning.effort")),
    )
    switches = _said(
        ("enable_thinking", _switch(body, "enable_thinking", "")),
        (
            "chat_template_kwargs.enable_thinking",
            _switch(kwargs, "enable_thinking", "chat_template_kwargs."),
        ),
        ("reasoning.enabled", _switch(nested, "enabled", "reasoning.")),
    )
    budgets = _said(
        ("thinking_budget", _count(body, "thinking_budget", "")),
        ("reasoning.max_tokens", _count(nested, "max_tokens", "reasoning.")),
    )
    _check_effort(efforts[0], efforts[1], switches[1], budgets[0], budgets[1])
    shown = _switch(body, "include_reasoning", "")
    hidden = _switch(nested, "exclude", "reasoning.") is True or shown is False
    enabled = switches[1]
    effort = efforts[1]
    budget = budgets[1]
    assert enabled is None or isinstance(enabled, bool)
    assert effort is None or isinstance(effort, str)
    assert budget is None or isinstance(budget, int)
    said_by = switches[0] or efforts[0] or budgets[0]
    return Reasoning(enabled, effort, budget, hidden, said_by)


def _check_effort(
    name: str, effort: object, enabled: object, budget_name: str, budget: object
) -> None:
    if effort == "none" and enabled is True:
        raise ReasoningError(name, "is none, but thinking is switched on: leave one out")
    if effort not in (None, "none", "minimal") and enabled is False:
        raise ReasoningError(name, f"is {effort}, but thinking is switched off: leave one out")
    if effort == "none" and budget is not None:
        raise ReasoningError(budget_name, "is set, but the effort is none: leave one out")


def _said(*wishes: tuple[str, JSONValue]) -> tuple[str, JSONValue]:
    """The one value that is said, with the name of the first member that says it."""
    said = [wish for wish in wishes if wish[1] is not None]
    for name, value in said[1:]:
        if value != said[0][1]:
            raise ReasoningError(name, f"contradicts {said[0][0]}: leave one out")
    return said[0] if said else ("", None)


def _object(body: JSONObject, name: str) -> JSONObject:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ReasoningError(name, "must be an object")
    return value


def _effort(value: JSONValue, path: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or value not in EFFORTS:
        raise ReasoningError(path, f"must be one of {', '.join(EFFORTS)}")
    return value


def _switch(body: JSONObject, name: str, above: str) -> bool | None:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise ReasoningError(above + name, "must be true or false")
    return value


def _count(body: JSONObject, name: str, above: str) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ReasoningError(above + name, "must be a whole number of at least 1")
    return value


def split_suffix(model: str) -> tuple[str, bool | None]:
    """Split the end of a model's name that says whether to think: `m-thinking` is `m`, and yes."""
    for suffix, thinking in SUFFIXES:
        if model.endswith(suffix) and model != suffix:
            return model.removesuffix(suffix), thinking
    return model, None

"""What OpenAI and Anthropic publish of their answers, as schemas that know no further members.

OpenAI's are the components of its OpenAPI document (tests/fixtures/openai_schemas.json); Anthropic's are
made of the models in its pinned SDK. Published schemas let unknown members pass: here each object is
closed, and a member of ours stands in `OURS` with the reason.
"""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

from anthropic.types import ErrorResponse, Message, MessageTokensCount, RawMessageStreamEvent
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from pydantic import TypeAdapter

_FILE = Path(__file__).parent / "fixtures" / "openai_schemas.json"

_REASONING = "vLLM, SGLang, DeepSeek and DashScope have it, and clients read it; OpenAI shows none"
# Component, and where it is not the component's own the member within -> what is ours there -> why.
OURS: dict[str, dict[str, str]] = {
    "ChatCompletionResponseMessage": {"reasoning_content": _REASONING, "reasoning": _REASONING},
    "ChatCompletionStreamResponseDelta": {"reasoning_content": _REASONING, "reasoning": _REASONING},
    "CustomToolCall": {"status": "OpenAI's CustomToolCallResource has it, and all other items do"},
    "Model": {"context_length": "what OpenRouter and others tell of a model, and agents go by"},
    "Response": {"store": "of the body, which GET says again: OpenAI's service does so"},
    "ResponseErrorCode": {"context_length_exceeded": "Codex compacts a conversation by it"},
    "ResponseUsage.input_tokens_details": {"cache_write_tokens": "the pinned SDK requires it"},
}
# Component, or a list in it -> the members that are null where the document has no null -> why.
NULLS: dict[str, dict[str, str]] = {
    "CreateCompletionResponse": {"usage": "in chunks before the last, as OpenAI's service does"},
    "CreateCompletionResponse.choices": {"finish_reason": "in chunks before the last, likewise"},
}

_ANTHROPIC = {
    "message": Message,
    "event": RawMessageStreamEvent,
    "error": ErrorResponse,
    "count": MessageTokensCount,
}


def problem(name: str, body: Any) -> str:
    """Why a body is not what OpenAI's component `name` says; empty: it is."""
    return _problem(_openai(name), body)


def event_problem(event: dict[str, Any]) -> str:
    """The same of an event of a response's stream; its `type` names the component."""
    name = _openai_events().get(event.get("type", ""))
    return problem(name, event) if name else f"no event of OpenAI's: {event.get('type')}"


def anthropic_problem(name: str, body: Any) -> str:
    """Why a body is no `message`, `event`, `error` or `count` of Anthropic's; empty: it is."""
    return _problem(_anthropic(name), body)


def published_members(place: str) -> set[str]:
    """What the document has where `OURS` adds to it."""
    schema = _at(_components(), place)
    return set(schema.get("enum", schema.get("properties", ())))


def _problem(validator: Draft202012Validator, body: Any) -> str:
    errors = list(validator.iter_errors(body))
    # An object with a wrong member has no evaluated ones, and says so of each beside what is wrong.
    told = [error for error in errors if error.validator != "unevaluatedProperties"] or errors
    return "; ".join(f"{one.json_path}: {one.message[:600]}" for one in map(_deepest, told))


def _deepest(error: ValidationError) -> ValidationError:
    """Of a union that nothing fits the complaint of the branch for this `type`, or that fits best."""
    branches: dict[Any, list[ValidationError]] = {}
    for one in error.context or ():
        branches.setdefault(one.schema_path[0], []).append(one)
    for complaints in branches.values():
        if not any(list(one.path) == ["type"] for one in complaints):
            return _deepest(best_match(complaints))
    return error


@functools.cache
def _components() -> dict[str, Any]:
    return json.loads(_FILE.read_text("utf-8"))["schemas"]


@functools.cache
def _openai(name: str) -> Draft202012Validator:
    return _validator({"$ref": f"#/components/schemas/{name}"}, _openai_definitions())


@functools.cache
def _openai_definitions() -> dict[str, Any]:
    components = copy.deepcopy(_components())
    for place, ours in OURS.items():
        schema = _at(components, place)
        if "enum" in schema:
            schema["enum"] += ours
        else:
            schema["properties"] |= dict.fromkeys(ours, {})
    for place, members in NULLS.items():
        properties = _at(components, place)["properties"]
        for name in members:
            properties[name] = {"anyOf": [properties[name], {"type": "null"}]}
    return _definitions(components)


def _at(components: dict[str, Any], place: str) -> dict[str, Any]:
    name, *path = place.split(".")
    # The last part of a composed one has its own members.
    schema = components[name].get("allOf", [components[name]])[-1]
    for member in path:
        schema = schema["properties"][member]
        schema = schema.get("items", schema)
    return schema


@functools.cache
def _openai_events() -> dict[str, str]:
    kinds = {}
    for name, schema in _components().items():
        if name.endswith("Event"):
            (kind,) = schema["properties"]["type"]["enum"]
            kinds[kind] = name
    return kinds


@functools.cache
def _anthropic(name: str) -> Draft202012Validator:
    schema = TypeAdapter(_ANTHROPIC[name]).json_schema()
    definitions = schema.pop("$defs", {})
    return _validator(schema, _definitions(definitions))


def _validator(schema: dict[str, Any], definitions: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**_closed(schema), "$defs": definitions})


def _definitions(components: dict[str, Any]) -> dict[str, Any]:
    """Each component twice: closed, and open for the members that stand beside it in an `allOf`."""
    closed = {name: _closed(schema) for name, schema in components.items()}
    return closed | {f"{name}+": _closed(schema, rest=True) for name, schema in components.items()}


def _closed(schema: Any, *, rest: bool = False) -> Any:
    """The schema without members that it does not name; with `rest` others name some beside it."""
    if not isinstance(schema, dict):
        return schema
    if schema.get("nullable"):
        told = {name: value for name, value in schema.items() if name != "nullable"}
        return {"anyOf": [_closed(told, rest=rest), {"type": "null"}]}
    is_whole = "allOf" in schema or "properties" in schema
    out: dict[str, Any] = {}
    for name, value in schema.items():
        if name == "$ref":
            out[name] = f"#/$defs/{value.rsplit('/', 1)[1]}{'+' * (rest or is_whole)}"
        elif name in ("properties", "$defs"):
            out[name] = {member: _closed(of) for member, of in value.items()}
        elif name in ("allOf", "anyOf", "oneOf"):
            out[name] = [_closed(branch, rest=rest or is_whole) for branch in value]
        elif name == "items" or (name == "additionalProperties" and isinstance(value, dict)):
            out[name] = _closed(value)
        elif name == "additionalProperties" and value is True and "properties" in schema:
            # What pydantic writes of the SDK's models, which keep what they do not know.
            continue
        elif name not in ("default", "discriminator", "title", "description"):
            out[name] = value
    if is_whole and not rest and not isinstance(schema.get("additionalProperties"), dict):
        out["unevaluatedProperties"] = False
    return out

"""The tools of one request: parsing the client's list, finding a tool by the name a model wrote,
and giving arguments the types that the tool's JSON schema names.

A schema decides types and nothing else: values are never checked against it, that is the client's
part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from qwenproxy.wire import json, json_repair
from qwenproxy.wire.json import JSONError, JSONObject, JSONValue

ToolForm: TypeAlias = Literal["hermes", "qwen3_coder"]

_REFERENCE_DEPTH = 8
_MEMBER_LISTS = ("anyOf", "oneOf", "allOf")


@dataclass(frozen=True, slots=True)
class ToolSpec:
    name: str
    description: str = ""
    # A JSON schema; empty where the client gave none.
    parameters: JSONObject = field(default_factory=dict)


def parse_tools(tools: JSONValue) -> list[ToolSpec]:
    """Read a chat request's `tools`; null is no tools.

    Raises:
        ValueError: malformed; the message names the place, such as `tools[2].function.name`.
    """
    if tools is None:
        return []
    if not isinstance(tools, list):
        raise ValueError("tools must be a list")
    return [_parse_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]


def _parse_tool(tool: JSONValue, place: str) -> ToolSpec:
    if not isinstance(tool, dict):
        raise ValueError(f"{place} must be an object")
    if tool.get("type", "function") != "function":
        raise ValueError(f"{place}.type must be 'function'")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise ValueError(f"{place}.function must be an object")
    name = function.get("name")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"{place}.function.name must be a text that is not empty")
    description = function.get("description")
    if description is not None and not isinstance(description, str):
        raise ValueError(f"{place}.function.description must be a text")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise ValueError(f"{place}.function.parameters must be an object")
    return ToolSpec(name, description or "", parameters or {})


class ToolIndex:
    """Finds tools by name: exactly, else whatever the case and without `_` and `-`."""

    def __init__(self, tools: Sequence[ToolSpec]) -> None:
        self._exact: dict[str, ToolSpec] = {}
        # Null where two tools of the request fold to one name.
        self._folded: dict[str, ToolSpec | None] = {}
        for tool in tools:
            if tool.name in self._exact:
                continue
            self._exact[tool.name] = tool
            folded = _fold(tool.name)
            self._folded[folded] = None if folded in self._folded else tool

    def find(self, name: str) -> ToolSpec | None:
        return self._exact.get(name) or self._folded.get(_fold(name))


def _fold(name: str) -> str:
    return name.replace("_", "").replace("-", "").casefold()


def has_parameter(tool: ToolSpec | None, name: str) -> bool:
    """Whether a parameter of this name may exist: true where the schema lists none."""
    properties = tool.parameters.get("properties") if tool is not None else None
    return not isinstance(properties, dict) or not properties or name in properties


def type_text_argument(tool: ToolSpec | None, name: str, text: str) -> JSONValue:
    """Give a parameter that was written as bare text its value.

    Without a type in the schema, text that is a JSON object, array, number or boolean is that value.
    """
    types = _parameter_types(tool, name)
    if types:
        return _typed(text, types)
    value = _parsed(text)
    return text if value is None or isinstance(value, str) else value


def type_json_argument(tool: ToolSpec | None, name: str, value: JSONValue) -> JSONValue:
    """Correct a value written as JSON text where the schema allows no text: `"5"` for an integer."""
    if not isinstance(value, str):
        return value
    types = _parameter_types(tool, name)
    return _typed(value, types) if types and "string" not in types else value


def _typed(text: str, types: frozenset[str]) -> JSONValue:
    word = text.strip()
    if "null" in types and word in ("null", "None"):
        return None
    if types & {"object", "array"} and word.startswith(("{", "[")):
        value = _parsed(word, repair=True)
        if isinstance(value, dict if word[0] == "{" else list):
            return value
    if "string" in types:
        return text
    if "boolean" in types and word.lower() in ("true", "false"):
        return word.lower() == "true"
    if types & {"integer", "number"}:
        value = _parsed(word)
        if isinstance(value, float) and "number" not in types and value.is_integer():
            return int(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return value
    return text


def _parsed(text: str, *, repair: bool = False) -> JSONValue:
    try:
        return json_repair.loads(text) if repair else json.loads_text(text)
    except JSONError:
        return None


def _parameter_types(tool: ToolSpec | None, name: str) -> frozenset[str]:
    if tool is None:
        return frozenset()
    properties = tool.parameters.get("properties")
    if not isinstance(properties, dict):
        return frozenset()
    return frozenset(_types(properties.get(name), tool.parameters, _REFERENCE_DEPTH))


def _types(schema: JSONValue, root: JSONObject, depth: int) -> Iterator[str]:
    # A schema may refer to itself.
    if not isinstance(schema, dict) or depth == 0:
        return
    declared = schema.get("type")
    for kind in declared if isinstance(declared, list) else [declared]:
        if isinstance(kind, str):
            yield kind
    allowed = schema.get("enum")
    values = allowed if isinstance(allowed, list) else []
    for value in [*values, schema["const"]] if "const" in schema else values:
        yield _type_of(value)
    for key in _MEMBER_LISTS:
        members = schema.get(key)
        for member in members if isinstance(members, list) else []:
            yield from _types(member, root, depth - 1)
    reference = schema.get("$ref")
    if isinstance(reference, str):
        yield from _types(_referred(reference, root), root, depth - 1)


def _referred(reference: str, root: JSONObject) -> JSONValue:
    target: JSONValue = root
    for step in reference.removeprefix("#").split("/")[1:]:
        if not isinstance(target, dict):
            return None
        target = target.get(step.replace("~1", "/").replace("~0", "~"))
    return target


def _type_of(value: JSONValue) -> str:
    match value:
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case dict():
            return "object"
        case None:
            return "null"

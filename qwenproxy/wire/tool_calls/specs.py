"""The tools of one request: parsing the client's list, and finding a tool by the name a model wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeAlias

from qwenproxy.wire.json import JSONObject, JSONValue
from qwenproxy.wire.tool_calls.schema import Schema

ToolForm: TypeAlias = Literal["hermes", "qwen3_coder"]


@dataclass(frozen=True)
class ToolSpec:
    name: str
    description: str = ""
    # A JSON schema; empty where the client gave none.
    parameters: JSONObject = field(default_factory=dict)

    @cached_property
    def schema(self) -> Schema:
        return Schema.of(self.parameters)


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

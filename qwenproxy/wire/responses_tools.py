"""Tools of OpenAI's Responses API in the chat form, and the names under which calls come back.

A tool of a namespace gets both names joined; a custom tool, which takes a bare text, becomes a function
with that text as its only argument. Tools of OpenAI's own service cannot be served: those that clients
send along unasked are left out with a note, all others are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from qwenproxy.wire import json
from qwenproxy.wire.anthropic_bodies import FieldError
from qwenproxy.wire.json import JSONObject, JSONValue

_LEFT_OUT = ("web_search", "image_generation", "tool_search")


@dataclass(frozen=True, slots=True)
class ToolName:
    """A tool as the client named it."""

    name: str
    namespace: str | None = None
    is_custom: bool = False


# Name in the chat form -> the client's own.
ToolNames: TypeAlias = dict[str, ToolName]


@dataclass(slots=True)
class Tools:
    chat: list[JSONValue] = field(default_factory=list)
    names: ToolNames = field(default_factory=dict)
    # Path in the body -> why a tool was not sent on.
    notes: JSONObject = field(default_factory=dict)


def flat_name(name: str, namespace: JSONValue = None) -> str:
    """The name in the chat form, the same for a tool and for its calls."""
    return f"{namespace}__{name}" if isinstance(namespace, str) and namespace else name


def read_tools(given: JSONValue) -> Tools:
    """Translate a list of tools.

    Raises:
        FieldError: one is wrong, or runs at OpenAI alone.
    """
    tools = Tools()
    if given is None:
        return tools
    if not isinstance(given, list):
        raise FieldError("tools", "must be a list")
    for index, tool in enumerate(given):
        _read_tool(tool, f"tools.{index}", None, tools)
    return tools


def _read_tool(tool: JSONValue, path: str, namespace: str | None, tools: Tools) -> None:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or not isinstance(kind, str):
        raise FieldError(path, "must be an object with a type")
    if kind in ("function", "custom"):
        name = _name(tool, path)
        flat = flat_name(name, namespace)
        tools.names[flat] = ToolName(name, namespace, kind == "custom")
        function = _custom(tool) if kind == "custom" else _function(tool, path)
        tools.chat.append({"type": "function", "function": {"name": flat, **function}})
    elif kind == "namespace" and namespace is None:
        inner = tool.get("tools")
        if not isinstance(inner, list):
            raise FieldError(f"{path}.tools", "must be a list")
        for index, one in enumerate(inner):
            _read_tool(one, f"{path}.tools.{index}", _name(tool, path), tools)
    elif kind.startswith(_LEFT_OUT):
        tools.notes[path] = f"{kind}: a tool of OpenAI's own service, not sent on"
    else:
        raise FieldError(
            f"{path}.type",
            f"{kind!r} is a tool of OpenAI's own service, which no upstream here has;"
            " tools of the types function, custom and namespace are served",
        )


def _name(tool: JSONObject, path: str) -> str:
    name = tool.get("name")
    if not isinstance(name, str) or not name:
        raise FieldError(f"{path}.name", "must be a text")
    return name


def _function(tool: JSONObject, path: str) -> JSONObject:
    function: JSONObject = {}
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    parameters = tool.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise FieldError(f"{path}.parameters", "must be an object")
    function["parameters"] = parameters or {"type": "object", "properties": {}}
    if tool.get("strict") is not None:
        function["strict"] = tool["strict"]
    return function


def _custom(tool: JSONObject) -> JSONObject:
    described = tool.get("description")
    texts = [described] if isinstance(described, str) and described else []
    form = tool.get("format")
    if isinstance(form, dict) and isinstance(form.get("definition"), str):
        texts.append(
            f"The input has to follow this {form.get('syntax')} grammar:\n{form['definition']}"
        )
    text: JSONObject = {"type": "string", "description": "The whole input, as it is."}
    return {
        "description": "\n\n".join(texts),
        "parameters": {"type": "object", "properties": {"input": text}, "required": ["input"]},
    }


def custom_input(arguments: str) -> str:
    """The bare text in the arguments of a call of a custom tool; as they are where there is none."""
    try:
        parsed = json.loads_text(arguments)
    except json.JSONError:
        return arguments
    text = parsed.get("input") if isinstance(parsed, dict) else None
    return text if isinstance(text, str) else arguments


def read_choice(
    choice: JSONValue, tools: list[JSONValue], names: ToolNames
) -> tuple[JSONObject, list[JSONValue]]:
    """`tool_choice` in the chat form, and the tools that it leaves.

    Raises:
        FieldError: it is wrong, or forces a tool that is not there.
    """
    if choice is None:
        return {}, tools
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            raise FieldError("tool_choice", "must be none, auto, required or an object")
        return {"tool_choice": choice}, tools
    kind = choice.get("type") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(kind, str):
        raise FieldError("tool_choice.type", "must be a text")
    if kind in ("function", "custom"):
        flat = _chosen(choice, "tool_choice", names)
        return {"tool_choice": {"type": "function", "function": {"name": flat}}}, tools
    if kind == "allowed_tools":
        return _allowed(choice, tools, names)
    raise FieldError("tool_choice.type", f"{kind!r} is a tool that no upstream here has")


def _chosen(choice: JSONObject, path: str, names: ToolNames) -> str:
    flat = flat_name(_name(choice, path), choice.get("namespace"))
    if flat not in names:
        raise FieldError(f"{path}.name", f"there is no tool {flat!r}")
    return flat


def _allowed(
    choice: JSONObject, tools: list[JSONValue], names: ToolNames
) -> tuple[JSONObject, list[JSONValue]]:
    mode, allowed = choice.get("mode", "auto"), choice.get("tools")
    if mode not in ("auto", "required") or not isinstance(allowed, list):
        raise FieldError("tool_choice.mode", "must be auto or required, with a list of tools")
    kept = set()
    for index, tool in enumerate(allowed):
        if not isinstance(tool, dict):
            raise FieldError(f"tool_choice.tools.{index}", "must be an object")
        if tool.get("type") in ("function", "custom"):
            kept.add(_chosen(tool, f"tool_choice.tools.{index}", names))
    left = [tool for tool in tools if _flat_name_of(tool) in kept]
    return {"tool_choice": mode}, left


def _flat_name_of(tool: JSONValue) -> JSONValue:
    function = tool.get("function") if isinstance(tool, dict) else None
    return function.get("name") if isinstance(function, dict) else None

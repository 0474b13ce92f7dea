"""Tools and calls written as prompt text, in the two forms that Qwen models know from training.

The text depends on its arguments alone, and what varies from turn to turn (the choice) comes last:
an upstream that caches prompt prefixes finds the same one again. No example names a tool that a
client could have: models imitate examples.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from qwenproxy.wire import json
from qwenproxy.wire.json import JSONError, JSONObject, JSONValue
from qwenproxy.wire.tool_calls.specs import ToolForm, ToolSpec

_HERMES = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{declarations}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""

_QWEN3_CODER = """# Tools

You have access to the following functions:

<tools>
{declarations}
</tools>

If you choose to call a function ONLY reply in the following format with NO suffix:

<tool_call>
<function=example_function_name>
<parameter=example_parameter_1>
value_1
</parameter>
<parameter=example_parameter_2>
This is the value for the second parameter
that can span
multiple lines
</parameter>
</function>
</tool_call>

<IMPORTANT>
- A call is a <function=...></function> block inside <tool_call></tool_call> tags
- Required parameters MUST be given
- Reasoning may stand before a call, never after it
- If no function fits, answer as usual and do not mention functions
</IMPORTANT>"""

_RESULTS = """
End your answer after the last call. The results come back in the next user message, within \
<tool_response></tool_response> tags; never write such tags yourself."""

_MANY = "To call several functions, write one <tool_call> block after the other."
_ONE = "Write at most one <tool_call> block in an answer."

# What the XML form cannot carry, because it has no escapes.
_UNSAFE_NAME = re.compile(r'[<>\n\r"\']|^\s|\s\Z|\A\Z|.{129}', re.DOTALL)
_SENTENCE_END = re.compile(r"[.!?](?= |\Z)|[。！？]")
_MAX_SENTENCE_CHARS = 200
# Of a schema: what they hold are values, not schemas.
_VALUES = ("const", "default", "enum", "examples")
_UNSAFE_VALUE = re.compile(r"</?tool_call>|</?function|</?parameter|<tool_response>")


def tool_prompt(
    tools: Sequence[ToolSpec], *, form: ToolForm, choice: str = "auto", parallel: bool = True
) -> str:
    """Explain the tools to a model; empty where there are none or none may be called.

    Args:
        choice: `auto`, `none`, `required`, or the name of the tool that must be called.

    Raises:
        ValueError: `choice` names no tool of the list.
    """
    if choice not in ("auto", "none", "required") and all(tool.name != choice for tool in tools):
        raise ValueError(f"tool_choice names a tool that is not in tools: {choice}")
    if choice == "none" or not tools:
        return ""
    if form == "hermes":
        text = _HERMES.format(declarations="\n".join(_declare_json(tool) for tool in tools))
    else:
        text = _QWEN3_CODER.format(declarations="\n".join(_declare_xml(tool) for tool in tools))
    lines = [text, _RESULTS, _MANY if parallel else _ONE]
    if choice == "required":
        lines.append("This answer MUST call at least one of the functions.")
    elif choice != "auto":
        lines.append(f"This answer MUST call the function {choice} and no other.")
    return "\n".join(lines)


def shorten_tools(tools: Sequence[ToolSpec]) -> list[ToolSpec]:
    """The same tools with no more of every description than its first sentence.

    Descriptions of coding agents' tools are manuals: those of Claude Code take 60,000 characters, of which
    this leaves a quarter (2.1.197, measured). Names, types and structure stay.
    """
    return [
        replace(
            tool,
            description=_first_sentence(tool.description),
            parameters=_shorten(tool.parameters),
        )
        for tool in tools
    ]


def _shorten(schema: JSONObject) -> JSONObject:
    return {name: _shorten_member(name, value) for name, value in schema.items()}


def _shorten_member(name: str, value: JSONValue) -> JSONValue:
    if name in _VALUES:
        return value
    if isinstance(value, dict):
        return _shorten(value)
    if isinstance(value, list):
        return [_shorten(entry) if isinstance(entry, dict) else entry for entry in value]
    return _first_sentence(value) if name == "description" and isinstance(value, str) else value


def _first_sentence(text: str) -> str:
    line = text.strip().partition("\n")[0]
    end = _SENTENCE_END.search(line)
    return (line[: end.start() + 1] if end else line)[:_MAX_SENTENCE_CHARS]


def _declare_json(tool: ToolSpec) -> str:
    function: JSONObject = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters:
        function["parameters"] = tool.parameters
    return json.dumps_text({"type": "function", "function": function})


def _declare_xml(tool: ToolSpec) -> str:
    lines = ["<function>", f"<name>{tool.name}</name>"]
    if tool.description:
        lines.append(f"<description>{tool.description.strip()}</description>")
    lines.append("<parameters>")
    properties = tool.parameters.get("properties")
    for name, schema in properties.items() if isinstance(properties, dict) else ():
        lines += ["<parameter>", f"<name>{name}</name>"]
        if isinstance(schema, dict):
            # Type and description come first, as in the model's own template.
            for key in ("type", "description"):
                if key in schema:
                    lines.append(_element(key, schema[key]))
            lines += _elements(schema, without=("name", "type", "description"))
        lines.append("</parameter>")
    lines += _elements(tool.parameters, without=("type", "properties"))
    return "\n".join([*lines, "</parameters>", "</function>"])


def _elements(schema: JSONObject, *, without: tuple[str, ...]) -> list[str]:
    return [_element(key, value) for key, value in schema.items() if key not in without]


def _element(key: str, value: JSONValue) -> str:
    text = value.strip() if isinstance(value, str) else json.dumps_text(value)
    return f"<{key}>{text}</{key}>"


def render_call(name: str, arguments_json: str, *, form: ToolForm) -> str:
    """Write one call as the model would have; `ToolCallParser` reads it back.

    Arguments that are not a JSON object are kept as JSON text. Calls that the XML form cannot carry
    (it has no escapes) are written in the other one.
    """
    arguments_json = arguments_json.strip() or "{}"
    try:
        arguments = json.loads_text(arguments_json)
    except JSONError:
        arguments = None
    if form == "qwen3_coder" and isinstance(arguments, dict):
        rendered = _render_xml(name, arguments)
        if rendered is not None:
            return rendered
    written = json.dumps_text(name)
    if isinstance(arguments, dict):
        body = f'{{"name": {written}, "arguments": {arguments_json}}}'
    else:
        body = f'{{"name": {written}, "arguments": {json.dumps_text(arguments_json)}}}'
    return f"<tool_call>\n{body}\n</tool_call>"


def _render_xml(name: str, arguments: JSONObject) -> str | None:
    if _UNSAFE_NAME.search(name):
        return None
    lines = ["<tool_call>", f"<function={name}>"]
    for key, value in arguments.items():
        text = value if isinstance(value, str) else json.dumps_text(value)
        if _UNSAFE_NAME.search(key) or _UNSAFE_VALUE.search(text):
            return None
        lines += [f"<parameter={key}>", text, "</parameter>"]
    return "\n".join([*lines, "</function>", "</tool_call>"])

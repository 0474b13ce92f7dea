"""How the record keeps a body of the Responses API, and gives it back as it was sent.

Texts are stored once, with the messages: of the body stays its shape, where each long text is a reference
to the message that holds it. A line that was stored in another form first is given back as items made
from its messages.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwenproxy.wire.anthropic_bodies import UNMAPPED
from qwenproxy.wire.json import JSONObject, JSONValue
from qwenproxy.wire.responses_bodies import ResponsesForm
from qwenproxy.wire.responses_tools import ToolName, ToolNames, custom_input

# Of recorded parameters: input, instructions and tools without what is stored with messages and tools.
_SHAPE = "_shape"
_SHAPED = ("input", "instructions", "tools")
_REFERENCE, _TOOL, _LITERAL = "_ref", "_tool", "_literal"
# A shorter text takes no more room than its reference.
_MIN_CHARS = 40


def recorded(sent: JSONObject, form: ResponsesForm) -> JSONObject:
    """The body as parameters of the record, for `to_body`."""
    parameters = {name: value for name, value in sent.items() if name not in _SHAPED}
    places = _places(form)
    shape: JSONObject = {}
    for name in ("input", "instructions"):
        if name in sent:
            shape[name] = _encode(sent[name], places)
    if "tools" in sent:
        shape["tools"] = _encode_tools(sent["tools"], form)
    parameters[_SHAPE] = shape
    if form.unmapped:
        parameters[UNMAPPED] = form.unmapped
    return parameters


def to_body(parameters: JSONObject, messages: Sequence[JSONObject], tools: JSONValue) -> JSONObject:
    """Build a body again from its record; `messages` is the whole line with its system texts."""
    body = {name: value for name, value in parameters.items() if name != _SHAPE}
    shape = parameters.get(_SHAPE)
    shape = shape if isinstance(shape, dict) else {}
    if "instructions" in shape:
        try:
            body["instructions"] = _decode(shape["instructions"], messages)
        except LookupError:
            body["instructions"] = None
    try:
        body["input"] = _decode(shape["input"], messages)
    except LookupError:
        body["input"] = list[JSONValue](items_of(messages, {}))
    if "tools" in shape:
        body["tools"] = _decode_tools(shape["tools"], tools if isinstance(tools, list) else [])
    return body


def has_instructions(parameters: JSONObject) -> bool:
    """The first part of the recorded system text is the body's `instructions`."""
    shape = parameters.get(_SHAPE)
    return isinstance(shape, dict) and bool(shape.get("instructions"))


def _places(form: ResponsesForm) -> dict[str, list[JSONValue]]:
    """Long texts of this body's own messages, and where each is: message, member, number."""
    places: dict[str, list[JSONValue]] = {}
    own = range(form.first, len(form.messages))
    for index in (0, *own) if form.first else own:
        message = form.messages[index]
        for text, member, number in _texts(message):
            if len(text) >= _MIN_CHARS:
                places.setdefault(text, [index, member, number])
    return places


def _texts(message: JSONObject) -> list[tuple[str, str, int]]:
    found: list[tuple[str, str, int]] = []
    content = message.get("content")
    for number, part in enumerate(content if isinstance(content, list) else [content]):
        text = _text_of(part)
        if isinstance(text, str):
            found.append((text, "content", number))
    calls = message.get("tool_calls")
    for number, call in enumerate(calls if isinstance(calls, list) else []):
        arguments = _arguments(call)
        found.append((arguments, "arguments", number))
        found.append((custom_input(arguments), "input", number))
    return found


def _text_of(part: JSONValue) -> JSONValue:
    if not isinstance(part, dict):
        return part
    for name, inner in (("image_url", "url"), ("file", "file_data")):
        held = part.get(name)
        if isinstance(held, dict):
            return held.get(inner)
    return part.get("text")


def _arguments(call: JSONValue) -> str:
    function = call.get("function") if isinstance(call, dict) else None
    return str(function.get("arguments")) if isinstance(function, dict) else ""


def _encode(value: JSONValue, places: dict[str, list[JSONValue]]) -> JSONValue:
    if isinstance(value, str):
        place = places.get(value) if len(value) >= _MIN_CHARS else None
        return value if place is None else {_REFERENCE: [*place]}
    if isinstance(value, list):
        return [_encode(one, places) for one in value]
    if isinstance(value, dict):
        if _REFERENCE in value or _LITERAL in value:
            # The client's own member of this name.
            return {_LITERAL: value}
        return {name: _encode(one, places) for name, one in value.items()}
    return value


def _decode(value: JSONValue, messages: Sequence[JSONObject]) -> JSONValue:
    """Put the texts back.

    Raises:
        LookupError: a message does not hold what it held when it was sent.
    """
    if isinstance(value, list):
        return [_decode(one, messages) for one in value]
    if not isinstance(value, dict):
        return value
    if _LITERAL in value:
        return value[_LITERAL]
    place = value.get(_REFERENCE)
    if not isinstance(place, list):
        return {name: _decode(one, messages) for name, one in value.items()}
    index, member, number = place
    assert isinstance(index, int)
    for text, *where in _texts(messages[index]):
        if where == [member, number]:
            return text
    raise LookupError(index)


def _encode_tools(given: JSONValue, form: ResponsesForm, namespace: str = "") -> JSONValue:
    if not isinstance(given, list):
        return given
    numbers: dict[str, int] = {}
    for number, tool in enumerate(form.tools):
        numbers[str(_function(tool).get("name"))] = number
    return [_encode_tool(tool, form, numbers, namespace) for tool in given]


def _encode_tool(
    tool: JSONValue, form: ResponsesForm, numbers: dict[str, int], namespace: str
) -> JSONValue:
    if not isinstance(tool, dict):
        return tool
    if _TOOL in tool or _LITERAL in tool:
        # The client's own member of this name.
        return {_LITERAL: tool}
    if tool.get("type") == "namespace":
        return {**tool, "tools": _encode_tools(tool.get("tools"), form, str(tool.get("name")))}
    if tool.get("type") != "function":
        return tool
    name = str(tool.get("name"))
    number = numbers.get(f"{namespace}__{name}" if namespace else name)
    if number is None:
        return tool
    function = _function(form.tools[number])
    stored = {
        member for member, value in tool.items() if member in function and value == function[member]
    }
    rest: JSONObject = {member: value for member, value in tool.items() if member not in stored}
    return {_TOOL: [number, *sorted(stored)], **rest}


def _decode_tools(value: JSONValue, tools: Sequence[JSONValue]) -> JSONValue:
    if isinstance(value, list):
        return [_decode_tools(one, tools) for one in value]
    if not isinstance(value, dict):
        return value
    if _LITERAL in value:
        return value[_LITERAL]
    if value.get("type") == "namespace":
        return {**value, "tools": _decode_tools(value.get("tools"), tools)}
    stored = value.get(_TOOL)
    if not isinstance(stored, list):
        return value
    number, *members = stored
    assert isinstance(number, int)
    function = _function(tools[number]) if number < len(tools) else {}
    rest = {member: one for member, one in value.items() if member != _TOOL}
    return {**{str(member): function.get(str(member)) for member in members}, **rest}


def _function(tool: JSONValue) -> JSONObject:
    function = tool.get("function") if isinstance(tool, dict) else None
    return function if isinstance(function, dict) else {}


def items_of(messages: Sequence[JSONObject], names: ToolNames) -> list[JSONObject]:
    """Messages of the chat form as items, without ids."""
    items: list[JSONObject] = []
    custom_calls: set[str] = set()
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role == "tool":
            call_id = str(message.get("tool_call_id"))
            kind = "custom_tool_call" if call_id in custom_calls else "function_call"
            items.append({"type": f"{kind}_output", "call_id": call_id, "output": content or ""})
            continue
        if role != "assistant":
            items.append({"type": "message", "role": role, "content": _input_parts(content)})
            continue
        if thought := message.get("reasoning_content"):
            part: JSONObject = {"type": "reasoning_text", "text": thought}
            items.append({"type": "reasoning", "summary": [], "content": [part]})
        if content:
            text: JSONObject = {
                "type": "output_text",
                "text": "".join(text for text, member, _ in _texts(message) if member == "content"),
                "annotations": [],
            }
            items.append({"type": "message", "role": "assistant", "content": [text]})
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else []:
            item = call_item(call, names)
            if item["type"] == "custom_tool_call":
                custom_calls.add(str(item["call_id"]))
            items.append(item)
    return items


def call_item(call: JSONValue, names: ToolNames) -> JSONObject:
    """A call of a chat message as an item, without id and status."""
    assert isinstance(call, dict)
    flat = str(_function(call).get("name"))
    named = names.get(flat, ToolName(flat))
    item: JSONObject = {"call_id": call.get("id"), "name": named.name}
    if named.is_custom:
        item = {"type": "custom_tool_call", **item, "input": custom_input(_arguments(call))}
    else:
        item = {"type": "function_call", **item, "arguments": _arguments(call)}
    if named.namespace is not None:
        item["namespace"] = named.namespace
    return item


def _input_parts(content: JSONValue) -> list[JSONValue]:
    if not isinstance(content, list):
        return [{"type": "input_text", "text": content or ""}]
    return [_input_part(part) for part in content]


def _input_part(part: JSONValue) -> JSONValue:
    if not isinstance(part, dict):
        return part
    image, file = part.get("image_url"), part.get("file")
    if isinstance(image, dict):
        detail = image.get("detail") or "auto"
        return {"type": "input_image", "image_url": image.get("url"), "detail": detail}
    if isinstance(file, dict):
        return {"type": "input_file", **file}
    return {"type": "input_text", "text": part.get("text")}

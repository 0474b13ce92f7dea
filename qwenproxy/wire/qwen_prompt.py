"""A history as the one user text that the web upstream takes.

A lone user message stays exactly its text; system text goes in front of it. A history with answers in
it becomes one text with a label per message, calls in the model's own form and results as its template
shows them. Every text of the history is in the prompt unchanged. Files go beside it; a history
with answers says where each stood.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from qwenproxy.wire import json
from qwenproxy.wire.json import JSONObject, JSONValue
from qwenproxy.wire.qwen_files import is_file, list_files
from qwenproxy.wire.tool_calls import ToolForm, render_call

_SYSTEM_ROLES = ("system", "developer")
_LABELS = {
    "system": "[System]",
    "developer": "[System]",
    "user": "[User]",
    "assistant": "[Assistant]",
    "tool": "[Tool result]",
    "function": "[Tool result]",
}
_REPLY = (
    "The conversation so far follows, oldest message first. Each message begins with a label in "
    "brackets. Write the assistant's next message, without a label and without repeating anything."
)
_CONTINUE = (
    "The conversation so far follows, oldest message first. Each message begins with a label in "
    "brackets. Its last message is yours and not finished: go on exactly where it ends, without a "
    "label and without repeating anything."
)


class UnsupportedContent(Exception):
    """A message holds what is neither text nor a file; `index` is its place in the messages."""

    def __init__(self, index: int, part_type: str) -> None:
        super().__init__(f"messages.{index}: content of type {part_type!r} cannot be sent")
        self.index = index
        self.part_type = part_type


def render_prompt(
    messages: Sequence[JSONObject],
    *,
    tool_text: str = "",
    tool_form: ToolForm = "hermes",
    first_message: int = 0,
) -> str:
    """Render a history, or the part of it that a chat does not know.

    Args:
        tool_text: the description of the tools, put after the system text at the head.
        tool_form: how the model writes calls, and so sees its own.
        first_message: messages before this index are known to the chat and left out.

    Raises:
        UnsupportedContent: a message to be sent has a part that is neither text nor a file.
    """
    start = first_message
    if first_message == 0:
        while start < len(messages) and messages[start].get("role") in _SYSTEM_ROLES:
            start += 1
    head = [_content(messages, index) for index in range(first_message, start)]
    parts = [text for text in (*head, tool_text) if text]
    rest = range(start, len(messages))
    if any(messages[index].get("role") == "assistant" for index in rest):
        names = _file_names(messages, first_message)
        is_open = messages[-1].get("role") == "assistant"
        parts.append(_CONTINUE if is_open else _REPLY)
        for index in rest:
            role = messages[index].get("role")
            parts.append(
                f"{_LABELS.get(str(role), f'[{role}]')}\n{_message(messages, index, tool_form, names)}"
            )
    else:
        parts += [text for index in rest if (text := _message(messages, index, tool_form))]
    return "\n\n".join(parts)


_Names = Mapping[tuple[int, int], str]


def _file_names(messages: Sequence[JSONObject], first_message: int) -> _Names:
    return {
        (file.message, file.position): file.name for file in list_files(messages, first_message)
    }


def _message(
    messages: Sequence[JSONObject],
    index: int,
    tool_form: ToolForm,
    names: _Names = MappingProxyType({}),
) -> str:
    message = messages[index]
    text = _content(messages, index, names)
    if message.get("role") in ("tool", "function"):
        return f"<tool_response>\n{text if text.strip() else '(no output)'}\n</tool_response>"
    calls = message.get("tool_calls")
    functions = [
        call.get("function")
        for call in (calls if isinstance(calls, list) else ())
        if isinstance(call, dict)
    ]
    functions.append(message.get("function_call"))
    rendered = [_call(function, tool_form) for function in functions if isinstance(function, dict)]
    return "\n".join([text, *rendered] if text else rendered)


def _call(function: JSONObject, tool_form: ToolForm) -> str:
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            # The client's own text is kept to the letter where it is JSON (a lone surrogate, written
            # as an escape here, is).
            json.loads(arguments.encode("utf-8", "backslashreplace"))
        except json.JSONError:
            arguments = json.dumps_text(arguments) if arguments.strip() else "{}"
    else:
        arguments = json.dumps_text({} if arguments is None else arguments)
    if tool_form != "hermes":
        return render_call(str(function.get("name")), arguments, form=tool_form)
    name = json.dumps_text(function.get("name"))
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'


def _content(
    messages: Sequence[JSONObject], index: int, names: _Names = MappingProxyType({})
) -> str:
    """The text of a message; a file leaves its name where there is one."""
    content = messages[index].get("content")
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if not isinstance(content, list):
        raise UnsupportedContent(index, type(content).__name__)
    texts = []
    for position, part in enumerate(content):
        if not is_file(part):
            texts.append(_part_text(part, index))
        elif name := names.get((index, position)):
            texts.append(f"[Attached: {name}]")
    return "\n".join(texts)


def _part_text(part: JSONValue, index: int) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise UnsupportedContent(index, type(part).__name__)
    kind = part.get("type")
    text = part.get("refusal") if kind == "refusal" else part.get("text")
    if kind not in ("text", "input_text", "output_text", "refusal") or not isinstance(text, str):
        raise UnsupportedContent(index, str(kind))
    return text

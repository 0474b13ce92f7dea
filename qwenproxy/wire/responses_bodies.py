"""Bodies of OpenAI's Responses API to the chat form, which the gateway works with.

Items of one answer (reasoning, messages, calls) become one message, as the gateway records its own
answers: so a history that comes back gives the same digests. The translation depends on the body alone.
How the record gives a body back, `wire.responses_record` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qwenproxy.wire import json
from qwenproxy.wire.anthropic_bodies import ChatForm, FieldError
from qwenproxy.wire.json import JSONObject, JSONValue
from qwenproxy.wire.responses_tools import ToolNames, flat_name, read_choice, read_tools

# Members that are translated, or mean something to OpenAI's own service alone.
_NOT_PASSED = frozenset(
    (
        "model", "input", "instructions", "tools", "tool_choice", "stream", "stream_options", "text",
        "reasoning", "max_output_tokens", "max_tool_calls", "metadata", "user", "safety_identifier",
        "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "include", "truncation",
        "service_tier", "store", "background", "background_options", "previous_response_id",
        "client_metadata", "access_programs", "image", "prompt", "conversation", "moderation",
        "context_management", "top_logprobs",
    )
)  # fmt: skip
_REFUSED = {
    "prompt": "templates of prompts are kept by OpenAI's own service alone",
    "conversation": "use previous_response_id, or name the session in the header X-Session-Id",
    "moderation": "there is no moderation here",
    "context_management": "the gateway does not shorten a history",
    "top_logprobs": "log probabilities are not carried here; POST /v1/chat/completions has them",
}
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high"}
_ROLES = ("user", "assistant", "system", "developer")
# What tools of OpenAI's own service left in a history: nothing a model here could read.
_PASSED_OVER = (
    "web_search_call",
    "image_generation_call",
    "tool_search_call",
    "tool_search_output",
)


@dataclass(slots=True)
class ResponsesForm(ChatForm):
    """A body in the chat form, and what gives the answer its own form again."""

    names: ToolNames = field(default_factory=dict)
    # Index of the first message of this body's own input; system text stands at 0.
    first: int = 0


@dataclass(slots=True)
class _Line:
    """The messages of an input as they come together."""

    messages: list[JSONObject] = field(default_factory=list)
    # Files of tools' results, which only a user's message can hold.
    files: list[JSONValue] = field(default_factory=list)
    # The answer that items are being added to.
    answer: JSONObject | None = None

    def add(self, message: JSONObject) -> None:
        self.answer = None
        self.messages.append(message)

    def open_answer(self) -> JSONObject:
        self.let_files_out()
        if self.answer is None:
            answer: JSONObject = {"role": "assistant", "content": ""}
            self.add(answer)
            self.answer = answer
        return self.answer

    def let_files_out(self) -> None:
        if self.files:
            self.add({"role": "user", "content": self.files})
            self.files = []


def to_chat(sent: JSONObject, before: Sequence[JSONObject] = ()) -> ResponsesForm:
    """Translate a body; `before` are the messages of the conversation that it goes on with.

    References to items have to be resolved already.

    Raises:
        FieldError: it is wrong, or asks for what only OpenAI's own service can do.
    """
    for name, why in _REFUSED.items():
        if sent.get(name):
            raise FieldError(name, why)
    form = ResponsesForm()
    tools = read_tools(sent.get("tools"))
    form.tools, form.names, form.unmapped = tools.chat, tools.names, tools.notes
    form.parameters = _parameters(sent, form)
    head: list[JSONValue] = []
    instructions = sent.get("instructions")
    if instructions:
        head.append({"type": "text", "text": _text(sent, "instructions", "")})
    line = _Line()
    known = list(before)
    while known and known[0].get("role") in ("system", "developer"):
        head += _parts_of(known.pop(0).get("content"))
    _read_input(sent.get("input"), head if not known else None, line)
    if head:
        form.messages.append({"role": "system", "content": _content(head)})
    form.messages += known
    form.first = len(form.messages)
    form.messages += line.messages
    return form


def _read_input(given: JSONValue, head: list[JSONValue] | None, line: _Line) -> None:
    """Add the items of an input; system texts at its head go to `head`, where that is still open."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise FieldError("input", "must be a text or a non-empty list of items")
    for index, item in enumerate(given):
        path = f"input.{index}"
        if not isinstance(item, dict):
            raise FieldError(path, "must be an object")
        kind = item.get("type") or "message"
        if kind != "message":
            head = None
            _read_item(item, str(kind), path, line)
            continue
        role = item.get("role")
        if role not in _ROLES:
            raise FieldError(f"{path}.role", f"must be one of {', '.join(_ROLES)}")
        content = _message_content(item.get("content"), f"{path}.content")
        if role in ("system", "developer"):
            if head is not None:
                head += _parts_of(content)
                continue
            line.let_files_out()
            line.add({"role": "user", "content": _reminder(content, path)})
            continue
        head = None
        if role == "assistant":
            answer = line.open_answer()
            answer["content"] = f"{answer['content'] or ''}{_joined(content, path)}"
        else:
            parts = [*line.files, *_parts_of(content)] if line.files else content
            line.files = []
            line.add({"role": "user", "content": parts})
    line.let_files_out()


def _read_item(item: JSONObject, kind: str, path: str, line: _Line) -> None:
    if kind in ("function_call", "custom_tool_call"):
        answer = line.open_answer()
        calls = answer.setdefault("tool_calls", [])
        assert isinstance(calls, list)
        calls.append(_call(item, kind, path))
        answer["content"] = answer["content"] or None
    elif kind in ("function_call_output", "custom_tool_call_output"):
        content = _message_content(item.get("output"), f"{path}.output")
        parts = _parts_of(content)
        texts = [text for part in parts if (text := _text_in(part)) is not None]
        files = [part for part in parts if _text_in(part) is None]
        text = "\n".join(texts)
        if files and not text:
            text = "(The result follows in the next message.)"
        line.files += files
        line.add({"role": "tool", "tool_call_id": _text(item, "call_id", path), "content": text})
    elif kind == "reasoning":
        thought = reasoning_text(item)
        if thought:
            answer = line.open_answer()
            answer["reasoning_content"] = f"{answer.get('reasoning_content', '')}{thought}"
    elif kind == "item_reference":
        raise FieldError(f"{path}.id", "there is no such item")
    elif kind not in _PASSED_OVER:
        raise FieldError(f"{path}.type", f"items of type {kind!r} are not supported")


def reasoning_text(item: JSONObject) -> str:
    """What a reasoning item says: its text, else its summary; what is encrypted nobody here reads."""
    for name in ("content", "summary"):
        parts = item.get(name)
        if isinstance(parts, list):
            texts = [part.get("text") for part in parts if isinstance(part, dict)]
            if text := "".join(text for text in texts if isinstance(text, str)):
                return text
    return ""


def _call(item: JSONObject, kind: str, path: str) -> JSONObject:
    name = flat_name(_text(item, "name", path), item.get("namespace"))
    if kind == "function_call":
        arguments = _text(item, "arguments", path)
    else:
        arguments = json.dumps_text({"input": _text(item, "input", path)})
    return {
        "id": _text(item, "call_id", path),
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _message_content(content: JSONValue, path: str) -> JSONValue:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise FieldError(path, "must be a text or a list of parts")
    parts: list[JSONValue] = []
    for index, part in enumerate(content):
        part_path = f"{path}.{index}"
        if not isinstance(part, dict):
            raise FieldError(part_path, "must be an object with a type")
        parts.append(_part(part, part_path))
    return _content(parts)


def _part(part: JSONObject, path: str) -> JSONObject:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": _text(part, "text", path)}
    if kind == "refusal":
        return {"type": "text", "text": _text(part, "refusal", path)}
    if kind == "input_image":
        if not part.get("image_url"):
            raise FieldError(f"{path}.image_url", "must be a URL: files are not kept here")
        image: JSONObject = {"url": _text(part, "image_url", path)}
        if part.get("detail") is not None:
            image["detail"] = part["detail"]
        return {"type": "image_url", "image_url": image}
    if kind == "input_file":
        if not part.get("file_data"):
            raise FieldError(f"{path}.file_data", "is missing: files are not kept or fetched here")
        file: JSONObject = {"file_data": _text(part, "file_data", path)}
        if part.get("filename") is not None:
            file["filename"] = _text(part, "filename", path)
        return {"type": "file", "file": file}
    raise FieldError(f"{path}.type", f"parts of type {kind!r} are not supported")


def _text_in(part: JSONValue) -> str | None:
    """The text of a part; null: it is a file."""
    if not isinstance(part, dict) or part.get("type") != "text":
        return None
    return str(part["text"])


def _content(parts: list[JSONValue]) -> JSONValue:
    """Write one text as a text, as clients do from turn to turn."""
    if not parts:
        return ""
    if len(parts) == 1 and isinstance(parts[0], dict) and parts[0].get("type") == "text":
        return parts[0]["text"]
    return parts


def _parts_of(content: JSONValue) -> list[JSONValue]:
    return list(content) if isinstance(content, list) else [{"type": "text", "text": content}]


def _joined(content: JSONValue, path: str) -> str:
    texts = []
    for index, part in enumerate(_parts_of(content)):
        text = _text_in(part)
        if text is None:
            raise FieldError(f"{path}.content.{index}.type", "must be a text in this message")
        texts.append(text)
    return "".join(texts)


def _reminder(content: JSONValue, path: str) -> str:
    """Let the user say what the system says within the line: newer Qwen templates refuse it there."""
    return f"<system-reminder>\n{_joined(content, path)}\n</system-reminder>"


def _text(item: JSONObject, name: str, path: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise FieldError(f"{path}.{name}" if path else name, "must be a text")
    return value


def _parameters(sent: JSONObject, form: ResponsesForm) -> JSONObject:
    parameters = {name: value for name, value in sent.items() if name not in _NOT_PASSED}
    bound = sent.get("max_output_tokens")
    if bound is not None:
        if isinstance(bound, bool) or not isinstance(bound, int) or bound < 1:
            raise FieldError("max_output_tokens", "must be a whole number of at least 1")
        parameters["max_tokens"] = bound
    parameters |= _reasoning(sent.get("reasoning"))
    parameters |= _output_text(sent.get("text"))
    choice, form.tools = read_choice(sent.get("tool_choice"), form.tools, form.names)
    if not form.tools:
        parameters.pop("parallel_tool_calls", None)
    else:
        parameters |= choice
    return parameters


def _reasoning(asked: JSONValue) -> JSONObject:
    if asked is None:
        return {}
    if not isinstance(asked, dict):
        raise FieldError("reasoning", "must be an object")
    effort = asked.get("effort")
    if effort is None:
        return {}
    if effort == "none":
        return {"enable_thinking": False}
    if not isinstance(effort, str) or effort not in (*_EFFORTS, "max"):
        raise FieldError("reasoning.effort", f"must be none, {', '.join(_EFFORTS)} or max")
    return {"reasoning_effort": _EFFORTS.get(effort, "high")}


def _output_text(asked: JSONValue) -> JSONObject:
    if asked is None:
        return {}
    if not isinstance(asked, dict):
        raise FieldError("text", "must be an object")
    parameters: JSONObject = {}
    if asked.get("verbosity") is not None:
        parameters["verbosity"] = asked["verbosity"]
    wanted = asked.get("format")
    if wanted is None:
        return parameters
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if not isinstance(wanted, dict) or kind not in ("text", "json_object", "json_schema"):
        raise FieldError("text.format.type", "must be text, json_object or json_schema")
    if kind == "json_object":
        parameters["response_format"] = {"type": "json_object"}
    elif kind == "json_schema":
        if not isinstance(wanted.get("schema"), dict):
            raise FieldError("text.format.schema", "must be an object")
        schema: JSONObject = {n: v for n, v in wanted.items() if n != "type" and v is not None}
        schema.setdefault("name", "answer")
        parameters["response_format"] = {"type": "json_schema", "json_schema": schema}
    return parameters

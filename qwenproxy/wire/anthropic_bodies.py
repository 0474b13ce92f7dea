"""Bodies of Anthropic's Messages API to OpenAI's chat form, which the gateway works with, and back.

What has no place in the chat form (cache markers, signatures, flags) is not sent upstream; it is told
apart in `unmapped`, by its path in the body, so that the record can keep it. The translation depends on
the body alone: a history that is sent again gives the same messages, and so the same digests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from qwenproxy.wire import json
from qwenproxy.wire.history import split_system
from qwenproxy.wire.json import JSONObject, JSONValue

# Clients send thinking back with what stood here; nobody here checks it, but it has to be a text.
SIGNATURE = "cXdlbi1wcm94eQ=="
# The member of a recorded body that holds what the chat form has no place for.
UNMAPPED = "_unmapped"

# Claude Code's first system block names its build and changes with every request: sent on, it would
# make every turn a new context.
_BILLING = "x-anthropic-billing-header:"
_READS_AS_ERROR = re.compile(r"\s*(<\w*error|error)", re.IGNORECASE)
_DATA_URL = re.compile(r"data:([\w.+/-]+);base64,(.*)", re.DOTALL)
# Members that are translated, or mean something to Anthropic's own service alone.
_NOT_PASSED = frozenset(
    (
        "model", "messages", "system", "tools", "tool_choice", "stream", "stop_sequences", "metadata",
        "thinking", "output_config", "output_format", "cache_control", "container", "context_management",
        "mcp_servers", "service_tier", "inference_geo", "speed", "betas", "anthropic_beta",
        "anthropic_version", UNMAPPED,
    )
)  # fmt: skip
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


class FieldError(ValueError):
    """A body that cannot be translated; `param` is the path of the member that is wrong."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param


@dataclass(slots=True)
class ChatForm:
    """A body in OpenAI's chat form."""

    messages: list[JSONObject] = field(default_factory=list)
    tools: list[JSONValue] = field(default_factory=list)
    # What goes upstream besides model, messages and tools.
    parameters: JSONObject = field(default_factory=dict)
    # Path in the body -> what the chat form has no place for.
    unmapped: JSONObject = field(default_factory=dict)
    # Path of a file in the chat form -> its path in the body, for errors that upstreams tell.
    places: dict[str, str] = field(default_factory=dict)
    # The parts that hold files, with their paths in the body.
    _files: list[tuple[JSONObject, str]] = field(default_factory=list)


def to_chat(sent: JSONObject) -> ChatForm:
    """Translate a body.

    Raises:
        FieldError: it is wrong, or holds what only Anthropic's own service can do.
    """
    form = ChatForm()
    _read_system(sent.get("system"), form)
    messages = sent.get("messages")
    if not isinstance(messages, list) or not messages:
        raise FieldError("messages", "must be a non-empty list")
    for index, message in enumerate(messages):
        _read_message(message, f"messages.{index}", form)
    _read_tools(sent.get("tools"), form)
    form.parameters = _parameters(sent, has_tools=bool(form.tools))
    if form._files:
        _place_files(form)
    return form


def _place_files(form: ChatForm) -> None:
    """Note where files are now: results of tools and the system's text move what is behind them."""
    paths = {id(part): path for part, path in form._files}
    for index, message in enumerate(form.messages):
        content = message.get("content")
        for position, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, dict) and (path := paths.get(id(part))):
                form.places[f"messages.{index}.content.{position}.{part['type']}"] = path


def _keep(form: ChatForm, item: JSONObject, path: str, *known: str) -> None:
    for name, value in item.items():
        if name not in known:
            form.unmapped[f"{path}.{name}"] = value


def _blocks(value: JSONValue, path: str) -> Iterable[tuple[JSONObject, str, str]]:
    """The blocks of a content with their paths and types."""
    if not isinstance(value, list):
        raise FieldError(path, "must be a text or a list of blocks")
    for index, block in enumerate(value):
        kind = block.get("type") if isinstance(block, dict) else None
        if not isinstance(block, dict) or not isinstance(kind, str):
            raise FieldError(f"{path}.{index}", "must be an object with a type")
        yield block, f"{path}.{index}", kind


def _text(item: JSONObject, name: str, path: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise FieldError(f"{path}.{name}", "must be a text")
    return value


def _read_system(system: JSONValue, form: ChatForm) -> None:
    if system is None:
        return
    if isinstance(system, str):
        content: JSONValue = system
    else:
        parts: list[JSONValue] = []
        for block, path, kind in _blocks(system, "system"):
            if kind != "text":
                raise FieldError(f"{path}.type", f"must be text, not {kind!r}")
            text = _text(block, "text", path)
            if text.startswith(_BILLING):
                form.unmapped[path] = block
                continue
            parts.append({"type": "text", "text": text})
            _keep(form, block, path, "type", "text")
        content = _content(parts)
    if content:
        form.messages.append({"role": "system", "content": content})


def _content(parts: list[JSONValue]) -> JSONValue:
    """Write one text as a text: clients change between both forms from turn to turn."""
    if len(parts) == 1 and isinstance(parts[0], dict) and parts[0].get("type") == "text":
        return parts[0]["text"]
    return parts


def _read_message(message: JSONValue, path: str, form: ChatForm) -> None:
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(message, dict) or role not in ("user", "assistant", "system"):
        raise FieldError(f"{path}.role", "must be user or assistant")
    content = message.get("content")
    _keep(form, message, path, "role", "content")
    if role == "system":
        _read_reminder(content, path, form)
    elif isinstance(content, str):
        form.messages.append({"role": role, "content": content})
    elif role == "assistant":
        _read_answer(content, f"{path}.content", form)
    else:
        _read_question(content, f"{path}.content", form)


def _read_reminder(content: JSONValue, path: str, form: ChatForm) -> None:
    """Let the user say what the system says within the line: newer Qwen templates refuse it there.

    The tag is the one that Claude Code itself uses inside users' messages.
    """
    text = content if isinstance(content, str) else _joined(content, f"{path}.content", form)
    form.unmapped[f"{path}.role"] = "system"
    reminder = f"<system-reminder>\n{text}\n</system-reminder>"
    form.messages.append({"role": "user", "content": reminder})


def _read_question(content: JSONValue, path: str, form: ChatForm) -> None:
    """Results of tools become messages of their own, in front of what the user says."""
    parts: list[JSONValue] = []
    has_results = False
    for block, block_path, kind in _blocks(content, path):
        if kind == "tool_result":
            has_results = True
            parts += _read_result(block, block_path, form)
        else:
            parts.append(_part(block, block_path, kind, form))
    if parts or not has_results:
        form.messages.append({"role": "user", "content": _content(parts) or ""})


def _read_result(block: JSONObject, path: str, form: ChatForm) -> list[JSONValue]:
    """Add the result's message; return its images, which only a user's message can hold."""
    call_id = _text(block, "tool_use_id", path)
    texts: list[str] = []
    others: list[JSONValue] = []
    content = block.get("content")
    if isinstance(content, str):
        texts.append(content)
    elif content is not None:
        for inner, inner_path, kind in _blocks(content, f"{path}.content"):
            part = _part(inner, inner_path, kind, form)
            if part["type"] == "text":
                texts.append(str(part["text"]))
            else:
                others.append(part)
    text = "\n".join(texts)
    if not text and others:
        text = "(The result follows in the next message.)"
    is_error = block.get("is_error")
    if is_error is True and not _READS_AS_ERROR.match(text):
        text = f"Error: {text}" if text else "Error"
    form.messages.append({"role": "tool", "tool_call_id": call_id, "content": text})
    known = ("type", "tool_use_id", "content", *(() if is_error else ("is_error",)))
    _keep(form, block, path, *known)
    return others


def _part(block: JSONObject, path: str, kind: str, form: ChatForm) -> JSONObject:
    if kind == "text":
        _keep(form, block, path, "type", "text")
        return {"type": "text", "text": _text(block, "text", path)}
    if kind == "image":
        _keep(form, block, path, "type", "source")
        url = _image_url(block.get("source"), f"{path}.source")
        part: JSONObject = {"type": "image_url", "image_url": {"url": url}}
        form._files.append((part, f"{path}.source"))
        return part
    if kind == "document":
        _keep(form, block, path, "type", "source", "title")
        return _document(block, f"{path}.source", form)
    if kind == "search_result":
        _keep(form, block, path, "type", "content")
        return {"type": "text", "text": _joined(block.get("content"), f"{path}.content", form)}
    raise FieldError(f"{path}.type", f"blocks of type {kind!r} are not supported")


def _image_url(source: JSONValue, path: str) -> str:
    kind = source.get("type") if isinstance(source, dict) else None
    if isinstance(source, dict) and kind == "base64":
        data = _text(source, "data", path)
        return f"data:{_text(source, 'media_type', path)};base64,{data}"
    if isinstance(source, dict) and kind == "url":
        return _text(source, "url", path)
    raise FieldError(f"{path}.type", "must be base64 or url")


def _document(block: JSONObject, path: str, form: ChatForm) -> JSONObject:
    source, title = block.get("source"), block.get("title")
    kind = source.get("type") if isinstance(source, dict) else None
    if not isinstance(source, dict) or kind not in ("base64", "text", "content"):
        raise FieldError(f"{path}.type", "must be base64, text or content")
    name = title if isinstance(title, str) and title else "document"
    if kind == "base64":
        data = f"data:{_text(source, 'media_type', path)};base64,{_text(source, 'data', path)}"
        part: JSONObject = {"type": "file", "file": {"filename": name, "file_data": data}}
        form._files.append((part, path))
        return part
    if kind == "text":
        text = _text(source, "data", path)
    else:
        content = source.get("content")
        text = content if isinstance(content, str) else _joined(content, f"{path}.content", form)
    return {"type": "text", "text": f"{title}\n\n{text}" if title else text}


def _joined(content: JSONValue, path: str, form: ChatForm) -> str:
    texts = []
    for block, block_path, kind in _blocks(content, path):
        if kind != "text":
            raise FieldError(f"{block_path}.type", f"must be text, not {kind!r}")
        _keep(form, block, block_path, "type", "text")
        texts.append(_text(block, "text", block_path))
    return "\n".join(texts)


def _read_answer(content: JSONValue, path: str, form: ChatForm) -> None:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[JSONValue] = []
    for block, block_path, kind in _blocks(content, path):
        if kind == "text":
            texts.append(_text(block, "text", block_path))
            _keep(form, block, block_path, "type", "text")
        elif kind == "thinking":
            thoughts.append(_text(block, "thinking", block_path))
            ours = ("signature",) if block.get("signature") == SIGNATURE else ()
            _keep(form, block, block_path, "type", "thinking", *ours)
        elif kind == "redacted_thinking":
            form.unmapped[block_path] = block
        elif kind == "tool_use":
            calls.append(_call(block, block_path))
            _keep(form, block, block_path, "type", "id", "name", "input")
        else:
            raise FieldError(f"{block_path}.type", f"blocks of type {kind!r} are not supported")
    text = "".join(texts)
    message: JSONObject = {"role": "assistant", "content": text or None if calls else text}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    form.messages.append(message)


def _call(block: JSONObject, path: str) -> JSONObject:
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        raise FieldError(f"{path}.input", "must be an object")
    return {
        "id": _text(block, "id", path),
        "type": "function",
        "function": {"name": _text(block, "name", path), "arguments": json.dumps_text(arguments)},
    }


def _read_tools(tools: JSONValue, form: ChatForm) -> None:
    if tools is None:
        return
    if not isinstance(tools, list):
        raise FieldError("tools", "must be a list")
    for index, tool in enumerate(tools):
        path = f"tools.{index}"
        if not isinstance(tool, dict):
            raise FieldError(path, "must be an object")
        kind = tool.get("type")
        if kind not in (None, "custom"):
            raise FieldError(
                f"{path}.type",
                f"{kind!r} is a tool of Anthropic's own service, which no upstream here has;"
                " only tools with an input_schema of their own are served",
            )
        name = _text(tool, "name", path)
        if not name:
            raise FieldError(f"{path}.name", "must not be empty")
        schema = tool.get("input_schema")
        if not isinstance(schema, dict):
            raise FieldError(f"{path}.input_schema", "must be an object")
        function: JSONObject = {"name": name}
        if tool.get("description") is not None:
            function["description"] = _text(tool, "description", path)
        function["parameters"] = schema
        if tool.get("strict") is not None:
            function["strict"] = tool["strict"]
        form.tools.append({"type": "function", "function": function})
        _keep(form, tool, path, "type", "name", "description", "input_schema", "strict")


def _parameters(sent: JSONObject, *, has_tools: bool) -> JSONObject:
    parameters = {name: value for name, value in sent.items() if name not in _NOT_PASSED}
    if sent.get("mcp_servers"):
        raise FieldError("mcp_servers", "the gateway calls no MCP servers: the client does")
    stops = sent.get("stop_sequences")
    if stops is not None:
        if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
            raise FieldError("stop_sequences", "must be a list of texts")
        if stops:
            parameters["stop"] = stops
    parameters |= _thinking(sent.get("thinking"))
    parameters |= _output(sent)
    if parameters.get("enable_thinking") is False:
        # There the effort bounds the whole answer, not thinking alone.
        parameters.pop("reasoning_effort", None)
    choice = _tool_choice(sent.get("tool_choice"))
    if has_tools:
        parameters |= choice
    return parameters


def _thinking(thinking: JSONValue) -> JSONObject:
    if thinking is None:
        return {}
    kind = thinking.get("type") if isinstance(thinking, dict) else None
    if not isinstance(thinking, dict) or kind not in ("enabled", "disabled", "adaptive"):
        raise FieldError("thinking.type", "must be enabled, disabled or adaptive")
    if kind == "disabled":
        return {"enable_thinking": False}
    budget = thinking.get("budget_tokens")
    if budget is None:
        return {"enable_thinking": True}
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise FieldError("thinking.budget_tokens", "must be a whole number of at least 1")
    return {"enable_thinking": True, "thinking_budget": budget}


def _output(sent: JSONObject) -> JSONObject:
    config = sent.get("output_config")
    if config is None:
        config = {}
    if not isinstance(config, dict):
        raise FieldError("output_config", "must be an object")
    parameters: JSONObject = {}
    effort = config.get("effort")
    if isinstance(effort, str) and effort in _EFFORTS:
        parameters["reasoning_effort"] = _EFFORTS[effort]
    wanted = config.get("format") or sent.get("output_format")
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        if not isinstance(wanted.get("schema"), dict):
            raise FieldError("output_config.format.schema", "must be an object")
        schema: JSONObject = {"name": "answer", "schema": wanted.get("schema")}
        parameters["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif wanted:
        raise FieldError("output_config.format.type", "must be json_schema")
    return parameters


def _tool_choice(choice: JSONValue) -> JSONObject:
    if choice is None:
        return {}
    kind = choice.get("type") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or kind not in (*_CHOICES, "tool"):
        raise FieldError("tool_choice.type", "must be auto, any, tool or none")
    parameters: JSONObject
    if kind == "tool":
        name = _text(choice, "name", "tool_choice")
        parameters = {"tool_choice": {"type": "function", "function": {"name": name}}}
    else:
        parameters = {"tool_choice": _CHOICES[str(kind)]}
    if choice.get("disable_parallel_tool_use") is True:
        parameters["parallel_tool_calls"] = False
    return parameters


def user_of(sent: JSONObject) -> str | None:
    """`metadata.user_id` as the user whose conversations are kept apart.

    Claude Code puts the session's id into it, which is new with every start of the same user.

    Raises:
        FieldError: it is not a text.
    """
    metadata = sent.get("metadata")
    if metadata is None:
        return None
    if not isinstance(metadata, dict):
        raise FieldError("metadata", "must be an object")
    if metadata.get("user_id") is None:
        return None
    user = _text(metadata, "user_id", "metadata")
    if user.startswith("{"):
        try:
            parsed = json.loads_text(user)
        except json.JSONError:
            return user
        if isinstance(parsed, dict) and parsed.pop("session_id", None) is not None:
            return json.dumps_text(parsed)
        return user
    return re.sub(r"_session_[0-9a-f-]{36}$", "", user) or None


def to_body(parameters: JSONObject, messages: Sequence[JSONObject], tools: JSONValue) -> JSONObject:
    """Build a body again from its own small members and the chat form of the rest."""
    system, line = split_system(messages)
    body = dict(parameters)
    if system:
        body["system"] = _system(system)
    rebuilt: list[JSONValue] = []
    results: list[JSONValue] = []
    for message in line:
        if message.get("role") == "tool":
            results.append(_result_block(message))
            continue
        entry = _message(message)
        if results and message.get("role") == "user":
            entry["content"] = [*results, *_as_blocks(entry["content"])]
        elif results:
            rebuilt.append({"role": "user", "content": results})
        results = []
        rebuilt.append(entry)
    if results:
        rebuilt.append({"role": "user", "content": results})
    body["messages"] = rebuilt
    if isinstance(tools, list):
        body["tools"] = [_tool(tool) for tool in tools if isinstance(tool, dict)]
    return body


def _system(messages: Sequence[JSONObject]) -> JSONValue:
    if len(messages) == 1:
        return messages[0].get("content")
    return [block for message in messages for block in _as_blocks(message.get("content"))]


def _as_blocks(content: JSONValue) -> list[JSONValue]:
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content else []


def _result_block(message: JSONObject) -> JSONObject:
    return {
        "type": "tool_result",
        "tool_use_id": message.get("tool_call_id"),
        "content": message.get("content"),
    }


def _message(message: JSONObject) -> JSONObject:
    content = message.get("content")
    if isinstance(content, list):
        content = [_block(part) for part in content]
    blocks: list[JSONValue] = []
    if thinking := message.get("reasoning_content"):
        blocks.append({"type": "thinking", "thinking": thinking, "signature": SIGNATURE})
    if calls := message.get("tool_calls"):
        assert isinstance(calls, list)
        blocks += [*_as_blocks(content), *(tool_use(call) for call in calls)]
    elif blocks:
        blocks += _as_blocks(content)
    return {"role": message.get("role"), "content": blocks or content or ""}


def _block(part: JSONValue) -> JSONValue:
    if not isinstance(part, dict):
        return part
    image = part.get("image_url")
    if part.get("type") == "image_url" and isinstance(image, dict):
        return {"type": "image", "source": _source(str(image.get("url")))}
    file = part.get("file")
    if part.get("type") == "file" and isinstance(file, dict):
        block: JSONObject = {"type": "document", "source": _source(str(file.get("file_data")))}
        if file.get("filename") != "document":
            block["title"] = file.get("filename")
        return block
    return part


def _source(url: str) -> JSONObject:
    if data := _DATA_URL.fullmatch(url):
        return {"type": "base64", "media_type": data[1], "data": data[2]}
    return {"type": "url", "url": url}


def tool_use(call: JSONValue) -> JSONObject:
    """Write a call of a chat message as a block; arguments that are no object become an empty one."""
    assert isinstance(call, dict)
    function = call.get("function")
    assert isinstance(function, dict)
    try:
        arguments = json.loads_text(str(function.get("arguments") or "{}"))
    except json.JSONError:
        arguments = {}
    return {
        "type": "tool_use",
        "id": call.get("id"),
        "name": function.get("name"),
        "input": arguments if isinstance(arguments, dict) else {},
    }


def _tool(tool: JSONObject) -> JSONObject:
    function = tool.get("function")
    function = function if isinstance(function, dict) else {}
    named = {name: value for name, value in function.items() if name != "parameters"}
    return {**named, "input_schema": function.get("parameters")}

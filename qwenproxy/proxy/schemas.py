"""Checks bodies of the OpenAI endpoints without dropping anything a client sent.

Only what the gateway itself relies on is checked, each error naming its field in OpenAI's spelling;
every other member passes through to the upstream, which knows its own parameters best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from uuid import UUID

from qwenproxy.errors import InvalidRequest
from qwenproxy.wire import embeddings, json
from qwenproxy.wire.json import JSONObject, JSONValue

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# Members that the gateway handles itself; the rest of a body goes upstream as it is.
_OWN = ("model", "messages", "prompt", "tools", "stream", "stream_options")
_MAX_USER_CHARS = 512
_COUNTS = ("max_tokens", "max_completion_tokens", "thinking_budget")
_NUMBERS = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "repetition_penalty")


@dataclass(slots=True)
class Body:
    """A checked body: `sent` is all of it, the rest are the parts that the gateway reads."""

    sent: JSONObject
    dialect: Literal["chat", "completions", "anthropic", "responses", "embeddings"]
    messages: list[JSONObject]
    # Empty: the default model.
    model: str = ""
    tools: JSONValue = None
    stream: bool = False
    include_usage: bool = False
    user: str | None = None
    # The turn runs on when its client leaves.
    background: bool = False
    # The text of a legacy completion.
    prompt: str | None = None
    # What goes upstream besides model, messages and tools.
    parameters: JSONObject = field(default_factory=dict)

    def recorded_parameters(self) -> JSONObject:
        """The body without what is stored apart: messages, prompt and tools."""
        stored = {"messages", "prompt"} | ({"tools"} if self.tools else set())
        return {name: value for name, value in self.sent.items() if name not in stored}


def parse_chat(raw: bytes) -> Body:
    """Check the body of `POST /v1/chat/completions`.

    Raises:
        InvalidRequest: naming the field.
    """
    sent = read_object(raw)
    messages = sent.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a non-empty list", param="messages")
    checked: list[JSONObject] = []
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidRequest(f"messages.{index} must be an object", param=f"messages.{index}")
        _check_message(message, f"messages.{index}")
        checked.append(message)
    tools = sent.get("tools")
    _check_tools(tools)
    body = Body(sent=sent, dialect="chat", messages=checked, tools=tools or None)
    _check_common(body)
    return body


def parse_completion(raw: bytes) -> Body:
    """Check the body of `POST /v1/completions`; the prompt becomes one user message."""
    sent = read_object(raw)
    prompt = sent.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str):
        raise InvalidRequest(
            "prompt must be one text; lists and tokens are not served", param="prompt"
        )
    if sent.get("echo") or sent.get("best_of") not in (None, 1):
        param = "echo" if sent.get("echo") else "best_of"
        raise InvalidRequest(f"{param} is not supported", param=param)
    message: JSONObject = {"role": "user", "content": prompt}
    body = Body(sent=sent, dialect="completions", messages=[message], prompt=prompt)
    _check_common(body)
    return body


def parse_embeddings(raw: bytes) -> Body:
    """Check the body of `POST /v1/embeddings`; the input becomes one user message.

    Raises:
        InvalidRequest: naming the field.
    """
    sent = read_object(raw)
    if problem := embeddings.input_problem(sent.get("input")):
        raise InvalidRequest(problem, param="input")
    if sent.get("encoding_format") not in (None, "float", "base64"):
        raise InvalidRequest("encoding_format must be float or base64", param="encoding_format")
    dimensions = sent.get("dimensions")
    is_number = isinstance(dimensions, int) and not isinstance(dimensions, bool)
    if dimensions is not None and not (is_number and dimensions > 0):  # type: ignore[operator]  # checked
        raise InvalidRequest("dimensions must be a whole number of at least 1", param="dimensions")
    message = embeddings.to_message(sent["input"])
    body = Body(sent=sent, dialect="embeddings", messages=[message])
    read_common(body, _text(sent, "user"), user_param="user")
    if not body.model:
        raise InvalidRequest("model is missing", param="model")
    if body.stream:
        raise InvalidRequest("stream: embeddings come whole", param="stream")
    own = ("model", "input", "stream")
    body.parameters = {name: value for name, value in sent.items() if name not in own}
    return body


def read_object(raw: bytes) -> JSONObject:
    """Parse a body.

    Raises:
        InvalidRequest: it is not a JSON object, or nested too deep.
    """
    try:
        sent = json.loads(raw)
    except json.JSONError as exc:
        raise InvalidRequest(f"the body is not JSON: {exc}", code="invalid_json") from exc
    if not isinstance(sent, dict):
        raise InvalidRequest("the body must be a JSON object", code="invalid_json")
    if json.is_deeper(sent, json.MAX_DEPTH):
        raise InvalidRequest(
            f"the body is nested deeper than {json.MAX_DEPTH} levels", code="invalid_json"
        )
    return sent


def _check_message(message: JSONObject, param: str) -> None:
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidRequest(
            f"{param}.role must be one of {', '.join(_ROLES)}", param=f"{param}.role"
        )
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        _check_parts(content, f"{param}.content")
    calls = message.get("tool_calls")
    if calls is not None:
        _check_calls(calls, f"{param}.tool_calls")
    if content is None and role in ("system", "developer", "user"):
        raise InvalidRequest(f"{param}.content is missing", param=f"{param}.content")
    call_id = message.get("tool_call_id")
    if role == "tool" and (not isinstance(call_id, str) or not call_id):
        raise InvalidRequest(
            f"{param}.tool_call_id must name the call that the message answers",
            param=f"{param}.tool_call_id",
        )


def _check_parts(content: JSONValue, param: str) -> None:
    if not isinstance(content, list):
        raise InvalidRequest(f"{param} must be a text or a list of parts", param=param)
    for index, part in enumerate(content):
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise InvalidRequest(
                f"{param}.{index} must be an object with a type", param=f"{param}.{index}"
            )
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise InvalidRequest(
                f"{param}.{index}.text must be a text", param=f"{param}.{index}.text"
            )


def _check_calls(calls: JSONValue, param: str) -> None:
    if not isinstance(calls, list):
        raise InvalidRequest(f"{param} must be a list", param=param)
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequest(
                f"{param}.{index}.function.name must be a text",
                param=f"{param}.{index}.function.name",
            )


def _check_tools(tools: JSONValue) -> None:
    if tools is None:
        return
    if not isinstance(tools, list):
        raise InvalidRequest("tools must be a list", param="tools")
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict):
            raise InvalidRequest(f"tools.{index} must be an object", param=f"tools.{index}")
        function = tool.get("function")
        if tool.get("type", "function") == "function" and (
            not isinstance(function, dict)
            or not isinstance(function.get("name"), str)
            or not function["name"]
        ):
            raise InvalidRequest(
                f"tools.{index}.function.name must be a text", param=f"tools.{index}.function.name"
            )


def read_common(body: Body, user: str | None, *, user_param: str) -> None:
    """Check and read what bodies of every protocol have.

    Raises:
        InvalidRequest: naming the field.
    """
    sent = body.sent
    body.model = _text(sent, "model") or ""
    if len(body.model) > 200:
        raise InvalidRequest("model must be at most 200 characters", param="model")
    if user is not None and len(user) > _MAX_USER_CHARS:
        raise InvalidRequest(
            f"{user_param} must be at most {_MAX_USER_CHARS} characters", param=user_param
        )
    body.user = user
    stream = sent.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequest("stream must be true or false", param="stream")
    body.stream = bool(stream)
    _check_numbers(sent)


def _check_common(body: Body) -> None:
    sent = body.sent
    read_common(body, _text(sent, "user"), user_param="user")
    body.include_usage = _include_usage(sent)
    if sent.get("n") not in (None, 1):
        raise InvalidRequest("n must be 1: one answer a request", param="n")
    _check_stop(sent.get("stop"))
    _check_response_format(sent.get("response_format"))
    body.parameters = {name: value for name, value in sent.items() if name not in _OWN}


def _check_stop(stop: JSONValue) -> None:
    listed = stop if isinstance(stop, list) else [stop]
    if stop is not None and not all(isinstance(text, str) for text in listed):
        raise InvalidRequest("stop must be a text or a list of texts", param="stop")


def _check_response_format(form: JSONValue) -> None:
    if form is None:
        return
    if not isinstance(form, dict):
        raise InvalidRequest("response_format must be an object", param="response_format")
    if not isinstance(form.get("type"), str):
        raise InvalidRequest("response_format.type must be a text", param="response_format.type")
    if form["type"] != "json_schema":
        return
    described = form.get("json_schema")
    if not isinstance(described, dict):
        raise InvalidRequest(
            "response_format.json_schema must be an object", param="response_format.json_schema"
        )
    if not isinstance(described.get("schema"), dict):
        raise InvalidRequest(
            "response_format.json_schema.schema must be an object",
            param="response_format.json_schema.schema",
        )


def _include_usage(sent: JSONObject) -> bool:
    options = sent.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise InvalidRequest("stream_options must be an object", param="stream_options")
    asked = options.get("include_usage")
    if asked is not None and not isinstance(asked, bool):
        raise InvalidRequest(
            "stream_options.include_usage must be true or false",
            param="stream_options.include_usage",
        )
    return bool(asked)


def _check_numbers(sent: JSONObject) -> None:
    for name in _COUNTS:
        value = sent.get(name)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            raise InvalidRequest(f"{name} must be a whole number of at least 1", param=name)
    for name in _NUMBERS:
        value = sent.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise InvalidRequest(f"{name} must be a number", param=name)


def _text(sent: JSONObject, name: str) -> str | None:
    value = sent.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{name} must be a text", param=name)
    return value


# Ids of conversations that clients send anyway, the first one found wins: ours, Claude Code, Codex,
# OpenCode, Open WebUI.
_SESSION_HEADERS = (
    b"x-session-id",
    b"x-claude-code-session-id",
    b"session_id",
    b"x-session-affinity",
    b"x-openwebui-chat-id",
)


def external_session_id(headers: Mapping[bytes, bytes], body: Body) -> str | None:
    """The client's own id of the conversation, where it sends one.

    `headers` are those of the ASGI scope: Django leaves out names with an underscore.
    """
    for name in _SESSION_HEADERS:
        value = headers.get(name, b"").strip()
        if value:
            return value[:500].decode("utf-8", "replace")
    cache_key = body.sent.get("prompt_cache_key")
    if isinstance(cache_key, str):
        try:
            return str(UUID(cache_key))
        except ValueError:
            return None
    return None

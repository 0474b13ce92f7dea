"""Checks bodies of OpenAI's Responses API, and gives them the form that a turn works with.

Every member is recorded; what upstreams understand goes to them (`wire.responses_bodies`), and so does
what neither the gateway nor OpenAI knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qwenproxy.errors import InvalidRequest
from qwenproxy.proxy.schemas import Body, read_common, read_object
from qwenproxy.wire import responses_bodies, responses_record
from qwenproxy.wire.anthropic_bodies import FieldError
from qwenproxy.wire.json import JSONObject, JSONValue
from qwenproxy.wire.responses_bodies import ResponsesForm

_OBJECTS = ("metadata", "reasoning", "text", "stream_options")
_FLAGS = ("store", "background", "parallel_tool_calls")
_TEXTS = ("previous_response_id", "safety_identifier", "prompt_cache_key", "instructions")
# Passed over where it asks for nothing that is there.
_LOGPROBS = "message.output_text.logprobs"


@dataclass(slots=True)
class ResponsesBody(Body):
    form: ResponsesForm = field(default_factory=ResponsesForm)

    def recorded_parameters(self) -> JSONObject:
        """The body without the texts that are stored with messages and tools."""
        return responses_record.recorded(self.sent, self.form)


def read_sent(raw: bytes) -> JSONObject:
    """Check what of the body does not depend on the conversation before it.

    Raises:
        InvalidRequest: naming the field.
    """
    sent = read_object(raw)
    for name in _TEXTS:
        _require(sent, name, str, "a text")
    for name in _OBJECTS:
        _require(sent, name, dict, "an object")
    for name in _FLAGS:
        _require(sent, name, bool, "true or false")
    include = sent.get("include")
    if include is not None and not isinstance(include, list):
        raise InvalidRequest("include must be a list", param="include")
    if include and _LOGPROBS in include:
        raise InvalidRequest(
            "include: log probabilities are not carried here; POST /v1/chat/completions has them",
            param="include",
        )
    return sent


def read_body(sent: JSONObject, given: JSONValue, before: Sequence[JSONObject]) -> ResponsesBody:
    """Translate a body; `given` is its input with references resolved, `before` what it goes on from.

    Raises:
        InvalidRequest: naming the field.
    """
    try:
        form = responses_bodies.to_chat({**sent, "input": given}, before)
    except FieldError as exc:
        raise InvalidRequest(str(exc), param=exc.param) from exc
    body = ResponsesBody(
        sent=sent,
        dialect="responses",
        messages=form.messages,
        tools=form.tools or None,
        parameters=form.parameters,
        background=bool(sent.get("background")),
        form=form,
    )
    user = sent.get("user")
    if user is not None and not isinstance(user, str):
        raise InvalidRequest("user must be a text", param="user")
    name = "user" if user is not None else "safety_identifier"
    identifier = sent.get(name)
    read_common(body, None if identifier is None else str(identifier), user_param=name)
    return body


def _require(sent: JSONObject, name: str, kind: type, described: str) -> None:
    value = sent.get(name)
    if value is not None and not isinstance(value, kind):
        raise InvalidRequest(f"{name} must be {described}", param=name)

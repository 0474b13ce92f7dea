"""Checks bodies of Anthropic's Messages API, and gives them the form that a turn works with.

Every member is recorded; what Qwen's upstreams understand goes to them (`wire.anthropic_bodies`), and so
does what neither the gateway nor Anthropic knows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from qwenproxy.errors import InvalidRequest
from qwenproxy.proxy.schemas import Body, read_common, read_object
from qwenproxy.wire import anthropic_bodies
from qwenproxy.wire.anthropic_bodies import UNMAPPED, FieldError
from qwenproxy.wire.json import JSONObject

_ONLY_COUNTED = ("max_tokens", "stream")


@dataclass(slots=True)
class MessagesBody(Body):
    # Of what was sent, what the chat form has no place for.
    unmapped: JSONObject = field(default_factory=dict)
    # The client asked for the model's thinking.
    thinking: bool = False
    # Path of a file in the chat form -> its path in what was sent.
    places: dict[str, str] = field(default_factory=dict)

    def recorded_parameters(self) -> JSONObject:
        """The body without what is stored apart, and what that form lost."""
        stored = {"messages", "system", UNMAPPED} | ({"tools"} if self.tools else set())
        parameters = {name: value for name, value in self.sent.items() if name not in stored}
        if self.unmapped:
            parameters[UNMAPPED] = self.unmapped
        return parameters


def parse_messages(raw: bytes) -> MessagesBody:
    """Check the body of `POST /v1/messages`.

    Raises:
        InvalidRequest: naming the field.
    """
    sent = read_object(raw)
    if sent.get("max_tokens") is None:
        raise InvalidRequest("max_tokens is missing", param="max_tokens")
    return _read(sent)


def parse_count(raw: bytes) -> MessagesBody:
    """Check the body of `POST /v1/messages/count_tokens`: the same, without a bound on the answer."""
    sent = read_object(raw)
    return _read({name: value for name, value in sent.items() if name not in _ONLY_COUNTED})


def _read(sent: JSONObject) -> MessagesBody:
    try:
        chat = anthropic_bodies.to_chat(sent)
        user = anthropic_bodies.user_of(sent)
    except FieldError as exc:
        raise InvalidRequest(str(exc), param=exc.param) from exc
    top_k = sent.get("top_k")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int)):
        raise InvalidRequest("top_k must be a whole number", param="top_k")
    thinking = sent.get("thinking")
    body = MessagesBody(
        sent=sent,
        dialect="anthropic",
        messages=chat.messages,
        tools=chat.tools or None,
        parameters=chat.parameters,
        unmapped=chat.unmapped,
        places=chat.places,
        thinking=isinstance(thinking, dict)
        and thinking.get("type") != "disabled"
        and thinking.get("display") != "omitted",
    )
    read_common(body, user, user_param="metadata.user_id")
    return body

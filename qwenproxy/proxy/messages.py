"""`POST /v1/messages` and `POST /v1/messages/count_tokens`: Anthropic's protocol over `Turn`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from django.http import HttpResponse
from django.http.response import HttpResponseBase

from qwenproxy.errors import GatewayError, to_anthropic_error
from qwenproxy.proxy import schemas_messages
from qwenproxy.proxy.chat import caller_of
from qwenproxy.proxy.dialect import Dialect
from qwenproxy.proxy.gateway import GatewayRequest
from qwenproxy.proxy.models import route_allowed
from qwenproxy.proxy.outcome import estimated_usage
from qwenproxy.proxy.schemas_messages import MessagesBody
from qwenproxy.proxy.turn import Turn
from qwenproxy.wire import anthropic_messages, json
from qwenproxy.wire.anthropic_messages import MessageEncoder
from qwenproxy.wire.events import Accumulator, UsageReport
from qwenproxy.wire.json import JSONObject


async def create_message(request: GatewayRequest) -> HttpResponseBase:
    """Answer a conversation in Anthropic's Messages API, whole or as server-sent events.

    Tools, thinking and images are translated to what the upstream has; errors are in Anthropic's form.
    The headers `request-id` and `x-session-id` of the answer name its record.
    """
    body = schemas_messages.parse_messages(request.body)
    route = await route_allowed(request, body.model)
    turn = Turn(request.gateway, _dialect(body), caller_of(request, body), body, route)
    client = await turn.start()
    client["request-id"] = turn.request_id
    return client


async def count_tokens(request: GatewayRequest) -> HttpResponse:
    """Estimate the tokens of a body of `POST /v1/messages`, from its length: no upstream is asked."""
    body = schemas_messages.parse_count(request.body)
    await route_allowed(request, body.model)
    answer = {"input_tokens": _input_tokens(body)}
    return HttpResponse(json.dumps(answer), content_type="application/json")


def _input_tokens(body: MessagesBody) -> int:
    return estimated_usage(body, Accumulator()).prompt_tokens


def _error_body(places: Mapping[str, str], error: GatewayError) -> JSONObject:
    """Name a file as the client did: upstreams know the chat form alone."""
    body = to_anthropic_error(error)
    place, told = places.get(error.param or ""), body["error"]
    if place is not None and error.param and isinstance(told, dict):
        told["message"] = str(told["message"]).replace(error.param, place)
    return body


def _dialect(body: MessagesBody) -> Dialect:
    def make_encoder(
        *, response_id: str, model: str, created: int, include_usage: bool
    ) -> MessageEncoder:
        return MessageEncoder(
            response_id=response_id,
            model=model,
            input_tokens=_input_tokens(body) if body.stream else 0,
            thinking=body.thinking,
        )

    def whole(
        *,
        response_id: str,
        model: str,
        created: int,
        message: JSONObject,
        reasoning: str,
        finish_reason: str,
        usage: UsageReport | None,
    ) -> JSONObject:
        return anthropic_messages.whole_message(
            response_id=response_id,
            model=model,
            message=message,
            reasoning=reasoning if body.thinking else "",
            finish_reason=finish_reason,
            usage=usage,
        )

    return Dialect(
        "msg_",
        make_encoder,
        whole,
        partial(_error_body, body.places) if body.places else to_anthropic_error,
        mark_stop=anthropic_messages.mark_stop,
    )

"""`POST /v1/chat/completions` and `POST /v1/completions`: thin endpoints over `Turn`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from django.http.response import HttpResponseBase

from qwenproxy.proxy import schemas
from qwenproxy.proxy.dialect import Dialect
from qwenproxy.proxy.gateway import GatewayRequest
from qwenproxy.proxy.models import route_allowed
from qwenproxy.proxy.turn import Caller, Turn
from qwenproxy.wire import json, openai_chat, openai_completions
from qwenproxy.wire.events import UsageReport
from qwenproxy.wire.json import JSONObject


def _add_logprobs(body: JSONObject, logprobs: JSONObject) -> None:
    choices = body["choices"]
    assert isinstance(choices, list)
    assert isinstance(choices[0], dict)
    choices[0]["logprobs"] = logprobs


CHAT = Dialect(
    "chatcmpl-",
    openai_chat.ChatChunkEncoder,
    openai_chat.completion,
    add_logprobs=_add_logprobs,
)


def _whole_completion(
    *,
    response_id: str,
    model: str,
    created: int,
    message: JSONObject,
    reasoning: str,
    finish_reason: str,
    usage: UsageReport | None,
) -> JSONObject:
    return openai_completions.completion(
        response_id=response_id,
        model=model,
        created=created,
        text=str(message["content"] or ""),
        finish_reason=finish_reason,
        usage=usage,
    )


COMPLETIONS = Dialect(
    "cmpl-",
    openai_completions.CompletionChunkEncoder,
    _whole_completion,
    add_logprobs=_add_logprobs,
)


async def create_chat_completion(request: GatewayRequest) -> HttpResponseBase:
    """Answer a conversation, whole or as server-sent events.

    The body is OpenAI's; members that the gateway does not know go to the upstream as they are. The
    headers `x-request-id` and `x-session-id` of the answer name its record.
    """
    body = schemas.parse_chat(request.body)
    return await _start(request, _chat(request.gateway.settings.reasoning_field, body), body)


def _chat(reasoning_field: str, body: schemas.Body) -> Dialect:
    """The protocol with thinking where this request gets it."""
    wish = body.sent.get("reasoning")
    is_hidden = isinstance(wish, dict) and wish.get("exclude") is True
    if is_hidden or body.sent.get("include_reasoning") is False:
        reasoning_field = "none"
    if reasoning_field == "reasoning_content":
        return CHAT
    both = ("reasoning_content", "reasoning")
    fields = {"both": both, "none": ()}.get(reasoning_field, (reasoning_field,))
    return replace(
        CHAT,
        make_encoder=partial(openai_chat.ChatChunkEncoder, reasoning_fields=fields),
        whole=partial(openai_chat.completion, reasoning_fields=fields),
    )


async def create_completion(request: GatewayRequest) -> HttpResponseBase:
    """Continue a prompt (OpenAI's legacy completions), whole or as server-sent events.

    Upstreams without `/completions` get the prompt as one user message.
    """
    return await _start(request, COMPLETIONS, schemas.parse_completion(request.body))


async def _start(request: GatewayRequest, dialect: Dialect, body: schemas.Body) -> HttpResponseBase:
    route = await route_allowed(request, body.model)
    turn = Turn(request.gateway, dialect, caller_of(request, body), body, route)
    return await turn.start()


def caller_of(request: GatewayRequest, body: schemas.Body) -> Caller:
    """Who asks, with the headers that are recorded and the client's own id of the conversation."""
    headers = dict(request.scope["headers"])
    recorded = {
        name: headers[name.encode()].decode("utf-8", "replace")
        for name in request.gateway.settings.record_headers
        if name.encode() in headers
    }
    return Caller(
        api_key_id=request.auth.id,
        method=request.method or "POST",
        path=request.path,
        user_agent=recorded.pop("user-agent", ""),
        external_id=schemas.external_session_id(headers, body),
        limits=request.auth.limits,
        recorded=request.auth.recorded,
        headers=json.dumps_text({**recorded}) if recorded else "",
    )

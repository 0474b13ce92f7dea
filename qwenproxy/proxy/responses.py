"""`POST /v1/responses` and its cancelling: OpenAI's Responses API over `Turn`.

The record is the memory behind `previous_response_id`: the line of that response and its answer come
before the new input, so every upstream sees the whole conversation, and the web upstream's chat goes on.
"""

from __future__ import annotations

import time

from django.http import HttpResponse
from django.http.response import HttpResponseBase

from qwenproxy.access.models import Recorded
from qwenproxy.database import run_in_db
from qwenproxy.errors import InvalidRequest
from qwenproxy.proxy import cancelling, schemas_responses
from qwenproxy.proxy.chat import caller_of
from qwenproxy.proxy.dialect import Dialect
from qwenproxy.proxy.gateway import GatewayRequest
from qwenproxy.proxy.models import route_allowed
from qwenproxy.proxy.schemas_responses import ResponsesBody
from qwenproxy.proxy.turn import Turn
from qwenproxy.wire import json, openai_responses
from qwenproxy.wire.events import UsageReport
from qwenproxy.wire.json import JSONObject, JSONValue
from qwenproxy.wire.openai_responses import PREFIX, Echo, ResponseEncoder
from requests_app import responses_api
from sessions_app.paging import visible_key


async def create_response(request: GatewayRequest) -> HttpResponseBase:
    """Answer in OpenAI's Responses API: whole, as server-sent events, or in the background.

    `previous_response_id` goes on from any response of the same key that was stored, on every upstream.
    The headers `x-request-id` and `x-session-id` of the answer name its record.
    """
    sent = schemas_responses.read_sent(request.body)
    model = sent.get("model")
    route = await route_allowed(request, model if isinstance(model, str) else "")
    given, before = sent.get("input"), list[JSONObject]()
    previous = sent.get("previous_response_id")
    if isinstance(previous, str) or _has_references(given):
        given, before = await run_in_db(_read_record, request.auth.id, previous, given)
    body = schemas_responses.read_body(sent, given, before)
    if body.background:
        _check_background(request, sent)
    turn = Turn(request.gateway, _dialect(body), caller_of(request, body), body, route)
    client = await turn.start()
    if not body.background or body.stream:
        return client
    # Nobody drives it: the turn runs on, and its record is what the client asks for.
    beginning = openai_responses.response_object(
        Echo(sent, body.form.names),
        response_id=turn.response_id,
        model=route.model,
        created=turn.created,
        status="in_progress",
    )
    answer = HttpResponse(json.dumps(beginning), content_type="application/json")
    for name, value in client.items():
        answer[name] = value
    return answer


async def cancel_response(request: GatewayRequest, response_id: str) -> HttpResponse:
    """End a response that is in progress; one of the background that has ended comes back as it is."""
    key = visible_key(request)
    row = await run_in_db(responses_api.find_stored, response_id, key)
    if row["status"] == "in_progress":
        await cancelling.cancel(request.gateway, response_id)
    elif not json.loads_text(row["request__parameters"]).get("background"):  # type: ignore[union-attr]  # an object, written by the recorder
        raise InvalidRequest(
            "Only responses that are in progress, or were created with background=true, can be"
            " cancelled.",
            param="response_id",
        )
    whole = await run_in_db(responses_api.stored_response, response_id, key)
    return HttpResponse(json.dumps(whole), content_type="application/json")


def _has_references(given: JSONValue) -> bool:
    return isinstance(given, list) and any(
        isinstance(item, dict) and item.get("type") == "item_reference" for item in given
    )


def _read_record(
    api_key_id: int, previous: JSONValue, given: JSONValue
) -> tuple[JSONValue, list[JSONObject]]:
    before = responses_api.load_previous(previous, api_key_id) if isinstance(previous, str) else []
    return responses_api.resolve_references(given, api_key_id), before


def _check_background(request: GatewayRequest, sent: JSONObject) -> None:
    """A response of the background is read from the record, so it has to be there."""
    if sent.get("store") is False:
        raise InvalidRequest("background needs store: true", param="background")
    if request.auth.recorded != Recorded.EVERYTHING.value:
        raise InvalidRequest(
            "background: this API key lets no content be recorded, so the answer could not be read",
            param="background",
        )


def _dialect(body: ResponsesBody) -> Dialect:
    echo = Echo(body.sent, body.form.names)

    def make_encoder(
        *, response_id: str, model: str, created: int, include_usage: bool
    ) -> ResponseEncoder:
        return ResponseEncoder(
            echo, response_id=response_id, model=model, created=created, clock=_now
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
        status, incomplete = openai_responses.ending(finish_reason)
        output = openai_responses.output_items(
            echo, response_id=response_id, message=message, reasoning=reasoning, status=status
        )
        return openai_responses.response_object(
            echo,
            response_id=response_id,
            model=model,
            created=created,
            status=status,
            output=output,
            usage=usage,
            completed_at=_now() if status == "completed" else None,
            incomplete=incomplete,
        )

    return Dialect(PREFIX, make_encoder, whole)


def _now() -> int:
    return int(time.time())

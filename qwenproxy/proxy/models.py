"""`GET /v1/models`, and which models a key may use: what it may not is listed to it nowhere.

A key's patterns are held against the id that is really asked of the upstream, so that no alias and no
default model leads past them.
"""

from __future__ import annotations

from django.http import HttpResponse

from qwenproxy.errors import NotFound, PermissionDenied
from qwenproxy.proxy.gateway import GatewayRequest
from qwenproxy.proxy.lanes import Route
from qwenproxy.upstream.protocol import ModelInfo
from qwenproxy.wire import json
from qwenproxy.wire.json import JSONObject


async def list_models(request: GatewayRequest) -> HttpResponse:
    """List the models that the upstreams serve now and the key may use."""
    models = await _allowed_models(request)
    return _json({"object": "list", "data": [_model(info) for info in models]})


async def get_model(request: GatewayRequest, model_id: str) -> HttpResponse:
    """Describe one model."""
    for info in await _allowed_models(request):
        if info.id == model_id:
            return _json(_model(info))
    raise NotFound(f"the model {model_id!r} does not exist", param="model", code="model_not_found")


async def route_allowed(request: GatewayRequest, model: str) -> Route:
    """Find who serves a model, as `Routing.route` does, where the request's key may use it.

    Raises:
        PermissionDenied: it may not; told in the same words of models that do not exist.
    """
    key = request.auth
    try:
        route = await request.gateway.routing.route(model)
    except NotFound:
        if model and not key.allows_model(model):
            raise _not_allowed(model) from None
        raise
    if not key.allows_model(route.model):
        raise _not_allowed(model or route.model)
    return route


def _not_allowed(model: str) -> PermissionDenied:
    return PermissionDenied(
        f"this API key may not use the model {model!r}: GET /v1/models lists those it may",
        param="model",
        code="model_not_allowed",
    )


async def _allowed_models(request: GatewayRequest) -> list[ModelInfo]:
    models = await request.gateway.routing.models()
    return [info for info in models if request.auth.allows_model(info.id)]


def _model(info: ModelInfo) -> JSONObject:
    body: JSONObject = {
        "id": info.id,
        "object": "model",
        "created": info.created,
        "owned_by": info.owned_by,
    }
    if info.context_length is not None:
        body["context_length"] = info.context_length
    for name, value in info.details.items():
        body.setdefault(name, value)
    return body


def _json(body: JSONObject) -> HttpResponse:
    return HttpResponse(json.dumps(body), content_type="application/json")

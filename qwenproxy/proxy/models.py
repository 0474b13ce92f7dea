"""`GET /v1/models`: what the upstreams really list, each id once."""

from __future__ import annotations

from django.http import HttpResponse

from qwenproxy.errors import NotFound
from qwenproxy.proxy.gateway import GatewayRequest
from qwenproxy.upstream.protocol import ModelInfo
from qwenproxy.wire import json
from qwenproxy.wire.json import JSONObject


async def list_models(request: GatewayRequest) -> HttpResponse:
    """List the models that the upstreams serve now."""
    models = await request.gateway.routing.models()
    return _json({"object": "list", "data": [_model(info) for info in models]})


async def get_model(request: GatewayRequest, model_id: str) -> HttpResponse:
    """Describe one model."""
    for info in await request.gateway.routing.models():
        if info.id == model_id:
            return _json(_model(info))
    raise NotFound(f"the model {model_id!r} does not exist", param="model", code="model_not_found")


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

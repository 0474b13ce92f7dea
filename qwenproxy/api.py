"""The API under /v1, its documentation, the schema's under /api/schema, and how their errors look."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse
from ninja import NinjaAPI
from ninja.errors import HttpError, ValidationError

from qwenproxy import __version__
from qwenproxy.access.accounts_api import router as accounts_router
from qwenproxy.access.auth import ApiKeyAuth
from qwenproxy.access.keys_api import router as keys_router
from qwenproxy.asgi_handler import error_response
from qwenproxy.errors import GatewayError, InvalidRequest
from qwenproxy.proxy import account_test, chat, embeddings, messages, models, responses
from qwenproxy.schema.api import router as schema_router
from requests_app.api import router as requests_router
from sessions_app.api import router as sessions_router

_DESCRIPTION = """
OpenAI's API in front of Qwen, and the record of every turn.

Point an OpenAI client at `/v1`. Each answer's headers `x-request-id` and `x-session-id` name its
record; the sessions, requests and responses below serve it. Errors have OpenAI's form
`{"error": {"message", "type", "param", "code"}}`.
"""

_TEXT = {"type": "string"}
_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {
            "type": "string",
            "enum": ["system", "developer", "user", "assistant", "tool", "function"],
        },
        "content": {
            "description": "A text, or a list of parts.",
            "oneOf": [_TEXT, {"type": "array", "items": {"type": "object"}}, {"type": "null"}],
        },
        "tool_calls": {"type": "array", "items": {"type": "object"}},
        "tool_call_id": _TEXT,
    },
}
_COMMON = {
    "model": {"type": "string", "description": "An id of GET /v1/models; absent: the default."},
    "stream": {"type": "boolean", "default": False},
    "stream_options": {
        "type": "object",
        "properties": {"include_usage": {"type": "boolean", "default": False}},
    },
    "user": {"type": "string", "description": "Keeps one key's users apart."},
}


def _body(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    schema = {
        "type": "object",
        "required": required,
        "properties": {**_COMMON, **properties},
        "additionalProperties": True,
    }
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            200: {
                "description": "The answer; with `stream` as server-sent events.",
                "content": {"application/json": {}, "text/event-stream": {}},
            }
        },
    }


api = NinjaAPI(
    title="Qwen Proxy",
    version=__version__,
    description=_DESCRIPTION,
    docs_url="/docs",
    openapi_url="/openapi.json",
    urls_namespace="v1",
)

_chat_key = ApiKeyAuth(scope="chat")
api.post(
    "/chat/completions",
    auth=_chat_key,
    tags=["chat"],
    operation_id="create_chat_completion",
    openapi_extra=_body(
        {"messages": {"type": "array", "items": _MESSAGE, "minItems": 1}}, ["messages"]
    ),
)(chat.create_chat_completion)
api.post(
    "/completions",
    auth=_chat_key,
    tags=["chat"],
    operation_id="create_completion",
    openapi_extra=_body({"prompt": _TEXT}, ["prompt"]),
)(chat.create_completion)
_MESSAGES = {
    "messages": {
        "type": "array",
        "minItems": 1,
        "items": {
            "type": "object",
            "required": ["role", "content"],
            "properties": {
                "role": {"type": "string", "enum": ["user", "assistant", "system"]},
                "content": {"oneOf": [_TEXT, {"type": "array", "items": {"type": "object"}}]},
            },
        },
    },
    "system": {"oneOf": [_TEXT, {"type": "array", "items": {"type": "object"}}]},
    "tools": {"type": "array", "items": {"type": "object"}},
}
api.post(
    "/messages",
    auth=_chat_key,
    tags=["chat"],
    operation_id="create_message",
    openapi_extra=_body(
        {**_MESSAGES, "max_tokens": {"type": "integer", "minimum": 1}}, ["messages", "max_tokens"]
    ),
)(messages.create_message)
api.post(
    "/messages/count_tokens",
    auth=_chat_key,
    tags=["chat"],
    operation_id="count_message_tokens",
    openapi_extra=_body(_MESSAGES, ["messages"]),
)(messages.count_tokens)
api.post(
    "/embeddings",
    auth=_chat_key,
    tags=["embeddings"],
    operation_id="create_embeddings",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["model", "input"],
                        "properties": {
                            "model": _TEXT,
                            "input": {"oneOf": [_TEXT, {"type": "array", "items": {}}]},
                            "encoding_format": {"type": "string", "enum": ["float", "base64"]},
                            "dimensions": {"type": "integer", "minimum": 1},
                            "user": _TEXT,
                        },
                        "additionalProperties": True,
                    }
                }
            },
        }
    },
)(embeddings.create_embeddings)
api.get("/models", auth=_chat_key, tags=["models"], operation_id="list_models")(models.list_models)
api.get("/models/{path:model_id}", auth=_chat_key, tags=["models"], operation_id="get_model")(
    models.get_model
)
# On the router that lists them: of two routers Django asks the first one alone.
requests_router.post(
    "/responses",
    auth=_chat_key,
    tags=["responses"],
    operation_id="create_response",
    openapi_extra=_body(
        {
            "input": {"oneOf": [_TEXT, {"type": "array", "items": {"type": "object"}}]},
            "instructions": _TEXT,
            "previous_response_id": _TEXT,
            "tools": {"type": "array", "items": {"type": "object"}},
            "max_output_tokens": {"type": "integer", "minimum": 1},
            "store": {"type": "boolean", "default": True},
            "background": {"type": "boolean", "default": False},
        },
        ["input"],
    ),
)(responses.create_response)
requests_router.post(
    "/responses/{response_id}/cancel",
    auth=_chat_key,
    tags=["responses"],
    operation_id="cancel_response",
)(responses.cancel_response)
_records_key = ApiKeyAuth(scope="records")
# Statistics and a session's requests have paths that the other router would take for ids.
api.add_router("", requests_router, auth=_records_key, tags=["records"])
api.add_router("", sessions_router, auth=_records_key, tags=["records"])
_admin_key = ApiKeyAuth(scope="admin")
api.add_router("/keys", keys_router, auth=_admin_key, tags=["keys"])
api.add_router("/accounts", accounts_router, auth=_admin_key, tags=["accounts"])
api.post(
    "/accounts/{account_id}/test",
    auth=_admin_key,
    tags=["accounts"],
    operation_id="test_account",
    response={200: account_test.AccountTest},
)(account_test.test_account)

# For operators: not a part of the API that clients are written for, nor of its documentation.
operations_api = NinjaAPI(
    version=__version__, docs_url=None, openapi_url=None, urls_namespace="operations"
)
operations_api.add_router("/schema", schema_router, auth=ApiKeyAuth(scope="admin"))


@operations_api.exception_handler(GatewayError)
@api.exception_handler(GatewayError)
def _on_gateway_error(request: HttpRequest, error: GatewayError) -> HttpResponse:
    return error_response(error, request.path)


@operations_api.exception_handler(ValidationError)
@api.exception_handler(ValidationError)
def _on_validation_error(request: HttpRequest, error: ValidationError) -> HttpResponse:
    first = error.errors[0]
    param = ".".join(str(part) for part in first["loc"][1:])
    code = f"invalid_{param}" if first["loc"][0] == "query" else None
    invalid = InvalidRequest(f"{param}: {first['msg']}", param=param, code=code)
    return error_response(invalid, request.path)


@operations_api.exception_handler(HttpError)
@api.exception_handler(HttpError)
def _on_http_error(request: HttpRequest, error: HttpError) -> HttpResponse:
    return error_response(InvalidRequest(error.message, status=error.status_code), request.path)

"""The lean ASGI handler under /v1 and the health routes: no middleware, no thread per request.

Django's stock handler costs about ten times as much (docs/performance.md). This one uses its public
parts only: the request class, the URL resolver, the response's headers and content. It bounds the
body, keeps a long one for the holder of a key alone, checks the Host, answers CORS, and lets a
`ClientStream` drive the connection itself.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.core.handlers.asgi import ASGIRequest
from django.db import Error as DatabaseError
from django.http import Http404, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import ResolverMatch, get_resolver

from qwenproxy.access.auth import authenticate
from qwenproxy.errors import (
    BodyTooLarge,
    GatewayError,
    InvalidRequest,
    NotFound,
    RecorderUnavailable,
    SchemaNotReady,
    error_body,
    error_headers,
)
from qwenproxy.proxy.gateway import Gateway
from qwenproxy.proxy.streaming import ClientStream, Receive, Send
from qwenproxy.wire import json

logger = logging.getLogger(__name__)

_EXPOSED = ", ".join(
    (
        "x-request-id, request-id, x-session-id, retry-after, retry-after-ms, x-qwenproxy-ignored",
        *(
            name
            for what in ("limit", "remaining", "reset")
            for of in ("requests", "tokens")
            for name in (f"x-ratelimit-{what}-{of}", f"anthropic-ratelimit-{of}-{what}")
        ),
    )
)
# A body over the limit is read to its end before it is refused, up to this many times the limit:
# clients that send all before they read would see a reset in place of the answer. One that says it is
# larger is refused at once.
_DISCARD_FACTOR = 4
# What is answered also while the schema is not ready, when there is no gateway.
_WITHOUT_GATEWAY = ("/health", "/readyz", "/metrics", "/api/schema/")
# Answers hold conversations: no cache may keep them, also where the key came in `x-api-key`, of which
# caches know nothing, and no browser may take them for something that it runs.
_ALWAYS = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


class LeanRequest(ASGIRequest):
    """Django's request, its body read already."""

    gateway: Gateway | None

    def __init__(self, scope: dict[str, Any], body: bytes, gateway: Gateway | None) -> None:
        super().__init__(scope, BytesIO())
        self._body = body
        self.gateway = gateway


class _ClientGone(Exception):
    pass


class LeanHandler:
    def __init__(self) -> None:
        self._resolver = get_resolver()
        self._cors = _cors_origins(settings.CORS_ORIGINS)
        self._known_hosts: set[bytes] = set()
        # Of paths without parameters, so no more than there are routes.
        self._matches: dict[str, ResolverMatch] = {}

    async def __call__(
        self, scope: dict[str, Any], receive: Receive, send: Send, gateway: Gateway | None
    ) -> None:
        cors = self._cors_headers(scope)
        response: HttpResponseBase
        try:
            body = await self._read_body(scope, receive, gateway)
            response = await self._respond(LeanRequest(scope, body, gateway))
        except _ClientGone:
            return
        except GatewayError as error:
            response = error_response(error, scope["path"])
            if isinstance(error, BodyTooLarge):
                # What is left of the body would be read as the next request.
                response["Connection"] = "close"
        except DatabaseError as exc:
            # One line each: while it is down, every request ends here.
            logger.error("%s %s: the database failed: %s", scope["method"], scope["path"], exc)
            response = error_response(
                RecorderUnavailable("the database does not answer"), scope["path"]
            )
        except Exception:
            # The last handler: a fault of ours is logged, and the client hears no more than that.
            logger.exception("request failed: %s %s", scope["method"], scope["path"])
            response = error_response(GatewayError("internal error"), scope["path"])
        if isinstance(response, ClientStream):
            await response.drive(receive, send, extra_headers=cors)
        else:
            await _send_whole(response, send, cors)

    async def _read_body(
        self, scope: dict[str, Any], receive: Receive, gateway: Gateway | None
    ) -> bytes:
        """The whole body; of one that does not come at once nothing is kept for who has no key."""
        limit = settings.MAX_BODY_BYTES
        if _content_length(scope) > limit * _DISCARD_FACTOR:
            raise _too_large(limit)
        pieces: list[bytes] = []
        size, is_checked = 0, False
        refusal: GatewayError | None = None
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientGone
            piece: bytes = message.get("body", b"")
            size += len(piece)
            if size > limit:
                refusal = _too_large(limit)
            if refusal is None:
                pieces.append(piece)
            else:
                pieces.clear()
            if not message.get("more_body") or size > limit * _DISCARD_FACTOR:
                break
            if not is_checked:
                is_checked, refusal = True, refusal or await _refusal(scope, gateway)
        if refusal is not None:
            raise refusal
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _respond(self, request: LeanRequest) -> HttpResponseBase:
        self._check_host(request)
        if request.method == "OPTIONS":
            return HttpResponse(status=204)
        if request.gateway is None and not request.path_info.startswith(_WITHOUT_GATEWAY):
            raise _schema_not_ready()
        response: HttpResponseBase
        try:
            match = request.resolver_match = self._resolve(request.path_info)
            response = await match.func(request, *match.args, **match.kwargs)
        except Http404:
            return error_response(
                NotFound(f"there is no {request.path}", code="unknown_url"), request.path
            )
        if response.status_code == 405:
            refused = error_response(
                InvalidRequest(f"{request.method} is not for {request.path}", status=405),
                request.path,
            )
            refused["Allow"] = response.headers.get("Allow", "")
            return refused
        return response

    def _resolve(self, path: str) -> ResolverMatch:
        match = self._matches.get(path)
        if match is None:
            match = self._resolver.resolve(path)
            if not match.args and not match.kwargs:
                self._matches[path] = match
        return match

    def _check_host(self, request: LeanRequest) -> None:
        host = request.META.get("HTTP_HOST", "").encode("latin-1", "replace")
        if host in self._known_hosts:
            return
        try:
            request.get_host()
        except DisallowedHost as exc:
            raise InvalidRequest(
                "this Host is not served: set QWENPROXY_PUBLIC_URL or QWENPROXY_ALLOWED_HOSTS",
                status=400,
                code="invalid_host",
            ) from exc
        if len(self._known_hosts) < 1000:
            self._known_hosts.add(host)

    def _cors_headers(self, scope: dict[str, Any]) -> dict[str, str]:
        origin = next((value for name, value in scope["headers"] if name == b"origin"), None)
        if origin is None:
            return {}
        allowed = "*" if self._cors is None else origin.decode("latin-1")
        if self._cors is not None and allowed not in self._cors:
            return {"Vary": "Origin"}
        headers = {
            "Access-Control-Allow-Origin": allowed,
            "Access-Control-Expose-Headers": _EXPOSED,
            "Vary": "Origin",
        }
        if scope["method"] == "OPTIONS":
            asked = next(
                (v for n, v in scope["headers"] if n == b"access-control-request-headers"), b"*"
            )
            headers["Access-Control-Allow-Methods"] = "GET, POST, PATCH, DELETE, OPTIONS"
            headers["Access-Control-Allow-Headers"] = asked.decode("latin-1")
            headers["Access-Control-Max-Age"] = "86400"
        return headers


async def _refusal(scope: dict[str, Any], gateway: Gateway | None) -> GatewayError | None:
    """Why a body is not kept: its sender has no key, or nothing can be done with it."""
    if gateway is None:
        return _schema_not_ready()
    try:
        await authenticate(LeanRequest(scope, b"", gateway))
    except GatewayError as error:
        return error
    return None


def _schema_not_ready() -> SchemaNotReady:
    return SchemaNotReady(
        "the database is not as this version needs it: run manage.py migrate; /readyz says more",
        retry_after_s=2,
    )


def _content_length(scope: dict[str, Any]) -> int:
    value = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    return int(value) if value.isdigit() else 0


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body has more than {limit} bytes (QWENPROXY_MAX_BODY_MB sets the limit)"
    )


def _cors_origins(origins: Sequence[str]) -> frozenset[str] | None:
    """Null stands for any origin."""
    return None if "*" in origins else frozenset(origins)


def error_response(error: GatewayError, path: str) -> HttpResponse:
    """The error's body in the form of the path's protocol, with its status and headers."""
    return HttpResponse(
        json.dumps(error_body(error, path)),
        status=error.http_status,
        content_type="application/json",
        headers=error_headers(error),
    )


async def refuse(error: GatewayError, path: str, send: Send) -> None:
    """Answer with the error, and close the connection: the body is not read."""
    response = error_response(error, path)
    response["Connection"] = "close"
    await _send_whole(response, send, {})


async def _send_whole(response: HttpResponseBase, send: Send, extra: dict[str, str]) -> None:
    assert isinstance(response, HttpResponse)
    content = response.content
    headers = [
        (name.lower().encode("ascii"), value.encode("latin-1"))
        for name, value in (*response.items(), *extra.items())
    ]
    headers += (*_ALWAYS, (b"content-length", b"%d" % len(content)))
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": content})
    # Never `response.close()`: it fires Django's signals on the loop.
    for closer in response._resource_closers:  # type: ignore[attr-defined]  # no public name
        closer()

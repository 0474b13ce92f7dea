"""Bodies of requests outside the API: read to a bound before Django, which would spool any size to disk."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from qwenproxy.asgi_handler import refuse
from qwenproxy.errors import BodyTooLarge
from qwenproxy.proxy.streaming import Receive, Send

# Forms of the admin; the longest field is a browser's cookies.
MAX_FORM_BYTES = 4 * 2**20
_App = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]


def bounded(app: _App) -> _App:
    """The application, with 413 for bodies above `MAX_FORM_BYTES` that it never sees."""

    async def bounded_app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        names = {name for name, _ in scope["headers"]}
        if scope["type"] != "http" or not names & {b"content-length", b"transfer-encoding"}:
            await app(scope, receive, send)
            return
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > MAX_FORM_BYTES:
                error = BodyTooLarge(f"the body has more than {MAX_FORM_BYTES} bytes")
                await refuse(error, scope["path"], send)
                return
            if not message.get("more_body"):
                break
        whole = {"type": "http.request", "body": b"".join(pieces), "more_body": False}

        async def receive_whole() -> dict[str, Any]:
            nonlocal whole
            if whole:
                message, whole = whole, {}
                return message
            return await receive()

        await app(scope, receive_whole, send)

    return bounded_app

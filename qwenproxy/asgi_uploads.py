"""Bodies of requests outside the API: read to a bound before Django, which would spool any size to disk.

Who sends them is known to Django alone, so all of them together are bounded as well.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from qwenproxy.asgi_handler import refuse
from qwenproxy.errors import BodyTooLarge, GatewayError
from qwenproxy.proxy.streaming import Receive, Send

# Forms of the admin; the longest field is a browser's cookies.
MAX_FORM_BYTES = 4 * 2**20
# Bodies that are held at once. Small ones, such as a password, are taken whatever others hold.
MAX_HELD_BYTES = 64 * 2**20
SMALL_FORM_BYTES = 64 * 1024
_App = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]


def bounded(app: _App) -> _App:
    """The application, with 413 for bodies above `MAX_FORM_BYTES` that it never sees, and 503 while
    others hold `MAX_HELD_BYTES`.
    """
    held = 0

    async def bounded_app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        names = {name for name, _ in scope["headers"]}
        if scope["type"] != "http" or not names & {b"content-length", b"transfer-encoding"}:
            await app(scope, receive, send)
            return
        nonlocal held
        pieces: list[bytes] = []
        size = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                pieces.append(message.get("body", b""))
                size += len(pieces[-1])
                held += len(pieces[-1])
                if (error := _refusal(size, held)) is not None:
                    await refuse(error, scope["path"], send)
                    return
                if not message.get("more_body"):
                    break
            whole = {"type": "http.request", "body": b"".join(pieces), "more_body": False}
            pieces.clear()
            await app(scope, _once(whole, receive), send)
        finally:
            held -= size

    return bounded_app


def _refusal(size: int, held: int) -> GatewayError | None:
    if size > MAX_FORM_BYTES:
        return BodyTooLarge(f"the body has more than {MAX_FORM_BYTES} bytes")
    if size > SMALL_FORM_BYTES and held > MAX_HELD_BYTES:
        return GatewayError("too many long bodies at once", status=503, retry_after_s=2)
    return None


def _once(whole: dict[str, Any], receive: Receive) -> Receive:
    """The message, then what comes after it."""
    left = [whole]

    async def receive_whole() -> dict[str, Any]:
        return left.pop() if left else await receive()

    return receive_whole

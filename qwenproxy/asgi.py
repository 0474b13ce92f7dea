"""The ASGI application: lean handler under /v1 and /api, Django's own for the rest, start and stop of both.

Start: recorder (which settles what dead processes left), HTTP client, routing, upkeep of accounts. Stop:
no new turns, running ones drain until the deadline, the recorder goes last.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any

import django
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "qwenproxy.settings")
django.setup()

from django.conf import settings  # noqa: E402  # after setup
from django.contrib.staticfiles.finders import get_finders  # noqa: E402
from servestatic import ServeStaticASGI  # type: ignore[import-untyped]  # noqa: E402  # has no types

from qwenproxy.asgi_handler import LeanHandler  # noqa: E402
from qwenproxy.database import close_pool  # noqa: E402
from qwenproxy.proxy.gateway import Gateway, TurnSettings  # noqa: E402
from qwenproxy.proxy.routing import Routing  # noqa: E402
from qwenproxy.proxy.streaming import Receive, Send  # noqa: E402
from qwenproxy.proxy.upkeep import Upkeep  # noqa: E402
from qwenproxy.proxy.upstreams import make_upstream  # noqa: E402
from qwenproxy.upstream.http import open_client  # noqa: E402
from requests_app.recorder import Recorder  # noqa: E402

logger = logging.getLogger(__name__)

_LEAN_PATHS = frozenset(("/health", "/healthz", "/health/detailed", "/readyz", "/metrics"))
# Pages of Django's own: they render templates.
_STOCK_PATHS = ("/v1/docs", "/v1/openapi.json")


class Application:
    """`gateway` exists between lifespan's startup and shutdown."""

    def __init__(self) -> None:
        self._stock = stock_application()
        self._lean = LeanHandler()
        self.gateway: Gateway | None = None

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            if path in _LEAN_PATHS or (
                path.startswith(("/v1/", "/api/")) and not path.startswith(_STOCK_PATHS)
            ):
                await self._lean(scope, receive, send, self.gateway)
            else:
                await self._stock(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        # A failure here is the server's to report: it runs with lifespan "on" and ends.
        await receive()
        stop = await self._start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> Callable[[], Awaitable[None]]:
        client = open_client()
        routing = Routing(
            partial(make_upstream, client),
            models_ttl_s=settings.MODELS_TTL_S,
            default_model=settings.DEFAULT_MODEL,
            aliases=settings.MODEL_ALIASES,
        )
        recorder = Recorder(
            lock_directory=settings.DATA_DIR / "workers",
            queue_turns=settings.RECORDER_QUEUE_TURNS,
            deadline_s=settings.RECORDER_DEADLINE_S,
            session_ttl=timedelta(hours=settings.SESSION_TTL_H),
        )
        await recorder.start()
        routing.start()
        upkeep = Upkeep(routing.make_upstream)
        upkeep.start()
        gateway = self.gateway = Gateway(recorder, routing, _turn_settings())

        async def stop() -> None:
            late = await gateway.drain(settings.DRAIN_TIMEOUT_S)
            if late:
                logger.warning("%d answers were interrupted by the shutdown", late)
            await upkeep.stop()
            await routing.stop()
            await recorder.stop()
            await client.aclose()
            await asyncio.to_thread(close_pool)
            self.gateway = None

        return stop


def stock_application() -> ServeStaticASGI:
    """Django's own handler, and the static files of all packages as they lie there.

    Not by a middleware: Django leaves the file of an asynchronous response open.
    """
    files = ServeStaticASGI(get_asgi_application(), allow_all_origins=False)
    for finder in get_finders():
        # Of both standard finders; their base class names no such attribute.
        for storage in finder.storages.values():  # type: ignore[attr-defined]
            files.add_files(storage.location, prefix=settings.STATIC_URL)
    return files


def _turn_settings() -> TurnSettings:
    return TurnSettings(
        send_buffer_bytes=settings.SEND_BUFFER_BYTES,
        send_timeout_s=settings.SEND_TIMEOUT_S,
        keep_alive_s=settings.KEEP_ALIVE_S,
        max_answer_chars=settings.MAX_ANSWER_CHARS,
        turn_timeout_s=settings.TURN_TIMEOUT_S,
        upstream_retries=settings.UPSTREAM_RETRIES,
        account_wait_s=settings.ACCOUNT_WAIT_S,
        parent_rule=settings.QWEN_PARENT_RULE,
        on_client_left=settings.ON_CLIENT_LEFT,
        reserved_tokens=settings.RESERVED_TOKENS,
        redaction=settings.REDACTION,
        record_headers=settings.RECORD_HEADERS,
    )


application = Application()

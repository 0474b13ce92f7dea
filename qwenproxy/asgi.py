"""The ASGI application: lean handler under /v1 and /api, Django's own for the rest, start and stop of both.

Start: recorder (which settles what dead processes left), HTTP client, routing, upkeep of accounts, retention. Stop:
no new turns, running ones drain until the deadline, the recorder goes last.
"""

from __future__ import annotations

import asyncio
import contextlib
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
from django.db import DatabaseError, connection  # noqa: E402
from servestatic import ServeStaticASGI  # type: ignore[import-untyped]  # noqa: E402  # has no types

from qwenproxy.asgi_handler import LeanHandler, refuse  # noqa: E402
from qwenproxy.asgi_limits import is_admin_side  # noqa: E402
from qwenproxy.asgi_uploads import bounded  # noqa: E402
from qwenproxy.database import close_pool, run_in_db  # noqa: E402
from qwenproxy.errors import NotFound  # noqa: E402
from qwenproxy.health import schema_problem  # noqa: E402
from qwenproxy.proxy.cancelling import CancelWatch  # noqa: E402
from qwenproxy.proxy.gateway import Gateway, TurnSettings  # noqa: E402
from qwenproxy.proxy.routing import Routing  # noqa: E402
from qwenproxy.proxy.streaming import Receive, Send  # noqa: E402
from qwenproxy.proxy.upkeep import Upkeep  # noqa: E402
from qwenproxy.proxy.upstreams import make_upstream  # noqa: E402
from qwenproxy.reports import close_reports  # noqa: E402
from qwenproxy.schema.locking import refuse_pool  # noqa: E402
from qwenproxy.schema.state import read_state  # noqa: E402
from qwenproxy.upstream.http import open_client  # noqa: E402
from requests_app.recorder import Recorder  # noqa: E402
from requests_app.retention_task import Retention  # noqa: E402

logger = logging.getLogger(__name__)

_LEAN_PATHS = frozenset(("/health", "/healthz", "/health/detailed", "/readyz", "/metrics"))
_LEAN_PREFIXES = ("/v1/", "/api/")
# Pages of Django's own: they render templates.
_STOCK_PATHS = ("/v1/docs", "/v1/openapi.json")
# What is left where the admin has an address of its own: those, and their scripts.
_PUBLIC_PATHS = (*_STOCK_PATHS, "/static/ninja/")
_LOOK_EVERY_S = 2.0


class Application:
    """`gateway` exists between lifespan's startup and shutdown, once the schema is ready."""

    def __init__(self) -> None:
        self._stock = bounded(stock_application())
        self._lean = LeanHandler()
        self.gateway: Gateway | None = None

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            if path in _LEAN_PATHS or (
                path.startswith(_LEAN_PREFIXES) and not path.startswith(_STOCK_PATHS)
            ):
                await self._lean(scope, receive, send, self.gateway)
            elif _is_of_api(path) or not (
                is_admin_side(scope.get("server")) or path.startswith(_PUBLIC_PATHS)
            ):
                await refuse(NotFound(f"there is no {path}", code="unknown_url"), path, send)
            else:
                # The health page tells of this process what only the gateway knows.
                await self._stock({**scope, "gateway": self.gateway}, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        # A failure here is the server's to report: it runs with lifespan "on" and ends.
        await receive()
        problem = schema_problem(await run_in_db(read_state))
        starting = asyncio.create_task(self._start_when_ready(problem))
        if problem:
            # Without `serve`, which would have migrated.
            logger.error("Nothing is served yet: %s. Run: manage.py migrate", problem)
            starting.add_done_callback(_tell_failure)
        else:
            await starting
        await send({"type": "lifespan.startup.complete"})
        await receive()
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            stop = await starting
            await stop()
        await asyncio.to_thread(close_pool)
        await asyncio.to_thread(close_reports)
        await send({"type": "lifespan.shutdown.complete"})

    async def _start_when_ready(self, problem: str) -> Callable[[], Awaitable[None]]:
        while problem:
            await asyncio.sleep(_LOOK_EVERY_S)
            with contextlib.suppress(DatabaseError):
                problem = schema_problem(await run_in_db(read_state))
        return await self._start()

    async def _start(self) -> Callable[[], Awaitable[None]]:
        # `serve` has asked; other servers have not.
        await run_in_db(refuse_pool, connection)
        client = open_client()
        routing = Routing(
            partial(
                make_upstream, client, json_by_instruction=settings.JSON_BY_INSTRUCTION_ACCOUNTS
            ),
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
        retention = Retention()
        retention.start()
        gateway = self.gateway = Gateway(recorder, routing, _turn_settings(), retention)
        cancel_watch = CancelWatch(gateway)
        cancel_watch.start()

        async def stop() -> None:
            late = await gateway.drain(settings.DRAIN_TIMEOUT_S)
            if late:
                logger.warning("%d answers were interrupted by the shutdown", late)
            await cancel_watch.stop()
            await retention.stop()
            await upkeep.stop()
            await routing.stop()
            await recorder.stop()
            await client.aclose()
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


def _is_of_api(path: str) -> bool:
    """Tell whether the path was to be one of the API's, whose clients read JSON: `//v1/models`, `/v1`."""
    return not path.startswith(_STOCK_PATHS) and f"/{path.lstrip('/')}/".startswith(_LEAN_PREFIXES)


def _tell_failure(starting: asyncio.Task[Callable[[], Awaitable[None]]]) -> None:
    if not starting.cancelled() and (failure := starting.exception()) is not None:
        logger.error("The gateway could not start", exc_info=failure)


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
        reasoning_field=settings.REASONING_FIELD,
        reserved_tokens=settings.RESERVED_TOKENS,
        redaction=settings.REDACTION,
        record_headers=settings.RECORD_HEADERS,
    )


application = Application()

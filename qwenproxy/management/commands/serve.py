"""Brings the database up to date, then serves; the one command an operator runs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import signal
import socket
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

import uvicorn
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.db import connections

from qwenproxy.access import first_start
from qwenproxy.asgi import application
from qwenproxy.asgi_limits import BoundedProtocol, sweep
from qwenproxy.proxy import discovery
from qwenproxy.schema.responder import Responder
from qwenproxy.schema.startup import bring_up_to_date
from qwenproxy.schema.watch import Progress, Watch

# Beyond the drain's deadline: interrupted turns record their end and say so to their clients.
_GRACE_S = 10
# uvicorn ticks ten times a second.
_TICKS_PER_SWEEP = 10


class _Server(uvicorn.Server):
    """Begins to drain at the signal, while connections are still being served."""

    _draining: asyncio.Task[int] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn raises the signal again when it is done: a clean stop would end as a killed one.
        signals = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    async def on_tick(self, counter: int) -> bool:
        if counter % _TICKS_PER_SWEEP == 0:
            sweep(self.server_state.connections, asyncio.get_running_loop().time())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if application.gateway is not None:
            self._draining = asyncio.create_task(
                application.gateway.drain(settings.DRAIN_TIMEOUT_S)
            )
        await super().shutdown(sockets)


class Command(BaseCommand):
    help = "Bring the database up to date, then serve the API and the admin."
    requires_migrations_checks = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--host", default=settings.HOST, help="QWENPROXY_HOST")
        parser.add_argument("--port", type=int, default=settings.PORT, help="QWENPROXY_PORT")
        parser.add_argument(
            "--migrate",
            choices=("auto", "check", "off"),
            default=settings.MIGRATE_ON_START,
            help="QWENPROXY_MIGRATE_ON_START; check: wait until another process has migrated",
        )

    def handle(self, *args: Any, host: str, port: int, migrate: str, **options: Any) -> None:
        _forbid_core_dumps()
        listeners = _bind_all(host, port)
        port = listeners[0].getsockname()[1]
        address = _url(host, port)
        admin_address = _url(*settings.ADMIN_BIND) if settings.ADMIN_BIND else address
        progress = Progress()
        with contextlib.ExitStack() as starting:
            starting.enter_context(Watch(connections["default"], progress, self._say))
            # Until the server takes over: probes and clients are answered from the first moment.
            for listener in listeners:
                starting.enter_context(Responder(listener, progress))
            bring_up_to_date(self._say, progress=progress, mode=migrate)
            try:
                begun = first_start.prepare()
            except ImproperlyConfigured as exc:
                raise CommandError(str(exc)) from exc
            self._introduce(begun, address, admin_address)
            if settings.DISCOVER_UPSTREAMS:
                self._discover(port)
        if settings.ADMIN_BIND:
            self._say(f"Admin on {admin_address}/admin/, and nowhere else")
        self._say(f"Serving on {address} (Ctrl-C stops)")
        # What serves has connections of its own.
        connections.close_all()
        # What is loaded by now stays: the collector need not look at it for every few hundred objects
        # that a turn makes (about a tenth of a request's time, docs/performance.md).
        gc.freeze()
        gc.set_threshold(25_000, 20, 50)
        server = _Server(_config())
        server.run(sockets=listeners)
        if not server.started:
            raise CommandError("The gateway could not start; the log above says why.")

    def _say(self, line: str) -> None:
        self.stdout.write(line)
        self.stdout.flush()

    def _introduce(self, begun: first_start.FirstStart, address: str, admin_address: str) -> None:
        """Tell what the first start made; the secrets are shown here and never again."""
        lines = []
        if begun.admin_password:
            lines += [
                f"  Admin      {admin_address}/admin/",
                f"  User       {begun.admin_user}",
                f"  Password   {begun.admin_password}",
                "             (shown once; another: .venv/bin/python manage.py changepassword "
                f"{begun.admin_user})",
            ]
        if begun.api_key_is_new:
            lines += [
                f"  API key    {begun.api_key}",
                "             (shown once; another: .venv/bin/python manage.py createapikey NAME)",
            ]
        if begun.api_key:
            key = begun.api_key if begun.api_key_is_new else "$QWENPROXY_API_KEY"
            lines += ["", "  Try it:", "", *_curl(address, key)]
        if lines:
            self._say("\n".join(["", "Qwen Proxy is set up.", "", *lines, ""]))
        for name in begun.seeded:
            self._say(f"Upstream account from the environment: {name}")
        if begun.demo:
            self._say(
                "No upstream is connected yet: the built-in demo answers as qwen-demo. "
                f"Add one at {admin_address}/admin/access/upstreamaccount/add/"
            )

    def _discover(self, port: int) -> None:
        for found in asyncio.run(discovery.discover(own_port=port)):
            self._say(
                f"Found {found.name} at {found.base_url} with {', '.join(found.models[:3])}: "
                "the admin offers it under Upstream accounts."
            )


def _forbid_core_dumps() -> None:
    """Keys, credentials and conversations are in memory: a crash must not leave them on the disk."""
    if sys.platform != "win32":
        # Elsewhere there is no such module.
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _config() -> uvicorn.Config:
    return uvicorn.Config(
        application,
        loop="uvloop",
        http=BoundedProtocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(settings.DRAIN_TIMEOUT_S + _GRACE_S),
        timeout_keep_alive=75,
    )


def _bind_all(host: str, port: int) -> list[socket.socket]:
    """The public socket, then the admin's where it has its own."""
    listeners = [_bind(host, port)]
    if settings.ADMIN_BIND is None:
        return listeners
    admin_host, admin_port = settings.ADMIN_BIND
    try:
        if listeners[0].getsockname()[1] == admin_port:
            raise CommandError("QWENPROXY_ADMIN_BIND needs another port than the API's")
        return [*listeners, _bind(admin_host, admin_port, way_out="QWENPROXY_ADMIN_BIND")]
    except CommandError:
        listeners[0].close()
        raise


def _bind(host: str, port: int, way_out: str = "QWENPROXY_PORT=8101 make run") -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    if sys.platform != "win32":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        # Bound alone does not keep a second server out on every system.
        listener.listen(2048)
    except OSError as exc:
        listener.close()
        if exc.errno == errno.EADDRINUSE:
            raise CommandError(
                f"Port {port} of {host} is taken by another program. "
                f"Stop that one, or choose another port: {way_out}"
            ) from exc
        raise CommandError(f"Cannot listen on {host}:{port}: {exc.strerror}") from exc
    listener.set_inheritable(False)
    return listener


def _url(host: str, port: int) -> str:
    return f"http://{_shown_host(host)}:{port}"


def _shown_host(host: str) -> str:
    if host in ("", "0.0.0.0", "::"):  # noqa: S104  # shown, not bound
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _curl(address: str, key: str) -> list[str]:
    return [
        f"  curl {address}/v1/chat/completions \\",
        f'    -H "Authorization: Bearer {key}" \\',
        "    -H 'Content-Type: application/json' \\",
        """    -d '{"messages":[{"role":"user","content":"Hello!"}]}'""",
    ]

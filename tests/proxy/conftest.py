"""A gateway with settings of the test's own, and both kinds of upstream behind one fixture."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from openai import DefaultHttpxClient, OpenAI

from qwenproxy.access.accounts import get_secrets, set_secrets
from qwenproxy.access.models import UpstreamAccount
from requests_app.models import Partial, Response
from tests.conftest import NO_TLS
from tests.doubles.openai_compatible import OpenAICompatibleDouble
from tests.doubles.qwen_web import QwenWebDouble
from tests.doubles.server import serve_in_thread

HELLO = [{"role": "user", "content": "Hello"}]


@dataclass
class Served:
    """An upstream's double with an account for it."""

    kind: str
    model: str
    double: OpenAICompatibleDouble | QwenWebDouble
    url: str
    account: Any

    def enqueue(self, *replies: Any, path: str | None = None) -> None:
        self.double.enqueue(*replies, path=path)

    @property
    def turns(self) -> list[Any]:
        return self.double.turns


@dataclass
class Running:
    """A gateway that runs, and clients of it."""

    app: Any
    url: str
    api_key: str
    http: httpx.Client
    sdk: OpenAI

    @property
    def gateway(self) -> Any:
        return self.app.gateway

    def ask(self, model: str, *, stream: bool = False, **fields: Any) -> Any:
        """A plain POST; its whole answer."""
        body = {"model": model, "messages": HELLO, "stream": stream, **fields}
        return self.http.post("/v1/chat/completions", json=body)

    def heal(self) -> None:
        """What takes an account out is not what this test is about: its operator acts at once."""
        for account in UpstreamAccount.objects.all():
            set_secrets(account, get_secrets(account))

    def open_stream(self, model: str, **fields: Any) -> Any:
        """A streamed answer to read, or to leave."""
        body = {"model": model, "messages": HELLO, "stream": True, **fields}
        return self.http.stream("POST", "/v1/chat/completions", json=body)


@pytest.fixture
def open_gateway(make_application, settings, api_key) -> Iterator[Callable[..., Running]]:
    """Start a gateway with these settings; it stops with the test."""
    with contextlib.ExitStack() as stack:

        def open_gateway(**overrides: Any) -> Running:
            for name, value in overrides.items():
                setattr(settings, name, value)
            app = make_application()
            url = stack.enter_context(serve_in_thread(app, lifespan="on"))
            headers = {"Authorization": f"Bearer {api_key}"}
            http = httpx.Client(base_url=url, headers=headers, timeout=30, verify=NO_TLS)
            sdk = OpenAI(
                base_url=f"{url}/v1",
                api_key=api_key,
                max_retries=0,
                http_client=DefaultHttpxClient(verify=NO_TLS, timeout=30),
            )
            return Running(app, url, api_key, stack.enter_context(http), stack.enter_context(sdk))

        yield open_gateway


@pytest.fixture
def serve_upstream(make_account) -> Iterator[Callable[..., Served]]:
    """Start a double of either kind with an account for it."""
    with contextlib.ExitStack() as stack:

        def serve_upstream(kind: str, **fields: Any) -> Served:
            double = QwenWebDouble() if kind == "qwen_web" else OpenAICompatibleDouble()
            model = "qwen3-max" if kind == "qwen_web" else "qwen3-8b"
            url = stack.enter_context(serve_in_thread(double))
            # Model Studio's own API is below another path.
            base_url = f"{url}/v1" if kind == "dashscope" else url
            return Served(kind, model, double, url, make_account(kind, base_url, **fields))

        yield serve_upstream


@pytest.fixture(params=["openai_compatible", "qwen_web"])
def upstream(request, serve_upstream) -> Served:
    return serve_upstream(request.param)


def wait_until(condition: Callable[[], Any], timeout_s: float = 10) -> Any:
    """Ask again and again until there is something; for what no event tells."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)
    return value


def ended_response(**filters: Any) -> Response:
    """The only response row, or the only one so filtered, once it is no longer in progress."""

    def find() -> Response | None:
        rows = Response.objects.select_related("request", "reply").filter(**filters)
        assert len(rows) < 2
        return next((row for row in rows if row.status != "in_progress"), None)

    row = wait_until(find)
    assert Partial.objects.count() == 0
    return row


def attempts_of(row: Response) -> list[dict[str, Any]]:
    return json.loads(row.request.attempts)


def reply_text(row: Response) -> str | None:
    return None if row.reply is None else json.loads(row.reply.content)

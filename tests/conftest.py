"""Fixtures of the second and third ring: the real application on a real port with a real database."""

from __future__ import annotations

import functools
import json
import ssl
import sys
from collections.abc import Iterator

import httpx
import hypothesis
import pytest
from openai import DefaultHttpxClient, OpenAI

from tests.doubles.openai_compatible import OpenAICompatibleDouble
from tests.doubles.qwen_web import QwenWebDouble
from tests.doubles.server import serve_in_thread
from tests.emptying import Emptying

# Comes with a tool of the tests' requirements; jsonschema would load its grammars for seconds. What runs
# has none of it.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

# How long an example takes says more of the machine than of the code: speed is for the benchmarks.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Everything here speaks plain HTTP: reading the certificates anew for every client costs 60 ms.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@pytest.fixture(autouse=True)
def _no_certificates(monkeypatch) -> None:
    monkeypatch.setattr(httpx, "create_ssl_context", lambda *args, **kwargs: NO_TLS)


@pytest.fixture(autouse=True, scope="session")
def _cheap_emptying() -> None:
    # Only now are there settings.
    from django.test import TransactionTestCase

    emptying = Emptying(TransactionTestCase._fixture_teardown)
    TransactionTestCase._fixture_teardown = lambda test_case: emptying.empty(test_case)


@pytest.fixture
def openai_compatible() -> OpenAICompatibleDouble:
    return OpenAICompatibleDouble()


@pytest.fixture
def openai_compatible_url(openai_compatible) -> Iterator[str]:
    with serve_in_thread(openai_compatible) as url:
        yield url


@pytest.fixture
def qwen_web() -> QwenWebDouble:
    return QwenWebDouble()


@pytest.fixture
def qwen_web_url(qwen_web) -> Iterator[str]:
    with serve_in_thread(qwen_web) as url:
        yield url


@pytest.fixture
def make_account(transactional_db):
    from qwenproxy.access.accounts import set_secrets
    from qwenproxy.access.models import UpstreamAccount

    def make_account(kind: str, base_url: str = "", *, name: str = "", **fields):
        secrets = fields.pop("secrets", {})
        account = UpstreamAccount(kind=kind, base_url=base_url, name=name or kind, **fields)
        set_secrets(account, secrets)
        account.save()
        return account

    return make_account


@pytest.fixture
def api_key(transactional_db) -> str:
    from qwenproxy.access.keys import create_api_key

    return create_api_key(name="tests", scopes=("chat", "records"))[1]


@pytest.fixture
def admin_key(transactional_db) -> str:
    from qwenproxy.access.keys import create_api_key

    return create_api_key(name="tests-admin", scopes=("chat", "records", "admin"))[1]


@functools.cache
def _stock_application():
    from qwenproxy.asgi import stock_application

    return stock_application()


@pytest.fixture
def make_application(transactional_db, settings, monkeypatch):
    """The application's class; all of them share Django's handler, which reads every static file."""
    from qwenproxy import asgi

    stock = _stock_application()
    monkeypatch.setattr(asgi, "stock_application", lambda: stock)
    return asgi.Application


@pytest.fixture
def gateway(make_application):
    """The running application; its `url` is where it listens."""
    application = make_application()
    with serve_in_thread(application, lifespan="on") as url:
        application.url = url
        yield application


@pytest.fixture
def gateway_url(gateway) -> str:
    return gateway.url


@pytest.fixture
def http(gateway_url, api_key) -> Iterator[httpx.Client]:
    """A plain client with the key."""
    with httpx.Client(
        base_url=gateway_url,
        headers={"Authorization": f"Bearer {api_key}"},
        timeout=30,
        verify=NO_TLS,
    ) as client:
        yield client


@pytest.fixture
def openai_client(gateway_url, api_key) -> Iterator[OpenAI]:
    """The official SDK, without its own retries."""
    with OpenAI(
        base_url=f"{gateway_url}/v1",
        api_key=api_key,
        max_retries=0,
        http_client=DefaultHttpxClient(verify=NO_TLS, timeout=30),
    ) as client:
        yield client


def sse_bodies(text: str) -> list[object]:
    """The JSON bodies of a stream's data lines, without its end mark."""
    return [
        json.loads(line[6:])
        for line in text.splitlines()
        if line.startswith("data: ") and line != "data: [DONE]"
    ]


def pytest_terminal_summary(terminalreporter) -> None:
    """Say loudly what a machine without a browser or the clients has not tested."""
    skipped = terminalreporter.stats.get("skipped", [])
    missed = [report for report in skipped if report.nodeid.startswith("tests/browser/")]
    if missed:
        terminalreporter.section("NO BROWSER", sep="!", red=True, bold=True)
        terminalreporter.line(
            f"{len(missed)} tests of the admin in a real browser were SKIPPED: install chromium"
            " (Debian, Ubuntu: apt install chromium), then run them again."
        )
    missed = [report for report in skipped if report.nodeid.startswith("tests/clients/")]
    if missed:
        terminalreporter.section("NO CLIENT", sep="!", red=True, bold=True)
        terminalreporter.line(
            f"{len(missed)} tests with clients' own programs were SKIPPED: tests/clients/install"
            " installs them."
        )
    missed = [report for report in skipped if "IS NOT INSTALLED" in str(report.longrepr)]
    if missed:
        terminalreporter.section("NO PGBOUNCER OR NGINX", sep="!", red=True, bold=True)
        terminalreporter.line(
            f"{len(missed)} tests behind a real PgBouncer or nginx were SKIPPED: install them"
            " (Debian, Ubuntu: apt install pgbouncer nginx-light), then run them again."
        )

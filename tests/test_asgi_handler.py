"""What the lean handler does before and around the endpoints, and what it leaves to Django's own."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from urllib.parse import urlsplit

import httpx
import pytest
from django.db import OperationalError

from qwenproxy.asgi_handler import LeanHandler
from tests.conftest import NO_TLS
from tests.doubles.server import serve_in_thread

CHAT = "/v1/chat/completions"


def error_of(answer):
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.fixture
def anonymous(gateway_url):
    """A client without a key."""
    with httpx.Client(base_url=gateway_url, verify=NO_TLS, timeout=10) as client:
        yield client


@pytest.mark.parametrize(
    "path", ["/v1/", "/v1/nowhere", "/v1/chat/completions/x", "/v1/chat", "/v1//models"]
)
def test_an_unknown_path_is_404_in_json(http, path):
    answer = http.get(path)
    assert answer.status_code == 404
    assert error_of(answer)["code"] in ("unknown_url", "model_not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        pytest.param("GET", CHAT, "POST", id="get-chat"),
        pytest.param("HEAD", CHAT, "POST", id="head-chat"),
        pytest.param("DELETE", "/v1/models", "GET", id="delete-models"),
        pytest.param("PUT", "/v1/sessions", "GET", id="put-sessions"),
    ],
)
def test_a_wrong_method_is_405_in_json(http, method, path, allowed):
    answer = http.request(method, path)
    assert answer.status_code == 405
    assert allowed in answer.headers["allow"]
    if method == "HEAD":
        assert answer.content == b""
    else:
        assert method in error_of(answer)["message"]


@pytest.mark.parametrize("path", ["/healthz", "/health", "/readyz"])
def test_head_is_get_without_a_body(anonymous, path):
    answer = anonymous.head(path)
    assert answer.status_code == 200
    assert answer.content == b""


def test_no_key_is_401_in_json(anonymous):
    for answer in (
        anonymous.post(CHAT, json={"messages": []}),
        anonymous.get("/v1/models"),
        anonymous.get("/v1/sessions"),
    ):
        assert answer.status_code == 401
        assert error_of(answer)["code"] == "invalid_api_key"


def test_a_fault_of_ours_is_500_in_json_without_a_word_about_it(http, monkeypatch):
    from qwenproxy.proxy.routing import Routing

    async def fail(self):
        raise RuntimeError("secret detail")

    monkeypatch.setattr(Routing, "models", fail)
    answer = http.get("/v1/models")
    assert answer.status_code == 500
    assert error_of(answer)["message"] == "internal error"
    assert "secret" not in answer.text


def test_a_database_that_fails_is_503_and_one_line_of_the_log(http, monkeypatch, caplog):
    from qwenproxy.proxy.routing import Routing

    async def fail(self):
        raise OperationalError("disk I/O error")

    monkeypatch.setattr(Routing, "models", fail)
    answer = http.get("/v1/models")
    assert answer.status_code == 503
    assert error_of(answer)["code"] == "recorder_unavailable"
    assert "disk" not in answer.text
    (record,) = [r for r in caplog.records if "disk I/O error" in r.getMessage()]
    assert record.exc_info is None


# CORS.

PREFLIGHT = {
    "origin": "https://app.example",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type, x-stainless-os",
}


def test_a_preflight_is_answered_without_a_key(anonymous):
    answer = anonymous.options(CHAT, headers=PREFLIGHT)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "DELETE" in answer.headers["access-control-allow-methods"]
    asked = PREFLIGHT["access-control-request-headers"]
    assert answer.headers["access-control-allow-headers"] == asked
    assert answer.headers["access-control-max-age"] == "86400"


def test_browsers_may_read_answers_errors_and_the_record_s_ids(http, make_account):
    make_account("demo")
    body = {"messages": [{"role": "user", "content": "hi"}]}
    for answer in (
        http.post(CHAT, json=body, headers={"origin": "https://app.example"}),
        http.post(CHAT, json=body | {"stream": True}, headers={"origin": "https://app.example"}),
        http.post(CHAT, json={}, headers={"origin": "https://app.example"}),
        http.get("/healthz", headers={"origin": "https://app.example"}),
    ):
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "x-request-id" in answer.headers["access-control-expose-headers"]


def test_without_an_origin_there_are_no_such_headers(http):
    assert not [n for n in http.get("/healthz").headers if n.startswith("access-control")]


def test_origins_may_be_limited(settings, make_application):
    settings.CORS_ORIGINS = ["https://app.example"]
    with (
        serve_in_thread(make_application(), lifespan="on") as url,
        httpx.Client(base_url=url, verify=NO_TLS) as client,
    ):
        allowed = client.options(CHAT, headers=PREFLIGHT)
        refused = client.options(CHAT, headers=PREFLIGHT | {"origin": "https://evil.example"})
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    assert allowed.headers["vary"] == refused.headers["vary"] == "Origin"
    assert "access-control-allow-origin" not in refused.headers
    assert "access-control-allow-methods" not in refused.headers


# Host.


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "a b", ""])
def test_a_foreign_host_is_refused(http, host):
    answer = http.get("/v1/models", headers={"host": host})
    assert answer.status_code == 400
    assert error_of(answer)["code"] == "invalid_host"


@pytest.mark.parametrize("host", ["localhost:8100", "127.0.0.1", "[::1]:8100"])
def test_the_own_hosts_are_served(http, host):
    assert http.get("/v1/models", headers={"host": host}).status_code == 200


# The body's size.


@pytest.fixture
def limit(settings):
    settings.MAX_BODY_BYTES = 10_000
    return settings.MAX_BODY_BYTES


def test_a_body_of_the_limit_is_read(limit, http):
    answer = http.post(CHAT, content=b"x" * limit)
    assert error_of(answer)["code"] == "invalid_json"


def chunks(size):
    for _ in range(size // 1000):
        yield b"x" * 1000


@pytest.mark.parametrize("factor", [2, 100], ids=["read-to-its-end", "not-read-to-its-end"])
@pytest.mark.parametrize("form", ["content-length", "chunked"])
def test_a_body_over_the_limit_is_413(limit, http, form, factor):
    size = limit * factor
    content = b"x" * size if form == "content-length" else chunks(size)
    answer = http.post(CHAT, content=content)
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "body_too_large"
    assert "QWENPROXY_MAX_BODY_MB" in answer.text
    assert answer.headers["connection"] == "close"
    # The next request has a connection of its own and works.
    assert http.get("/v1/models").status_code == 200


def test_a_body_that_says_it_is_far_too_large_is_refused_before_it_comes(limit, gateway_url):
    parts = urlsplit(gateway_url)
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as client:
        client.sendall(
            f"POST {CHAT} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {limit * 4 + 1}\r\n\r\n".encode()
        )
        answer = b"".join(iter(lambda: client.recv(10_000), b""))
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer.lower()
    assert b"body_too_large" in answer


class Piece(bytes):
    alive = 0

    def __new__(cls, data):
        cls.alive += 1
        return super().__new__(cls, data)

    def __del__(self):
        type(self).alive -= 1


async def most_alive(headers):
    """The status of a body in a hundred pieces, and how many of them were in memory at once."""
    sent, alive = [], []

    async def receive():
        receive.left -= 1
        alive.append(Piece.alive)
        return {"type": "http.request", "body": Piece(b"x" * 100), "more_body": receive.left > 0}

    async def send(message):
        sent.append(message)

    receive.left = 100
    scope = {
        "type": "http",
        "method": "POST",
        "path": CHAT,
        "query_string": b"",
        "headers": [(b"host", b"localhost"), *headers],
    }
    await LeanHandler()(scope, receive, send, object())
    await close_lookups()
    return sent[0]["status"], max(alive)


async def close_lookups():
    # What was begun on this loop ends on it.
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others)


def test_of_a_body_that_comes_in_pieces_nothing_is_kept_for_who_has_no_key(api_key):
    for headers in ([], [(b"x-api-key", b"qp-unknown")]):
        status, alive = asyncio.run(most_alive(headers))
        assert (status, alive <= 3) == (401, True)
    status, alive = asyncio.run(most_alive([(b"x-api-key", api_key.encode())]))
    assert (status, alive >= 99) == (400, True)


def test_who_has_no_key_reads_so_after_a_long_body_and_the_connection_goes_on(gateway_url):
    with httpx.Client(base_url=gateway_url, verify=NO_TLS, timeout=10) as client:
        answer = client.post(CHAT, content=chunks(2_000_000))
        assert answer.status_code == 401
        assert error_of(answer)["code"] == "invalid_api_key"
        assert "connection" not in answer.headers
        assert client.get("/healthz").status_code == 200


def test_no_answer_is_left_in_caches_or_taken_for_another_type(http, anonymous, admin_key):
    anonymous.headers["x-api-key"] = admin_key
    for answer in (
        http.get("/v1/models"),
        http.get("/v1/sessions"),
        http.get("/v1/nowhere"),
        http.post(CHAT, content=b"{"),
        anonymous.get("/v1/keys"),
        anonymous.get("/health/detailed"),
    ):
        assert answer.headers.get_list("cache-control") == ["no-store"]
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]


def test_what_is_no_http_is_refused_and_the_next_is_served(gateway_url, http):
    parts = urlsplit(gateway_url)
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as client:
        client.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 400")
    assert http.get("/healthz").status_code == 200


# What Django's own handler serves.


def test_the_documentation_is_open_and_brings_its_own_assets(anonymous):
    page = anonymous.get("/v1/docs")
    assert page.status_code == 200
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert assets
    for asset in assets:
        assert asset.startswith("/"), asset
        found = anonymous.get(asset)
        assert found.status_code == 200, asset
        assert found.content
    schema = anonymous.get("/v1/openapi.json").json()
    paths = {"/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/sessions"}
    assert paths <= set(schema["paths"])


def test_the_admin_is_a_page_with_its_style(anonymous):
    page = anonymous.get("/admin/login/")
    assert page.status_code == 200
    assert "csrfmiddlewaretoken" in page.text
    style = re.search(r'href="([^"]+\.css)"', page.text)[1]
    assert anonymous.get(style).headers["content-type"].startswith("text/css")


def test_somebody_may_log_in(anonymous, django_user_model):
    django_user_model.objects.create_superuser("admin", password="long enough pw")
    page = anonymous.get("/admin/login/")
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)[1]
    answer = anonymous.post(
        "/admin/login/?next=/admin/",
        data={
            "username": "admin",
            "password": "long enough pw",
            "csrfmiddlewaretoken": token,
        },
    )
    assert (answer.status_code, answer.headers["location"]) == (302, "/admin/")
    assert anonymous.get("/admin/").status_code == 200


def test_the_front_door_leads_to_the_admin(anonymous):
    answer = anonymous.get("/")
    assert (answer.status_code, answer.headers["location"]) == (302, "/admin/")
    assert anonymous.get("/nowhere").status_code == 404


def test_lean_answers_say_their_length(http):
    answer = http.get("/v1/models")
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert json.loads(answer.content)["object"] == "list"

"""The admin on an address of its own, by servers as an operator runs them."""

from __future__ import annotations

import re
import socket

import httpx
import pytest
from django.core.exceptions import ImproperlyConfigured

from qwenproxy import settings as settings_module
from tests.conftest import NO_TLS
from tests.doubles.server import serve_in_thread, unused_port
from tests.test_serve import database_url, serve  # noqa: F401  # fixtures


def status(url, path):
    return httpx.get(f"{url}{path}", verify=NO_TLS, timeout=10).status_code


def test_the_admin_is_at_its_own_address_alone(serve):  # noqa: F811
    port = unused_port()
    own = f"http://127.0.0.1:{port}"
    served = serve(QWENPROXY_ADMIN_BIND=f"127.0.0.1:{port}").wait_until_ready()
    assert f"Admin      {own}/admin/" in served.said
    for path in ("/admin/", "/admin/login/", "/", "/static/qwenproxy/admin.css", "/favicon.ico"):
        answer = httpx.get(f"{served.url}{path}", verify=NO_TLS)
        assert answer.status_code == 404, path
        assert answer.json()["error"]["code"] == "unknown_url"
        assert status(own, path) in (200, 302), path
    for path in ("/v1/docs", "/v1/openapi.json", "/static/ninja/swagger-ui.css", "/healthz"):
        assert status(served.url, path) == 200, path
    headers = {"Authorization": f"Bearer {served.key}"}
    body = {"messages": [{"role": "user", "content": "Hello!"}]}
    # The playground asks where its page came from.
    for url in (served.url, own):
        answer = httpx.post(
            f"{url}/v1/chat/completions", json=body, headers=headers, verify=NO_TLS, timeout=30
        )
        assert answer.status_code == 200
    with httpx.Client(base_url=own, verify=NO_TLS) as client:
        page = client.get("/admin/login/")
        answer = client.post(
            "/admin/login/",
            data={
                "username": "admin",
                "password": re.search(r"Password +(\S+)", served.said)[1],
                "csrfmiddlewaretoken": re.search(r'csrfmiddlewaretoken" value="(\w+)"', page.text)[
                    1
                ],
                "next": "/admin/",
            },
            headers={"Origin": own},
        )
        assert answer.status_code == 302
        assert client.get("/admin/").status_code == 200


def test_a_taken_address_of_the_admin_is_named(serve):  # noqa: F811
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        served = serve(QWENPROXY_ADMIN_BIND=f"127.0.0.1:{port}")
        _, complaint = served.process.communicate(timeout=30)
    assert served.process.returncode == 1
    assert f"Port {port} of 127.0.0.1 is taken" in complaint
    assert "QWENPROXY_ADMIN_BIND" in complaint
    assert "Traceback" not in complaint


@pytest.mark.parametrize("value", ["8101", "localhost", "127.0.0.1:0", ":8101", "127.0.0.1:x"])
def test_an_address_that_is_none_is_named(monkeypatch, value):
    monkeypatch.setenv("QWENPROXY_ADMIN_BIND", value)
    with pytest.raises(ImproperlyConfigured, match="QWENPROXY_ADMIN_BIND must be an address"):
        settings_module._address("QWENPROXY_ADMIN_BIND")


def test_an_ipv6_address_stands_in_brackets(monkeypatch):
    monkeypatch.setenv("QWENPROXY_ADMIN_BIND", "[::1]:8101")
    assert settings_module._address("QWENPROXY_ADMIN_BIND") == ("::1", 8101)


def test_a_server_of_one_s_own_without_that_address_serves_no_admin(settings, make_application):
    settings.ADMIN_BIND = ("127.0.0.1", 1)
    with serve_in_thread(make_application(), lifespan="on") as url:
        assert status(url, "/admin/login/") == 404
        assert status(url, "/healthz") == 200


def test_both_addresses_answer_while_it_starts(tmp_path):
    from qwenproxy.schema.responder import Responder
    from qwenproxy.schema.watch import Progress

    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    try:
        with Responder(listeners[0], Progress()), Responder(listeners[1], Progress()):
            for listener in listeners:
                url = f"http://127.0.0.1:{listener.getsockname()[1]}"
                assert status(url, "/healthz") == 200
                assert status(url, "/admin/") == 503
    finally:
        for listener in listeners:
            listener.close()

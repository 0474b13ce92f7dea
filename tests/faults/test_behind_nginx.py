"""The configuration of docs/scaling.md in a real nginx, and a real `serve` behind it."""

from __future__ import annotations

import asyncio
import datetime
import re
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.doubles.openai_compatible import OpenAICompatibleDouble
from tests.doubles.server import Reply, serve_in_thread, unused_port
from tests.doubles.servers import documented, nginx, put
from tests.faults.gateway import Gateway

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
_NAME = "gateway.example.org"
_PASSWORD = "a-password-of-tests"
_KEY = "qp-" + "k" * 40
_HELLO = {"model": "qwen3-8b", "messages": [{"role": "user", "content": "hello"}]}


def certificate() -> tuple[str, str]:
    """A certificate of the documented name that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(_NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made.public_bytes(pem).decode(), private.decode()


@pytest.fixture(scope="module")
def behind(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """nginx before one gateway and one that is away, the upstream, and a client that comes over TLS."""
    port, away = unused_port(), unused_port()
    double = OpenAICompatibleDouble()
    cert, key = certificate()
    with serve_in_thread(double) as upstream_url:
        settings = {
            "QWENPROXY_PUBLIC_URL": f"https://{_NAME}:{port}",
            "QWENPROXY_TRUSTED_PROXIES": "127.0.0.1",
            "QWENPROXY_ADMIN_PASSWORD": _PASSWORD,
            "QWENPROXY_API_KEY": _KEY,
        }
        gateway = Gateway(
            tmp_path_factory.mktemp("nginx") / "data", upstream_url=upstream_url, settings=settings
        )
        text = put(documented("nginx"), "10.0.0.11:8100", f"127.0.0.1:{gateway.port}")
        text = put(text, "10.0.0.12:8100", f"127.0.0.1:{away}")
        text = put(text, "listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
        text = put(text, "/etc/nginx/gateway.crt", "{directory}/crt")
        text = put(text, "/etc/nginx/gateway.key", "{directory}/key")
        log = "log_format upstream '$upstream_addr $upstream_connect_time $connection $uri';"
        log += "\naccess_log {directory}/upstream.log upstream;\n"
        try:
            with nginx(log + text, port, crt=cert, key=key) as directory:
                asyncio.run(gateway.start())
                yield SimpleNamespace(
                    gateway=gateway, port=port, double=double, directory=directory, cert=cert
                )
        finally:
            gateway.close()


class _Resolving(httpx.BaseTransport):
    """As if the documented name were nginx's address; comes from an address of its own."""

    def __init__(self, behind: SimpleNamespace, address: str) -> None:
        context = ssl.create_default_context(cadata=behind.cert)
        self._inner = httpx.HTTPTransport(verify=context, local_address=address)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        there = httpx.Request(
            request.method,
            request.url.copy_with(host="127.0.0.1"),
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": _NAME},
        )
        return self._inner.handle_request(there)

    def close(self) -> None:
        self._inner.close()


def client_from(behind: SimpleNamespace, address: str) -> httpx.Client:
    url = f"https://{_NAME}:{behind.port}"
    return httpx.Client(transport=_Resolving(behind, address), base_url=url, timeout=30)


@pytest.fixture
def client(behind) -> Iterator[httpx.Client]:
    with client_from(behind, "127.0.0.2") as client:
        yield client


def test_tokens_come_as_they_are_said(behind, client):
    reply = Reply(text="one two three four", pause_after=3)
    behind.double.enqueue(reply)
    headers = {"Authorization": f"Bearer {_KEY}"}
    body = {**_HELLO, "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()
        assert next(line for line in lines if '"one"' in line)
        # The upstream has not gone on yet.
        assert reply.paused.wait(10)
        reply.resume.set()
        assert "data: [DONE]" in list(lines)


def test_the_one_that_is_away_is_passed_over_and_connections_are_kept(behind, client):
    headers = {"Authorization": f"Bearer {_KEY}"}
    for _ in range(12):
        answer = client.post("/v1/chat/completions", json=_HELLO, headers=headers)
        assert answer.status_code == 200, answer.text
    deadline = time.monotonic() + 10
    log: Path = behind.directory / "upstream.log"
    while log.read_text().count("/v1/chat") < 12:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    lines = [line.split() for line in log.read_text().splitlines() if "/v1/chat" in line][-6:]
    # One that was kept takes no time to connect.
    assert {line[1] for line in lines if len(line) == 4} == {"0.000"}


def sign_in(client: httpx.Client, name: str, password: str, **headers: str) -> httpx.Response:
    page = client.get("/admin/login/")
    found = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text)
    assert found
    return client.post(
        "/admin/login/",
        data={"username": name, "password": password, "csrfmiddlewaretoken": found[1]},
        headers={"Origin": str(client.base_url).rstrip("/"), **headers},
    )


def test_the_admin_is_signed_in_to_over_tls(behind, client):
    answer = sign_in(client, "admin", _PASSWORD)
    assert answer.status_code == 302
    assert "; Secure" in answer.headers["set-cookie"]
    assert client.get("/admin/").status_code == 200
    client.cookies.delete("qwenproxy_session")
    other = sign_in(client, "admin", _PASSWORD, Origin="https://elsewhere.example")
    assert other.status_code == 403


def test_failed_tries_are_counted_by_the_address_that_nginx_saw(behind):
    """What a client says of itself in X-Forwarded-For is not believed."""
    with client_from(behind, "127.0.0.3") as client, client_from(behind, "127.0.0.4") as other:
        # The wait doubles with each of them: a slow machine comes to it as well.
        tries = (
            sign_in(client, f"name{n}", "wrong", **{"X-Forwarded-For": f"192.0.2.{n}"})
            for n in range(12)
        )
        assert any("Too many tries" in answer.text for answer in tries)
        assert "Too many tries" not in sign_in(other, "another", "wrong").text

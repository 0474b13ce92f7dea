"""What a running gateway says to keys that are wrong, and what they cost it."""

from __future__ import annotations

import json
import socket
from datetime import timedelta
from urllib.parse import urlsplit

import openai
import pytest
from django.utils import timezone
from openai import DefaultHttpxClient, OpenAI

from qwenproxy.access import auth, keys
from qwenproxy.access.models import ApiKey
from tests.conftest import NO_TLS

ROUTES = (
    b"GET /v1/models",
    b"POST /v1/chat/completions",
    b"GET /v1/sessions",
    b"GET /v1/keys",
    b"GET /health/detailed",
    b"GET /api/schema/status",
)


def send(url, line, *headers):
    """One request, written by hand as no client would; its status and body."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        head = [line + b" HTTP/1.1", b"host: 127.0.0.1", b"connection: close", *headers]
        connection.sendall(b"\r\n".join(head) + b"\r\ncontent-length: 0\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body


@pytest.fixture
def lookups(monkeypatch):
    """The hashes that the database was asked for."""
    asked = []
    load = auth._load_answers
    monkeypatch.setattr(auth, "_load_answers", lambda some: asked.extend(some) or load(some))
    return asked


def error_of(status, body):
    error = json.loads(body)["error"]
    assert (status, error["type"], error["code"]) == (
        401,
        "authentication_error",
        "invalid_api_key",
    )
    assert error["param"] is None
    return error["message"]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"Bearer " + b"x" * 1_000_000, id="a megabyte"),
        pytest.param("Bearer schlüssel".encode(), id="UTF-8"),
        pytest.param(b"Bearer qp-\xff\xfe", id="not UTF-8"),
        pytest.param(b"Bearer qp-a b", id="space"),
        pytest.param(b"Bearer", id="no key"),
        pytest.param(b"", id="empty"),
        pytest.param(b"Basic dTpw", id="other scheme"),
    ],
)
def test_what_cannot_be_a_key_is_refused_without_a_query(gateway_url, lookups, value):
    for line in ROUTES:
        error_of(*send(gateway_url, line, b"authorization: " + value))
        if not value.startswith(b"Bearer "):
            continue
        error_of(*send(gateway_url, line, b"x-api-key: " + value.removeprefix(b"Bearer ")))
    assert lookups == []


def test_a_wrong_key_costs_one_query_on_whichever_route(gateway_url, api_key, lookups):
    wrong = {
        "forged": b"qp-" + b"A" * 43,
        "cut": api_key[:-1].encode(),
        "extended": api_key.encode() + b"x",
        "its prefix": api_key[:10].encode(),
        "other capitals": api_key.swapcase().encode(),
        "its hash": keys.hash_api_key(api_key).encode(),
    }
    said = set()
    for secret in wrong.values():
        for line in ROUTES:
            said.add(error_of(*send(gateway_url, line, b"authorization: Bearer " + secret)))
            said.add(error_of(*send(gateway_url, line, b"x-api-key: " + secret)))
    assert said == {"This API key is not valid: unknown, revoked or expired."}
    assert len(lookups) == len(wrong)


def test_expired_and_revoked_keys_are_refused_on_every_route(gateway_url):
    expired, expired_secret = keys.create_api_key(name="expired", scopes=["admin"])
    ApiKey.objects.filter(pk=expired.pk).update(expires_at=timezone.now() - timedelta(seconds=1))
    revoked, revoked_secret = keys.create_api_key(name="revoked", scopes=["admin"])
    keys.revoke_api_key(revoked)
    for line in ROUTES:
        header = b"authorization: Bearer "
        assert "expired at" in error_of(*send(gateway_url, line, header + expired_secret.encode()))
        message = error_of(*send(gateway_url, line, header + revoked_secret.encode()))
        assert message == "This API key is not valid: unknown, revoked or expired."


def test_a_key_in_use_ends_at_its_second(http, api_key):
    row = ApiKey.objects.get()
    assert http.get("/v1/models").status_code == 200
    keys.change_api_key(row, {"expires_at": timezone.now() + timedelta(seconds=0.4)})
    statuses = []
    while not statuses or timezone.now() < row.expires_at + timedelta(seconds=0.1):
        asked_at = timezone.now()
        status = http.get("/v1/models").status_code
        if asked_at >= row.expires_at:
            statuses.append(status)
        elif timezone.now() < row.expires_at:
            assert status == 200
    assert set(statuses) == {401}


def test_the_sdk_raises_its_own_error(gateway_url):
    with OpenAI(
        base_url=f"{gateway_url}/v1",
        api_key="qp-wrong",
        max_retries=0,
        http_client=DefaultHttpxClient(verify=NO_TLS, timeout=30),
    ) as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.models.list()
        assert caught.value.code == "invalid_api_key"


def test_the_log_holds_no_key(gateway_url, api_key, admin_key, caplog):
    caplog.set_level("DEBUG")
    for secret in (api_key, admin_key, "qp-wrong-but-long-enough-to-be-a-key"):
        for line in ROUTES:
            send(gateway_url, line, b"authorization: Bearer " + secret.encode())
    for secret in (api_key, admin_key, "qp-wrong-but"):
        assert secret[:12] not in caplog.text

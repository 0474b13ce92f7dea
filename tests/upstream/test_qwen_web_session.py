"""Whether the site knows a session, and its renewal."""

from __future__ import annotations

import asyncio

import pytest

from qwenproxy.errors import (
    GatewayError,
    UpstreamAuthExpired,
    UpstreamChallenged,
    UpstreamError,
    UpstreamProtocolError,
)
from qwenproxy.upstream import http, qwen_web_session
from qwenproxy.upstream.protocol import Credentials, hide_secrets
from qwenproxy.upstream.qwen_web import QwenWeb
from tests.doubles.qwen_web import REFRESH, SESSION, web_error
from tests.doubles.server import Reply
from tests.upstream.conftest import make_account

CREDENTIALS = Credentials(
    cookies="acw_tc=1; token=old; refresh_token=first",
    token="T2gA-device",
    user_agent="Browser/1",
    headers={"authorization": "Bearer old", "bx-ua": "231!x"},
)


def call(served, function, credentials=CREDENTIALS):
    """What the function gives, or the error it raises."""

    async def main():
        async with http.open_client() as client:
            account = make_account(served.url, kind="qwen_web", credentials=credentials)
            try:
                return await function(QwenWeb(client, account))
            except GatewayError as error:
                return error

    return asyncio.run(main())


def test_a_session_that_the_site_knows_is_signed_in(qwen_web):
    qwen_web.double.access_token = "old"
    assert call(qwen_web, qwen_web_session.is_signed_in) is True
    (request,) = qwen_web.double.requests_to(SESSION)
    assert request.headers["cookie"] == CREDENTIALS.cookies
    assert request.headers["user-agent"] == "Browser/1"


def test_a_session_that_the_site_does_not_know_has_ended(qwen_web):
    qwen_web.double.access_token = "another"
    error = call(qwen_web, qwen_web_session.is_signed_in)
    assert isinstance(error, UpstreamAuthExpired)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Reply(body={"detail": "Not Found"}, status=404), id="gone"),
        pytest.param(Reply(body=b"<!doctype html><title>Qwen</title>"), id="page"),
        pytest.param(Reply(body={"role": "guest"}), id="nobody"),
        pytest.param(Reply(body=[]), id="list"),
    ],
)
def test_a_site_that_does_not_tell_is_not_taken_for_an_end(qwen_web, reply):
    qwen_web.double.enqueue(reply, path=SESSION)
    assert call(qwen_web, qwen_web_session.is_signed_in) is None


@pytest.mark.parametrize("name", ["challenge_html_waf", "challenge_json", "internal"])
def test_a_failure_of_the_site_is_one_of_the_test_as_well(qwen_web, name):
    qwen_web.double.enqueue(web_error(name), path=SESSION)
    assert isinstance(call(qwen_web, qwen_web_session.is_signed_in), UpstreamError)


def test_a_renewal_shows_the_owners_cookies_and_gives_what_the_site_answers(qwen_web):
    qwen_web.double.access_token, qwen_web.double.refresh_token = "old", "first"
    qwen_web.double.next_tokens = [("new", "second")]
    cookies = call(qwen_web, qwen_web_session.renew)
    assert cookies == {"token": "new", "refresh_token": "second"}
    (request,) = qwen_web.double.requests_to(REFRESH)
    assert request.method == "GET"
    assert request.headers["cookie"] == CREDENTIALS.cookies
    assert request.headers["origin"] == qwen_web.url
    assert request.headers["referer"] == f"{qwen_web.url}/"
    assert request.headers["x-request-origin"] == qwen_web.url


def test_a_refresh_token_may_stay_the_same(qwen_web):
    reply = Reply(body={"success": True, "data": {"access_token": "new"}})
    qwen_web.double.enqueue(reply, path=REFRESH)
    assert call(qwen_web, qwen_web_session.renew) == {"token": "new"}


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        pytest.param(web_error("challenge_html_waf"), UpstreamChallenged, id="challenge"),
        pytest.param(None, UpstreamAuthExpired, id="refused"),
        pytest.param(Reply(status=401, body={"detail": "no"}), UpstreamAuthExpired, id="401"),
        pytest.param(Reply(status=500, body={"detail": "no"}), UpstreamError, id="500"),
        pytest.param(Reply(refused=True), UpstreamError, id="closed"),
        *(
            pytest.param(Reply(body=body), UpstreamProtocolError, id=name)
            for name, body in {
                "no-token": {"success": True, "data": {}},
                "no-data": {"success": True},
                "data-list": {"success": True, "data": []},
                "number": {"success": True, "data": {"access_token": 5}},
                "two-cookies": {"success": True, "data": {"access_token": "a; b=c"}},
                "line-break": {"success": True, "data": {"access_token": "a\r\nx: y"}},
                "endless": {"success": True, "data": {"access_token": "a" * 10_000}},
            }.items()
        ),
    ],
)
def test_what_is_no_renewal_is_an_error_and_shows_no_secret(qwen_web, reply, error):
    if reply is not None:
        qwen_web.double.enqueue(reply, path=REFRESH)
    found = call(qwen_web, qwen_web_session.renew)
    assert isinstance(found, error)
    hide_secrets(found, CREDENTIALS)
    assert "first" not in found.message


@pytest.mark.parametrize(
    ("base_url", "expected"),
    [
        pytest.param("https://chat.qwen.ai", "https://auth.qwen.ai", id="the-site"),
        pytest.param("https://CHAT.qwen.ai", "https://auth.qwen.ai", id="other-case"),
        pytest.param("http://127.0.0.1:81", "http://127.0.0.1:81", id="own-server"),
        pytest.param("https://chat.qwen.ai.example", "https://chat.qwen.ai.example", id="likeness"),
        pytest.param("https://chat.qwen.ai:8443", "https://chat.qwen.ai:8443", id="other-port"),
    ],
)
def test_only_the_sites_own_host_for_it_gets_the_cookies(base_url, expected):
    assert qwen_web_session.auth_base_url(base_url) == expected

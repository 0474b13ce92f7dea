"""Upstreams quote what they were sent; none of it reaches clients, the record or the log."""

from __future__ import annotations

import json

import pytest

from qwenproxy.errors import UpstreamError
from qwenproxy.upstream.protocol import Credentials, hide_secrets
from requests_app.models import Request, Response
from tests.doubles.server import Reply

SECRETS = {
    "api_key": "sk-planted-key-1234567890",
    "cookies": "acw_tc=planted-cookie-1; token=planted-cookie-2",
    "token": "T2gAplanted-device",
    "headers": {"bx-ua": "231!planted-blob", "source": "web"},
}
PLANTED = ("sk-planted", "planted-cookie", "planted-device", "planted-blob")


@pytest.mark.parametrize("status", [400, 401, 500])
@pytest.mark.parametrize("kind", ["openai_compatible", "qwen_web"])
def test_quoted_credentials_are_hidden(
    serve_upstream, open_gateway, admin_key, caplog, kind, status
):
    upstream = serve_upstream(kind, secrets=SECRETS)
    said = f"refused: {json.dumps(SECRETS)} {SECRETS['cookies']}"
    body = {"error": {"message": said}} if kind == "openai_compatible" else {"detail": said}
    upstream.enqueue(*[Reply(body=body, status=status) for _ in range(3)])
    running = open_gateway(UPSTREAM_RETRIES=0)
    answer = running.ask(upstream.model)
    assert answer.status_code >= 400
    request = running.http.get("/v1/requests").json()["data"][0]
    detail = running.http.get(f"/v1/requests/{request['id']}").text
    rows = str(list(Response.objects.values())) + str(list(Request.objects.values()))
    for text in (answer.text, detail, rows, caplog.text):
        for planted in PLANTED:
            assert planted not in text


def test_longer_secrets_go_first_and_words_stay():
    error = UpstreamError("web said: token=abcdefgh1; x=abcdefgh", body="abcdefgh1")
    hide_secrets(
        error, Credentials(cookies="token=abcdefgh1; x=abcdefgh", headers={"source": "web"})
    )
    assert (error.message, error.body) == ("web said: ***", "***")

"""Credentials planted everywhere they may be entered come out nowhere: not in the database's dump, REST,
the admin's pages, logs, metrics or what the commands print."""

from __future__ import annotations

import io
import json
import logging
import re
from collections import deque

import pytest
from django.apps import apps
from django.core.management import call_command

from tests.doubles.server import Reply

PLANTED = {
    "api_key": "sk-planted-account-0123456789abcdef",
    "cookies": "acw_tc=planted-cookie-one; token=planted-cookie-two; refresh_token=planted-cookie-three",
    "token": "T2gAplanted-device-token",
    "headers": {"bx-ua": "231!planted-header-blob"},
}
MARKS = (
    "sk-planted-account",
    "planted-cookie",
    "planted-device",
    "planted-header",
    "planted-pasted",
    "planted-password",
)
CURL = (
    "curl 'https://chat.qwen.ai/api/v2/chat/completions' -H 'cookie: token=planted-pasted-cookie' "
    "-H 'bx-umidtoken: planted-pasted-device' -H 'user-agent: Mozilla/5.0' --data-raw '{}'"
)
MAX_PAGES = 150


@pytest.fixture
def leaks(caplog):
    """Looks for secrets in texts; more are added as they are made."""
    caplog.set_level(logging.DEBUG)
    secrets = [*MARKS]

    def check(where: str, text: str) -> None:
        for secret in secrets:
            assert secret not in text, f"{secret} in {where}"

    check.secrets = secrets
    yield check
    check("the log", caplog.text)


@pytest.fixture
def running(leaks, serve_upstream, open_gateway, admin_key):
    """A gateway whose accounts and keys were all entered over REST, and which has answered and failed."""
    local = serve_upstream("openai_compatible", secrets=PLANTED)
    web = serve_upstream("qwen_web", secrets=PLANTED)
    running = open_gateway(UPSTREAM_RETRIES=0)
    running.http.headers["Authorization"] = f"Bearer {admin_key}"
    leaks.secrets.append(admin_key)
    for body in (
        {"name": "pasted", "kind": "qwen_web", "browser_request": CURL, "enabled": False},
        {
            "name": "typed",
            "kind": "dashscope",
            "secrets": {"api_key": PLANTED["api_key"]},
            "enabled": False,
        },
        # Refused: what was wrong is told without it.
        {"name": "bad", "kind": "qwen_web", "secrets": {"cookies": 5, "token": "planted-device"}},
        {
            "name": "bad",
            "kind": "openai_compatible",
            "base_url": "no url",
            "secrets": {"api_key": "planted-cookie"},
        },
    ):
        answer = running.http.post("/v1/accounts", json=body)
        assert answer.status_code == (400 if body["name"] == "bad" else 201), answer.text
        leaks("REST", answer.text)
    made = running.http.post("/v1/keys", json={"name": "made", "scopes": ["chat"]}).json()
    leaks.secrets.append(made["key"])
    rotated = running.http.post(f"/v1/keys/{made['id']}/rotate", json={}).json()
    leaks.secrets.append(rotated["key"])
    for upstream in (local, web):
        assert running.ask(upstream.model).status_code == 200
        said = json.dumps(PLANTED) + PLANTED["cookies"]
        bodies = {"openai_compatible": {"error": {"message": said}}, "qwen_web": {"detail": said}}
        upstream.enqueue(Reply(body=bodies[upstream.kind], status=500))
        answer = running.ask(upstream.model)
        assert answer.status_code >= 400
        leaks("an error", answer.text)
    refused = running.http.get(
        "/v1/models", headers={"Authorization": "Bearer sk-planted-account-no"}
    )
    assert refused.status_code == 401
    leaks("a refusal", refused.text)
    return running


def test_the_database_holds_none(running, leaks):
    for model in apps.get_models(include_auto_created=True):
        leaks(model._meta.label, str(list(model._default_manager.values())))


def test_rest_and_metrics_show_none(running, leaks):
    paths = running.http.get("/v1/openapi.json").json()["paths"]
    ids = {
        "session_id": running.http.get("/v1/sessions").json()["data"][0]["id"],
        "reference": "1",
        "model_id": "qwen3-8b",
    }
    seen = 0
    for path, methods in paths.items():
        if "get" in methods:
            # Items are those of OpenAI's ids alone.
            known = ids | ({"reference": "resp_1"} if path.endswith("/input_items") else {})
            url = re.sub(r"{(\w+)}", lambda name, known=known: str(known.get(name[1], 1)), path)
            answer = running.http.get(url)
            assert answer.status_code in (200, 404), (url, answer.text)
            leaks(url, answer.text)
            seen += answer.status_code == 200
    assert seen > 10
    for listing in ("/v1/accounts", "/v1/keys", "/v1/requests", "/v1/responses"):
        for row in running.http.get(listing).json()["data"]:
            leaks(listing, running.http.get(f"{listing}/{row['id']}").text)
    for url in ("/metrics", "/health/detailed", "/api/schema/status", "/api/schema/history"):
        answer = running.http.get(url)
        assert answer.status_code == 200, url
        leaks(url, answer.text)


def test_the_admin_shows_none(running, leaks, admin_client):
    queue, seen = deque(["/admin/"]), {"/admin/", "/admin/logout/"}
    while queue and len(seen) < MAX_PAGES:
        url = queue.popleft()
        answer = admin_client.get(url, follow=True)
        assert answer.status_code == 200, url
        text = answer.content.decode()
        leaks(url, text)
        for link in re.findall(r'href="([^"#]+)', text):
            base = answer.request["PATH_INFO"]
            target = f"{base}{link}" if link.startswith("?") else link
            if target.startswith("/admin/") and target not in seen:
                seen.add(target)
                queue.append(target)
    assert len([url for url in seen if "/change/" in url]) > 5


def test_commands_print_none(running, leaks):
    for command in (
        ["doctor"], ["doctor", "--json"], ["listapikeys"], ["listapikeys", "--json"],
        ["showmigrations", "--json"], ["check"],
    ):  # fmt: skip
        out = io.StringIO()
        try:
            call_command(*command, stdout=out, stderr=out)
        except SystemExit as exc:
            assert exc.code == 1  # noqa: PT017  # the doctor found something
        assert out.getvalue()
        leaks(" ".join(command), out.getvalue())

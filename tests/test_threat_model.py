"""SECURITY.md as a reader takes it: what it names is there, and who is let in without a key is what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from django.urls import get_resolver

from tests.test_docs import file_variables, settings_variables

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "SECURITY.md").read_text()
GUARDS = TEXT.partition("## Threats and guards")[2].partition("\n## ")[0]
# Who has neither a key nor a session.
OPEN = ("/healthz", "/health", "/readyz", "/v1/docs", "/v1/openapi.json")
# Led to the admin, which asks who it is; an icon.
LED_ON = ("/", "/favicon.ico", "/admin/")


def rows():
    lines = [line for line in GUARDS.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:40])
def test_each_guard_names_code_and_a_test_that_are_there(row):
    _, guard, proof = row
    modules = re.findall(r"`([\w/]+\.(?:py|txt))`", guard)
    for name in modules:
        assert (ROOT / name).exists() or list(ROOT.glob(f"*/**/{name}")), name
    proofs = re.findall(r"`(tests/[\w/.]+)`", proof)
    assert proofs
    assert all((ROOT / name).exists() for name in proofs)


def test_settings_that_it_names_are_there():
    known = {*settings_variables(), *(f"{name}_FILE" for name in file_variables())}
    assert set(re.findall(r"QWENPROXY_\w+", TEXT)) <= known


def operations():
    """Method and path of everything that has a key's guard to have."""
    from qwenproxy.api import api, operations_api

    for prefix, document in (("/v1", api), ("/api", operations_api)):
        for below, router in document._routers:
            for path, view in router.path_operations.items():
                for operation in view.operations:
                    plain = re.sub(r"\{[\w:]+\}", "1", f"{prefix}{below}{path}")
                    yield from ((method, plain) for method in operation.methods)


def test_every_operation_of_the_api_asks_for_a_key(http):
    del http.headers["authorization"]
    found = sorted(set(operations()))
    assert len(found) > 35
    let_in = [
        (method, path)
        for method, path in found
        if http.request(method, path, json={}).status_code != 401
    ]
    assert let_in == []


def test_a_key_for_questions_alone_comes_to_no_record_and_no_administration(http):
    from qwenproxy.access.keys import create_api_key

    secret = create_api_key(name="chat", scopes=("chat",))[1]
    http.headers["authorization"] = f"Bearer {secret}"
    for method, path in sorted(set(operations())):
        is_question = re.match(r"/v1/(chat|completions|messages|embeddings|models)", path)
        if (
            is_question
            or path == "/v1/responses/1/cancel"
            or (method, path) == ("POST", "/v1/responses")
        ):
            continue
        assert http.request(method, path, json={}).status_code == 403, (method, path)


def test_without_a_key_there_is_what_it_says_and_nothing_else(http):
    del http.headers["authorization"]
    told = TEXT.partition("Without a key")[2].partition("\n\n")[0]
    assert all(f"`{path}`" in told for path in OPEN)
    routes = {"/" + str(pattern.pattern) for pattern in get_resolver().url_patterns}
    asked = routes - {"/v1/", "/api/"} | set(OPEN)
    answered = {path: http.get(path, follow_redirects=False) for path in sorted(asked)}
    # Without a database that answers `/readyz` is 503; here it does.
    assert {path for path, answer in answered.items() if answer.status_code == 200} == set(OPEN)
    led_on = {path for path, answer in answered.items() if answer.is_redirect}
    assert led_on == set(LED_ON)
    rest = asked - set(OPEN) - set(LED_ON)
    assert {path: answered[path].status_code for path in rest} == dict.fromkeys(rest, 401)

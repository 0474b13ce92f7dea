"""A key's list of models: what it may use, and that no other name leads past it."""

from __future__ import annotations

import httpx
import openai
import pytest

from qwenproxy.access.keys import change_api_key
from qwenproxy.access.models import ApiKey
from requests_app.models import Request
from tests.doubles.server import Reply
from tests.proxy.conftest import HELLO

MODELS = "/v1/models"


@pytest.fixture
def server(serve_upstream):
    served = serve_upstream("openai_compatible")
    served.double.models = ("qwen3-8b", "qwen3-coder-30b", "Qwen/Qwen3-32B", "qwq")
    return served


@pytest.fixture
def allow(api_key):
    def allow(*patterns):
        change_api_key(ApiKey.objects.get(name="tests"), {"allowed_models": patterns})

    return allow


def assert_not_allowed(answer: httpx.Response) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (403, "permission_error")
    assert (error["code"], error["param"]) == ("model_not_allowed", "model")


def test_only_allowed_models_are_listed(open_gateway, server, allow):
    gateway = open_gateway()
    allow("qwen3-*", "QWEN/*")
    listed = gateway.http.get(MODELS).json()["data"]
    assert [model["id"] for model in listed] == ["qwen3-8b", "qwen3-coder-30b", "Qwen/Qwen3-32B"]
    assert gateway.http.get(f"{MODELS}/Qwen/Qwen3-32B").status_code == 200
    hidden, missing = (gateway.http.get(f"{MODELS}/{model}") for model in ("qwq", "qw0"))
    assert hidden.status_code == missing.status_code == 404
    assert hidden.text == missing.text.replace("qw0", "qwq")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_is_not_allowed_is_refused_before_anything_happens(
    open_gateway, server, allow, path, stream
):
    gateway = open_gateway()
    allow("qwen3-8b")
    text = {"messages": HELLO} if "chat" in path else {"prompt": "Hello"}
    body = {"model": "qwq", "stream": stream, **text}
    assert_not_allowed(gateway.http.post(path, json=body))
    assert server.turns == []
    assert Request.objects.count() == 0
    assert gateway.http.post(path, json={**body, "model": "qwen3-8b"}).status_code == 200


def test_an_alias_leads_past_no_list(open_gateway, server, allow):
    gateway = open_gateway(MODEL_ALIASES=[("fast", "qwen3-8b"), ("large", "qwq")])
    allow("qwen3-8b", "large")
    assert gateway.ask("fast").json()["model"] == "qwen3-8b"
    assert_not_allowed(gateway.ask("large"))


@pytest.mark.parametrize("model", ["", "gpt-4o-mini"])
def test_the_default_model_leads_past_no_list(open_gateway, server, allow, model):
    gateway = open_gateway(DEFAULT_MODEL="qwq")
    allow("qwen3-*")
    assert_not_allowed(gateway.ask(model))
    allow("qwq")
    assert gateway.ask(model).json()["model"] == "qwq"


def test_a_model_that_does_not_exist_is_refused_in_the_same_words(open_gateway, server, allow):
    gateway = open_gateway()
    allow("qwen3-*")
    assert_not_allowed(gateway.ask("secret-model"))
    assert gateway.ask("qwen3-imaginary").json()["error"]["code"] == "model_not_found"


def test_a_server_without_a_list_takes_only_allowed_names(open_gateway, server, allow):
    server.double.enqueue(*[Reply(body="Not Found", status=404)] * 9, path=MODELS)
    gateway = open_gateway()
    allow("my-*")
    assert_not_allowed(gateway.ask("other"))
    assert gateway.ask("my-model").status_code == 200


def test_the_sdk_raises_its_own_error(open_gateway, server, allow):
    gateway = open_gateway()
    allow("qwen3-8b")
    with pytest.raises(openai.PermissionDeniedError) as caught:
        gateway.sdk.chat.completions.create(model="qwq", messages=HELLO)
    assert caught.value.code == "model_not_allowed"


def test_the_admin_scope_widens_no_list(open_gateway, server, allow):
    ApiKey.objects.filter(name="tests").update(scopes="chat admin")
    gateway = open_gateway()
    allow("qwen3-8b")
    assert_not_allowed(gateway.ask("qwq"))

"""`GET /v1/models`, and which account a model's name leads to."""

from __future__ import annotations

import openai
import pytest
from django.db import OperationalError

from qwenproxy.access.models import UpstreamAccount
from qwenproxy.proxy import routing
from requests_app.models import Request
from tests.doubles.qwen_web import MODELS as WEB_MODELS
from tests.doubles.qwen_web import model_entry
from tests.doubles.server import Reply, unused_port
from tests.proxy.conftest import HELLO, wait_until

MODELS = "/v1/models"


@pytest.fixture
def server(serve_upstream):
    return serve_upstream("openai_compatible", priority=1)


def ids(gateway):
    return [model["id"] for model in gateway.http.get(MODELS).json()["data"]]


def test_the_lists_of_all_accounts_are_one_list_with_each_id_once(
    open_gateway, server, serve_upstream
):
    web = serve_upstream("qwen_web", priority=2)
    web.double.models.append(model_entry("qwen3-8b"))
    gateway = open_gateway()
    assert ids(gateway) == [
        "qwen3-8b", "qwen3-coder-30b", "qwen3-max", "qwen3-coder-plus", "qwen3-vl-plus",
    ]  # fmt: skip
    body = gateway.http.get(MODELS).json()
    assert body["object"] == "list"
    assert body["data"][0] | {"max_model_len": 0} == {
        "id": "qwen3-8b",
        "object": "model",
        "created": 1732711466,
        "owned_by": "double",
        "context_length": 32768,
        "max_model_len": 0,
    }
    # One reading serves every request until it is old.
    assert len(web.double.requests_to(WEB_MODELS)) == 1


def test_the_sdk_lists_and_retrieves(open_gateway, server):
    server.double.models = ("qwen3-8b", "Qwen/Qwen3-32B")
    gateway = open_gateway()
    assert [model.id for model in gateway.sdk.models.list()] == ["qwen3-8b", "Qwen/Qwen3-32B"]
    assert gateway.sdk.models.retrieve("Qwen/Qwen3-32B").owned_by == "double"
    with pytest.raises(openai.NotFoundError) as caught:
        gateway.sdk.models.retrieve("qwen9-imaginary")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_no_account_is_no_error_of_the_list_but_of_the_turn(open_gateway):
    gateway = open_gateway()
    assert ids(gateway) == []
    answer = gateway.ask("qwen3-8b")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "no_upstream"
    assert Request.objects.count() == 0


def test_an_old_list_is_read_again_while_nobody_waits(open_gateway, server):
    gateway = open_gateway(MODELS_TTL_S=0.05)
    assert "qwen-new" not in ids(gateway)
    server.double.models = ("qwen-new",)
    wait_until(lambda: ids(gateway) == ["qwen-new"])
    assert gateway.ask("qwen3-8b").status_code == 404


def test_a_list_that_cannot_be_read_leaves_the_old_one(open_gateway, server):
    gateway = open_gateway(MODELS_TTL_S=0.05)
    before = ids(gateway)
    server.double.enqueue(*[Reply(body="oops", status=500)] * 100, path=MODELS)

    def has_failed():
        assert ids(gateway) == before
        return len(server.double.requests_to(MODELS)) > 1

    wait_until(has_failed)
    assert ids(gateway) == before
    assert gateway.ask(server.model).status_code == 200


def test_an_unknown_model_has_the_lists_read_again(open_gateway, server, monkeypatch):
    gateway = open_gateway()
    assert "qwen-new" not in ids(gateway)
    server.double.models = ("qwen-new",)
    # The list is too young to be asked for again: invented names cause no traffic.
    assert gateway.ask("qwen-new").status_code == 404
    assert len(server.double.requests_to(MODELS)) == 1
    monkeypatch.setattr(routing, "_FRESH_S", 0)
    assert gateway.ask("qwen-new").status_code == 200


def test_an_unknown_model_is_not_on_record(open_gateway, server):
    assert open_gateway().ask("qwen9-imaginary").status_code == 404
    assert Request.objects.count() == 0


@pytest.mark.parametrize("asked", ["gpt-4o-mini", "claude-opus-4", "o3", ""])
def test_foreign_names_and_none_mean_the_default_model(open_gateway, server, asked):
    gateway = open_gateway()
    assert gateway.ask(asked).json()["model"] == "qwen3-8b"
    row = Request.objects.get()
    assert row.model == (asked or "qwen3-8b")
    assert server.turns[0].body["model"] == "qwen3-8b"


def test_the_model_may_be_left_out(open_gateway, server):
    answer = open_gateway().http.post("/v1/chat/completions", json={"messages": HELLO})
    assert answer.json()["model"] == "qwen3-8b"


def test_default_model_and_aliases_are_settings(open_gateway, server):
    gateway = open_gateway(
        DEFAULT_MODEL="qwen3-coder-30b", MODEL_ALIASES=[("fast-*", "qwen3-8b"), ("gpt-*", "")]
    )
    assert gateway.ask("").json()["model"] == "qwen3-coder-30b"
    assert gateway.ask("gpt-5").json()["model"] == "qwen3-coder-30b"
    assert gateway.ask("FAST-one").json()["model"] == "qwen3-8b"
    assert gateway.ask("claude-opus-4").status_code == 404


def test_a_listed_name_is_stronger_than_an_alias(open_gateway, server):
    server.double.models = ("qwen3-8b", "gpt-oss-120b")
    assert open_gateway().ask("gpt-oss-120b").json()["model"] == "gpt-oss-120b"


def test_a_server_without_a_list_takes_any_model(open_gateway, server):
    server.double.enqueue(*[Reply(body="Not Found", status=404)] * 9, path=MODELS)
    gateway = open_gateway()
    assert ids(gateway) == []
    assert gateway.ask("whatever-it-is").json()["model"] == "whatever-it-is"


def test_a_server_without_a_list_is_no_reason_to_take_it_for_others_models(
    open_gateway, server, serve_upstream
):
    unlisted = serve_upstream("openai_compatible", name="unlisted", priority=0)
    unlisted.double.enqueue(*[Reply(body="Not Found", status=404)] * 9, path=MODELS)
    gateway = open_gateway()
    assert gateway.ask("qwen3-8b").status_code == 200
    assert (len(server.turns), len(unlisted.turns)) == (1, 0)
    assert gateway.ask("whatever-it-is").status_code == 200
    assert len(unlisted.turns) == 1


def test_accounts_come_and_go_while_it_runs(open_gateway, server, serve_upstream):
    gateway = open_gateway()
    assert "qwen3-max" not in ids(gateway)
    web = serve_upstream("qwen_web")
    assert "qwen3-max" in ids(gateway)
    assert gateway.ask("qwen3-max").status_code == 200
    web.account.enabled = False
    web.account.save()
    assert "qwen3-max" not in ids(gateway)
    assert gateway.ask("qwen3-max").status_code == 404
    server.account.delete()
    assert ids(gateway) == []


def test_accounts_that_another_process_changes_are_seen_as_well(open_gateway, server, monkeypatch):
    monkeypatch.setattr(routing, "_ACCOUNTS_TTL_S", 0.05)
    gateway = open_gateway()
    assert ids(gateway)
    # No signal: as from another process.
    UpstreamAccount.objects.update(enabled=False)
    wait_until(lambda: ids(gateway) == [])


def test_a_changed_address_is_asked_for_its_models_anew(open_gateway, server, serve_upstream):
    gateway = open_gateway()
    assert ids(gateway) == ["qwen3-8b", "qwen3-coder-30b"]
    web = serve_upstream("openai_compatible", name="other", enabled=False)
    web.double.models = ("moved",)
    server.account.base_url = web.url
    server.account.save()
    assert ids(gateway) == ["moved"]


def test_a_dead_account_leaves_the_others_lists(open_gateway, server, make_account):
    make_account("openai_compatible", f"http://127.0.0.1:{unused_port()}", name="dead")
    gateway = open_gateway()
    assert ids(gateway) == ["qwen3-8b", "qwen3-coder-30b"]
    # For what nobody lists its own error is the answer.
    answer = gateway.ask("qwen-only-there")
    assert answer.status_code == 502
    assert "connection refused" in answer.json()["error"]["message"]


def test_the_demo_serves_its_own_model(open_gateway, make_account):
    make_account("demo", name="demo")
    gateway = open_gateway()
    assert ids(gateway) == ["qwen-demo"]
    assert "demo" in gateway.ask("gpt-4o").json()["choices"][0]["message"]["content"]


def test_a_database_that_fails_is_503_at_first_and_later_goes_unnoticed(
    open_gateway, server, monkeypatch
):
    gateway = open_gateway()

    def fail():
        raise OperationalError("database is locked")

    with monkeypatch.context() as patch:
        patch.setattr(routing, "load_accounts", fail)
        for answer in (gateway.http.get(MODELS), gateway.ask(server.model)):
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "recorder_unavailable"
    assert gateway.ask(server.model).status_code == 200
    with monkeypatch.context() as patch:
        patch.setattr(routing, "load_accounts", fail)
        server.account.save()
        assert gateway.ask(server.model).status_code == 200
    assert Request.objects.count() == 2

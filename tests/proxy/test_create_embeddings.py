"""`POST /v1/embeddings`: passed on, translated where a form is missing, and recorded."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from qwenproxy.access.keys import create_api_key
from qwenproxy.access.models import ApiKey
from qwenproxy.wire.redaction import compile_rules
from requests_app.models import Request, Response
from tests.doubles.server import Reply
from tests.proxy.conftest import attempts_of, ended_response
from tests.requests_app.test_recorder import locked_database

PATH = "/v1/embeddings"


def new_key(scopes=("chat", "records"), **fields):
    row, secret = create_api_key(name="another", scopes=scopes)
    ApiKey.objects.filter(pk=row.pk).update(**fields)
    return {"Authorization": f"Bearer {secret}"}


def embed(gateway, model, value="tea", **fields):
    return gateway.http.post(PATH, json={"model": model, "input": value, **fields})


def asked(served):
    return [request for request in served.double.requests if request.path == PATH]


@pytest.fixture(params=["openai_compatible", "dashscope"])
def native(request, serve_upstream):
    return serve_upstream(request.param)


@pytest.mark.parametrize(
    "value",
    ["tea", ["tea", "milk"], [1, 2, 3], [[1, 2], [3]]],
    ids=["text", "texts", "tokens", "lists"],
)
def test_every_form_of_input_is_passed_as_it_is(open_gateway, native, value):
    answer = embed(open_gateway(), native.model, value, dimensions=2, input_type="query")
    assert answer.status_code == 200
    (request,) = asked(native)
    expected = {"model": native.model, "input": value, "dimensions": 2, "input_type": "query"}
    assert request.body == expected
    body = answer.json()
    assert (body["object"], body["model"]) == ("list", native.model)
    assert [len(item["embedding"]) for item in body["data"]] == [2] * len(body["data"])


def test_the_sdk_has_its_vectors_though_the_server_knows_lists_alone(open_gateway, native):
    answer = open_gateway().sdk.embeddings.create(model=native.model, input=["tea", "milk"])
    assert [item.embedding for item in answer.data] == [[0.75] * 3, [1.0] * 3]
    assert answer.usage.total_tokens == 2
    form = "float" if native.kind == "dashscope" else "base64"
    assert asked(native)[0].body["encoding_format"] == form


def test_base64_is_little_endian_floats(open_gateway, native):
    answer = embed(open_gateway(), native.model, encoding_format="base64")
    assert answer.json()["data"][0]["embedding"] == "AABAPwAAQD8AAEA/"


def test_base64_of_a_server_is_passed_on(open_gateway, native):
    item = {"object": "embedding", "index": 0, "embedding": "AABAPw=="}
    native.enqueue(Reply(body={"object": "list", "data": [item], "model": "m"}), path=PATH)
    answer = embed(open_gateway(), native.model, encoding_format="base64")
    assert answer.json()["data"] == [item]
    reply = json.loads(json.loads(ended_response().reply.content))
    assert (reply["count"], reply["dimensions"]) == (1, 1)


@pytest.mark.parametrize("value", ["tea", '["tea"]', ["tea", "milk"], [[1, 2], [3]]])
def test_the_record_has_the_input_whole_and_of_vectors_what_tells_them(open_gateway, native, value):
    gateway = open_gateway()
    answer = embed(gateway, native.model, value, user="ann", dimensions=4)
    request_id = answer.headers["x-request-id"]
    record = gateway.http.get(f"/v1/requests/{request_id}").json()
    sent = {"model": native.model, "input": value, "user": "ann", "dimensions": 4}
    assert record["openai_request"] == sent
    assert record["qwen_request"] == sent
    assert record["qwen_request_exact"] is True
    told = record["response"]["openai_response"]
    assert told["vectors"]["count"] == len(answer.json()["data"])
    assert told["vectors"]["dimensions"] == 4
    assert len(told["vectors"]["sha256"]) == 64
    assert told["usage"]["total_tokens"] == answer.json()["usage"]["total_tokens"]
    row = ended_response()
    assert (row.status, row.usage_source, row.request.dialect) == (
        "completed",
        "reported",
        "embeddings",
    )
    assert row.request.account_id == native.account.pk
    assert "embedding" not in row.reply.content
    assert str(row.request.session_id) == answer.headers["x-session-id"]


def test_counts_are_estimated_where_none_are_told(open_gateway, native):
    data = [{"object": "embedding", "index": 0, "embedding": [1, 2.5]}]
    native.enqueue(Reply(body={"data": data}), path=PATH)
    answer = embed(open_gateway(), native.model, "x" * 40)
    assert answer.json()["usage"] == {"prompt_tokens": 10, "total_tokens": 10}
    assert ended_response().usage_source == "estimated"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": [""]}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [["a"]]}, "input"),
        ({"input": [True]}, "input"),
        ({"input": {"text": "a"}}, "input"),
        ({"input": 5}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": "3"}, "dimensions"),
        ({"model": ""}, "model"),
        ({"stream": True}, "stream"),
        ({"user": 7}, "user"),
    ],
)
def test_a_wrong_body_is_refused_naming_the_field(open_gateway, serve_upstream, fields, param):
    native = serve_upstream("openai_compatible")
    answer = embed(open_gateway(), **{"model": native.model, "value": "x"} | _as_kwargs(fields))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert Request.objects.count() == 0


def _as_kwargs(fields):
    return {"value" if name == "input" else name: value for name, value in fields.items()}


@pytest.mark.parametrize("kind", ["qwen_web", "demo"])
def test_kinds_without_embeddings_say_which_have_them(
    open_gateway, serve_upstream, make_account, kind
):
    model = "qwen-demo"
    if kind == "demo":
        make_account("demo", "")
    else:
        model = serve_upstream(kind).model
    answer = embed(open_gateway(), model)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "unsupported", "model")
    assert "openai_compatible and dashscope" in error["message"]


def test_an_upstreams_refusal_is_passed_back_and_recorded(open_gateway, native):
    error = {"error": {"message": "no such size", "type": "invalid_request_error", "code": None}}
    native.enqueue(Reply(body=error, status=400), path=PATH)
    answer = embed(open_gateway(), native.model, dimensions=7)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "no such size"
    row = ended_response(request__request_id=answer.headers["x-request-id"])
    assert (row.status, row.http_status, row.error_code) == ("failed", 400, "upstream_refused")


@pytest.mark.parametrize(
    "body",
    [
        {"data": []},
        {"data": [{"embedding": None}]},
        {"data": [{"embedding": ["a"]}]},
        {"data": [{"embedding": "*"}]},
        [],
    ],
)
def test_an_answer_without_vectors_is_the_upstreams_fault(open_gateway, serve_upstream, body):
    native = serve_upstream("openai_compatible")
    native.enqueue(Reply(body=body), path=PATH)
    answer = embed(open_gateway(), native.model, encoding_format="base64")
    assert answer.status_code == 502
    assert answer.json()["error"]["code"] == "upstream_protocol_error"
    assert ended_response().status == "failed"


def test_another_account_is_asked_where_one_fails(open_gateway, serve_upstream):
    first = serve_upstream("openai_compatible", name="first", priority=1)
    second = serve_upstream("openai_compatible", name="second", priority=2)
    first.enqueue(Reply(body={"error": "broken"}, status=500), path=PATH)
    assert embed(open_gateway(), first.model).status_code == 200
    assert len(asked(second)) == 1
    attempts = attempts_of(ended_response())
    assert [attempt["account"] for attempt in attempts] == ["first", "second"]
    assert attempts[0]["cause"].startswith("upstream_error: ")


@pytest.mark.parametrize("body", [{"data": []}, "<html>Busy</html>", {"data": [{"embedding": 1}]}])
def test_another_account_is_asked_where_one_answers_rubbish(open_gateway, serve_upstream, body):
    first = serve_upstream("openai_compatible", name="first", priority=1)
    second = serve_upstream("openai_compatible", name="second", priority=2)
    first.enqueue(Reply(body=body), path=PATH)
    assert embed(open_gateway(), first.model).status_code == 200
    assert len(asked(second)) == 1
    row = ended_response()
    assert [attempt["account"] for attempt in attempts_of(row)] == ["first", "second"]
    assert attempts_of(row)[0]["cause"].startswith("upstream_protocol_error: ")
    assert row.request.account_id == second.account.pk


def test_an_end_that_cannot_be_recorded_in_time_is_refused_and_recorded_later(
    open_gateway, serve_upstream, monkeypatch
):
    native = serve_upstream("openai_compatible")
    gateway = open_gateway(RECORDER_DEADLINE_S=0.5)
    answer, is_asked, is_locked = native.double.answer, threading.Event(), threading.Event()

    async def answer_once_locked(request, exchange):
        if request.path == PATH:
            is_asked.set()
            await asyncio.to_thread(is_locked.wait, 20)
        await answer(request, exchange)

    monkeypatch.setattr(native.double, "answer", answer_once_locked)
    with ThreadPoolExecutor(1) as client:
        answered = client.submit(embed, gateway, native.model)
        assert is_asked.wait(20)
        with locked_database():
            is_locked.set()
            refused = answered.result(30)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "recorder_unavailable")
    assert Response.objects.get().status == "in_progress"
    # What happens by itself, minutes apart.
    recorder = gateway.gateway.recorder
    asyncio.run_coroutine_threadsafe(recorder.settle(), recorder._loop).result(20)
    row = ended_response()
    assert (row.status, row.response_id[:5]) == ("completed", "embd_")
    assert row.request.request_id == refused.headers["x-request-id"]


def test_an_account_of_another_kind_with_the_same_model_is_passed_over(
    open_gateway, serve_upstream, make_account
):
    web = serve_upstream("qwen_web", name="web", priority=1)
    native = serve_upstream("openai_compatible", name="native", priority=2)
    native.double.models = (web.model,)
    assert embed(open_gateway(), web.model).status_code == 200
    assert len(asked(native)) == 1


def test_scopes_and_lists_of_models_hold(open_gateway, serve_upstream):
    native = serve_upstream("openai_compatible")
    gateway = open_gateway()
    keys = (new_key(scopes=("records",), name="x"), new_key(allowed_models="qwen3-coder*"))
    for headers in keys:
        body = {"model": native.model, "input": "x"}
        assert gateway.http.post(PATH, json=body, headers=headers).status_code == 403
    assert not asked(native)


def test_limits_of_a_key_hold_and_are_told(open_gateway, serve_upstream):
    native = serve_upstream("openai_compatible")
    gateway = open_gateway()
    headers = new_key(requests_per_minute=1)
    body = {"model": native.model, "input": "x"}
    first = gateway.http.post(PATH, json=body, headers=headers)
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    assert gateway.http.post(PATH, json=body, headers=headers).status_code == 429
    assert Response.objects.count() == 1


def test_a_gateway_that_stops_takes_none(open_gateway, serve_upstream):
    native = serve_upstream("openai_compatible")
    gateway = open_gateway()
    embed(gateway, native.model)
    gateway.gateway.draining = True
    assert embed(gateway, native.model).status_code == 503


def test_rules_of_redaction_leave_a_record_that_can_be_read(open_gateway, serve_upstream):
    native = serve_upstream("openai_compatible")
    gateway = open_gateway(REDACTION=compile_rules(['secret",']))
    answer = embed(gateway, native.model, ["secret", "x"])
    record = gateway.http.get(f"/v1/requests/{answer.headers['x-request-id']}").json()
    assert "secret" not in json.dumps(record)
    assert "[redacted]" in record["openai_request"]["input"]


def test_a_key_that_keeps_no_content_keeps_no_input(open_gateway, serve_upstream):
    native = serve_upstream("openai_compatible")
    gateway = open_gateway()
    headers = new_key(recorded="metadata")
    body = {"model": native.model, "input": ["planted secret"]}
    assert gateway.http.post(PATH, json=body, headers=headers).status_code == 200
    row = ended_response()
    stored = row.request.parameters + row.request.upstream_request + row.upstream_response
    assert "planted" not in stored + row.request.prompt.content

"""Running responses are cancelled through any gateway of the database; here two in one process."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest
from openai.types.responses import Response as OpenAIResponse

from qwenproxy.access import keys
from qwenproxy.access.models import ApiKey
from qwenproxy.proxy import cancelling
from requests_app.cancelling import ask_to_cancel
from requests_app.models import Partial, Response
from tests.conftest import NO_TLS
from tests.doubles.qwen_web import STOP
from tests.doubles.server import Reply
from tests.proxy.conftest import ended_response, wait_until

TEXT = "one two three four five six"


@pytest.fixture
def gateways(open_gateway):
    """The one that answers, and another one."""
    return open_gateway(), open_gateway()


@pytest.fixture
def answering(serve_upstream):
    return serve_upstream("openai_compatible")


def begin(gateway, model, **fields):
    """A response in progress; its id."""
    body = {"model": model, "input": "Hello", "background": True, **fields}
    answer = gateway.http.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def cancel(gateway, response_id):
    return gateway.http.post(f"/v1/responses/{response_id}/cancel")


def test_the_other_gateway_ends_an_answer_with_its_part(gateways, upstream):
    one, other = gateways
    upstream.enqueue(Reply(text=TEXT, pause_after=4))
    response_id = begin(one, upstream.model)
    wait_until(Partial.objects.filter(events__contains="one").exists)
    answer = cancel(other, response_id)
    assert answer.status_code == 200, answer.text
    OpenAIResponse.model_validate(answer.json())
    assert answer.json()["status"] == "cancelled"
    assert "one" in answer.text
    row = ended_response()
    assert (row.finish_reason, row.error_code) == ("cancelled", "cancelled")
    if upstream.kind == "qwen_web":
        wait_until(lambda: [t for t in upstream.double.requests if t.path == STOP])
    # Again, and through the one that gave it.
    assert cancel(other, response_id).json() == answer.json()
    assert cancel(one, response_id).json() == answer.json()


def test_an_answer_is_cancelled_before_its_first_chunk(gateways, answering):
    one, other = gateways
    answering.enqueue(Reply(silent=True))
    response_id = begin(one, answering.model)
    body = cancel(other, response_id).json()
    assert (body["status"], body["output"]) == ("cancelled", [])
    assert ended_response().status == "cancelled"


def test_a_stream_is_ended_through_the_other_gateway_and_hears_of_it(gateways, answering):
    one, other = gateways
    answering.enqueue(Reply(text=TEXT, pause_after=4))
    body = {"model": answering.model, "input": "Hello", "stream": True}
    with one.http.stream("POST", "/v1/responses", json=body) as answer:
        pieces = answer.iter_text()
        received = next(pieces)
        response_id = wait_until(lambda: Response.objects.get().response_id)
        assert cancel(other, response_id).json()["status"] == "cancelled"
        received += "".join(pieces)
    assert "event: response.failed" in received
    # As OpenAI's: what ran in the foreground is cancelled once.
    assert cancel(other, response_id).status_code == 400


def test_what_has_ended_meanwhile_is_never_marked(gateways, answering):
    one, other = gateways
    response_id = begin(one, answering.model)
    row = ended_response()

    def ask() -> None:
        recorder = other.gateway.recorder
        asked = recorder.run(lambda tx: ask_to_cancel(tx, response_id))
        asyncio.run_coroutine_threadsafe(asked, recorder._loop).result(10)

    ask()
    assert Response.objects.get().finish_reason == row.finish_reason == "stop"
    assert cancel(other, response_id).json()["status"] == "completed"


def test_a_response_of_another_key_is_not_there_to_be_cancelled(gateways, answering):
    one, other = gateways
    answering.enqueue(Reply(silent=True))
    response_id = begin(one, answering.model)
    _, plain = keys.create_api_key(name="other", scopes=("chat",))
    answer = httpx.post(
        f"{other.url}/v1/responses/{response_id}/cancel",
        headers={"Authorization": f"Bearer {plain}"},
        timeout=30,
        verify=NO_TLS,
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "response_not_found")
    assert ApiKey.objects.count() == 2
    assert Response.objects.get().finish_reason is None
    assert cancel(other, response_id).json()["status"] == "cancelled"


def test_one_that_does_not_end_is_said_to_have_been_asked(gateways, answering, monkeypatch):
    monkeypatch.setattr(cancelling, "_WAIT_S", 0.3)
    one, other = gateways
    answering.enqueue(Reply(silent=True))
    response_id = begin(one, answering.model)
    let_go = threading.Event()
    loop = one.gateway.recorder._loop
    # A process that hears nothing for a while.
    loop.call_soon_threadsafe(let_go.wait)
    try:
        answer = cancel(other, response_id)
    finally:
        let_go.set()
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "response_cancelling"
    assert ended_response().status == "cancelled"

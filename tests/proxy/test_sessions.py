"""Sessions as their clients see them: named ones, deleted ones."""

from __future__ import annotations

import threading

import pytest

from requests_app.models import Blob, Request, Response
from sessions_app.models import Message, Session, UpstreamChat
from tests.doubles.server import Reply

MODEL = "qwen3-max"


@pytest.fixture(autouse=True)
def account(make_account, qwen_web_url):
    return make_account("qwen_web", qwen_web_url, secrets={"cookies": "token=t"})


def ask(client, messages, session_id=None):
    headers = {"X-Session-Id": session_id} if session_id else {}
    answer = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=messages, extra_headers=headers
    )
    text = answer.parse().choices[0].message.content
    return answer.headers["x-session-id"], [*messages, {"role": "assistant", "content": text}]


def test_a_named_session_takes_every_turn_that_names_it(openai_client):
    first, _ = ask(openai_client, [{"role": "user", "content": "a"}], "my own id")
    second, _ = ask(openai_client, [{"role": "user", "content": "b"}], "my own id")
    assert first == second
    assert Session.objects.get().external_id == "my own id"
    assert {r.match for r in Request.objects.all()} == {"explicit"}


@pytest.mark.parametrize(
    "header",
    ["X-Claude-Code-Session-Id", "session_id", "x-session-affinity", "X-OpenWebUI-Chat-Id"],
)
def test_ids_that_clients_send_anyway_name_the_session(openai_client, header):
    for text in ("a", "b"):
        openai_client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": text}],
            extra_headers={header: "conversation 7"},
        )
    assert Session.objects.get().external_id == "conversation 7"


def test_a_cache_key_names_the_session_where_it_is_a_uuid(openai_client):
    key = "0f0e0d0c-0b0a-4908-8706-050403020100"
    for text in ("a", "b"):
        openai_client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": text}], prompt_cache_key=key
        )
    assert Session.objects.get().external_id == key
    openai_client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "c"}], prompt_cache_key="agent"
    )
    assert Session.objects.count() == 2


def test_our_own_id_may_be_handed_back(openai_client):
    first, messages = ask(openai_client, [{"role": "user", "content": "a"}])
    second, _ = ask(openai_client, [*messages, {"role": "user", "content": "b"}], first)
    assert first == second
    assert Session.objects.get().external_id is None


def test_a_chat_goes_on_in_another_session_and_survives_the_deletion_of_the_first(
    openai_client, http, qwen_web
):
    first, messages = ask(
        openai_client, [{"role": "user", "content": "Please pick a word."}], "one"
    )
    messages.append({"role": "user", "content": "filler"})
    second, messages = ask(openai_client, messages, "two")
    assert first != second
    assert len(qwen_web.chats) == 1
    assert http.delete(f"/v1/sessions/{first}").json() == {"deleted": True, "session_id": first}
    assert UpstreamChat.objects.count() == 0
    assert Message.objects.filter(session=second).count() == 4
    messages.append({"role": "user", "content": "What was your word?"})
    _, messages = ask(openai_client, messages, "two")
    assert "The word was" in messages[-1]["content"]


def test_a_session_deleted_in_mid_turn_leaves_nothing_and_its_client_has_the_answer(
    openai_client, http, qwen_web, gateway
):
    held = Reply(text="one two three", pause_after=3)
    qwen_web.enqueue(held)
    answers = []
    body = {
        "model": MODEL,
        "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "hi"}],
    }
    thread = threading.Thread(
        target=lambda: answers.append(openai_client.chat.completions.create(**body))
    )
    thread.start()
    assert held.paused.wait(10)
    session_id = Session.objects.get().id
    assert http.delete(f"/v1/sessions/{session_id}").status_code == 200
    held.resume.set()
    thread.join(10)
    assert answers[0].choices[0].message.content == "one two three"
    assert gateway.gateway.recorder.unrecorded == 1
    for model in (Session, Message, Request, Response, Blob, UpstreamChat):
        assert model.objects.count() == 0


def test_an_empty_system_only_history_needs_a_user_on_the_web_upstream(http):
    body = {"model": MODEL, "messages": [{"role": "system", "content": "S"}]}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages"
    assert Response.objects.get().status == "failed"

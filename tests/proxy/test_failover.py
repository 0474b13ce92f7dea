"""Which account is asked, and which next."""

from __future__ import annotations

import pytest

from requests_app.models import Request
from tests.doubles.qwen_web import web_error
from tests.doubles.server import Reply, unused_port
from tests.proxy.conftest import HELLO, attempts_of, ended_response


def fails(status: int = 500) -> Reply:
    return Reply(body={"error": {"message": "no", "code": None}}, status=status)


@pytest.fixture
def two(serve_upstream):
    """Two accounts that serve the same model; the second made is the first choice."""
    second = serve_upstream("openai_compatible", name="second", priority=2)
    first = serve_upstream("openai_compatible", name="first", priority=1)
    return first, second


def accounts_of(row):
    return [attempt["account"] for attempt in attempts_of(row)]


def test_the_account_of_the_lowest_priority_number_is_asked_first(open_gateway, two):
    first, second = two
    assert open_gateway().ask(first.model).status_code == 200
    assert (len(first.turns), len(second.turns)) == (1, 0)
    row = ended_response()
    assert accounts_of(row) == ["first"]
    assert row.request.account_id == first.account.pk


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(fails(500), id="500"),
        pytest.param(fails(401), id="401"),
        pytest.param(fails(429), id="429"),
        pytest.param(Reply(body="<html>check</html>"), id="page"),
        pytest.param(Reply(refused=True), id="closed"),
        pytest.param(Reply(silent=True), id="silence"),
        pytest.param(Reply(text="x", cut_after=1), id="cut-before-content"),
    ],
)
def test_the_next_account_answers_for_one_that_fails(open_gateway, two, failure, stream):
    first, second = two
    first.enqueue(failure)
    second.enqueue("from the second")
    gateway = open_gateway(UPSTREAM_IDLE_TIMEOUT_S=0.2)
    answer = gateway.ask(first.model, stream=stream)
    assert answer.status_code == 200
    assert "second" in answer.text
    row = ended_response()
    assert (row.status, row.error_code) == ("completed", None)
    assert accounts_of(row) == ["first", "second"]
    failed, used = attempts_of(row)
    assert failed["cause"].startswith("upstream_")
    assert used["cause"] is None
    assert row.request.account_id == second.account.pk
    assert row.http_status == 200


def test_what_the_request_itself_is_refused_for_goes_to_no_other_account(open_gateway, two):
    first, second = two
    first.enqueue(fails(400))
    assert open_gateway().ask(first.model).status_code == 400
    assert second.turns == []
    assert accounts_of(ended_response()) == ["first"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_nobody_else_is_asked_once_the_answer_has_begun(open_gateway, two, stream):
    first, second = two
    first.enqueue(Reply(text="one two three", cut_after=3))
    answer = open_gateway().ask(first.model, stream=stream)
    assert "upstream_error" in answer.text
    assert second.turns == []
    row = ended_response()
    assert row.status == "failed"
    assert accounts_of(row) == ["first"]


def test_when_all_fail_the_last_is_tried_again_within_bounds_and_every_cause_is_kept(
    open_gateway, two
):
    first, second = two
    first.enqueue(fails(503))
    second.enqueue(*[fails(500)] * 5)
    assert open_gateway(UPSTREAM_RETRIES=1).ask(first.model).status_code == 502
    row = ended_response()
    assert accounts_of(row) == ["first", "second", "second"]
    assert all(attempt["cause"] for attempt in attempts_of(row))
    assert (len(first.turns), len(second.turns)) == (1, 2)


def test_an_account_that_does_not_serve_the_model_is_not_asked(open_gateway, two):
    first, second = two
    first.double.models = ("another",)
    assert open_gateway().ask(second.model).status_code == 200
    assert first.turns == []


def test_an_account_that_nobody_reaches_delays_no_other(open_gateway, make_account, two):
    make_account("openai_compatible", f"http://127.0.0.1:{unused_port()}", name="dead", priority=0)
    first, _ = two
    assert open_gateway().ask(first.model).status_code == 200
    assert accounts_of(ended_response()) == ["first"]


def converse(gateway, model, messages, text):
    messages.append({"role": "user", "content": text})
    answer = gateway.ask(model, messages=messages).json()["choices"][0]["message"]
    messages.append({"role": "assistant", "content": answer["content"]})
    return answer["content"]


def test_a_conversation_stays_with_the_account_that_has_its_chat(open_gateway, serve_upstream):
    low = serve_upstream("qwen_web", name="low", priority=5)
    gateway = open_gateway()
    messages = []
    converse(gateway, low.model, messages, "Please pick a word.")
    high = serve_upstream("qwen_web", name="high", priority=1)
    assert "word" in converse(gateway, low.model, messages, "What was your word?")
    assert (len(low.turns), len(high.turns)) == (2, 0)
    # Waits for the lists that were not read yet.
    gateway.http.get("/v1/models")
    gateway.ask(low.model, messages=[{"role": "user", "content": "something new"}])
    assert len(high.turns) == 1


def test_a_conversation_moves_whole_where_its_account_fails(open_gateway, serve_upstream):
    home = serve_upstream("qwen_web", name="home", priority=1)
    other = serve_upstream("qwen_web", name="other", priority=2)
    gateway = open_gateway()
    messages = []
    word = converse(gateway, home.model, messages, "Please pick a word.").rstrip(".").split()[-1]
    home.enqueue(web_error("rate_limited_daily"))
    assert word in converse(gateway, home.model, messages, "What was your word?")
    row = ended_response(request__match="continued")
    assert accounts_of(row) == ["home", "other"]
    assert row.request.upstream == "rebuilt:account"
    # From now on the chat is the other's.
    converse(gateway, home.model, messages, "Thanks.")
    assert Request.objects.latest("id").upstream == "continued"
    assert (len(home.turns), len(other.turns)) == (2, 2)
    assert len(other.double.chats) == 1


def test_a_web_account_gives_way_to_a_server_of_the_same_model(open_gateway, serve_upstream):
    web = serve_upstream("qwen_web", priority=1)
    server = serve_upstream("openai_compatible", priority=2)
    server.double.models = (web.model,)
    web.enqueue(web_error("challenge_html_waf"))
    assert open_gateway().ask(web.model, messages=HELLO).status_code == 200
    row = ended_response()
    assert accounts_of(row) == ["qwen_web", "openai_compatible"]
    assert attempts_of(row)[0]["cause"].startswith("upstream_challenge: ")
    assert row.request.upstream == "whole"

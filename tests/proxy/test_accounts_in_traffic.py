"""Accounts that go out and come back under real calls, and conversations that go on meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from qwenproxy.access.accounts import set_secrets
from qwenproxy.access.models import ApiKey, UpstreamAccount
from qwenproxy.proxy import turn
from requests_app.models import Request, Response
from tests.conftest import sse_bodies
from tests.doubles.qwen_web import web_error
from tests.doubles.server import Reply
from tests.proxy.conftest import HELLO, attempts_of, wait_until


def limited(**headers):
    return Reply(body={"error": {"message": "slow down"}}, status=429, headers=headers)


def accounts_of(row):
    return [attempt["account"] for attempt in attempts_of(row)]


def last_row():
    return Response.objects.select_related("request").latest("id")


def jump(gateway, seconds):
    """Time goes by for the health of all accounts."""
    for lane in gateway.gateway.routing.lanes:
        clock = lane.health.clock
        lane.health.clock = lambda clock=clock: clock() + seconds


def stored(name):
    return UpstreamAccount.objects.get(name=name)


def error_of(answer):
    return answer.json()["error"]


def test_an_account_that_answers_429_is_out_until_its_time_and_comes_back(
    open_gateway, serve_upstream
):
    upstream = serve_upstream("openai_compatible", name="only")
    gateway = open_gateway()
    upstream.enqueue(limited(**{"retry-after": "1"}))
    first = gateway.ask(upstream.model)
    assert (first.status_code, error_of(first)["code"]) == (429, "upstream_rate_limited")
    second = gateway.ask(upstream.model)
    assert (second.status_code, second.headers["retry-after"]) == (429, "1")
    error = error_of(second)
    assert (error["code"], error["type"]) == ("no_account_ready", "rate_limit_error")
    assert "only is cooling (nothing to do: tried again by itself at" in error["message"]
    assert len(upstream.turns) == 1
    row = last_row()
    assert (row.status, row.http_status, attempts_of(row)) == ("failed", 429, [])
    wait_until(lambda: stored("only").state == "cooling")
    wait_until(lambda: gateway.ask(upstream.model).status_code == 200)
    assert len(upstream.turns) == 2
    wait_until(lambda: stored("only").state == "ready")


def test_a_429_without_a_time_gets_the_time_of_the_pause(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible")
    upstream.enqueue(limited())
    answer = open_gateway().ask(upstream.model)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "15")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_challenged_account_is_left_alone_until_one_call_tries_it(
    open_gateway, serve_upstream, stream
):
    web = serve_upstream("qwen_web", name="web")
    gateway = open_gateway()
    web.enqueue(web_error("challenge_html_waf"))
    assert gateway.ask(web.model, stream=stream).status_code == 503
    asked = len(web.double.requests)
    for _ in range(3):
        answer = gateway.ask(web.model, stream=stream)
        assert (answer.status_code, error_of(answer)["code"]) == (503, "no_account_ready")
        assert 890 < int(answer.headers["retry-after"]) <= 900
        assert "web is challenged (open the site in the browser" in error_of(answer)["message"]
    assert len(web.double.requests) == asked
    jump(gateway, 901)
    assert gateway.ask(web.model, stream=stream).status_code == 200
    wait_until(lambda: stored("web").state == "ready")


def test_new_credentials_bring_an_expired_account_back_at_once(open_gateway, serve_upstream):
    server = serve_upstream("openai_compatible", name="server", secrets={"api_key": "sk-old-key"})
    gateway = open_gateway()
    server.enqueue(Reply(body={"error": {"message": "bad key sk-old-key"}}, status=401))
    assert gateway.ask(server.model).status_code == 503
    answer = gateway.ask(server.model)
    assert "put an API key that is valid into the account" in error_of(answer)["message"]
    wait_until(lambda: stored("server").state == "expired")
    assert "sk-old-key" not in answer.text + stored("server").state_reason
    set_secrets(stored("server"), {"api_key": "sk-new-key"})
    assert gateway.ask(server.model).status_code == 200
    assert server.turns[-1].headers["authorization"] == "Bearer sk-new-key"


def test_while_one_call_tries_an_account_the_others_wait(open_gateway, serve_upstream):
    web = serve_upstream("qwen_web")
    gateway = open_gateway()
    web.enqueue(web_error("challenge_json"))
    gateway.ask(web.model)
    jump(gateway, 901)
    trial = Reply(text="one two three", pause_after=0)
    web.enqueue(trial)
    with ThreadPoolExecutor(5) as clients:
        answers = [clients.submit(gateway.ask, web.model) for _ in range(5)]
        assert trial.paused.wait(10)
        wait_until(lambda: gateway.gateway.running == 5)
        assert len(web.turns) == 2
        trial.resume.set()
        assert [answer.result().status_code for answer in answers] == [200] * 5
    assert len(web.turns) == 6


def test_a_trial_that_fails_refuses_those_who_waited_for_it(open_gateway, serve_upstream):
    web = serve_upstream("qwen_web")
    gateway = open_gateway()
    web.enqueue(web_error("challenge_json"))
    gateway.ask(web.model)
    jump(gateway, 901)
    refusal = web_error("challenge_json")
    refusal.first_delay_s = 0.3
    web.enqueue(refusal)
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda _: gateway.ask(web.model), range(4)))
    codes = sorted(error_of(answer)["code"] for answer in answers)
    assert codes == ["no_account_ready"] * 3 + ["upstream_challenge"]
    assert len(web.turns) == 2
    # Twice in a row: half an hour.
    assert int(gateway.ask(web.model).headers["retry-after"]) > 1700


def test_a_failing_account_is_avoided_while_another_serves_and_asked_alone(
    open_gateway, serve_upstream
):
    failing = serve_upstream("openai_compatible", name="failing", priority=1)
    serve_upstream("openai_compatible", name="working", priority=2)
    gateway = open_gateway()
    gateway.http.get("/v1/models")
    failing.enqueue(*[Reply(body={"error": {"message": "boom"}}, status=500)] * 3)
    for _ in range(3):
        assert gateway.ask(failing.model).status_code == 200
        assert accounts_of(last_row()) == ["failing", "working"]
    assert gateway.ask(failing.model).status_code == 200
    assert accounts_of(last_row()) == ["working"]
    wait_until(lambda: stored("failing").state == "cooling")
    stored("working").delete()
    assert gateway.ask(failing.model).status_code == 200
    assert accounts_of(last_row()) == ["failing"]
    wait_until(lambda: stored("failing").state == "ready")


def test_nothing_is_tried_again_at_an_account_that_went_out_meanwhile(
    open_gateway, serve_upstream, monkeypatch
):
    monkeypatch.setattr(turn, "_FIRST_DELAY_S", 1.0)
    upstream = serve_upstream("openai_compatible")
    gateway = open_gateway()
    upstream.enqueue(Reply(body={"error": {"message": "boom"}}, status=500))
    upstream.enqueue(limited(**{"retry-after": "60"}))
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(gateway.ask, upstream.model)
        wait_until(lambda: len(upstream.turns) == 1)
        assert gateway.ask(upstream.model).status_code == 429
        assert first.result().status_code == 502
    assert len(upstream.turns) == 2


def say(gateway, model, messages, text):
    messages.append({"role": "user", "content": text})
    answer = gateway.ask(model, messages=messages)
    assert answer.status_code == 200, answer.text
    messages.append(
        {"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"]}
    )
    return messages[-1]["content"]


def test_a_conversation_goes_to_another_kind_of_account_and_back_with_its_whole_context(
    open_gateway, serve_upstream
):
    web = serve_upstream("qwen_web", name="web", priority=1)
    server = serve_upstream("openai_compatible", name="server", priority=2)
    server.double.models = (web.model,)
    gateway = open_gateway()
    messages = []
    word = say(gateway, web.model, messages, "Please pick a word.").rstrip(".").split()[-1]
    web.enqueue(web_error("challenge_html_waf"))
    assert word in say(gateway, web.model, messages, "What was your word?")
    assert (accounts_of(last_row()), last_row().request.upstream) == (["web", "server"], "whole")
    # While it is out, nothing is asked of it; the conversation stays.
    asked = len(web.double.requests)
    assert word in say(gateway, web.model, messages, "Again: what was your word?")
    assert accounts_of(last_row()) == ["server"]
    assert len(web.double.requests) == asked
    # Back again: only new conversations go there, this one stays where it was answered last.
    jump(gateway, 901)
    gateway.ask(web.model, messages=[{"role": "user", "content": "another"}])
    assert accounts_of(last_row()) == ["web"]
    assert word in say(gateway, web.model, messages, "What was your word again?")
    assert accounts_of(last_row()) == ["server"]
    # And when that one fails, it moves back.
    server.enqueue(limited(**{"retry-after": "60"}))
    assert word in say(gateway, web.model, messages, "Please: what was your word?")
    assert accounts_of(last_row()) == ["server", "web"]
    assert last_row().request.upstream == "rebuilt:account"
    say(gateway, web.model, messages, "Thanks.")
    assert (accounts_of(last_row()), last_row().request.upstream) == (["web"], "continued")


def test_conversations_of_servers_stay_where_they_are(open_gateway, serve_upstream):
    served = [serve_upstream("openai_compatible", name=f"server {n}") for n in range(3)]
    gateway = open_gateway()
    model = served[0].model
    used = set()
    for number in range(8):
        messages = []
        for step in range(3):
            say(gateway, model, messages, f"conversation {number}, turn {step}")
        rows = Request.objects.order_by("-id")[:3]
        assert len({row.account_id for row in rows}) == 1
        used.add(rows[0].account_id)
    assert len(used) > 1


def test_no_more_turns_at_a_time_than_the_account_may_take(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible", max_concurrent=1)
    gateway = open_gateway(ACCOUNT_WAIT_S=0.2, KEEP_ALIVE_S=0.05)
    held = Reply(text="one two", pause_after=1)
    upstream.enqueue(held)
    with gateway.open_stream(upstream.model) as stream:
        assert held.paused.wait(10)
        answer = gateway.ask(upstream.model)
        assert (answer.status_code, error_of(answer)["code"]) == (503, "upstream_busy")
        assert int(answer.headers["retry-after"]) >= 1
        row = last_row()
        assert (row.error_code, row.status) == ("upstream_busy", "failed")
        assert (row.http_status, attempts_of(row)) == (503, [])
        held.resume.set()
        stream.read()
    assert gateway.ask(upstream.model).status_code == 200
    assert len(upstream.turns) == 2


@pytest.mark.parametrize("on_left", ["", "finish"], ids=["by-default", "finish"])
def test_a_client_that_leaves_while_it_waits_gives_its_place_back(
    open_gateway, serve_upstream, on_left
):
    upstream = serve_upstream("openai_compatible", max_concurrent=1)
    gateway = open_gateway(ON_CLIENT_LEFT=on_left, KEEP_ALIVE_S=0.05)
    held = Reply(text="one two", pause_after=1)
    upstream.enqueue(held)
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(gateway.ask, upstream.model)
        assert held.paused.wait(10)
        with gateway.open_stream(upstream.model) as stream:
            # The headers, by a keep-alive comment: it waits.
            assert stream.status_code == 200
        wait_until(lambda: last_row().status != "in_progress")
        row = last_row()
        assert (row.status, attempts_of(row)) == ("cancelled", [])
        held.resume.set()
        assert first.result().status_code == 200
    assert gateway.ask(upstream.model).status_code == 200
    (lane,) = gateway.gateway.routing.lanes
    wait_until(lambda: (lane.running, len(lane._waiters)) == (0, 0))
    assert len(upstream.turns) == 2


def test_a_turn_that_waits_in_a_stream_hears_of_it_in_the_stream(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible", max_concurrent=1)
    gateway = open_gateway(ACCOUNT_WAIT_S=0.3, KEEP_ALIVE_S=0.05)
    held = Reply(text="one two", pause_after=1)
    upstream.enqueue(held)
    with ThreadPoolExecutor(1) as clients:
        first = clients.submit(gateway.ask, upstream.model)
        assert held.paused.wait(10)
        answer = gateway.ask(upstream.model, stream=True)
        held.resume.set()
        first.result()
    assert answer.status_code == 200
    assert [body["error"]["code"] for body in sse_bodies(answer.text)] == ["upstream_busy"]


def test_waiting_counts_for_the_time_limit_of_a_turn(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible", max_concurrent=1)
    gateway = open_gateway(TURN_TIMEOUT_S=0.5)
    assert gateway.ask(upstream.model).status_code == 200
    (lane,) = gateway.gateway.routing.lanes
    # Somebody else's call.
    lane.running += 1
    answer = gateway.ask(upstream.model)
    assert (answer.status_code, error_of(answer)["code"]) == (504, "upstream_timeout")
    lane.running -= 1
    assert gateway.ask(upstream.model).status_code == 200
    assert len(upstream.turns) == 2


def test_calls_of_a_paced_account_are_apart(open_gateway, serve_upstream):
    web = serve_upstream("qwen_web", min_interval_ms=150)
    gateway = open_gateway()
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda _: gateway.ask(web.model, messages=HELLO), range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    began = sorted(attempts_of(row)[0]["started"] for row in Response.objects.all())
    for number, at in enumerate(began):
        assert at - began[0] >= number * 150 - 5


def test_a_full_account_makes_way_for_another(open_gateway, serve_upstream):
    first = serve_upstream("openai_compatible", name="first", priority=1, max_concurrent=1)
    serve_upstream("openai_compatible", name="second", priority=2)
    gateway = open_gateway(KEEP_ALIVE_S=0.05)
    held = Reply(text="one two", pause_after=1)
    first.enqueue(held)
    with gateway.open_stream(first.model) as stream:
        assert held.paused.wait(10)
        assert gateway.ask(first.model).status_code == 200
        assert accounts_of(last_row()) == ["second"]
        held.resume.set()
        stream.read()


def test_states_and_failovers_are_counted(open_gateway, serve_upstream):
    name = "counted account"
    first = serve_upstream("openai_compatible", name=name, priority=1)
    serve_upstream("openai_compatible", name="its neighbour", priority=2)
    gateway = open_gateway(METRICS_OPEN=True)
    first.enqueue(limited())
    assert gateway.ask(first.model).status_code == 200
    lines = gateway.http.get("/metrics").text.splitlines()
    assert f'qwenproxy_account_state{{account="{name}",state="cooling"}} 1.0' in lines
    assert 'qwenproxy_account_state{account="its neighbour",state="ready"} 1.0' in lines
    assert f'qwenproxy_failovers_total{{account="{name}"}} 1.0' in lines


def test_no_answer_waits_for_a_state_to_be_written(open_gateway, serve_upstream, monkeypatch):
    from qwenproxy.proxy import routing

    first = serve_upstream("openai_compatible", name="first", priority=1)
    serve_upstream("openai_compatible", name="second", priority=2)
    gateway = open_gateway()
    real, may_write, writes = routing.record_state, threading.Event(), []

    def record_state(*args):
        assert may_write.wait(10)
        real(*args)
        writes.append(args)

    monkeypatch.setattr(routing, "record_state", record_state)
    first.enqueue(limited())
    assert gateway.ask(first.model).status_code == 200
    assert writes == []
    may_write.set()
    wait_until(lambda: stored("first").state == "cooling")


@pytest.mark.parametrize(
    ("recorded", "kept"),
    [
        pytest.param("everything", "upstream_rate_limited: ", id="everything"),
        pytest.param("metadata", "upstream_rate_limited", id="no-content"),
    ],
)
def test_a_state_quotes_nobody_whose_content_is_not_kept(
    open_gateway, serve_upstream, recorded, kept
):
    upstream = serve_upstream("openai_compatible", name="only")
    ApiKey.objects.update(recorded=recorded)
    gateway = open_gateway()
    secret = "what I said in confidence"
    upstream.enqueue(Reply(body={"error": {"message": f"too much: {secret}"}}, status=429))
    assert gateway.ask(upstream.model).status_code == 429
    wait_until(lambda: stored("only").state == "cooling")
    reason = stored("only").state_reason
    assert reason.startswith(kept)
    assert (secret in reason) == (recorded == "everything")
    assert gateway.ask(upstream.model).status_code == 429
    assert len(upstream.turns) == 1

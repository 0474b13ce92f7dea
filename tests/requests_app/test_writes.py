"""What turns leave in the database: each text once, and every request rebuilt from it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from django.db import connection

from qwenproxy.proxy import schemas
from qwenproxy.transaction import transaction
from qwenproxy.wire import history
from requests_app.deletion import delete_session_rows
from requests_app.models import Blob, Partial, Request, Response
from requests_app.records import load_request
from requests_app.writes import PartialRows, append_partials
from sessions_app.models import Message, Session
from tests.factories import make_api_key
from tests.turns import (
    assistant,
    close_all,
    make_closing,
    make_opening,
    make_worker,
    one_shots,
    open_all,
    take_turn,
    user,
)

pytestmark = pytest.mark.django_db(transaction=True)

CLIENTS = Path(__file__).resolve().parents[2] / "../shared/reference/fixtures/clients"
SYSTEM = {"role": "system", "content": "be brief"}


@pytest.fixture(autouse=True)
def _worker(transactional_db):
    make_worker()


@pytest.fixture
def key():
    return make_api_key()


# PostgreSQL keeps the row before an update until it is vacuumed.
SLACK = 2 if connection.vendor == "postgresql" else 1


def used_bytes():
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(
                "SELECT page_count - freelist_count FROM pragma_page_count, pragma_freelist_count"
            )
            pages = cursor.fetchone()[0]
            return pages * 4096
        cursor.execute("SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relkind = 'r'")
        return int(cursor.fetchone()[0])


def prose(rng, characters):
    """Text that no database makes much smaller."""
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ,.;:-_+=#"
    return "".join(rng.choices(alphabet, k=characters))


@pytest.mark.parametrize("changing", [False, True], ids=["steady", "parameters change"])
def test_an_agents_hundred_turns_take_less_than_two_megabytes(key, changing):
    rng = random.Random(1)
    tools = [
        {"type": "function", "function": {"name": f"tool_{i}", "description": prose(rng, 2000)}}
        for i in range(20)
    ]
    messages = [SYSTEM]
    before = used_bytes()
    for turn in range(100):
        messages.append(user(prose(rng, 10_000)))
        parameters = {"model": "qwen3-coder-30b"}
        if changing:
            parameters |= {"temperature": turn / 100, "metadata": {"turn": str(turn)}}
        answer = prose(rng, 2_000)
        opened = take_turn(key, *messages, tools=tools, parameters=parameters, answer=answer)
        messages.append(assistant(answer))
        assert opened.match == ("new" if turn == 0 else "continued")
    assert used_bytes() - before < 2_000_000 * SLACK
    assert sorted(Blob.objects.values_list("kind", flat=True)) == ["system", "tools"]
    assert Message.objects.count() == 200


def test_a_system_prompt_that_changes_every_turn_costs_itself_alone(key):
    rng = random.Random(2)
    tools = [{"type": "function", "function": {"name": "t", "description": prose(rng, 40_000)}}]
    messages = []
    before = used_bytes()
    for turn in range(50):
        system = {"role": "system", "content": f"It is minute {turn}. " + "x" * 2000}
        messages.append(user(prose(rng, 2_000)))
        opened = take_turn(key, system, *messages, tools=tools, answer=f"answer {turn}")
        messages.append(assistant(f"answer {turn}"))
        assert opened.match == ("new" if turn == 0 else "continued")
    assert used_bytes() - before < 600_000 * SLACK
    assert Session.objects.count() == 1


def test_ten_thousand_calls_with_one_system_prompt_store_it_once(key):
    calls = 10_000 if connection.vendor == "sqlite" else 2_000
    system = {"role": "system", "content": "x" * 8000}
    before = used_bytes()
    for start in range(0, calls, 500):
        openings = [make_opening(key, system, user(f"question {start + i}")) for i in range(500)]
        opened = open_all(*openings)
        closed = [make_closing(a, b, "ok") for a, b in zip(openings, opened, strict=True)]
        assert close_all(*closed) == 0
    assert Blob.objects.count() == 1
    assert Session.objects.count() == Response.objects.filter(status="completed").count() == calls
    # With the prompt in each it would be 8,000 more.
    assert used_bytes() - before < 2_500 * calls * SLACK


def test_texts_of_two_keys_are_stored_apart(key):
    for api_key in (key, make_api_key(), key):
        take_turn(api_key, SYSTEM, user("hi"))
    assert Blob.objects.count() == 2


def resend_with_habits(rng, messages):
    """The history as another client, or another moment of the same one, would send it."""
    sent = []
    marked = {len(messages) - 1, len(messages) - 3, rng.randrange(len(messages))}
    for index, message in enumerate(messages):
        message = dict(message)
        message.pop("reasoning_content", None)
        text = message.get("content")
        if isinstance(text, str) and (index in marked or rng.random() < 0.3):
            part = {"type": "text", "text": text}
            if index in marked:
                part["cache_control"] = {"type": "ephemeral"}
            message["content"] = [part]
        if message["role"] == "assistant":
            if isinstance(message.get("content"), str):
                message["content"] = message["content"].strip()
            message |= rng.choice([{}, {"refusal": None}, {"annotations": []}, {"tool_calls": []}])
            if message.get("tool_calls") == [] and "calls" in message:
                del message["tool_calls"]
        sent.append(message)
    return sent


def test_twenty_turns_of_changing_habits_are_one_line(key):
    rng = random.Random(3)
    messages = [SYSTEM]
    for turn in range(20):
        messages.append(user(f"question {turn}"))
        sent = resend_with_habits(rng, messages)
        opening = make_opening(key, *sent, tools=None)
        (opened,) = open_all(opening)
        answer = assistant(f" answer {turn}\n")
        close_all(make_closing(opening, opened, answer, reasoning="because"))
        messages.append({**answer, "reasoning_content": "because"})
        assert opened.match == ("new" if turn == 0 else "continued")
        rebuilt = load_request(Request.objects.get(request_id=opening.request_id).pk)
        assert_same_meaning(rebuilt["openai_request"]["messages"], sent)
    assert Session.objects.count() == 1
    assert Message.objects.count() == 40


def assert_same_meaning(rebuilt, sent):
    # Messages of the system are stored as they were sent; markers on them are part of that.
    assert [history.match_form(m) for m in rebuilt] == [history.match_form(m) for m in sent]


def test_two_protocols_in_one_conversation_are_one_line(key):
    first = take_turn(key, user("Once"), answer=" upon", dialect="completions")
    second = take_turn(key, user("Once"), assistant("upon"), user("go on"), answer="a time")
    assert (second.match, second.session_id) == ("continued", first.session_id)
    dialects = Message.objects.order_by("position").values_list("dialect", flat=True)
    assert list(dialects) == ["completions", "completions", "chat", "chat"]
    bodies = [
        load_request(pk)["openai_request"] for pk in Request.objects.values_list("pk", flat=True)
    ]
    assert bodies[0]["prompt"] == "Once"
    assert_same_meaning(bodies[1]["messages"], [user("Once"), assistant("upon"), user("go on")])


def test_tool_calls_come_back_with_arguments_in_another_order(key):
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1,"b":2}'}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    first = take_turn(key, user("do"), answer=answer)
    resent = {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {**call, "function": {"arguments": '{"b": 2, "a": 1}', "name": "f"}, "index": 0}
        ],
    }
    sent = [user("do"), resent, {"role": "tool", "tool_call_id": "c1", "content": "done"}]
    second = take_turn(key, *sent, answer="good")
    assert (second.match, second.session_id) == ("continued", first.session_id)
    assert_same_meaning(
        load_request(Request.objects.latest("id").pk)["openai_request"]["messages"], sent
    )


def client_bodies():
    for path in sorted(CLIENTS.glob("*.json")) if CLIENTS.is_dir() else []:
        body = json.loads(path.read_text())
        body = body.get("body", body) if isinstance(body, dict) else body
        if isinstance(body, dict) and isinstance(body.get("messages"), list):
            yield pytest.param(body, id=path.stem)


CLIENT_BODIES = list(client_bodies())


@pytest.mark.skipif(not CLIENT_BODIES, reason="the captured requests are not beside the checkout")
@pytest.mark.parametrize("sent", CLIENT_BODIES)
def test_a_clients_request_is_rebuilt(key, sent):
    body = schemas.parse_chat(json.dumps(sent).encode())
    opening = make_opening(
        key, *body.messages, tools=body.tools, parameters=body.recorded_parameters()
    )
    (opened,) = open_all(opening)
    close_all(make_closing(opening, opened, "done"))
    rebuilt = load_request(Request.objects.get().pk)["openai_request"]
    assert rebuilt == sent
    # And once more, resent with an answer by a client of other habits.
    messages = resend_with_habits(
        random.Random(4), [*sent["messages"], assistant("done"), user("on")]
    )
    _, line = history.split_system(messages)
    again = take_turn(key, *sent["messages"][: len(messages) - len(line)], *line)
    assert (again.match, again.session_id) == ("continued", opened.session_id)
    rebuilt = load_request(Request.objects.latest("id").pk)["openai_request"]
    assert_same_meaning(rebuilt["messages"], [*sent["messages"], assistant("done"), user("on")])


HARD_TEXTS = {
    "nul": "a\x00b",
    "lone surrogate": "a\ud83db",
    "escapes": '\\u0000 \\" \n\r\t\u2028\ufeff',
    "astral": "🧪𝕏",
    "long": "x" * 1_000_000,
}


@pytest.mark.parametrize("name", HARD_TEXTS)
def test_a_text_of_any_kind_survives(key, name):
    text = HARD_TEXTS[name]
    system = {"role": "system", "content": text}
    take_turn(key, system, user(text), answer=text, parameters={"model": "m", "stop": text})
    rebuilt = load_request(Request.objects.get().pk)
    assert rebuilt["openai_request"]["messages"] == [system, user(text)]
    assert rebuilt["openai_request"]["stop"] == text
    answer = rebuilt["response"]["openai_response"]["choices"][0]["message"]["content"]
    assert answer == text


def test_numbers_survive_as_they_were_sent(key):
    parameters = json.loads('{"model":"m","seed":123456789012345678901234567890,"top_p":1.0}')
    take_turn(key, user("hi"), parameters=parameters)
    row = Request.objects.get()
    assert '"top_p":1.0' in row.parameters
    assert load_request(row.pk)["openai_request"]["seed"] == 123456789012345678901234567890


def test_closing_twice_writes_the_same(key):
    (opening,) = one_shots(key, 1)
    (opened,) = open_all(opening)
    closing = make_closing(opening, opened, "ok")
    assert [close_all(closing) for _ in range(3)] == [0, 0, 0]
    assert (Message.objects.count(), Session.objects.get().message_count) == (2, 2)


def test_the_count_of_messages_is_that_of_the_line_answered_last(key):
    take_turn(key, user("a"), answer="b")
    take_turn(key, user("a"), assistant("b"), user("c"), answer="d")
    take_turn(key, user("a"), assistant("b"), user("c2"), answer="d2")
    session = Session.objects.get()
    assert (session.message_count, session.request_count) == (4, 3)
    assert session.last_reply.content == '"d2"'


def test_ends_of_deleted_sessions_are_counted_and_write_nothing(key):
    openings = one_shots(key, 3)
    opened = open_all(*openings)
    assert delete_session_rows(opened[1].session_id, key.pk)
    closings = [make_closing(a, b, "ok") for a, b in zip(openings, opened, strict=True)]
    assert close_all(*closings) == 1
    assert Message.objects.count() == 4
    assert Session.objects.count() == Response.objects.count() == 2


def test_partials_of_an_ended_answer_are_not_written(key):
    (opening,) = one_shots(key, 1)
    (opened,) = open_all(opening)
    close_all(make_closing(opening, opened, "ok"))
    with transaction(lock_wait_s=5) as tx:
        append_partials(tx, PartialRows([(opening.response_id, 0, []), ("unknown", 0, [])]))
    assert Partial.objects.count() == 0

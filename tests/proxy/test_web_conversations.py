"""Conversations through the web upstream, whose double sees only the path it is given."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import OpenAI

from requests_app.models import Request, Response
from sessions_app.models import Session, UpstreamChat
from tests.doubles.qwen_web import web_error
from tests.doubles.server import Reply, serve_in_thread

MODEL = "qwen3-max"


@pytest.fixture(autouse=True)
def account(make_account, qwen_web_url):
    return make_account("qwen_web", qwen_web_url, secrets={"cookies": "token=t; acw_tc=a"})


def ask(client, messages, text, *, stream=True, **kwargs):
    """One more turn; returns the answer's text and adds both to the messages."""
    messages.append({"role": "user", "content": text})
    if stream:
        chunks = client.chat.completions.create(
            model=MODEL, messages=messages, stream=True, **kwargs
        )
        answer = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    else:
        completion = client.chat.completions.create(model=MODEL, messages=messages, **kwargs)
        answer = completion.choices[0].message.content
    messages.append({"role": "assistant", "content": answer})
    return answer


def secret_word(answer: str) -> str:
    return answer.rstrip(".").split()[-1]


def uses() -> list[str]:
    return list(Request.objects.order_by("id").values_list("upstream", flat=True))


def test_ten_streamed_turns_go_on_in_one_chat_and_know_what_only_the_model_said(
    openai_client, qwen_web
):
    messages = []
    word = secret_word(ask(openai_client, messages, "Please pick a word."))
    for turn in range(8):
        ask(openai_client, messages, f"filler {turn}")
    assert word in ask(openai_client, messages, "What was your word?")
    assert len(qwen_web.chats) == 1
    assert uses() == ["new"] + ["continued"] * 9
    assert UpstreamChat.objects.count() == Session.objects.count() == 1
    sent = [turn.body["messages"][0]["content"] for turn in qwen_web.turns]
    assert sent[-1] == "What was your word?"


def test_a_restart_in_the_middle_goes_on_in_the_same_chat(
    transactional_db, api_key, qwen_web, settings
):
    from qwenproxy.asgi import Application

    messages = []
    for text in ("Please pick a word.", "What was your word?"):
        with (
            serve_in_thread(app := Application(), lifespan="on") as url,
            OpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0) as client,
        ):
            answer = ask(client, messages, text)
        assert app.gateway is None
    assert secret_word(messages[1]["content"]) in answer
    assert len(qwen_web.chats) == 1


def test_regenerating_branches_below_the_same_node(openai_client, qwen_web):
    messages = []
    ask(openai_client, messages, "Please pick a word.")
    ask(openai_client, messages, "filler")
    qwen_web.enqueue("another answer")
    again = ask(openai_client, messages[:2], "filler")
    assert again == "another answer"
    assert uses() == ["new", "continued", "continued"]
    parents = [turn.body["parent_id"] for turn in qwen_web.turns]
    assert parents[1] == parents[2]


def test_an_edited_history_is_rebuilt_and_keeps_its_context(openai_client, qwen_web):
    messages = []
    word = secret_word(ask(openai_client, messages, "Please pick a word."))
    ask(openai_client, messages, "filler")
    edited = [*messages[:2], {"role": "user", "content": "other"}, messages[3]]
    assert word in ask(openai_client, edited, "What was your word?")
    assert uses()[-1] == "rebuilt:edited"
    assert len(qwen_web.chats) == 2


def test_an_unknown_history_is_answered_with_its_context(openai_client, qwen_web):
    messages = [
        {"role": "user", "content": "Please pick a word."},
        {"role": "assistant", "content": "My word is zebra-0123456789ab."},
    ]
    assert "zebra-0123456789ab" in ask(openai_client, messages, "What was your word?")
    assert uses() == ["rebuilt:unknown"]


def test_another_system_text_opens_another_chat(openai_client, qwen_web):
    messages = [{"role": "system", "content": "Be brief."}]
    word = secret_word(ask(openai_client, messages, "Please pick a word."))
    messages[0] = {"role": "system", "content": "Be long."}
    assert word in ask(openai_client, messages, "What was your word?")
    assert uses() == ["new", "rebuilt:context"]
    assert Session.objects.count() == 1


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        pytest.param("chat_in_progress", "busy", id="busy"),
        pytest.param("chat_not_found", "gone", id="chat-gone"),
        pytest.param("bad_parent", "gone", id="parent-gone"),
        pytest.param("parent_not_found", "gone", id="parent-not-found"),
    ],
)
def test_a_chat_that_cannot_go_on_is_rebuilt_at_once(openai_client, qwen_web, failure, reason):
    messages = []
    word = secret_word(ask(openai_client, messages, "Please pick a word."))
    qwen_web.enqueue(web_error(failure))
    assert word in ask(openai_client, messages, "What was your word?")
    assert uses()[-1] == f"rebuilt:{reason}"
    assert Response.objects.filter(status="completed").count() == 2


def test_two_turns_at_once_in_one_chat_do_not_collide(openai_client, qwen_web):
    messages = []
    ask(openai_client, messages, "Please pick a word.")
    held = Reply(text="slow answer", pause_after=3)
    qwen_web.enqueue(held)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(ask, openai_client, list(messages), "one")
        assert held.paused.wait(10)
        assert "word" in ask(openai_client, list(messages), "What was your word?")
        held.resume.set()
        assert first.result() == "slow answer"
    assert sorted(uses()) == ["continued", "new", "rebuilt:busy"]


def test_fifty_conversations_at_once_never_mix(openai_client, qwen_web):
    def converse(number: int) -> tuple[str, str]:
        messages = []
        word = secret_word(ask(openai_client, messages, f"Please pick a word. ({number})"))
        ask(openai_client, messages, "filler")
        return word, ask(openai_client, messages, "What was your word?")

    with ThreadPoolExecutor(50) as pool:
        results = list(pool.map(converse, range(50)))
    assert all(word in answer for word, answer in results)
    assert len({word for word, _ in results}) == 50
    assert Session.objects.count() == len(qwen_web.chats) == 50


def test_the_parent_rule_of_the_setting_is_followed(
    transactional_db, api_key, qwen_web, settings, make_account
):
    from qwenproxy.asgi import Application

    settings.QWEN_PARENT_RULE = "parent_id"
    with (
        serve_in_thread(Application(), lifespan="on") as url,
        OpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0) as client,
    ):
        messages = []
        ask(client, messages, "one")
        ask(client, messages, "two")
    reply = Response.objects.order_by("id").first().reply
    assert qwen_web.turns[1].body["parent_id"] == reply.upstream_parent_id
    assert reply.upstream_parent_id != reply.upstream_id


def test_an_expired_session_lets_go_of_its_chat_but_not_of_its_history(openai_client, qwen_web):
    from datetime import UTC, datetime

    messages = []
    word = secret_word(ask(openai_client, messages, "Please pick a word."))
    Session.objects.update(expires_at=datetime(2020, 1, 1, tzinfo=UTC))
    assert word in ask(openai_client, messages, "What was your word?")
    assert uses() == ["new", "rebuilt:unknown"]
    assert Session.objects.count() == 1


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "read_file",
            "description": "Read a file.",
            "parameters": {
                "type": "object",
                "properties": {"path": {"type": "string"}},
                "required": ["path"],
            },
        },
    }
]


@pytest.mark.parametrize("stream", [False, True])
def test_tool_calls_are_read_from_the_text_and_results_go_on_in_the_chat(
    openai_client, qwen_web, stream
):
    qwen_web.enqueue(
        'Let me look.\n<tool_call>\n{"name": "read_file", "arguments": {"path": "é.md"}}\n</tool_call>'
    )
    messages = [{"role": "user", "content": "Read é.md"}]
    if stream:
        with openai_client.chat.completions.stream(
            model=MODEL, messages=messages, tools=TOOLS
        ) as events:
            answer = events.get_final_completion()
    else:
        answer = openai_client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    call = choice.message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("read_file", '{"path":"é.md"}')
    assert "read_file" in qwen_web.turns[0].body["messages"][0]["content"]
    messages += [
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "contents of the file"},
    ]
    openai_client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS)
    assert uses() == ["new", "continued"]
    sent = qwen_web.turns[1].body["messages"][0]["content"]
    assert "contents of the file" in sent
    assert "Read a file." not in sent


def test_the_upstream_is_stopped_where_the_setting_cancels(
    transactional_db, api_key, qwen_web, settings
):
    import httpx

    from qwenproxy.asgi import Application

    settings.ON_CLIENT_LEFT = "cancel"
    held = Reply(text="one two three four", pause_after=4)
    qwen_web.enqueue(held)
    with serve_in_thread(Application(), lifespan="on") as url:
        with (
            httpx.Client(headers={"Authorization": f"Bearer {api_key}"}) as client,
            client.stream(
                "POST",
                f"{url}/v1/chat/completions",
                json={
                    "model": MODEL,
                    "stream": True,
                    "messages": [{"role": "user", "content": "hi"}],
                },
            ) as response,
        ):
            next(response.iter_bytes())
        for _ in range(500):
            row = Response.objects.get()
            if row.status != "in_progress":
                break
            held.paused.wait(0.01)
    assert (row.status, row.client_left) == ("cancelled", True)
    assert row.reply is not None
    assert qwen_web.requests_to("/api/v2/chat/completions/stop")


def test_a_turn_whose_client_left_finishes_on_the_web_upstream(gateway, http, qwen_web):
    held = Reply(text="one two three four", pause_after=4)
    qwen_web.enqueue(held)
    body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        next(response.iter_bytes())
    for _ in range(500):
        if next(iter(gateway.gateway._turns)).client.left:
            break
        held.paused.wait(0.01)
    held.resume.set()
    for _ in range(500):
        row = Response.objects.get()
        if row.status != "in_progress":
            break
        held.resume.wait(0.01)
    assert (row.status, row.client_left) == ("completed", True)
    assert row.reply.content == '"one two three four"'

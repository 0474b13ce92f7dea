from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from qwenproxy.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    UpstreamAuthExpired,
    UpstreamChallenged,
    UpstreamChatBusy,
    UpstreamChatGone,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamTimeout,
)
from qwenproxy.upstream import http
from qwenproxy.upstream.protocol import ChatTarget, Credentials, Upstream, UpstreamCall
from qwenproxy.upstream.qwen_web import MAX_PROMPT_CHARS, QwenWeb
from qwenproxy.wire.events import Finished, Sent, Started, TextDelta, UsageReport
from qwenproxy.wire.reasoning import read_reasoning
from tests.doubles import model as small_model
from tests.doubles.qwen_web import COMPLETIONS, FIXTURES, MODELS, NEW_CHAT, STOP, web_error
from tests.doubles.server import Reply, unused_port
from tests.upstream.conftest import ask, make_account

CAPTURES = Path(__file__).resolve().parents[2] / "../shared/reference/fixtures/qwen_web"
MODEL = "qwen3-max"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "read_file",
            "description": "Read a file",
            "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
        },
    }
]


def user(text):
    return {"role": "user", "content": text}


def make_call(*messages, chat=None, tools=None, **parameters):
    return UpstreamCall(
        MODEL, list(messages) or [user("Say hello")], parameters, tools=tools, chat=chat
    )


def ask_double(served, *replies, call=None, credentials=None, path=None):
    served.double.enqueue(*replies, path=path)
    account = make_account(served.url, kind="qwen_web", credentials=credentials)
    return ask(QwenWeb, account, call or make_call())


def on_client(served, use):
    """Run `use(upstream)` on a client of its own."""

    async def main():
        async with http.open_client() as client:
            return await use(QwenWeb(client, make_account(served.url, kind="qwen_web")))

    return asyncio.run(main())


def test_it_is_an_upstream_that_keeps_chats():
    upstream: Upstream = QwenWeb(None, make_account(""))
    assert upstream.keeps_chats
    assert upstream.on_client_left == "finish"


def test_first_turn_opens_a_chat_and_streams_the_answer(qwen_web):
    outcome = ask_double(qwen_web, "Hello 世界!")
    assert outcome.error is None
    assert outcome.answer.text == "Hello 世界!"
    kinds = [type(event) for event in outcome.events]
    assert kinds[:2] == [Sent, Started]
    assert kinds[-2:] == [UsageReport, Finished]
    (chat,) = qwen_web.double.chats.values()
    started = outcome.answer.started
    assert started.chat_id == chat.id
    assert chat.nodes[started.parent_id].role == "user"
    assert chat.nodes[started.response_id].content == "Hello 世界!"
    assert outcome.answer.usage.prompt_tokens == 33
    assert [request.path for request in qwen_web.double.requests] == [NEW_CHAT, COMPLETIONS]


def test_record_of_what_was_sent_has_no_text_in_the_request(qwen_web):
    outcome = ask_double(qwen_web, call=make_call(user("a secret text")))
    sent = outcome.answer.sent
    body = qwen_web.double.turns[0].body
    assert sent.text == "a secret text"
    assert sent.request == {**body, "messages": [{**body["messages"][0], "content": None}]}
    assert sent.first_message == 0


def continue_chat(served, outcome, messages, *, first_message, parent="response_id", **call):
    started = outcome.answer.started
    chat = ChatTarget(started.chat_id, getattr(started, parent), first_message)
    return ask_double(served, call=make_call(*messages, chat=chat, **call))


def test_next_turn_sends_its_new_text_alone_and_the_model_knows_its_own_answer(qwen_web):
    first = ask_double(qwen_web, call=make_call(user("pick a word")))
    history = [user("pick a word"), first.answer.message(), user("what was your word?")]
    second = continue_chat(qwen_web, first, history, first_message=2)
    assert small_model.word_in(first.answer.text)
    assert small_model.word_in(second.answer.text) == small_model.word_in(first.answer.text)
    assert second.answer.sent.text == "what was your word?"
    assert second.answer.sent.first_message == 2
    assert len(qwen_web.double.chats) == 1
    assert len(qwen_web.double.requests_to(NEW_CHAT)) == 1


def test_the_double_tells_the_two_parent_rules_apart(qwen_web):
    first = ask_double(qwen_web, call=make_call(user("pick a word")))
    history = [user("pick a word"), first.answer.message(), user("what was your word?")]
    second = continue_chat(qwen_web, first, history, first_message=2, parent="parent_id")
    assert second.answer.text == small_model.UNKNOWN


def test_unknown_history_is_sent_as_one_text(qwen_web):
    history = [
        {"role": "system", "content": "Be brief."},
        user("pick a word"),
        {"role": "assistant", "content": "My word is amber-0123456789ab."},
        user("what was your word?"),
    ]
    outcome = ask_double(qwen_web, call=make_call(*history))
    assert small_model.word_in(outcome.answer.text) == "amber-0123456789ab"
    assert len(qwen_web.double.turns[0].body["messages"]) == 1
    assert outcome.answer.sent.text.startswith("Be brief.")


@pytest.mark.parametrize("piece_bytes", [1, 50, 1_000_000])
@pytest.mark.parametrize(
    ("name", "text", "reasoning"),
    [
        ("think_full_answer", "Paris is the capital of France.", "The user wants"),
        ("thinking_summary_growing", None, ""),
        ("web_search_builtin", None, ""),
        ("image_gen_keepalive", None, ""),
        ("variant_crlf", "Hello", ""),
        ("variant_no_space_done", "Hello", ""),
        ("variant_no_trailing_newline", "Hello", ""),
        ("variant_cumulative_content", "Hello you", ""),
    ],
)
def test_every_answer_form_is_read_however_it_is_cut(qwen_web, name, text, reasoning, piece_bytes):
    raw = (FIXTURES / f"{name}.sse").read_bytes()
    outcome = ask_double(qwen_web, Reply(raw=raw, piece_bytes=piece_bytes))
    assert outcome.error is None
    assert isinstance(outcome.events[-1], Finished)
    assert not outcome.answer.tool_calls
    assert outcome.answer.text == text if text else outcome.answer.text
    assert outcome.answer.reasoning.startswith(reasoning)


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="the captures are not at hand")
def test_captured_answer_is_read(qwen_web):
    raw = (CAPTURES / "stream_answer.sse").read_bytes()
    outcome = ask_double(qwen_web, Reply(raw=raw, piece_bytes=1000))
    assert outcome.error is None
    assert outcome.answer.text.startswith("Greetings, Cosmic Travel")
    assert outcome.answer.usage.total_tokens == 871


def test_reasoning_comes_apart_from_the_answer(qwen_web):
    outcome = ask_double(qwen_web, Reply(text="Four.", reasoning="Two and two"))
    assert (outcome.answer.text, outcome.answer.reasoning) == ("Four.", "Two and two")


def test_chat_is_named_where_the_stream_is_not(qwen_web):
    raw = b'data: {"choices":[{"delta":{"content":"Hi","phase":"answer","status":"typing"}}]}\n'
    raw += b'data: {"choices":[{"delta":{"content":"","phase":"answer","status":"finished"}}]}\n'
    outcome = ask_double(qwen_web, Reply(raw=raw))
    assert outcome.answer.text == "Hi"
    assert outcome.answer.started.chat_id == next(iter(qwen_web.double.chats))


@pytest.mark.parametrize(
    ("parameters", "thinking", "budget"),
    [
        pytest.param({}, False, None, id="off by default"),
        pytest.param({"enable_thinking": True}, True, None, id="on"),
        pytest.param({"enable_thinking": True, "thinking_budget": 900}, True, 900, id="budget"),
        pytest.param({"enable_thinking": False, "thinking_budget": 900}, False, None, id="off"),
        pytest.param({"thinking_budget": 900}, True, 900, id="budget alone"),
        pytest.param({"reasoning_effort": "high"}, True, None, id="effort"),
        pytest.param({"reasoning_effort": "none"}, False, None, id="no effort"),
        pytest.param(
            {"chat_template_kwargs": {"enable_thinking": True}}, True, None, id="template"
        ),
        pytest.param({"reasoning_effort": "low"}, True, 2048, id="low effort"),
        pytest.param({"temperature": 0.1, "max_tokens": 5}, False, None, id="sampling"),
    ],
)
def test_thinking_is_what_the_client_asks_for(qwen_web, parameters, thinking, budget):
    call = replace(make_call(**parameters), reasoning=read_reasoning(parameters))
    assert ask_double(qwen_web, call=call).error is None
    features = qwen_web.double.turns[0].body["messages"][0]["feature_config"]
    assert features["thinking_enabled"] is thinking
    assert features.get("thinking_budget") == budget
    assert features["auto_search"] is False


# What a browser sends.


def test_default_headers_are_a_browsers(qwen_web):
    credentials = Credentials(
        cookies="token=t; acw_tc=值", token="T2gA-device", user_agent="Mine/1"
    )
    qwen_web.double.require_cookie = qwen_web.double.require_version_header = True
    assert ask_double(qwen_web, credentials=credentials).error is None
    new_chat, turn = qwen_web.double.requests
    chat_id = next(iter(qwen_web.double.chats))
    assert turn.headers["cookie"] == "token=t; acw_tc=值"
    assert turn.headers["bx-umidtoken"] == "T2gA-device"
    assert turn.headers["user-agent"] == "Mine/1"
    assert turn.headers["source"] == "web"
    assert turn.headers["version"]
    assert turn.headers["bx-v"]
    assert turn.headers["origin"] == qwen_web.url
    assert turn.headers["referer"] == f"{qwen_web.url}/c/{chat_id}"
    assert turn.headers["x-accel-buffering"] == "no"
    assert "x-accel-buffering" not in new_chat.headers
    assert re.fullmatch(
        r"[A-Z][a-z]{2} [A-Z][a-z]{2} \d\d \d{4} \d\d:\d\d:\d\d GMT[+-]\d{4}",
        turn.headers["timezone"],
    )
    assert turn.headers["x-request-id"] != new_chat.headers["x-request-id"]


def test_pasted_headers_win_but_for_those_of_one_request(qwen_web):
    pasted = {
        "Version": "0.2.99",
        "bx-v": "2.5.1",
        "bx-ua": "231!x",
        "sec-ch-ua": '"Chrome";v="150"',
        "bx-umidtoken": "T2gA-pasted",
        "User-Agent": "Pasted/1",
        "Host": "chat.qwen.ai",
        "Content-Length": "3",
        "X-Request-Id": "old",
        "Referer": "https://chat.qwen.ai/c/old",
        "Accept-Encoding": "br",
    }
    assert ask_double(qwen_web, credentials=Credentials(headers=pasted)).error is None
    headers = qwen_web.double.turns[0].headers
    for name in ("version", "bx-v", "bx-ua", "sec-ch-ua", "bx-umidtoken", "user-agent"):
        assert headers[name] == {k.lower(): v for k, v in pasted.items()}[name]
    assert headers["host"] in qwen_web.url
    assert headers["x-request-id"] != "old"
    assert headers["referer"].startswith(qwen_web.url)
    assert headers["accept-encoding"] == "gzip, deflate"


def test_cookies_of_answers_are_not_sent_back(qwen_web):
    qwen_web.double.enqueue(
        Reply(body={"data": {"id": "x"}}, headers={"set-cookie": "acw_tc=new"}), path=NEW_CHAT
    )
    ask_double(qwen_web, credentials=Credentials(cookies="token=t"))
    assert qwen_web.double.turns[0].headers["cookie"] == "token=t"


def test_bad_paste_is_named(qwen_web):
    outcome = ask_double(qwen_web, credentials=Credentials(cookies="token=a\r\nx: y"))
    assert isinstance(outcome.error, UpstreamAuthExpired)
    assert not qwen_web.double.requests


# Tools.


@pytest.mark.parametrize("name", ["text_tool_hermes", "text_tool_qwen3_coder_xml"])
def test_calls_are_read_from_the_text(qwen_web, name):
    raw = (FIXTURES / f"{name}.sse").read_bytes()
    decoded = ask_double(qwen_web, Reply(raw=raw)).answer.text
    called = re.search(r'"name":\s*"(\w+)"|<function=(\w+)>', decoded)
    tool = {"type": "function", "function": {"name": called[1] or called[2]}}
    outcome = ask_double(qwen_web, Reply(raw=raw), call=make_call(tools=[tool]))
    assert outcome.error is None
    assert outcome.answer.finish_reason == "tool_calls"
    (tool_call,) = outcome.answer.tool_calls.values()
    assert tool_call.name == tool["function"]["name"]
    assert json.loads(tool_call.arguments)
    assert "<tool_call>" not in outcome.answer.text
    assert outcome.answer.raw_text == decoded
    assert isinstance(outcome.events[-1], Finished)


CALL_TEXT = '<tool_call>\n{"name": "read_file", "arguments": {"path": "ä.txt"}}\n</tool_call>'


def test_tools_are_told_with_the_first_turn_only(qwen_web):
    first = ask_double(
        qwen_web, f"Let me look.\n{CALL_TEXT}", call=make_call(user("read it"), tools=TOOLS)
    )
    assert '"read_file"' in first.answer.sent.text
    assert first.answer.sent.text.endswith("read it")
    assert first.answer.text.strip() == "Let me look."
    assert first.answer.finish_reason == "tool_calls"
    history = [
        user("read it"),
        first.answer.message(),
        {"role": "tool", "tool_call_id": first.answer.tool_calls[0].id, "content": "42"},
    ]
    second = continue_chat(qwen_web, first, history, first_message=2, tools=TOOLS)
    assert second.error is None
    assert second.answer.sent.text == "<tool_response>\n42\n</tool_response>"


def test_forced_choice_goes_with_its_turn(qwen_web):
    choice = {"type": "function", "function": {"name": "read_file"}}
    first = ask_double(qwen_web, "ok", call=make_call(tools=TOOLS))
    history = [user("Say hello"), first.answer.message(), user("again")]
    second = continue_chat(
        qwen_web, first, history, first_message=2, tools=TOOLS, tool_choice=choice
    )
    assert "MUST call the function read_file" in second.answer.sent.text
    assert "<tools>" not in second.answer.sent.text


def test_no_call_is_read_where_none_may_be_made(qwen_web):
    outcome = ask_double(qwen_web, CALL_TEXT, call=make_call(tools=TOOLS, tool_choice="none"))
    assert outcome.answer.text == CALL_TEXT
    assert outcome.answer.finish_reason == "stop"
    assert "<tools>" in outcome.answer.sent.text
    assert "Call no function" in outcome.answer.sent.text


def test_call_without_its_end_is_no_json_and_ends_as_cut(qwen_web):
    text = 'One moment. <tool_call>\n{"name": "read_file", "arguments": {"path": "a'
    outcome = ask_double(qwen_web, text, call=make_call(tools=TOOLS))
    assert outcome.answer.tool_calls[0].arguments == '{"path":"a'
    assert outcome.answer.finish_reason == "length"


def test_intercepted_call_is_an_error(qwen_web):
    outcome = ask_double(qwen_web, "Tool read_file does not exists.", call=make_call(tools=TOOLS))
    assert outcome.error.error_code == "upstream_tool_intercepted"
    assert outcome.answer.finish_reason is None


def test_text_held_back_for_a_call_is_kept_when_the_answer_breaks(qwen_web):
    reply = Reply(text="a <b <tool", cut_after=4)
    outcome = ask_double(qwen_web, reply, call=make_call(tools=TOOLS))
    assert type(outcome.error) is UpstreamError
    assert outcome.answer.raw_text.startswith("a")


@pytest.mark.parametrize(
    ("tools", "choice", "param"),
    [
        ("x", None, "tools"),
        ([{"type": "function"}], None, "tools"),
        (TOOLS, "sometimes", "tool_choice"),
        (TOOLS, {"type": "function", "function": {"name": "other"}}, "tool_choice"),
        (TOOLS, {"type": "function"}, "tool_choice"),
    ],
)
def test_unusable_tools_are_the_clients_fault(qwen_web, tools, choice, param):
    outcome = ask_double(qwen_web, call=make_call(tools=tools, tool_choice=choice))
    assert isinstance(outcome.error, InvalidRequest)
    assert outcome.error.param == param
    assert not qwen_web.double.requests


# What cannot be sent.


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([{"role": "system", "content": "S"}], id="system alone"),
        pytest.param([user("")], id="empty"),
        pytest.param([user(" \n")], id="blank"),
        pytest.param([{"role": "assistant", "content": "A"}], id="assistant alone"),
    ],
)
def test_user_text_is_required(qwen_web, messages):
    outcome = ask_double(qwen_web, call=make_call(*messages))
    assert isinstance(outcome.error, InvalidRequest)
    assert outcome.error.param == "messages"
    assert not qwen_web.double.requests


def test_other_parts_are_refused_by_their_place(qwen_web):
    part = {"type": "tool_use", "id": "x"}
    call = make_call({"role": "system", "content": "S"}, {"role": "user", "content": [part]})
    outcome = ask_double(qwen_web, call=call)
    assert isinstance(outcome.error, InvalidRequest)
    assert outcome.error.param == "messages.1.content"


def test_too_long_text_is_named_and_not_sent(qwen_web):
    outcome = ask_double(qwen_web, call=make_call(user("字" * (MAX_PROMPT_CHARS + 1))))
    assert isinstance(outcome.error, ContextLengthExceeded)
    assert "50,000 characters" in outcome.error.message
    assert not qwen_web.double.requests
    assert ask_double(qwen_web, "ok", call=make_call(user("字" * MAX_PROMPT_CHARS))).error is None


def test_tools_whose_manuals_make_a_prompt_too_long_are_told_in_a_sentence_each(qwen_web):
    manual = "Reads a file. " + "Mind the step. " * 4_000
    schema = {"type": "object", "properties": {"path": {"type": "string", "description": manual}}}
    function = {"name": "read", "description": manual, "parameters": schema}
    tools = [{"type": "function", "function": function}]
    assert ask_double(qwen_web, "ok", call=make_call(user("Look."), tools=tools)).error is None
    prompt = qwen_web.double.turns[0].body["messages"][0]["content"]
    assert prompt.count("Reads a file.") == 2
    assert "Mind the step" not in prompt


# Failures.


@pytest.mark.parametrize(
    ("name", "expected", "status"),
    [
        ("rate_limited_daily", UpstreamRateLimited, 429),
        ("localized", UpstreamRateLimited, 429),
        ("chat_in_progress", UpstreamChatBusy, 409),
        ("bad_parent", UpstreamChatGone, 409),
        ("parent_not_found", UpstreamChatGone, 409),
        ("chat_not_found", UpstreamChatGone, 409),
        ("not_found", UpstreamChatGone, 409),
        ("too_many_messages", UpstreamProtocolError, 502),
        ("validation", UpstreamProtocolError, 502),
        ("unauthorized", UpstreamAuthExpired, 503),
        ("context_too_long", ContextLengthExceeded, 400),
        ("file_invalid", UpstreamRefused, 400),
        ("internal", UpstreamError, 502),
        ("empty_body", UpstreamError, 502),
        ("challenge_json", UpstreamChallenged, 503),
        ("challenge_html_waf", UpstreamChallenged, 503),
        ("challenge_html_punish", UpstreamChallenged, 503),
        ("gateway_html_504", UpstreamTimeout, 504),
    ],
)
def test_every_error_form_is_mapped(qwen_web, name, expected, status):
    outcome = ask_double(qwen_web, web_error(name))
    assert type(outcome.error) is expected
    assert outcome.error.http_status == status
    assert [type(event) for event in outcome.events] == [Sent]


def test_the_same_failures_are_mapped_where_a_chat_is_opened(qwen_web):
    for name, expected in [
        ("challenge_html_waf", UpstreamChallenged),
        ("unauthorized", UpstreamAuthExpired),
        ("rate_limited_daily", UpstreamRateLimited),
        ("empty_body", UpstreamError),
    ]:
        outcome = ask_double(qwen_web, web_error(name), path=NEW_CHAT)
        assert type(outcome.error) is expected
        assert not outcome.events


@pytest.mark.parametrize("body", [{"success": True, "data": {}}, "[]", "plain", "{broken"])
def test_chat_without_an_id_is_an_error(qwen_web, body):
    outcome = ask_double(qwen_web, Reply(body=body), path=NEW_CHAT)
    assert type(outcome.error) is UpstreamProtocolError


def test_quota_says_when_to_come_back(qwen_web):
    assert ask_double(qwen_web, web_error("rate_limited_daily")).error.retry_after_s == 7 * 3600


def test_challenge_says_what_to_do(qwen_web):
    failure = ask_double(qwen_web, web_error("challenge_html_waf")).error
    assert "open the site in the browser" in failure.message
    assert "paste" in failure.message
    assert "aliyun_waf" in failure.body


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        pytest.param(Reply(body="no", status=401), UpstreamAuthExpired, id="401"),
        pytest.param(Reply(body="no", status=403), UpstreamAuthExpired, id="403"),
        pytest.param(
            Reply(body="slow", status=429, headers={"retry-after": "5"}),
            UpstreamRateLimited,
            id="429",
        ),
        pytest.param(Reply(body="", status=500), UpstreamError, id="500"),
        pytest.param(Reply(body="<html>hello</html>"), UpstreamProtocolError, id="other page"),
        pytest.param(Reply(body={"success": True}), UpstreamProtocolError, id="other json"),
        pytest.param(Reply(silent=True), UpstreamTimeout, id="silence"),
        pytest.param(Reply(refused=True), UpstreamError, id="closed"),
        pytest.param(
            Reply(raw=(FIXTURES / "created_only.sse").read_bytes()), UpstreamError, id="no answer"
        ),
        pytest.param(
            Reply(raw=(FIXTURES / "empty_answer.sse").read_bytes()), UpstreamError, id="empty"
        ),
    ],
)
def test_other_failures_are_mapped(qwen_web, reply, expected):
    outcome = ask_double(qwen_web, reply)
    assert type(outcome.error) is expected
    assert not outcome.answer.has_content


def test_retry_after_of_a_429(qwen_web):
    reply = Reply(body="slow", status=429, headers={"retry-after": "5"})
    assert ask_double(qwen_web, reply).error.retry_after_s == 5


def test_missing_cookies_and_version_are_told_apart(qwen_web):
    qwen_web.double.require_cookie = True
    assert type(ask_double(qwen_web).error) is UpstreamAuthExpired
    failure = ask_double(qwen_web, web_error("internal")).error
    assert type(failure) is UpstreamError


def test_refusal_without_a_reason_hints_at_the_paste(qwen_web):
    body = {"success": False, "data": {"code": "Bad_Request", "details": "Something wrong!"}}
    failure = ask_double(qwen_web, Reply(body=body)).error
    assert type(failure) is UpstreamError
    assert "cookies or headers may be incomplete" in failure.message


def test_refused_connection():
    account = make_account(f"http://127.0.0.1:{unused_port()}", kind="qwen_web")
    outcome = ask(QwenWeb, account, make_call())
    assert type(outcome.error) is UpstreamError
    assert "connection refused" in outcome.error.message


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        pytest.param(Reply(text="one two three", cut_after=3), UpstreamError, id="cut"),
        pytest.param(
            Reply(text="one two three", silent_after=3), UpstreamTimeout, id="falls silent"
        ),
        pytest.param(
            Reply(text="one two three", malformed_line=b"data: {broken\n\n"),
            UpstreamProtocolError,
            id="malformed line",
        ),
        *(
            pytest.param(Reply(raw=(FIXTURES / f"{name}.sse").read_bytes()), UpstreamError, id=name)
            for name in (
                "midstream_error_string",
                "midstream_status_error",
                "eof_without_finished",
            )
        ),
        pytest.param(
            Reply(raw=(FIXTURES / "midstream_error_object.sse").read_bytes()),
            UpstreamRefused,
            id="midstream_error_object",
        ),
    ],
)
def test_what_was_read_before_a_failure_is_kept_and_the_answer_stopped(qwen_web, reply, expected):
    outcome = ask_double(qwen_web, reply)
    assert type(outcome.error) is expected
    assert outcome.answer.text
    assert outcome.answer.finish_reason is None
    (stop,) = qwen_web.double.requests_to(STOP)
    started = outcome.answer.started
    assert stop.body == {"chat_id": started.chat_id, "response_id": started.response_id}
    assert stop.query == {"chat_id": started.chat_id}


def test_second_turn_of_a_running_chat_is_busy(qwen_web):
    reply = Reply(text="one two three", pause_after=3)
    qwen_web.double.enqueue(reply)

    async def use(upstream):
        first = upstream.stream(make_call())
        started = Started()
        async for batch in first:
            started = next((e for e in batch if isinstance(e, Started)), started)
            if any(isinstance(event, TextDelta) for event in batch):
                break
        chat = ChatTarget(started.chat_id, None, 0)
        with pytest.raises(UpstreamChatBusy):
            async for _ in upstream.stream(make_call(chat=chat)):
                pass
        reply.resume.set()
        return [event async for batch in first for event in batch][-1]

    assert on_client(qwen_web, use) == Finished("stop")


def test_stop_frees_the_chat_of_an_endless_answer(qwen_web):
    qwen_web.double.enqueue(Reply(text="again", endless=True))

    async def use(upstream):
        stream = upstream.stream(make_call())
        started = Started()
        count = 0
        async for batch in stream:
            started = next((e for e in batch if isinstance(e, Started)), started)
            count += sum(isinstance(event, TextDelta) for event in batch)
            if count > 50:
                break
        await stream.aclose()
        await asyncio.to_thread(qwen_web.double.left.get, timeout=5)
        chat = ChatTarget(started.chat_id, None, 0)
        with pytest.raises(UpstreamChatBusy):
            async for _ in upstream.stream(make_call(chat=chat)):
                pass
        await upstream.stop(started)
        return [e async for batch in upstream.stream(make_call(chat=chat)) for e in batch][-1]

    assert on_client(qwen_web, use) == Finished("stop")


def test_stop_that_fails_is_not_an_error(qwen_web, caplog):
    async def use(upstream):
        await upstream.stop(Started())
        assert not qwen_web.double.requests
        await upstream.stop(Started("r", "no such chat", "p"))

    on_client(qwen_web, use)
    assert len(qwen_web.double.requests_to(STOP)) == 1


# Models.


@pytest.mark.parametrize("nested", [False, True])
def test_active_models_are_listed(qwen_web, nested):
    qwen_web.double.nested_models = nested
    models = on_client(qwen_web, lambda upstream: upstream.list_models())
    assert [model.id for model in models] == ["qwen3-max", "qwen3-coder-plus", "qwen3-vl-plus"]
    assert models[0].context_length == 262144
    assert models[0].created == 1732711466
    assert models[2].details["capabilities"]["thinking"] is True
    assert models[2].details["max_thinking_generation_length"] == 81920


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="the captures are not at hand")
def test_captured_model_list_is_read(qwen_web):
    body = json.loads((CAPTURES / "models.json").read_text("utf-8"))
    qwen_web.double.enqueue(Reply(body=body), path=MODELS)
    models = on_client(qwen_web, lambda upstream: upstream.list_models())
    assert "qwen3-max" in [model.id for model in models]
    assert all(model.context_length for model in models)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        pytest.param(web_error("challenge_html_waf"), UpstreamChallenged, id="challenge"),
        pytest.param(Reply(body={"data": {"x": 1}}), UpstreamProtocolError, id="no list"),
        pytest.param(Reply(body="plain"), UpstreamProtocolError, id="text"),
        pytest.param(Reply(silent=True), UpstreamTimeout, id="silence"),
        pytest.param(Reply(body="", status=500), UpstreamError, id="500"),
    ],
)
def test_failures_of_the_model_list_are_mapped(qwen_web, reply, expected):
    qwen_web.double.enqueue(reply, path=MODELS)
    with pytest.raises(expected) as caught:
        on_client(qwen_web, lambda upstream: upstream.list_models())
    assert type(caught.value) is expected


@pytest.mark.parametrize("chat_id", ["\ud800", "a\r\nb", "", 5])
def test_a_chat_whose_id_no_address_can_carry_is_an_error(qwen_web, chat_id):
    body = json.dumps({"success": True, "data": {"id": chat_id}})
    outcome = ask_double(qwen_web, Reply(body=body), path=NEW_CHAT)
    assert isinstance(outcome.error, UpstreamProtocolError)
    assert "without an id" in outcome.error.message

"""`tool_choice` that asks for a call, over the web upstream's double."""

from __future__ import annotations

import asyncio
import json

import pytest

from qwenproxy.errors import AnswerTooLong
from qwenproxy.upstream.forced_calls import with_call
from qwenproxy.upstream.protocol import UpstreamCall
from qwenproxy.upstream.qwen_web import QwenWeb
from qwenproxy.wire.events import (
    Again,
    Finished,
    RawText,
    ReasoningDelta,
    Sent,
    Started,
    TextDelta,
    ToolCallDelta,
    UsageReport,
)
from tests.doubles.server import Reply
from tests.upstream.conftest import ask, make_account

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("read", "write")]
READ = '<tool_call>\n{"name": "read", "arguments": {"n": 1}}\n</tool_call>'
WRITE = READ.replace("read", "write")
NAMED = {"type": "function", "function": {"name": "read"}}


def ask_double(served, *replies, choice="required", **parameters):
    served.double.enqueue(*(Reply(text=r) if isinstance(r, str) else r for r in replies))
    parameters["tool_choice"] = choice
    call = UpstreamCall("qwen3-max", [{"role": "user", "content": "x"}], parameters, tools=TOOLS)
    outcome = ask(QwenWeb, make_account(served.url, kind="qwen_web"), call)
    assert outcome.error is None
    return outcome


def calls_of(outcome):
    return [(c.name, json.loads(c.arguments)) for c in outcome.answer.tool_calls.values()]


def test_an_answer_with_a_call_is_asked_for_once(qwen_web):
    outcome = ask_double(qwen_web, f"I look.\n{READ}")
    assert calls_of(outcome) == [("read", {"n": 1})]
    assert outcome.answer.text == "I look.\n"
    assert len(qwen_web.double.turns) == 1


def test_an_answer_without_one_is_asked_for_again_beside_it(qwen_web):
    outcome = ask_double(qwen_web, Reply(text="No.", reasoning="Hm"), READ)
    assert calls_of(outcome) == [("read", {"n": 1})]
    assert (outcome.answer.text, outcome.answer.reasoning) == ("", "")
    assert outcome.answer.finish_reason == "tool_calls"
    first, second = (turn.body for turn in qwen_web.double.turns)
    assert first["chat_id"] == second["chat_id"]
    assert first["parent_id"] is second["parent_id"] is None
    assert first["messages"][0]["content"] == second["messages"][0]["content"]
    assert "MUST call" in second["messages"][0]["content"]
    (again,) = (event for event in outcome.events if isinstance(event, Again))
    assert again.cause.startswith("missing_tool_call")


def test_the_second_answer_is_handed_on_whatever_it_is(qwen_web):
    outcome = ask_double(qwen_web, "No.", Reply(text="I will not.", reasoning="Hm"))
    assert (outcome.answer.text, outcome.answer.reasoning) == ("I will not.", "Hm")
    assert (outcome.answer.tool_calls, outcome.answer.finish_reason) == ({}, "stop")
    assert len(qwen_web.double.turns) == 2


def test_nothing_leaves_before_the_call(qwen_web):
    outcome = ask_double(qwen_web, Reply(text=f"I look.\n{READ}", reasoning="Hm"))
    kinds = [type(event) for event in outcome.events]
    before = kinds[: kinds.index(ReasoningDelta)]
    assert set(before) <= {Sent, Started, RawText}
    assert ToolCallDelta in kinds


@pytest.mark.parametrize("first", [WRITE, "No."])
def test_a_named_function_alone_counts(qwen_web, first):
    outcome = ask_double(qwen_web, first, f"{WRITE}\n{READ}", choice=NAMED)
    assert calls_of(outcome) == [("read", {"n": 1})]
    assert len(qwen_web.double.turns) == 2


def test_only_the_first_call_is_kept_where_one_is_asked_for(qwen_web):
    outcome = ask_double(qwen_web, f"{READ}\n{WRITE}", choice="auto", parallel_tool_calls=False)
    assert calls_of(outcome) == [("read", {"n": 1})]
    assert "at most one" in qwen_web.double.turns[0].body["messages"][0]["content"]


async def collected(*answers):
    """What `with_call` hands on of an upstream that answers these events."""
    left = list(answers)

    async def answer(call):
        yield left.pop(0)

    call = UpstreamCall("qwen3-max", [], {"tool_choice": "required"}, tools=TOOLS)
    return [event async for events in with_call(call, answer) for event in events]


def test_both_tries_are_counted():
    used = UsageReport(1000, 500, 1500)
    first = [TextDelta("No."), used, Finished("stop")]
    second = [ToolCallDelta(0, "id", "read", "{}"), used, Finished("tool_calls")]
    events = asyncio.run(collected(first, second))
    (told,) = (event for event in events if isinstance(event, UsageReport))
    assert (told.prompt_tokens, told.completion_tokens, told.total_tokens) == (2000, 1000, 3000)


def test_what_is_held_has_a_bound():
    with pytest.raises(AnswerTooLong, match="tool_choice"):
        asyncio.run(collected([TextDelta("x" * 2**20), TextDelta("x")]))

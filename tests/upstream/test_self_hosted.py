"""What servers of one's own do besides the standard, as a call of them shows it."""

from __future__ import annotations

import json

import pytest

from qwenproxy.upstream.openai_compatible import OpenAICompatible
from qwenproxy.upstream.protocol import UpstreamCall
from tests.doubles.server import Reply
from tests.upstream.conftest import ask, make_account

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}},
        },
    }
    for name in ("read", "write")
]
CALL = UpstreamCall("qwen3-8b", [{"role": "user", "content": "x"}], tools=TOOLS)
READ = [("read", {"n": 1})]
LEAKED = '<tool_call>\n{"name": "read", "arguments": {"n": "1"}}\n</tool_call>'


def stream(*deltas, finish="stop"):
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": finish})
    chunks = [{"id": "x", "model": "m", "choices": [choice]} for choice in choices]
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return Reply(raw="".join([*lines, "data: [DONE]\n\n"]).encode())


def piece(arguments, **fields):
    return {"tool_calls": [{"function": {"arguments": arguments}, **fields}]}


def begun(arguments="", **fields):
    return {"tool_calls": [{"function": {"name": "read", "arguments": arguments}, **fields}]}


def ask_double(served, *replies, call=CALL):
    served.double.enqueue(*replies)
    outcome = ask(OpenAICompatible, make_account(served.url), *[call] * len(replies))
    assert outcome.error is None
    return outcome.answer


def calls_of(answer):
    return [(c.name, json.loads(c.arguments)) for _, c in sorted(answer.tool_calls.items())]


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(
            stream(begun('{"n"', index=0, id="a"), piece(": 1}", index=0)), id="finish-stop"
        ),
        pytest.param(stream(begun('{"n"'), piece(": 1}")), id="no-index-id-or-type"),
        pytest.param(stream(begun({"n": 1}, index=0)), id="arguments-as-object"),
        pytest.param(
            stream(
                begun("", index=0, id="a"),
                piece('{"n": ', index=0),
                piece("1}", index=0),
                piece('{"n": 1}', index=0),
            ),
            id="arguments-repeated-at-the-end",
        ),
        pytest.param(
            stream(begun('{"n": 1}', index=0), piece({"n": 1}, index=0)), id="repeated-as-object"
        ),
        pytest.param(
            stream(
                {"role": None, "content": None, "reasoning_content": None, "tool_calls": None},
                begun('{"n": 1}', index=0) | {"content": None},
            ),
            id="null-for-what-is-not-used",
        ),
        pytest.param(stream({"content": LEAKED}), id="left-in-the-text"),
        pytest.param(stream(*({"content": c} for c in LEAKED)), id="left-in-the-text-by-pieces"),
        pytest.param(stream({"content": LEAKED}, finish="tool_calls"), id="left-and-said"),
        pytest.param(
            stream(
                {"content": "<function=read>\n<parameter=n>\n1\n</parameter>\n"},
                {"content": "</function>\n</tool_call>"},
            ),
            id="left-as-xml",
        ),
        pytest.param(
            stream({"content": '{"name": "read", "arguments": {"n": 1}}'}), id="left-as-object"
        ),
        pytest.param(
            Reply(
                body={
                    "choices": [
                        {
                            "message": {"role": "assistant", "content": LEAKED},
                            "finish_reason": "stop",
                        }
                    ]
                }
            ),
            id="left-in-a-whole-answer",
        ),
    ],
)
def test_a_call_is_read(openai_compatible, reply):
    answer = ask_double(openai_compatible, reply)
    assert calls_of(answer) == READ
    assert answer.finish_reason == "tool_calls"
    assert answer.text == ""
    assert all(call.id for call in answer.tool_calls.values())


def test_calls_of_both_kinds_stand_side_by_side(openai_compatible):
    answer = ask_double(
        openai_compatible,
        stream({"content": LEAKED}, begun('{"n": 2}', index=0, id="a"), {"content": LEAKED}),
    )
    assert calls_of(answer) == [*READ, ("read", {"n": 2}), *READ]


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (stream({"content": "Hi", "tool_calls": []}, finish="tool_calls"), "Hi"),
        (stream({"content": "<tool_call>"}, {"content": " is a tag"}), "<tool_call> is a tag"),
        (stream({"content": LEAKED.replace("read", "other")}), LEAKED.replace("read", "other")),
    ],
)
def test_what_is_no_call_stays_text(openai_compatible, reply, text):
    answer = ask_double(openai_compatible, reply)
    assert (answer.text, answer.tool_calls, answer.finish_reason) == (text, {}, "stop")


def test_where_none_may_be_called_text_is_not_looked_at(openai_compatible):
    call = UpstreamCall("qwen3-8b", CALL.messages, {"tool_choice": "none"}, tools=TOOLS)
    assert ask_double(openai_compatible, stream({"content": LEAKED}), call=call).text == LEAKED


def test_a_call_that_is_cut_in_the_text_ends_so(openai_compatible):
    answer = ask_double(openai_compatible, stream({"content": LEAKED[:60]}, finish="length"))
    assert answer.finish_reason == "length"
    assert answer.tool_calls[0].arguments.startswith("{")


def test_a_template_that_opens_the_thinking_is_known_from_its_second_answer_on(openai_compatible):
    reply = stream({"content": "Hm\n</think>"}, {"content": "\n\nHi"})
    first = ask_double(openai_compatible, reply)
    assert (first.reasoning, first.text) == ("", "Hm\n\n\nHi")
    second = ask_double(openai_compatible, reply, reply)
    assert (second.reasoning, second.text) == ("Hm\n", "Hi")
    # A server that was given a parser meanwhile, or a model that did not think.
    third = ask_double(openai_compatible, reply, stream({"content": "Hi"}))
    assert third.text == "Hi"


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_thinking_has_either_name(openai_compatible, name):
    answer = ask_double(openai_compatible, stream({name: "Hm"}, {"content": "Hi"}))
    assert (answer.reasoning, answer.text, answer.usage) == ("Hm", "Hi", None)

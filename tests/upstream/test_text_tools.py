from __future__ import annotations

import pytest

from qwenproxy.errors import InvalidRequest
from qwenproxy.upstream.protocol import UpstreamCall
from qwenproxy.upstream.text_tools import TextTools
from qwenproxy.wire.events import Finished, RawText, TextDelta, ToolCallDelta, UsageReport

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("read", "write")]
CALL = '<tool_call>{"name": "read", "arguments": {}}</tool_call>'


def make_tools(tools=TOOLS, model="qwen3-max", **parameters):
    return TextTools(UpstreamCall(model, [], parameters, tools=tools))


@pytest.mark.parametrize("tools", [None, []])
def test_without_tools_nothing_is_told_and_nothing_is_read(tools):
    text_tools = make_tools(tools)
    assert (text_tools.text, text_tools.choice_text) == ("", "")
    events = [TextDelta(CALL), Finished("stop")]
    assert text_tools.new_reader().read(events, is_last=False) == events


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (None, ""),
        ("auto", ""),
        ("none", "Call no function in this answer."),
        ("required", "This answer MUST call at least one of the functions."),
        (TOOLS[0], "This answer MUST call the function read and no other."),
    ],
)
def test_choice_of_one_turn_stands_apart_from_the_tools(choice, told):
    auto, chosen = make_tools(), make_tools(tool_choice=choice)
    assert chosen.choice_text == told
    assert chosen.text.startswith(auto.text)
    assert chosen.text.endswith(told)


def test_form_is_the_one_that_the_model_knows():
    assert "<function=" in make_tools(model="qwen3-coder-plus").text
    assert "<function=" not in make_tools(model="qwen3-max").text


def test_counts_come_after_what_was_held_back():
    reader = make_tools().new_reader()
    assert reader.read([TextDelta("a <tool_")], is_last=False) == [
        RawText("a <tool_"),
        TextDelta("a "),
    ]
    usage = UsageReport(1, 2, 3)
    assert reader.read([usage, Finished("stop")], is_last=False) == [
        TextDelta("<tool_"),
        usage,
        Finished("stop"),
    ]


def test_calls_make_the_answer_one_of_calls():
    events = make_tools().new_reader().read([TextDelta(CALL), Finished("stop")], is_last=False)
    assert [type(event) for event in events] == [RawText, ToolCallDelta, Finished]
    assert events[-1] == Finished("tool_calls")


def test_what_was_held_back_comes_when_the_answer_breaks():
    reader = make_tools().new_reader()
    reader.read([TextDelta("a <b")], is_last=False)
    assert reader.read([TextDelta(" <tool")], is_last=True)[-1] == TextDelta("<tool")


def test_wrong_choice_names_its_field():
    with pytest.raises(InvalidRequest) as caught:
        make_tools(tool_choice=7)
    assert caught.value.param == "tool_choice"

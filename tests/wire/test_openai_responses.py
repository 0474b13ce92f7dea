"""Events to OpenAI's stream of a response, however they come, and back as input of the next turn."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.wire import history
from qwenproxy.wire.events import (
    Accumulator,
    Event,
    Finished,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    UsageReport,
)
from qwenproxy.wire.openai_responses import Echo, ResponseEncoder, output_items
from qwenproxy.wire.responses_bodies import to_chat
from qwenproxy.wire.responses_tools import read_tools
from tests.conftest import sse_bodies

TOOLS = [
    {"type": "function", "name": "read"},
    {"type": "custom", "name": "patch"},
    {"type": "namespace", "name": "files", "tools": [{"type": "function", "name": "list"}]},
]
BODY: dict[str, Any] = {"input": "Hello", "tools": TOOLS}
ECHO = Echo(BODY, read_tools(TOOLS).names)
RESPONSE_ID = "resp_" + "0" * 32


def encode(events: list[Event], *, end: bool = True) -> list[Any]:
    """The bodies of a stream, its numbers in their order."""
    encoder = ResponseEncoder(ECHO, response_id=RESPONSE_ID, model="m", created=1, clock=lambda: 2)
    data = b"".join(encoder.encode([event]) for event in events)
    if end:
        data += encoder.finish("stop", UsageReport(1, 2, 3, 1, 1))
    else:
        data += encoder.error({"error": {"code": "upstream_timeout", "message": "late"}})
    bodies: list[Any] = sse_bodies(data.decode())
    assert [body["sequence_number"] for body in bodies] == list(range(len(bodies)))
    return bodies


def folded(bodies: list[Any]) -> list[Any]:
    """The items that a stream's events add up to; fails where they contradict each other."""
    items: dict[int, Any] = {}
    texts: dict[int, list[str]] = {}
    for body in bodies:
        kind, index = body["type"], body.get("output_index")
        if kind == "response.output_item.added":
            assert index == len(items)
            items[index], texts[index] = body["item"], []
        elif kind.endswith(".delta"):
            assert items[index]["id"] == body["item_id"]
            assert items[index]["status"] == "in_progress"
            texts[index].append(body["delta"])
        elif kind == "response.output_item.done":
            assert items[index]["status"] == "in_progress"
            items[index] = body["item"]
            assert json.dumps("".join(texts[index]))[1:-1] in json.dumps(body["item"])
        elif kind.endswith(".done") and "part" not in kind:
            whole = body.get("text", body.get("arguments", body.get("input")))
            assert whole == "".join(texts[index])
    return [items[index] for index in sorted(items)]


@st.composite
def answers(draw) -> list[Event]:
    """Pieces of text, reasoning and up to three calls in any mixture; each call begins with its name."""
    named = draw(st.lists(st.sampled_from(["read", "patch", "files__list"]), max_size=3))
    begun: set[int] = set()
    events: list[Event] = []
    for _ in range(draw(st.integers(0, 12))):
        kind = draw(st.sampled_from(["text", "reasoning", *range(len(named))]))
        if kind == "text":
            events.append(TextDelta(draw(st.sampled_from(["a", " ", "b c", "\n"]))))
        elif kind == "reasoning":
            events.append(ReasoningDelta("r"))
        elif kind not in begun:
            begun.add(kind)
            events.append(ToolCallDelta(kind, f"call_{kind}", named[kind], '{"input": "x'))
        else:
            events.append(ToolCallDelta(kind, arguments="y"))
    return events + [ToolCallDelta(number, arguments='"}') for number in sorted(begun)]


@given(answers())
def test_any_mixture_adds_up_to_its_end(events):
    bodies = encode(events)
    whole = bodies[-1]["response"]
    assert bodies[-1]["type"] == "response.completed"
    assert folded(bodies) == whole["output"]
    answer = Accumulator()
    for event in [*events, Finished("stop")]:
        answer.add(event)
    text = "".join(
        item["content"][0]["text"] for item in whole["output"] if item["type"] == "message"
    )
    assert text.rstrip() == answer.text.rstrip() or not answer.tool_calls
    calls = [item for item in whole["output"] if item["type"].endswith("_call")]
    assert {call["call_id"] for call in calls} == {c.id for c in answer.tool_calls.values()}


@given(answers())
def test_an_answer_that_comes_back_is_the_same_message(events):
    """Calls that came in another order than their numbers are another message, as in the chat form."""
    numbers = [event.index for event in events if isinstance(event, ToolCallDelta) and event.id]
    answer = Accumulator()
    for event in events:
        answer.add(event)
    if numbers != sorted(numbers) or not answer.has_content or not answer.message()["content"]:
        return
    message = answer.message()
    streamed = encode(events)[-1]["response"]["output"]
    whole = output_items(
        ECHO,
        response_id=RESPONSE_ID,
        message=message,
        reasoning=answer.reasoning,
        status="completed",
    )
    for output in (streamed, whole):
        items = [{"role": "user", "content": "Hello"}, *output, {"role": "user", "content": "x"}]
        (_, *back, _) = to_chat({**BODY, "input": items}).messages
        if not back:
            assert not answer.text.strip()
            continue
        (again,) = back
        assert history.match_form(again) == history.match_form(message)


@pytest.mark.parametrize("end", [True, False])
def test_a_stream_may_end_after_any_event(end):
    events: list[Event] = [
        ReasoningDelta("hm"),
        TextDelta("a "),
        TextDelta("b"),
        ToolCallDelta(0, "call_0", "read", '{"path"'),
        ToolCallDelta(0, arguments=': "/a"}'),
        TextDelta("\n"),
        ToolCallDelta(1, "call_1", "patch", '{"input": "x"}'),
    ]
    for count in range(len(events) + 1):
        bodies = encode(events[:count], end=end)
        assert [body["type"] for body in bodies[:2]] == [
            "response.created",
            "response.in_progress",
        ]
        last = bodies[-1]
        assert last["type"] == ("response.completed" if end else "response.failed")
        names = [item["type"] for item in last["response"]["output"]]
        assert names == ["reasoning", "message", "function_call", "custom_tool_call"][: len(names)]
        if end:
            assert folded(bodies) == last["response"]["output"]
            assert all(item["status"] == "completed" for item in last["response"]["output"])
        else:
            assert last["response"]["error"] == {"code": "server_error", "message": "late"}


def test_the_first_piece_of_arguments_leaves_at_once():
    encoder = ResponseEncoder(ECHO, response_id=RESPONSE_ID, model="m", created=1, clock=lambda: 2)
    bodies: list[Any] = sse_bodies(
        encoder.encode([ToolCallDelta(0, "call_0", "read", '{"pa')]).decode()
    )
    assert bodies[-1]["type"] == "response.function_call_arguments.delta"
    assert bodies[-1]["delta"] == '{"pa'


def test_silence_begins_the_response_once():
    encoder = ResponseEncoder(ECHO, response_id=RESPONSE_ID, model="m", created=1, clock=lambda: 2)
    data = encoder.keep_alive() + encoder.keep_alive() + encoder.encode([TextDelta("a")])
    kinds = [body["type"] for body in sse_bodies(data.decode())]
    assert kinds.count("response.created") == 1
    assert data.count(b": keep-alive") == 2


def test_pieces_of_two_calls_may_mix():
    pieces = [('{"a', 0), ('{"b', 1), ('": 1}', 0), ('": 2}', 1)]
    begin: list[Event] = [ToolCallDelta(0, "call_0", "read"), ToolCallDelta(1, "call_1", "read")]
    for order in itertools.permutations(pieces):
        if [p for p in order if p[1] == 0] != pieces[::2] or [p for p in order if p[1]] != pieces[
            1::2
        ]:
            continue
        events = begin + [ToolCallDelta(number, arguments=text) for text, number in order]
        bodies = encode(events)
        assert [item["arguments"] for item in folded(bodies)] == ['{"a": 1}', '{"b": 2}']

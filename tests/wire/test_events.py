"""Adding events up, and their compact form."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.wire.events import (
    Accumulator,
    Asked,
    Finished,
    RawText,
    ReasoningDelta,
    Sent,
    Started,
    TextDelta,
    ToolCallDelta,
    UsageReport,
    pack,
    unpack,
)

texts = st.text(max_size=5)
optional_texts = st.none() | texts
counts = st.integers(min_value=0, max_value=10**6)
events = st.one_of(
    texts.map(TextDelta),
    texts.map(ReasoningDelta),
    texts.map(RawText),
    st.builds(
        ToolCallDelta, st.integers(min_value=0, max_value=2), optional_texts, optional_texts, texts
    ),
    st.builds(Started, optional_texts, optional_texts, optional_texts, optional_texts),
    st.builds(
        UsageReport,
        counts,
        counts,
        counts,
        st.none() | counts,
        st.none() | counts,
        st.none() | st.just({"input_tokens": 1}),
    ),
    st.just(Finished("stop")),
)


def add_up(items):
    answer = Accumulator()
    for event in items:
        answer.add(event)
    return answer


@given(st.lists(events, max_size=12))
def test_packed_events_add_up_to_the_same_answer(items):
    before = add_up(items)
    after = add_up(unpack(pack(items)))

    assert after.message() == before.message()
    assert (after.text, after.reasoning, after.raw_text) == (
        before.text,
        before.reasoning,
        before.raw_text,
    )
    assert (after.started, after.usage, after.finish_reason) == (
        before.started,
        before.usage,
        before.finish_reason,
    )


@given(st.lists(events, max_size=12))
def test_packing_again_changes_nothing(items):
    packed = pack(items)

    assert pack(unpack(packed)) == packed


def test_what_a_later_version_packed_is_passed_over():
    assert unpack('[["t","a"],["later",1,{"b":2}],["t","c"]]') == [TextDelta("a"), TextDelta("c")]


def test_runs_of_text_are_joined():
    items = [TextDelta("a"), TextDelta("b"), TextDelta("c"), ReasoningDelta("d"), TextDelta("e")]

    assert pack(items) == '[["t","abc"],["r","d"],["t","e"]]'


def test_what_was_sent_is_packed_without_its_text():
    sent = Sent({"model": "m"}, "a long prompt", 3)

    (unpacked,) = unpack(pack([sent]))

    assert (unpacked.request, unpacked.first_message) == ({"model": "m"}, 3)
    assert unpacked.text == ""
    assert unpacked.text_digest == sent.text_digest


def test_which_account_is_asked_survives_packing():
    asked = Asked(7, "rebuilt:busy", {"account": "a", "started": 1, "ms": None, "cause": None})

    assert unpack(pack([asked])) == [asked]


def test_the_ends_of_two_answers_are_not_joined():
    assert unpack(pack([Finished("stop"), Finished("length")])) == [
        Finished("stop"),
        Finished("length"),
    ]


def test_a_lone_surrogate_survives_packing():
    assert unpack(pack([TextDelta("\ud83d"), TextDelta("!")])) == [TextDelta("\ud83d!")]


def test_an_answer_is_a_chat_message():
    answer = add_up(
        [
            Started("r"),
            ReasoningDelta("hm"),
            TextDelta("I "),
            TextDelta("look."),
            ToolCallDelta(1, "b", "g", "{}"),
            ToolCallDelta(0, "a", "f", '{"x"'),
            ToolCallDelta(0, arguments=": 1}"),
            Finished("tool_calls"),
        ]
    )

    assert answer.has_content
    assert answer.message() == {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
            {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }


def test_content_is_null_where_there_are_only_calls():
    assert add_up([ToolCallDelta(0, "a", "f", "{}")]).message()["content"] is None
    assert add_up([]).message() == {"role": "assistant", "content": ""}
    assert not add_up([TextDelta("")]).has_content


def test_what_is_kept_of_a_running_answer_stays_readable_by_versions_before():
    kept = pack([Finished("stop", is_cut=True, stop_text="END")])
    assert unpack(kept) == [Finished("stop", is_cut=True)]

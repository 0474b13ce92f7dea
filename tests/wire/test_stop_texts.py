"""An answer's end before the first stop text, however its text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.wire.events import (
    Event,
    Finished,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    UsageReport,
)
from qwenproxy.wire.stop_texts import MAX_TEXTS, StopReader, read_stop

END = [UsageReport(1, 2, 3), Finished("length")]


def read(stops: list[str], events: list[Event]) -> tuple[str, list[Event], bool]:
    reader = StopReader(stops)
    out: list[Event] = []
    for event in events:
        out += reader.read([event], is_last=False)
        if reader.is_done:
            break
    text = "".join(event.text for event in out if isinstance(event, TextDelta))
    return text, [event for event in out if not isinstance(event, TextDelta)], reader.is_done


def first_stop(text: str, stops: list[str]) -> int | None:
    """What a writer would notice, letter by letter."""
    for end in range(1, len(text) + 1):
        fits = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if fits:
            return min(fits)
    return None


@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=4),
    st.lists(st.integers(0, 30), max_size=6),
)
def test_the_cut_is_the_same_wherever_the_text_is_cut(text, stops, cuts):
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [TextDelta(text[a:b]) for a, b in zip(places, places[1:], strict=False)]
    expected = first_stop(text, stops)
    said, rest, is_done = read(stops, [*pieces, *END])
    if expected is None:
        assert (said, rest, is_done) == (text, END, False)
    else:
        [end] = rest
        assert end.stop_text in stops
        assert text.startswith(end.stop_text, expected)
        assert (said, end.reason, end.is_cut, is_done) == (text[:expected], "stop", True, True)


def test_no_more_is_held_back_than_could_be_a_stop_text():
    reader = StopReader(["\nObservation:"])
    assert reader.read([TextDelta("think\nObs")], is_last=False) == [TextDelta("think")]
    assert reader.read([TextDelta("tacle")], is_last=False) == [TextDelta("\nObstacle")]


def test_what_was_held_comes_out_where_the_stream_breaks():
    assert StopReader(["END"]).read([TextDelta("E")], is_last=True) == [TextDelta("E")]


def test_neither_reasoning_nor_arguments_are_looked_at():
    events = [ReasoningDelta("END"), ToolCallDelta(0, "c", "f", '"END"'), *END]
    assert read(["END"], list(events)) == ("", events, False)


def test_an_answer_with_calls_still_ends_for_them():
    events = [ToolCallDelta(0, "c", "f", "{}"), TextDelta("then END")]
    _, rest, _ = read(["END"], list(events))
    assert rest[-1] == Finished("tool_calls", is_cut=True, stop_text="END")


@pytest.mark.parametrize(
    ("stop", "texts"),
    [(None, []), ("a", ["a"]), (["a", "b"], ["a", "b"]), ("", []), (["", "a"], ["a"])],
)
def test_stop_is_a_text_or_a_list(stop, texts):
    assert read_stop(stop) == texts


@pytest.mark.parametrize("stop", [1, {}, [1], ["x"] * (MAX_TEXTS + 1), "x" * 1001])
def test_other_stops_are_refused(stop):
    with pytest.raises(ValueError, match="stop"):
        read_stop(stop)

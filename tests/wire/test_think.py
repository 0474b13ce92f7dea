"""Thinking that leaked into answer text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.wire.events import ReasoningDelta
from qwenproxy.wire.think import ThinkSplitter


def split(pieces, *, is_open=False):
    """Feed pieces; thinking and text, each joined."""
    splitter = ThinkSplitter(is_open=is_open)
    events = [event for piece in pieces for event in splitter.feed(piece)] + splitter.finish()
    thinking = "".join(event.text for event in events if isinstance(event, ReasoningDelta))
    text = "".join(event.text for event in events if not isinstance(event, ReasoningDelta))
    return thinking, text


CASES = [
    pytest.param("Hi", "", "Hi", id="plain"),
    pytest.param("<think>a</think>b", "a", "b", id="markers"),
    pytest.param("\n <think>\na\n</think>\n\nb\n", "a\n", "b\n", id="lines"),
    pytest.param("<think></think>\n\nb", "", "b", id="empty-thinking"),
    pytest.param("<think>a<b></thin</think>c</think>", "a<b></thin", "c</think>", id="near-miss"),
    pytest.param("<think>never closed </thi", "never closed </thi", "", id="never-closed"),
    pytest.param("a <think>b</think>", "", "a <think>b</think>", id="not-at-start"),
    pytest.param("a\n</think>\n\nb", "", "a\n\n\nb", id="lone-close"),
    pytest.param("a\n</think>", "", "a\n", id="lone-close-at-end"),
    pytest.param("</think>\nb", "", "\nb", id="lone-close-at-start"),
    pytest.param("a\n</think>b", "", "a\n</think>b", id="close-within-line"),
    pytest.param("use `</think>`\n", "", "use `</think>`\n", id="quoted-close"),
    pytest.param("a </think>\n</think>\nb", "", "a </think>\n\nb", id="second-close-stands-alone"),
    pytest.param("\n</think>\n</think>\nb", "", "\n\n</think>\nb", id="one-close-is-dropped"),
    pytest.param("\n<", "", "\n<", id="held-back-at-end"),
    pytest.param("<thin", "", "<thin", id="start-of-marker-at-end"),
    pytest.param("<thing>", "", "<thing>", id="other-tag"),
    pytest.param(" " * 100 + "<think>a", "", " " * 100 + "<think>a", id="long-lead"),
]


@pytest.mark.parametrize(("answer", "thinking", "text"), CASES)
def test_markers_are_found_wherever_the_answer_is_cut(answer, thinking, text):
    assert split([answer]) == (thinking, text)
    assert split(answer) == (thinking, text)
    for cut in range(len(answer) + 1):
        assert split([answer[:cut], answer[cut:]]) == (thinking, text)


OPEN_CASES = [
    pytest.param("a\n</think>\n\nb", "a\n", "b", id="close"),
    pytest.param("\n<think>\na</think>b", "a", "b", id="opened-twice"),
    pytest.param("a", "a", "a", id="never-closed"),
    pytest.param("</think>b", "", "b", id="empty-thinking"),
]


@pytest.mark.parametrize(("answer", "thinking", "text"), OPEN_CASES)
def test_open_thinking_ends_at_its_marker(answer, thinking, text):
    assert split([answer], is_open=True) == (thinking, text)
    assert split(answer, is_open=True) == (thinking, text)


def test_a_server_that_separates_thinking_itself_has_not_left_it_open():
    splitter = ThinkSplitter(is_open=True)
    splitter.reasoning_seen()

    assert [event.text for event in splitter.feed("\nHi")] == ["\nHi"]


def test_thinking_that_has_begun_stays_open():
    splitter = ThinkSplitter(is_open=True)
    splitter.feed("a")
    splitter.reasoning_seen()

    assert splitter.feed("b") == [ReasoningDelta("b")]


@given(st.lists(st.text("<>/think\na ", max_size=12), max_size=8))
def test_no_more_is_held_back_than_a_marker_could_need(pieces):
    splitter = ThinkSplitter()
    splitter.feed("x")
    given_chars = 0
    for piece in pieces:
        given_chars += len(piece) - sum(len(event.text) for event in splitter.feed(piece))
        # One marker may have been dropped, another be held back.
        assert given_chars <= 2 * len("</think>")


@given(st.text("<>/think\na ", max_size=40), st.integers(min_value=1, max_value=9))
def test_the_cuts_make_no_difference(answer, size):
    pieces = [answer[start : start + size] for start in range(0, len(answer), size)]

    assert split(pieces) == split([answer])


def test_what_an_answer_shows_of_its_template_is_told():
    for answer, is_open, told in (
        ("a\n</think>\nb", False, True),
        ("a\n</think>\nb", True, True),
        ("a", False, None),
        ("a", True, False),
        ("<think>a</think>b", False, None),
        ("a\n</think>", False, True),
    ):
        splitter = ThinkSplitter(is_open=is_open)
        splitter.feed(answer)
        splitter.finish()
        assert splitter.opens_thinking is told, answer

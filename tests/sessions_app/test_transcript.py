from __future__ import annotations

import pytest

from sessions_app.transcript import load_line, load_places, message_body
from tests.factories import make_line, make_message, make_session

pytestmark = pytest.mark.django_db

QUESTIONS = [{"role": "user", "content": f"{number}"} for number in range(5)]


def test_a_line_runs_from_the_root_to_the_leaf(django_assert_num_queries):
    session = make_session()
    leaf = make_line(session, *QUESTIONS)
    with django_assert_num_queries(1):
        line = load_line(leaf.pk)
        assert [message_body(message) for message in line] == QUESTIONS
        assert [message.position for message in line] == [0, 1, 2, 3, 4]


def test_other_branches_are_left_out():
    session = make_session()
    root = make_line(session, QUESTIONS[0])
    make_message(session, QUESTIONS[1], root)
    leaf = make_message(session, QUESTIONS[2], root)
    assert [message.pk for message in load_line(leaf.pk)] == [root.pk, leaf.pk]


@pytest.mark.parametrize(
    ("start", "limit", "expected"),
    [
        pytest.param(0, 2, ["0", "1"], id="beginning"),
        pytest.param(3, 2, ["3", "4"], id="end"),
        pytest.param(3, 9, ["3", "4"], id="over-the-end"),
        pytest.param(7, 2, [], id="beyond"),
    ],
)
def test_a_part_of_a_line(start, limit, expected, django_assert_num_queries):
    leaf = make_line(make_session(), *QUESTIONS)
    with django_assert_num_queries(1):
        places = load_places(leaf.pk, start, limit)
    assert [place.role for place in places] == ["user"] * len(expected)
    positions = {row.pk: str(row.position) for row in load_line(leaf.pk)}
    assert [positions[place.pk] for place in places] == expected


@pytest.mark.parametrize("leaf_id", [None, 12345])
def test_no_leaf_is_an_empty_line(leaf_id):
    assert load_line(leaf_id) == []


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"role": "user", "content": "\ud800\0 1.0"}, id="text"),
        pytest.param({"role": "user", "content": "[1]", "name": "ann"}, id="members"),
        pytest.param({"role": "assistant", "content": None, "tool_calls": []}, id="null"),
        pytest.param({"role": "tool", "content": [{"n": 10**30}], "tool_call_id": "a"}, id="parts"),
    ],
)
def test_a_message_keeps_its_form(body):
    (message,) = load_line(make_line(make_session(), body).pk)
    assert message_body(message) == body

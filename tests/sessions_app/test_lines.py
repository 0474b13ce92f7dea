from __future__ import annotations

import pytest

from sessions_app import lines
from sessions_app.lines import LineReader
from sessions_app.models import Message
from tests.factories import make_line, make_message, make_session

pytestmark = pytest.mark.django_db
QUESTIONS = [{"role": "user", "content": f"{number}" * 10} for number in range(6)]


@pytest.mark.parametrize("max_chars", [0, 20, 10**6])
def test_each_line_runs_from_its_root_to_its_leaf(monkeypatch, max_chars):
    monkeypatch.setattr(lines, "MAX_CHARS", max_chars)
    monkeypatch.setattr(lines, "_BATCH_MESSAGES", 2)
    session = make_session()
    root = make_line(session, QUESTIONS[0])
    left = make_line(session, QUESTIONS[1], QUESTIONS[2], parent=root)
    right = make_line(session, QUESTIONS[3], parent=root)
    other = make_line(make_session(), *QUESTIONS)
    found = LineReader().read([left.pk, None, other.pk, right.pk, left.pk])
    assert list(found) == [
        QUESTIONS[:3],
        [],
        QUESTIONS,
        [QUESTIONS[0], QUESTIONS[3]],
        QUESTIONS[:3],
    ]


def test_what_lines_share_is_read_once(django_assert_num_queries):
    session = make_session()
    root = make_line(session, *QUESTIONS)
    leaves = [make_message(session, {"role": "user", "content": f"x{n}"}, root) for n in range(30)]
    reader = LineReader()
    with django_assert_num_queries(2):
        assert len(list(reader.read([leaf.pk for leaf in leaves]))) == 30
    # The tree alone: the messages are held.
    with django_assert_num_queries(1):
        assert len(list(reader.read([leaves[-1].pk, root.pk]))) == 2


def test_no_more_is_held_than_said(monkeypatch):
    monkeypatch.setattr(lines, "MAX_CHARS", 100)
    reader = LineReader()
    for _ in range(5):
        leaf = make_line(make_session(), *QUESTIONS)
        list(reader.read([leaf.pk]))
        assert sum(chars for _, chars in reader._held.values()) == reader._chars <= 100


def test_a_line_that_is_deleted_meanwhile_is_null():
    kept, gone = (make_line(make_session(), *QUESTIONS) for _ in range(2))
    found = LineReader().read([kept.pk, gone.pk, gone.pk + 1000])
    assert next(found) == QUESTIONS
    reader = LineReader().read([gone.pk])
    Message.objects.filter(session=gone.session_id).delete()
    assert list(reader) == [None]

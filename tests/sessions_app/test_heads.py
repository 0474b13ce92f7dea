from __future__ import annotations

import pytest
from django.db import connection

from qwenproxy.wire import json
from qwenproxy.wire.history import decode_content
from sessions_app.heads import HEAD_CHARS, load_heads
from sessions_app.models import Message
from sessions_app.transcript import load_places
from tests.factories import make_line, make_session

pytestmark = pytest.mark.django_db

LONG = 600_000
CALL = {"id": "c", "type": "function", "function": {"name": "run", "arguments": "{}"}}


def heads_of(*bodies, whole=()):
    leaf = make_line(make_session(), *bodies)
    places = load_places(leaf.pk, 0, 100)
    return load_heads(places, {places[index].pk for index in whole})


def result(content, **members):
    return {"role": "tool", "content": content, "tool_call_id": "c1", **members}


SHORT = [
    {"role": "user", "content": "\ud800\0 1.0"},
    {"role": "user", "content": [{"type": "text", "text": "[1]"}], "name": "ann"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": [{"n": 10**30}], "tool_call_id": "a"},
    {"role": "user", "content": "末" * 60_000},
]


def test_what_is_not_long_is_whole(django_assert_num_queries):
    leaf = make_line(make_session(), *SHORT)
    places = load_places(leaf.pk, 0, 100)
    with django_assert_num_queries(0 if connection.vendor == "sqlite" else 1):
        heads = load_heads(places)
    assert [head.body for head in heads] == SHORT
    assert [head.cut_from for head in heads] == [None] * len(SHORT)
    assert [head[:3] for head in heads] == [tuple(place) for place in places]


@pytest.mark.parametrize("letter", ["x", "\n", '"', "末", "\U0001f600", "\ud83d", "\0", "é\\"])
@pytest.mark.parametrize("role", ["tool", "user"])
def test_a_long_text_is_its_beginning(letter, role):
    content = letter * (LONG // (len(json.dumps(letter)) - 2))
    body = result(content) if role == "tool" else {"role": role, "content": content}
    (head,) = heads_of(body)
    shown = head.body["content"]
    assert {**head.body, "content": content} == body
    assert content.startswith(shown)
    # At least one of six characters of what is stored, which are its escapes; the frame is not counted.
    assert HEAD_CHARS // 6 - 100 < len(shown) <= HEAD_CHARS
    assert head.cut_from == len(Message.objects.get(pk=head.pk).content.encode())


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"role": "tool", "tool_call_id": "c1", "content": "x" * LONG}, id="id-first"),
        pytest.param(result("x" * LONG), id="id-last"),
        pytest.param(result("x" * LONG, name='a"b\\'), id="id-before-a-name"),
        pytest.param(result("x" * LONG, n=1.5, ok=True, no=None), id="id-before-words"),
        pytest.param(result('",\\"tool_call_id\\":\\"c2\\"}' * 40_000), id="content-like-an-id"),
        pytest.param(result(["x" * LONG, '","tool_call_id":"c2"}']), id="list"),
        pytest.param(result({"a": "x" * LONG, "tool_call_id": "c2"}), id="object"),
        pytest.param(
            {"role": "tool", "content": "x" * LONG, "tool_call_id": '"\\\n末'}, id="odd-id"
        ),
    ],
)
def test_a_long_result_has_its_id_and_a_beginning(body):
    (head,) = heads_of(body)
    assert head.cut_from
    assert head.body["tool_call_id"] == body["tool_call_id"]
    assert len(str(head.body["content"])) < HEAD_CHARS


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            {"role": "assistant", "content": "x" * LONG, "tool_calls": [CALL]}, id="calls"
        ),
        pytest.param(
            {"role": "user", "content": [{"type": "text", "text": "x" * LONG}]}, id="parts"
        ),
        pytest.param({"role": "tool", "content": "x", "tool_call_id": "y" * LONG}, id="long-id"),
        pytest.param(result("x" * LONG, more=[1]), id="id-not-found"),
        pytest.param(result("x" * LONG, more="z" * 1000), id="id-too-far"),
        pytest.param({"role": "function", "content": "x" * LONG, "name": "f"}, id="no-id"),
    ],
)
def test_where_the_rest_matters_it_is_loaded(body):
    (head,) = heads_of(body)
    assert (head.body, head.cut_from) == (body, None)


def test_what_is_asked_for_is_whole_and_a_page_holds_few_long_beginnings(django_assert_num_queries):
    bodies = [result(f"{number}" + "x" * LONG) for number in range(12)]
    leaf = make_line(make_session(), *bodies)
    places = load_places(leaf.pk, 0, 100)
    with django_assert_num_queries(1 if connection.vendor == "sqlite" else 3):
        heads = load_heads(places, {places[5].pk})
    assert [head.body["content"][:2] for head in heads] == [body["content"][:2] for body in bodies]
    assert heads[5].body == bodies[5]
    assert heads[5].cut_from is None
    lengths = [len(head.body["content"]) for head in heads if head.cut_from]
    assert [length > 10_000 for length in lengths] == [True] * 8 + [False] * 3
    assert min(lengths) > 8000


def test_what_was_deleted_meanwhile_is_left_out():
    leaf = make_line(make_session(), *({"role": "user", "content": str(n)} for n in range(3)))
    places = load_places(leaf.pk, 0, 100)
    leaf.delete()
    for whole in ((), {leaf.pk}):
        heads = load_heads(places, whole)
        assert [head.body["content"] for head in heads] == ["0", "1"]
    stored = Message.objects.get(pk=places[0].pk)
    assert heads[0].body == decode_content("user", stored.content)

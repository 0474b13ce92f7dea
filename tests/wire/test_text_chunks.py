"""Chunks read by their form alone give what the parser gives, whatever they hold."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwenproxy.wire.openai_chat import ChatStreamDecoder
from qwenproxy.wire.text_chunks import TextChunks
from tests.wire.streams import CAPTURES, SYNTHETIC, counting_ids, payloads


class NoChunks(TextChunks):
    """Knows no form: every chunk is parsed."""

    def learn(self, payload, body):
        return


def outcome(chunks, *, parse_all):
    """The events of each payload, and the error."""
    decoder = ChatStreamDecoder(new_id=counting_ids())
    if parse_all:
        decoder._text_chunks = NoChunks()
    batches = [decoder.feed(chunk) for chunk in chunks]
    error = decoder.error
    batches.append(decoder.finish())
    return batches, error and (error.message, error.code, error.raw)


def assert_same(chunks):
    assert outcome(chunks, parse_all=False) == outcome(chunks, parse_all=True)


def learnt(*chunks):
    reader = TextChunks()
    for chunk in chunks:
        reader.learn(chunk, json.loads(chunk))
    return reader


def chunk(said, *, field="content", separators=(",", ":"), **members):
    choice = {"index": 0, "delta": {field: said}, "finish_reason": None, **members}
    body = {"id": "x", "model": "m", "choices": [choice]}
    return json.dumps(body, separators=separators, ensure_ascii=False).encode()


@pytest.mark.parametrize("field", ["content", "reasoning_content", "reasoning"])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")], ids=["compact", "spaced"])
def test_the_next_text_is_read_without_the_rest(field, separators):
    reader = learnt(chunk("Hi", field=field, separators=separators))
    assert reader.field == field
    for text in ("there", "", 'quote " and \\ and \n', "世界\u2028", '"}}]}'):
        assert reader.read(chunk(text, field=field, separators=separators)) == text


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(chunk("there", finish_reason="stop"), id="end"),
        pytest.param(chunk("there", field="reasoning"), id="other member"),
        pytest.param(chunk("there").replace(b'"m"', b'"other"'), id="other model"),
        pytest.param(chunk("x").replace(b'"x"', b'"\\ud800"', 2), id="half of a pair"),
        pytest.param(chunk("x").replace(b'"x"}', b'"a\xff"}'), id="not UTF-8"),
        pytest.param(chunk("x").replace(b'"x"}', b'"a\nb"}'), id="raw line end"),
        pytest.param(chunk("x").replace(b'"x"}', b'"a","content":"b"}'), id="twice"),
        pytest.param(chunk("x").replace(b'"x"}', b'"}'), id="one quote"),
        pytest.param(b"[DONE]", id="end mark"),
    ],
)
def test_what_has_another_form_is_left_to_the_parser(payload):
    assert learnt(chunk("Hi")).read(payload) is None


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(chunk("Hi", finish_reason="stop"), id="end"),
        pytest.param(chunk("Hi", index=1), id="other choice"),
        pytest.param(chunk("Hi", text="more"), id="two texts"),
        pytest.param(chunk("Hi").replace(b'"Hi"', b'"Hi","content":"Hi"'), id="twice"),
        pytest.param(chunk("Hi").replace(b'"Hi"', b'["Hi"]'), id="parts"),
        pytest.param(chunk("Hi")[:-1] + b',"usage":{"prompt_tokens":1}}', id="counts"),
        pytest.param(
            b'{"note":{"content":"Hi"},' + chunk("Hi")[1:], id="the member's name elsewhere"
        ),
    ],
)
def test_a_chunk_that_says_more_is_no_form(payload):
    assert learnt(payload).field == ""


def test_learning_ends_where_it_never_pays():
    reader = TextChunks()
    for number in range(10):
        reader.learn(payload := chunk("Hi", number=number), json.loads(payload))
    assert reader.read(chunk("Hi", number=9)) is None
    assert reader.read(chunk("Hi", number=3)) == "Hi"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)
texts = st.text(max_size=8) | st.sampled_from(["<think>", "</think>", "\n", '"', "\\", "#"])
bodies = st.fixed_dictionaries(
    {
        "id": st.sampled_from(["x", "y"]),
        "choices": st.lists(
            st.fixed_dictionaries(
                {
                    "delta": st.dictionaries(
                        st.sampled_from(["content", "reasoning", "reasoning_content", "role"]),
                        texts | st.none() | values,
                        max_size=2,
                    )
                },
                optional={
                    "index": st.sampled_from([0, 0, 1]),
                    "finish_reason": st.sampled_from([None, None, "stop"]),
                    "text": texts,
                    "content": values,
                },
            ),
            min_size=1,
            max_size=2,
        ),
    },
    optional={"usage": st.none() | values, "error": st.none() | texts, "content": texts},
)


@given(st.data(), bodies, st.booleans())
def test_any_stream_gives_what_parsing_all_of_it_gives(data, body, ascii_only):
    """Mostly one form with other texts, and now and then another body."""
    stream = []
    for _ in range(6):
        if data.draw(st.booleans()):
            body = data.draw(bodies)
        said = [
            (choice["delta"], name)
            for choice in body["choices"]
            for name, value in choice["delta"].items()
            if isinstance(value, str)
        ]
        if said:
            delta, name = data.draw(st.sampled_from(said))
            delta[name] = data.draw(texts)
        stream.append(json.dumps(body, ensure_ascii=ascii_only).encode())
    assert_same(stream)


@given(st.lists(st.binary(max_size=12), max_size=4))
@example([b'a","content":"b', b"\\", b'\\"', b""])
def test_any_bytes_in_the_text_s_place_give_what_parsing_gives(middles):
    head, tail = chunk("\x00").split(b'"\\u0000"')
    assert_same([chunk("a"), chunk("b"), *(head + b'"' + m + b'"' + tail for m in middles)])


STREAMS = sorted(SYNTHETIC.rglob("*.sse")) + sorted(CAPTURES.rglob("*.sse"))


@pytest.mark.parametrize("path", [pytest.param(path, id=path.name) for path in STREAMS])
def test_fixtures_give_what_parsing_all_of_them_gives(path):
    assert_same(payloads(path.read_bytes()))

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.wire import json_repair
from qwenproxy.wire.json import JSONError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param('{"a": [1, 2,], }', {"a": [1, 2]}, id="trailing-commas"),
        pytest.param('{"a": "1\n\t2"}', {"a": "1\n\t2"}, id="raw-control-characters"),
        pytest.param('{"a": "x"y"z"}', {"a": 'x"y"z'}, id="inner-quotes"),
        pytest.param(
            '{"a": "x = {"b": 1, "c": 2}"}', {"a": 'x = {"b": 1, "c": 2}'}, id="inner-json"
        ),
        pytest.param('["x "y" z", "w",]', ['x "y" z', "w"], id="inner-quotes-in-a-list"),
        pytest.param('{"a": "\\d \\u12 \\n \\\'"}', {"a": "\\d \\u12 \n '"}, id="escapes"),
        pytest.param(
            '{"a": True, "b": [None, False]}', {"a": True, "b": [None, False]}, id="words"
        ),
        pytest.param('{"a": 1}}', {"a": 1}, id="brace-too-many"),
        pytest.param('{"a": {"b": 1}', {"a": {"b": 1}}, id="brace-too-few"),
        pytest.param('{"a": "\ud83d"}', {"a": "\ud83d"}, id="lone-surrogate"),
    ],
)
def test_slip_is_repaired(text, value):
    assert json_repair.loads(text) == value


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param('{"a": "x', id="open-string"),
        pytest.param('{"a": "x\\', id="open-escape"),
        pytest.param('{"a": {"b": 1', id="two-braces-too-few"),
        pytest.param('{"a": [1', id="open-list"),
        pytest.param('{"a": [1}', id="mismatch"),
        pytest.param('{"a": 1}}}', id="two-braces-too-many"),
        pytest.param('{"a": 1}} x', id="text-after"),
        pytest.param('{"a": "{"b": "1", "c": "2"}", "d": 1}', id="two-readings-of-json"),
        pytest.param('{"a "b" c": 1}', id="quotes-in-a-name"),
        pytest.param('{"a": NaN,}', id="nan"),
        pytest.param('{"a": 1e999,}', id="infinite"),
    ],
)
def test_what_cannot_be_read_in_one_way_is_refused(text):
    with pytest.raises(JSONError):
        json_repair.loads(text)


def test_values_in_sequence_are_read():
    assert json_repair.loads_sequence(' {"a": 1}\n[2] ') == [{"a": 1}, [2]]
    assert json_repair.loads_sequence(" ") == []


@pytest.mark.parametrize("text", ["{} x", "NaN", "1e999", "[" * 100_000])
def test_sequence_with_something_else_is_refused(text):
    with pytest.raises(JSONError):
        json_repair.loads_sequence(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    )
)
def test_valid_json_is_read_as_it_is(value):
    assert json_repair.loads(json.dumps(value)) == value


@given(st.text(alphabet='{}[],:" \\\nax1', max_size=40))
def test_any_text_is_read_or_refused(text):
    try:
        json_repair.loads(text)
    except JSONError:
        pass


@given(st.dictionaries(st.text(), st.lists(st.integers() | st.text()), min_size=1))
def test_trailing_comma_changes_no_value(value):
    assert json_repair.loads(json.dumps(value)[:-1] + ",}") == value

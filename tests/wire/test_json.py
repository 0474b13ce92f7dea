"""JSON that keeps what clients send."""

from __future__ import annotations

import json as stdlib_json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.wire import json

# Any character, lone surrogates too, which `st.text()` leaves out; but no pair of them, which JSON
# cannot tell from the one character they stand for.
texts = st.text(st.characters(exclude_categories=())).filter(
    lambda text: text == text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(min_value=-(10**40), max_value=10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@given(values)
def test_a_value_survives_writing_and_reading(value):
    written = json.dumps(value)

    assert repr(json.loads(written)) == repr(value)
    assert repr(json.loads_text(json.dumps_text(value))) == repr(value)
    # Columns of text hold no NUL.
    assert b"\0" not in written


@given(values)
def test_what_clients_write_is_read_as_the_standard_library_reads_it(value):
    body = stdlib_json.dumps(value).encode()

    assert repr(json.loads(body)) == repr(stdlib_json.loads(body))


@pytest.mark.parametrize(
    ("body", "value"),
    [
        pytest.param(b"1.0", 1.0, id="float"),
        pytest.param(b"123456789012345678901234567890", 123456789012345678901234567890, id="long"),
        pytest.param(b"-9223372036854775809", -9223372036854775809, id="below-64-bits"),
        pytest.param(b'"a\\u0000b"', "a\0b", id="nul"),
        pytest.param(b'"\\ud83d"', "\ud83d", id="lone-surrogate"),
        pytest.param(b'"\\ud83d\\ude00"', "\U0001f600", id="pair"),
        pytest.param(b' {"a": [1, null]} ', {"a": [1, None]}, id="spaces"),
    ],
)
def test_hard_values_are_read_exactly(body, value):
    assert repr(json.loads(body)) == repr(value)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="cut"),
        pytest.param(b"NaN", id="nan"),
        pytest.param(b"[Infinity, 1234567890123456789012]", id="infinity-slow-road"),
        pytest.param(b'"\xff"', id="not-utf8"),
        pytest.param(b'"\xff\\ud800"', id="not-utf8-slow-road"),
        pytest.param(b"1" * 5000, id="too-long-number"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, id="too-deep"),
        pytest.param(b"[12345678901234567890," + b"[" * 100_000, id="too-deep-slow-road"),
    ],
)
def test_what_is_not_json_is_refused(body):
    with pytest.raises(json.JSONError):
        json.loads(body)


def test_sorted_keys_are_the_same_on_both_roads():
    assert json.dumps({"b": 1, "a": 2}, sort_keys=True) == b'{"a":2,"b":1}'
    assert json.dumps({"b": 10**30, "a": 2}, sort_keys=True) == b'{"a":2,"b":1' + b"0" * 30 + b"}"


def nested(levels):
    value = {}
    for level in range(levels - 1):
        value = [value] if level % 2 else {"a": value}
    return value


@pytest.mark.parametrize("levels", [1, 2, 99, 100, 253])
@pytest.mark.parametrize("beside", [1, 2**70, "\ud800"], ids=["small", "long integer", "surrogate"])
def test_levels_are_counted_exactly(levels, beside):
    assert not json.is_deeper({"a": beside, "b": nested(levels)}, levels + 1)
    assert json.is_deeper({"a": beside, "b": nested(levels)}, levels)


@pytest.mark.parametrize("levels", [300, 50_000])
def test_levels_beyond_every_limit_are_counted(levels):
    assert json.is_deeper(nested(levels), 100)


@pytest.mark.parametrize("levels", [101, 300, 1000])
def test_what_could_not_be_written_again_is_refused(levels):
    body = b'{"a":' * levels + b"1" + b"}" * levels
    with pytest.raises(json.JSONError):
        json.refuse_deep(json.loads(body), body)
    beside = b"[%b]" % b",".join([b'{"a":[]}'] * levels)
    assert json.refuse_deep(json.loads(beside), beside) == [{"a": []}] * levels


@given(st.integers(0, 40), st.integers(17, 45), st.integers(0, 40))
def test_a_long_integer_is_found_wherever_it_stands(before, digits, after):
    number = int("9" * digits)
    body = b" " * before + b"[%d]" % number + b" " * after
    assert json.loads(body) == [number]
    assert json.loads(b'{"a":"' + b"1" * before + b'","b":%d}' % number)["b"] == number

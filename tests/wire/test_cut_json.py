from __future__ import annotations

import contextlib
import json as stdlib_json
import math
import time

import pytest

from qwenproxy.wire import json
from qwenproxy.wire.cut_json import loads_head

VALUES = [
    {"content": 'a "b" \\ c\nd', "tool_call_id": "c1"},
    {
        "tool_call_id": "c1",
        "content": [{"type": "text", "text": "\U0001f600 末 \x00"}, {"n": -12.5}],
    },
    {"a": {"b": [[], {}, [None, True, False, 0, 1e3]]}, "": "", "\\": "\\\\"},
    "just a text with \u2028 and \U0001f600",
    [["nested", ["deeper", {"k": ["v"]}]], "end"],
]
TEXTS = [
    text
    for value in VALUES
    for text in (
        stdlib_json.dumps(value, ensure_ascii=False, separators=(",", ":")),
        # With every character beyond ASCII as an escape, and with blanks.
        stdlib_json.dumps(value, indent=1),
    )
]


def is_beginning(part, whole):
    """Whether `part` is what a reader of `whole` has seen when the rest is missing."""
    if isinstance(part, str):
        return isinstance(whole, str) and whole.startswith(part)
    if isinstance(part, list):
        return isinstance(whole, list) and all(
            is_beginning(one, other) if at == len(part) - 1 else one == other
            for at, (one, other) in enumerate(zip(part, whole, strict=False))
        )
    if isinstance(part, dict):
        pairs = list(part.items())
        return isinstance(whole, dict) and all(
            is_beginning(value, whole[name]) if at == len(pairs) - 1 else value == whole[name]
            for at, (name, value) in enumerate(pairs)
        )
    return part == whole


@pytest.mark.parametrize("text", TEXTS)
def test_every_beginning_of_a_text_is_read_and_says_nothing_else(text):
    whole = stdlib_json.loads(text)
    lengths = []
    for end in range(1, len(text) + 1):
        part = loads_head(text[:end])
        assert is_beginning(part, whole), text[:end]
        # It never loses what it knew, and holds no half of a character.
        lengths.append(len(stdlib_json.dumps(part, ensure_ascii=False).encode()))
    assert part == whole
    assert lengths == sorted(lengths)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param('"ab\\', "ab", id="in-an-escape"),
        pytest.param('"ab\\\\', "ab\\", id="behind-an-escape"),
        pytest.param('"ab\\u00e', "ab", id="in-a-code"),
        pytest.param('"ab\\ud83d', "ab", id="in-a-pair"),
        pytest.param('"ab\\ud83d\\ude0', "ab", id="in-its-other-half"),
        pytest.param('"ab\\ud83d\\ude00', "ab\U0001f600", id="behind-a-pair"),
        pytest.param('"ab\\\\ud83d', "ab\\ud83d", id="no-escape"),
        pytest.param('"ab\\udc00', "ab\udc00", id="a-half-that-was-alone"),
        pytest.param('{"a":1,"b', {"a": 1}, id="in-a-name"),
        pytest.param('{"a":1,"b":', {"a": 1}, id="before-a-value"),
        pytest.param('{"a":12', {}, id="in-a-number"),
        pytest.param("[true,fals", [True], id="in-a-word"),
        pytest.param('[{"a":[1,', [{"a": [1]}], id="behind-a-comma"),
    ],
)
def test_where_it_is_cut(text, expected):
    assert loads_head(text) == expected


@pytest.mark.parametrize(
    "text", ["", "  ", "12", "nul", "]", "[}", '{"a":1}}', "[" * 5000, '["a" "b"']
)
def test_what_begins_no_known_value_is_refused(text):
    with pytest.raises(json.JSONError):
        loads_head(text)


@pytest.mark.parametrize("piece", ["\\n", "\\\\", '","', "[", '{"a":'])
def test_it_takes_linear_time(piece):
    def seconds(count):
        text = '["' + piece * count
        best = math.inf
        for _ in range(3):
            started = time.process_time()
            with contextlib.suppress(json.JSONError):
                # Some are nested too deep for the parser.
                loads_head(text)
            best = min(best, time.process_time() - started)
        return best

    # Eight times as much: quadratic work would take 64 times as long.
    assert seconds(160_000) < 32 * seconds(20_000) + 0.001

"""The JSON value in what a model says."""

from __future__ import annotations

import time

import pytest

from qwenproxy.wire.json_answers import find_json


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param('{"a": 1}', '{"a": 1}', id="alone"),
        pytest.param(' \n{"a": 1.0}\n', '{"a": 1.0}', id="blanks"),
        pytest.param('"text"', '"text"', id="text"),
        pytest.param('```json\n{"a": 1}\n```', '{"a": 1}', id="fence"),
        pytest.param("Here:\n```\r\n[1]\r\n```\nDone.", "[1]", id="fence-in-words"),
        pytest.param('```python\nx = {}\n```\n```json\n{"a": 1}\n```', '{"a": 1}', id="two-fences"),
        pytest.param('Sure! {"a": 1} Anything else?', '{"a": 1}', id="words"),
        pytest.param('Use {} or {"a": {"b": [1]}}.', '{"a": {"b": [1]}}', id="longest"),
        pytest.param("A {brace} and [1, 2", None, id="none"),
        pytest.param('<think>{"no": 1}</think>\n{"a": 1}', '{"a": 1}', id="thinking"),
        pytest.param('{"a": "```"}', '{"a": "```"}', id="fence-in-value"),
        pytest.param('\ufeff{"a": 1}', '{"a": 1}', id="mark"),
        pytest.param('{"a": "\\ud83d"}', '{"a": "\\ud83d"}', id="half-emoji"),
        pytest.param('{"n": 123456789012345678901}', '{"n": 123456789012345678901}', id="long"),
        pytest.param('{"a": NaN}', None, id="nan"),
        pytest.param("", None, id="empty"),
        pytest.param("no JSON here", None, id="prose"),
    ],
)
def test_the_value_is_found_and_kept_to_the_letter(text, found):
    assert find_json(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "{" * 100_000,
        '{"a":' * 50_000,
        "```\n" * 50_000,
        "```json\n{" + " " * 200_000,
    ],
)
def test_nonsense_takes_no_time(text):
    began = time.monotonic()
    assert find_json(text) is None
    assert time.monotonic() - began < 1

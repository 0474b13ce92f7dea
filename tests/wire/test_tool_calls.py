from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwenproxy.wire.events import Accumulator, TextDelta, ToolCallDelta
from qwenproxy.wire.tool_calls import (
    ToolCallParser,
    ToolSpec,
    parse_tools,
    render_call,
    shorten_tools,
    tool_prompt,
)

SYNTHETIC = Path(__file__).resolve().parents[1] / "fixtures/synthetic"
CLIENT_TOOLS = (
    Path(__file__).resolve().parents[2] / "../shared/reference/fixtures/clients/openai_tools"
)
CASES = {
    case["id"]: case["text"]
    for case in json.loads((SYNTHETIC / "text_tool_cases.json").read_text(encoding="utf-8"))
}


def make_tool(name, **types):
    properties = {key: {"type": kind} for key, kind in types.items()}
    return ToolSpec(name, "", {"type": "object", "properties": properties} if types else {})


TOOLS = [ToolSpec("f"), ToolSpec("g"), ToolSpec("write")]


class Reading:
    """What a parser made of an answer."""

    def __init__(self, pieces, tools=TOOLS):
        ids = (f"call_{number}" for number in itertools.count())
        self.parser = ToolCallParser(tools, new_id=lambda: next(ids))
        self.accumulator = Accumulator()
        for piece in pieces:
            self._add(self.parser.feed(piece))
        self._add(self.parser.finish())

    def _add(self, events):
        for event in events:
            assert isinstance(event, TextDelta | ToolCallDelta)
            self.accumulator.add(event)

    @property
    def calls(self):
        """The calls that a client can run: those whose arguments are JSON."""
        return [call for call in map(parsed, self.accumulator.tool_calls.values()) if call]

    @property
    def broken(self):
        """Calls that were delivered and are no JSON: cut, or written so that nobody can read them."""
        calls = self.accumulator.tool_calls.values()
        return [(call.name, call.arguments) for call in calls if parsed(call) is None]

    @property
    def text(self):
        return self.accumulator.text

    def summary(self):
        parser = self.parser
        told = parser.unknown, parser.truncated, parser.is_half, parser.intercepted
        return self.calls, self.broken, self.text, *told


def parsed(call):
    try:
        return call.name, json.loads(call.arguments)
    except (json.JSONDecodeError, RecursionError):
        return None


def read(text, tools=TOOLS):
    """Read an answer whole, cut at every position and character by character: all must agree."""
    whole = Reading([text], tools)
    for cut in range(len(text) + 1):
        assert Reading([text[:cut], text[cut:]], tools).summary() == whole.summary(), cut
    assert Reading(text, tools).summary() == whole.summary()
    return whole


EXPECTED = {
    "hermes_ok": ([("f", {"a": 1})], ""),
    "hermes_two": ([("f", {}), ("g", {"b": "x"})], ""),
    "hermes_args_string": ([("f", {"a": 1})], ""),
    "hermes_no_close": ([("f", {"a": 1})], "x\n"),
    "hermes_trailing_comma": ([("f", {"a": 1})], ""),
    "hermes_raw_newline": ([("f", {"a": "l1\nl2"})], ""),
    "hermes_inner_quotes": ([("f", {"cmd": 'grep "x" .'})], ""),
    "hermes_truncated": ([], ""),
    "text_after": ([("f", {})], ""),
    "prose_lt": ([], "if a <b and c> d then <think> is a tag"),
    "coder_xml": ([("f", {"a": 1})], ""),
    "coder_multiline": ([("f", {"a": "  l1\n\nl2"})], ""),
    "coder_json_value": ([("f", {"items": [{"id": 1}]})], ""),
    "coder_no_params": ([("f", {})], ""),
    "roo_xml": (
        [],
        "<read_file>\n<args>\n  <file>\n    <path>README.md</path>\n  </file>\n</args>\n</read_file>",
    ),
    "tool_code_fence": (
        [],
        '```tool_code\n{"tool":"file_system","action":"read_file","parameters":{"path":"a"}}\n```',
    ),
    "bare_json": ([("f", {"a": 1})], ""),
    "unknown_tool": ([], '<tool_call>{"name":"nope","arguments":{}}</tool_call>'),
    "intercepted": ([], "Tool read_file does not exists."),
}


def test_every_known_case_has_an_expectation():
    assert CASES.keys() == EXPECTED.keys()


@pytest.mark.parametrize("case", EXPECTED)
def test_known_case_is_read_the_same_however_it_is_cut(case):
    reading = read(CASES[case])
    assert (reading.calls, reading.text) == EXPECTED[case]
    assert reading.broken == ([("write", '{"content":"abc')] if case == "hermes_truncated" else [])
    assert reading.parser.has_calls is bool(reading.calls or reading.broken)
    assert reading.parser.unknown == (["nope"] if case == "unknown_tool" else [])
    assert reading.parser.truncated is (case == "hermes_truncated")
    assert reading.parser.intercepted is (case == "intercepted")


def stream_pieces(name):
    for line in (SYNTHETIC / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("data:"):
            for choice in json.loads(line[5:]).get("choices", []):
                yield choice["delta"].get("content", "")


def test_hermes_stream_gives_text_and_a_call():
    tools = [make_tool("read_file", path="string")]
    pieces = list(stream_pieces("text_tool_hermes.sse"))
    reading = Reading(pieces, tools)
    assert reading.text == "I will read the file first.\n\n"
    assert reading.calls == [("read_file", {"path": "src/naïve.py"})]
    assert read("".join(pieces), tools).summary() == reading.summary()


@pytest.mark.parametrize(
    ("mode", "value"),
    [pytest.param("integer", 420, id="int"), pytest.param("string", "420", id="str")],
)
def test_coder_stream_keeps_html_and_takes_types_from_the_schema(mode, value):
    tools = [make_tool("write_file", path="string", content="string", mode=mode)]
    pieces = list(stream_pieces("text_tool_qwen3_coder_xml.sse"))
    expected = {"path": "a.html", "content": '<b>1 < 2 && "x"</b>', "mode": value}
    assert Reading(pieces, tools).calls == [("write_file", expected)]
    assert read("".join(pieces), tools).text == ""


def hermes(arguments, name="f"):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


QUOTED = "<tool_call>\n<function=g>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>"


DAMAGED = [
    pytest.param(
        "I look.\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
        [("f", {"a": 1})],
        "I look.\n",
        id="opening-tag-missing",
    ),
    pytest.param("<function=f></function>", [("f", {})], "", id="both-outer-tags-missing"),
    pytest.param(
        '</tool_call>\n<tool_call>{"name":"f","arguments":{}}</tool_call>\n</tool_call>',
        [("f", {})],
        "\n",
        id="stray-closing-tags",
    ),
    pytest.param(
        "<tool_call>\n<function=f>\n<parameter=a>\nx\n<parameter=b>\ny\n</function>\n</tool_call>",
        [("f", {"a": "x", "b": "y"})],
        "",
        id="parameter-ends-missing",
    ),
    pytest.param(
        "<tool_call>\n<function=f>\n<parameter=a>\nx\n</parameter>\n</tool_call>",
        [("f", {"a": "x"})],
        "",
        id="function-end-missing",
    ),
    pytest.param(
        "<tool_call>\n<function=f>\n<parameter=a>\nx\n</parameter>\n</function>",
        [("f", {"a": "x"})],
        "",
        id="last-closing-tag-missing",
    ),
    pytest.param(
        "<function=f>\n<parameter=a>\nx\n</function>\n<function=g>\n</function>",
        [("f", {"a": "x"}), ("g", {})],
        "",
        id="everything-missing-between-two",
    ),
    pytest.param(
        '<tool_call>{"name":"f","arguments":{"a":1}}\n<tool_call>{"name":"g","arguments":{}}',
        [("f", {"a": 1}), ("g", {})],
        "",
        id="closing-tags-missing-between-two",
    ),
    pytest.param(
        '<tool_call>{"name":"f","arguments":{"a":1}}\nNow I wait.',
        [("f", {"a": 1})],
        "",
        id="closing-tag-missing-before-prose",
    ),
    pytest.param(
        '<tool_call>{"name":"f","arguments":{}}<tool_call>', [("f", {})], "", id="closed-by-opening"
    ),
    pytest.param(
        '<tool_call>{"name":"f","arguments":{}}\n{"name":"g","arguments":{}}</tool_call>',
        [("f", {}), ("g", {})],
        "",
        id="two-objects-in-one-block",
    ),
    pytest.param(
        '<tool_call>[{"name":"f","arguments":{}},{"name":"g","arguments":{}}]</tool_call>',
        [("f", {}), ("g", {})],
        "",
        id="list-in-one-block",
    ),
    pytest.param(hermes('{"a": 1}}'), [("f", {"a": 1})], "", id="one-brace-too-many"),
    pytest.param(
        '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>',
        [("f", {"a": 1})],
        "",
        id="one-brace-too-few",
    ),
    pytest.param(
        '<tool_call>{"name": "f", "arguments": {"a": 1}',
        [("f", {"a": 1})],
        "",
        id="outer-brace-and-tag-missing",
    ),
    pytest.param(
        hermes('{"a": "say "hi" and "bye"", "b": "x"}'),
        [("f", {"a": 'say "hi" and "bye"', "b": "x"})],
        "",
        id="inner-quotes",
    ),
    pytest.param(
        hermes('{"a": True, "b": None,\n}'), [("f", {"a": True, "b": None})], "", id="python-words"
    ),
    pytest.param(hermes('{"a": "\\d+\\\'"}'), [("f", {"a": "\\d+'"})], "", id="unknown-escapes"),
    pytest.param(
        hermes('"{\\"a\\": \\"x\\",}"'), [("f", {"a": "x"})], "", id="damaged-twice-encoded"
    ),
    pytest.param(hermes('""'), [("f", {})], "", id="empty-text-arguments"),
    pytest.param(hermes("null"), [("f", {})], "", id="null-arguments"),
    pytest.param('<tool_call>{"name": "f"}</tool_call>', [("f", {})], "", id="no-arguments"),
    pytest.param(
        '<tool_call>{"name":"f","parameters":{"a":1}}</tool_call>',
        [("f", {"a": 1})],
        "",
        id="parameters-for-arguments",
    ),
    pytest.param(
        '<tool_call>{"type":"function","function":{"name":"f","arguments":"{}"}}</tool_call>',
        [("f", {})],
        "",
        id="openai-form",
    ),
    pytest.param(
        f"Look:\n```json\n{hermes('{}')}\n```\n", [("f", {})], "Look:\n", id="fence-around"
    ),
    pytest.param(
        '\n```xml\n<tool_call>\n```json\n{"name":"f","arguments":{}}\n```\n</tool_call>\n```',
        [("f", {})],
        "",
        id="fences-around-and-inside",
    ),
    pytest.param(
        "```xml\n<function=f>\n<parameter=a>\nx\n</function>\n```",
        [("f", {"a": "x"})],
        "",
        id="fence-around-damaged-xml",
    ),
    pytest.param(
        '```json\n{"name": "f", "arguments": {"a": 1,}}\n```\n',
        [("f", {"a": 1})],
        "",
        id="fenced-bare-object",
    ),
    pytest.param(
        f"{hermes('{}')}\n<tool_response>\nmade up\n</tool_response>\n{hermes('{}', 'g')}",
        [("f", {})],
        "",
        id="invented-response-and-what-follows",
    ),
    pytest.param(
        f"{hermes('{}')}\nAnd also:\n{hermes('{}', 'g')}",
        [("f", {}), ("g", {})],
        "",
        id="prose-between-calls",
    ),
    pytest.param(hermes("{}", "F"), [("f", {})], "", id="wrong-case-of-name"),
    pytest.param(
        "<tool_call>\n<function=f>\r\n<parameter=a>\r\nx\r\ny\r\n</parameter>\r\n</function>",
        [("f", {"a": "x\r\ny"})],
        "",
        id="windows-line-ends",
    ),
    pytest.param('\n \n<tool_call>{"name":"f"}', [("f", {})], "", id="white-space-before"),
    pytest.param(
        "<tool_call><tool_call>\n<function=f></function>", [("f", {})], "", id="opening-twice"
    ),
    pytest.param(
        hermes('{"a": "x "y", z"}'), [("f", {"a": 'x "y", z'})], "", id="inner-quotes-and-comma"
    ),
    pytest.param(
        hermes('{"a": "say "x", also"}') + "\n",
        [("f", {"a": 'say "x", also'})],
        "",
        id="inner-quotes-that-hide-the-end",
    ),
]


@pytest.mark.parametrize(
    ("text", "calls", "broken"),
    [
        pytest.param(
            hermes('{"a": "{"b": "1", "c": "2"}"}') + hermes("{}", "g"),
            [],
            [
                (
                    "f",
                    '{"a":"{"b": "1", "c": "2"}"}}\n</tool_call><tool_call>\n{"name": "g", "arguments": {}}\n',
                )
            ],
            id="ambiguous-quotes-are-not-guessed",
        ),
        pytest.param(
            '<tool_call>{"name":"f","arguments":{"a": x"}}</tool_call>\n'
            '<tool_call>{"name":"g","arguments":{}}</tool_call>',
            [("g", {})],
            [("f", '{"a": x"}}')],
            id="unreadable-call-ends-at-its-tag",
        ),
    ],
)
def test_arguments_that_have_no_reading_are_passed_on_as_they_are(text, calls, broken):
    reading = read(text)
    assert (reading.calls, reading.broken, reading.text) == (calls, broken, "")
    assert not reading.parser.truncated


@pytest.mark.parametrize(("text", "calls", "delivered"), DAMAGED)
def test_damaged_form_is_read(text, calls, delivered):
    reading = read(text)
    assert (reading.calls, reading.text) == (calls, delivered)
    assert not reading.parser.truncated


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("Use `<tool_call>` tags, then `</tool_call>`.", id="tags-in-prose"),
        pytest.param("\n<tool_call> opens a call", id="tag-then-prose"),
        pytest.param("write <tool_call>{json}</tool_call> there", id="placeholder"),
        pytest.param("write <tool_call>{`...`", id="half-a-placeholder"),
        pytest.param('e.g. <tool_call>{"name": ..., "arguments": ...}</tool_call> ok', id="dots"),
        pytest.param('e.g. `<tool_call>{"name": ...}` and so on', id="dots-without-end"),
        pytest.param("as `<function=f>` does", id="function-in-prose"),
        pytest.param("<tool_call></tool_call>", id="empty-block"),
        pytest.param("<tool_response>\nx\n</tool_response>", id="response-without-call"),
        pytest.param("<p>a</p><parameter=a>1</parameter></function>", id="inner-tags-alone"),
        pytest.param("```python\nx = 1 < 2\n```\n````md\n``", id="fences"),
        pytest.param("```" + " " * 40 + "\n" * 100 + "x", id="fence-and-space"),
        pytest.param('{"name": "f"}', id="json-without-arguments"),
        pytest.param('{"name": "f", "arguments": {}, "x": 1}', id="json-with-more"),
        pytest.param('{"name": "f", "arguments": {}} is the call', id="json-then-prose"),
        pytest.param('{"name": "other", "arguments": {}}', id="json-of-unknown-name"),
        pytest.param('Here: {"name": "f", "arguments": {}}', id="json-after-prose"),
        pytest.param('{"name": "f", "arguments": [1]}', id="json-with-list"),
        pytest.param('{"na', id="json-begun"),
        pytest.param("   ", id="white-space"),
        pytest.param("a <tool_cal", id="half-a-tag"),
        pytest.param("", id="empty"),
        pytest.param(
            '<tool_call>{"name":"f","path":"x"}</tool_call>', id="arguments-in-the-wrong-place"
        ),
        pytest.param('<tool_call>{"name":"f"},"arguments":{"a":1}}</tool_call>', id="early-brace"),
        pytest.param('<tool_call>{"name":"f","arguments":[1]}</tool_call>', id="list-arguments"),
        pytest.param("<tool_call>" + " " * 300 + "x", id="endless-space"),
    ],
)
def test_what_is_no_call_flows_unchanged(text):
    reading = read(text)
    assert (reading.calls, reading.text) == ([], text)
    assert not reading.parser.truncated
    assert not reading.parser.has_calls


@pytest.mark.parametrize(
    ("text", "delivered"),
    [
        pytest.param('Hi\n<tool_call>{"name":"f","arguments":{"a":{"b":1}', "Hi\n", id="json"),
        pytest.param('<tool_call>{"name":"f"', "", id="json-name-only"),
        pytest.param('<tool_call>{"na', "", id="json-begun"),
        pytest.param('<tool_call>{"name":"f","arguments":{"a":"x</tool_call>', "", id="in-string"),
        pytest.param("Hi <tool_call>\n", "Hi ", id="opening-only"),
        pytest.param("Hi <tool_call", "Hi ", id="opening-cut"),
        pytest.param("<tool_call>\n<function=wri", "", id="function-cut"),
        pytest.param("<function=f>\n", "", id="function-only"),
        pytest.param("<function=f>\n<parameter=a>\nabc", "", id="value"),
        pytest.param("<function=f>\n<parameter=a>\nabc\n</para", "", id="value-end-cut"),
        pytest.param("<function=f>\n<parameter=a>\nabc\n</parameter>\n", "", id="between-values"),
        pytest.param("<function=f>\n<parameter=a>\nabc\n</tool_call>", "", id="value-not-ended"),
        pytest.param(f"<function=f>\n<parameter=a>\n{QUOTED}\n", "", id="after-a-quoted-call"),
    ],
)
def test_cut_call_is_never_half_a_call(text, delivered):
    reading = Reading([text])
    assert (reading.calls, reading.text) == ([], delivered)
    assert reading.parser.truncated
    assert Reading(text).summary() == reading.summary()


def test_every_cut_of_a_call_gives_the_whole_call_or_none():
    for text in (
        hermes('{"a": "x", "b": {"c": [1, 2]}, "d": "e"}'),
        render_call("f", '{"a": "x", "b": {"c": [1, 2]}, "d": "e"}', form="qwen3_coder"),
    ):
        for end in range(len(text)):
            calls = Reading([text[:end]]).calls
            assert calls in ([], [("f", {"a": "x", "b": {"c": [1, 2]}, "d": "e"})]), text[:end]


def test_a_call_quoted_in_damaged_json_is_never_run():
    text = hermes('{"a": "use "<tool_call>{"name":"g","arguments":{}}</tool_call>" ok"}')
    for end in range(len(text) + 1):
        assert Reading([text[:end]]).calls == []
        assert Reading([text[:end] + hermes("{}")]).calls in ([], [("f", {})])


def test_a_call_that_is_cut_leaves_the_one_before_it():
    reading = read(f'{hermes("{}")}\n<tool_call>{{"name": "g", "arguments": {{"a": "')
    assert reading.calls == [("f", {})]
    assert reading.parser.truncated


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("<div class=\"a\">1 &lt; 2 && 'x'</div>\n<br/>", id="html"),
        pytest.param("<tool_call>", id="opening-tag"),
        pytest.param('</tool_call>{"name": "g"}', id="closing-tag"),
        pytest.param(f"# Calls\n\n{QUOTED}\n\nAs above.", id="quoted-call"),
        pytest.param("a </parameter> b </function> c", id="inner-tags"),
        pytest.param("re.compile('<function=x>')", id="lone-function-tag"),
        pytest.param("<function=x>\n<parameter=y>\n\n</function>", id="damaged-quoted-call"),
        pytest.param("<parameter=a>\n", id="lone-parameter-tag"),
        pytest.param("<tool_response>", id="response-tag"),
        pytest.param('\\" \\\\ " { [ ` ```', id="quotes"),
    ],
)
@pytest.mark.parametrize("form", ["hermes", "xml"])
def test_markup_in_a_value_survives(value, form):
    tools = [make_tool("f", a="string", b="string"), ToolSpec("g")]
    if form == "hermes":
        text = hermes(json.dumps({"a": value, "b": "end"}))
    else:
        text = (
            f"<tool_call>\n<function=f>\n<parameter=a>\n{value}\n</parameter>\n"
            "<parameter=b>\nend\n</parameter>\n</function>\n</tool_call>"
        )
    reading = read(text + "\nbye", tools)
    assert reading.calls == [("f", {"a": value, "b": "end"})]
    assert not reading.parser.truncated


TYPED = [
    pytest.param({"type": "string"}, "1", "1", id="string"),
    pytest.param({"type": "string"}, '{"a": 1}', '{"a": 1}', id="string-of-json"),
    pytest.param({"type": "integer"}, "1", 1, id="integer"),
    pytest.param({"type": "integer"}, "1.0", 1, id="integer-as-float"),
    pytest.param({"type": "integer"}, "one", "one", id="no-integer"),
    pytest.param({"type": "number"}, "1.5", 1.5, id="number"),
    pytest.param({"type": "integer"}, "1" * 30, int("1" * 30), id="long-integer"),
    pytest.param({"type": "boolean"}, "True", True, id="boolean"),
    pytest.param({"type": "boolean"}, "yes", "yes", id="no-boolean"),
    pytest.param({"type": "array"}, '["a",]', ["a"], id="array-repaired"),
    pytest.param({"type": "object"}, "[1]", [1], id="array-for-object"),
    pytest.param({"type": ["string", "null"]}, "null", None, id="null"),
    pytest.param({"type": ["string", "null"]}, "7", "7", id="string-or-null"),
    pytest.param({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "7", 7, id="any-of"),
    pytest.param({"anyOf": [{"type": "string"}, {"type": "array"}]}, "[7]", [7], id="or-array"),
    pytest.param({"enum": ["1", "2"]}, "1", "1", id="enum-of-strings"),
    pytest.param({"enum": [1.5, None]}, "1.5", 1.5, id="enum-of-numbers"),
    pytest.param({"enum": [True, [], {}]}, "false", False, id="enum-of-mixed"),
    pytest.param({"enum": [[1], {}]}, "[1]", [1], id="enum-of-lists"),
    pytest.param(True, "1", 1, id="schema-true"),
    pytest.param({"const": 3}, "3", 3, id="const"),
    pytest.param({"$ref": "#/$defs/n"}, "5", 5, id="reference"),
    pytest.param({"$ref": "#/$defs/none/x"}, "5", 5, id="broken-reference"),
    pytest.param({"$ref": "#/$defs/self"}, "text", "text", id="endless-reference"),
    pytest.param({}, "1", 1, id="untyped-number"),
    pytest.param({}, "true", True, id="untyped-boolean"),
    pytest.param({}, '{"a":1}', {"a": 1}, id="untyped-object"),
    pytest.param({}, "null", "null", id="untyped-null"),
    pytest.param({}, '"x"', '"x"', id="untyped-string"),
    pytest.param({}, "a b", "a b", id="untyped-text"),
]


@pytest.mark.parametrize(("schema", "text", "value"), TYPED)
def test_parameter_of_the_xml_form_takes_its_type_from_the_schema(schema, text, value):
    definitions = {"n": {"enum": [4, 5]}, "self": {"$ref": "#/$defs/self"}}
    tool = ToolSpec("f", "", {"properties": {"a": schema}, "$defs": definitions})
    answer = f"<function=f>\n<parameter=a>\n{text}\n</parameter>\n</function>"
    [(_, arguments)] = Reading([answer], [tool]).calls
    assert arguments == {"a": value}
    assert type(arguments["a"]) is type(value)


def test_number_written_as_text_in_json_becomes_what_the_schema_says():
    tools = [make_tool("f", a="integer", b="string")]
    assert read(hermes('{"a": "5", "b": "5", "c": "5"}'), tools).calls == [
        ("f", {"a": 5, "b": "5", "c": "5"})
    ]


@pytest.mark.parametrize(
    ("written", "found"),
    [
        pytest.param("read_file", "read_file", id="exact"),
        pytest.param("Read-File", "read_file", id="case-and-dash"),
        pytest.param("readFile", "read_file", id="camel-case"),
        pytest.param("listfiles", None, id="two-fold-to-one"),
        pytest.param("list_files", "list_files", id="exact-among-two"),
        pytest.param("delete_file", None, id="unknown"),
    ],
)
@pytest.mark.parametrize("form", ["hermes", "qwen3_coder"])
def test_name_is_matched_loosely_but_only_to_a_tool_of_the_client(written, found, form):
    tools = [ToolSpec("read_file"), ToolSpec("list_files"), ToolSpec("list-files")]
    text = "So: " + render_call(written, "{}", form=form)
    reading = read(text, tools)
    if found is None:
        assert (reading.calls, reading.text) == ([], text)
        assert reading.parser.unknown == [written]
    else:
        assert (reading.calls, reading.text) == ([(found, {})], "So: ")
        assert reading.parser.unknown == []


def test_the_first_of_two_tools_with_one_name_counts():
    tools = [make_tool("f", a="string"), make_tool("f", a="integer")]
    assert Reading([hermes('{"a": "1"}')], tools).calls == [("f", {"a": "1"})]


def test_cut_call_to_an_unknown_tool_is_text():
    for text in ('<tool_call>{"name":"nope","arguments":{"a', "<function=nope>\n<parameter=a>\nx"):
        reading = read(text)
        assert (reading.text, reading.parser.unknown) == (text, ["nope"])
        assert not reading.parser.truncated


def test_unknown_call_does_not_hide_a_known_one():
    reading = read(f"{hermes('{}', 'nope')}\n{hermes('{}')}")
    assert reading.calls == [("f", {})]
    assert reading.text == f"{hermes('{}', 'nope')}\n"
    assert reading.parser.unknown == ["nope"]


@pytest.mark.parametrize(
    ("text", "is_intercepted"),
    [
        pytest.param("Tool Read-2 does not exist.", True, id="grammar-corrected"),
        pytest.param("\n\nTool a.b does not exists.\n", True, id="space-around"),
        pytest.param("Tool x does not exists. " + "y" * 300, False, id="long-answer"),
        pytest.param("The Tool x does not exists.", False, id="inside-a-sentence"),
        pytest.param(f"Tool x does not exists.\n{hermes('{}')}", False, id="with-a-call"),
    ],
)
def test_interception_is_told_from_an_answer(text, is_intercepted):
    assert read(text).parser.intercepted is is_intercepted


def test_ids_and_indexes_follow_the_order_of_calls():
    reading = Reading([hermes("{}") + hermes('{"b": 1}', "g")])
    calls = reading.accumulator.tool_calls
    assert {index: (call.id, call.name) for index, call in calls.items()} == {
        0: ("call_0", "f"),
        1: ("call_1", "g"),
    }


def test_arguments_are_compact_json_that_keeps_every_value():
    reading = Reading([hermes('{"a": 1.0, "b": 123456789012345678901234567890, "c": "é\\u0000"}')])
    assert reading.accumulator.tool_calls[0].arguments == (
        '{"a":1.0,"b":123456789012345678901234567890,"c":"é\\u0000"}'
    )


def test_emoji_cut_in_two_is_kept():
    reading = Reading([hermes('{"a": "\ud83d"}')])
    assert reading.accumulator.tool_calls[0].arguments == '{"a":"\\ud83d"}'


@pytest.mark.parametrize("depth", [300, 999, 5000])
def test_deeply_nested_arguments_never_fail(depth):
    text = hermes('{"a": ' + "[" * depth + "]" * depth + "}")
    reading = Reading([text])
    assert reading.calls or reading.broken


@pytest.mark.parametrize(
    ("text", "delivered"),
    [
        pytest.param("a < b", "a < b", id="less-than"),
        pytest.param("x <p", "x <p", id="html"),
        pytest.param("x <b", "x <b", id="html-bold"),
        pytest.param("x <", "x ", id="first-character"),
        pytest.param("x <tool", "x ", id="beginning-of-marker"),
        pytest.param("x <tool>", "x <tool>", id="other-tag"),
        pytest.param("x </t", "x ", id="beginning-of-closing-marker"),
        pytest.param("x <function=a b\n", "x <function=a b\n", id="no-name"),
        pytest.param("x <function=" + "n" * 200, "x <function=" + "n" * 200, id="endless-name"),
        pytest.param("x `code` y", "x `code` y", id="inline-code"),
        pytest.param("x\n```py\n", "x\n", id="fence"),
        pytest.param("x\n```py\nz", "x\n```py\nz", id="code"),
    ],
)
def test_only_what_may_be_a_marker_is_held_back(text, delivered):
    parser = ToolCallParser(TOOLS, new_id=lambda: "id")
    assert parser.feed(text) == [TextDelta(delivered)]
    assert "".join(event.text for event in parser.finish()) == text[len(delivered) :]


def test_a_call_is_delivered_as_soon_as_it_ends():
    parser = ToolCallParser(TOOLS, new_id=lambda: "id")
    assert parser.feed('Hi <tool_call>{"name":"f"}</tool_call') == [TextDelta("Hi ")]
    assert parser.feed(">") == [ToolCallDelta(0, "id", "f", "{}")]
    assert parser.has_calls is True
    assert parser.feed("\nbye") == []
    assert parser.finish() == []


EDIT = ToolSpec(
    "edit",
    "",
    {
        "type": "object",
        "properties": {
            "path": {"type": "string"},
            "edits": {
                "type": "array",
                "items": {"$ref": "#/$defs/edit"},
            },
            "unit": {"enum": ["celsius", "kelvin"]},
            "count": {"type": "integer"},
            "flag": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        },
        "$defs": {
            "edit": {
                "type": "object",
                "properties": {"line": {"type": "integer"}, "text": {"type": "string"}},
            }
        },
    },
)


def delivered_after(text, tools, end):
    parser = ToolCallParser(tools, new_id=lambda: "id")
    return "".join(
        event.arguments for event in parser.feed(text[:end]) if isinstance(event, ToolCallDelta)
    )


@pytest.mark.parametrize(
    ("arrived", "delivered"),
    [
        pytest.param('<tool_call>{"name": "edit", "arguments": ', "", id="nothing-yet"),
        pytest.param('<tool_call>{"name": "edit", "arguments": {', "{", id="first-byte"),
        pytest.param(
            '<tool_call>{"name": "edit", "arguments": {"path": "a/b',
            '{"path":"a/b',
            id="inside-a-text",
        ),
        pytest.param(
            '<tool_call>{"name": "edit", "arguments": {"path": "a\\n\\u00e9 <b> \\',
            '{"path":"a\\n\u00e9 <b> ',
            id="before-half-an-escape",
        ),
        pytest.param(
            '<tool_call>{"name": "edit", "arguments": {"edits": [{"line": 1, "text": "x y',
            '{"edits":[{"line":1,"text":"x y',
            id="inside-a-list",
        ),
        pytest.param(
            '<tool_call>{"name": "edit", "arguments": {"path": "a", "count": "5", "path": "',
            '{"path":"a","count":5,"path":"',
            id="typed-on-the-way",
        ),
        pytest.param(
            '<tool_call>{"name": "edit", "arguments": {"path": "a"',
            '{"path":"a',
            id="a-quote-that-may-be-an-inner-one",
        ),
        pytest.param("<function=edit>", "", id="xml-nothing-yet"),
        pytest.param("<function=edit>\n<parameter=path>", '{"path":"', id="xml-first-byte"),
        pytest.param(
            '<function=edit>\n<parameter=path>\na "b"\n', '{"path":"a \\"b\\"', id="xml-text"
        ),
        pytest.param(
            "<function=edit>\n<parameter=path>\na</param", '{"path":"a', id="xml-half-a-marker"
        ),
        pytest.param(
            "<function=edit>\n<parameter=count>\n5\n</parameter>\n<parameter=path>\nx",
            '{"count":5,"path":"x',
            id="xml-typed-on-the-way",
        ),
    ],
)
def test_arguments_leave_with_the_piece_that_brings_them(arrived, delivered):
    assert delivered_after(arrived, [EDIT], len(arrived)) == delivered
    reading = Reading(arrived, [EDIT])
    assert reading.calls == []
    assert reading.parser.is_half is bool(delivered)


@pytest.mark.parametrize("form", ["hermes", "qwen3_coder"])
def test_every_character_of_a_long_argument_leaves_at_once(form):
    content = 'def f():\n    return "x < y"\n' * 40
    tool = make_tool("write", path="string", content="string")
    text = render_call("write", json.dumps({"path": "a.py", "content": content}), form=form)
    parser = ToolCallParser([tool], new_id=lambda: "id")
    waited = longest = 0
    begin = text.index("def f()")
    for start in range(0, begin + len(content), 4):
        events = parser.feed(text[start : start + 4])
        waited = 0 if any(isinstance(event, ToolCallDelta) for event in events) else waited + 4
        longest = max(longest, waited) if start > begin else 0
    # A line's end may be the one that belongs to the closing tag, `<` may begin one.
    assert longest <= 4


NESTED = [
    pytest.param({"count": "5"}, {"count": 5}, id="number-as-text"),
    pytest.param({"count": 5.0}, {"count": 5}, id="whole-float"),
    pytest.param({"count": "five"}, {"count": "five"}, id="no-number"),
    pytest.param({"flag": "True"}, {"flag": True}, id="boolean-as-text"),
    pytest.param({"flag": "null"}, {"flag": None}, id="null-as-text"),
    pytest.param({"path": 5}, {"path": "5"}, id="text-as-number"),
    pytest.param({"path": True}, {"path": "true"}, id="text-as-boolean"),
    pytest.param({"path": 1.10}, {"path": 1.1}, id="a-float-may-have-lost-digits"),
    pytest.param({"unit": " Celsius"}, {"unit": "celsius"}, id="enum-by-case"),
    pytest.param({"unit": "fahrenheit"}, {"unit": "fahrenheit"}, id="enum-unknown"),
    pytest.param(
        {"edits": [{"line": "3", "text": 7}, {"line": 4}]},
        {"edits": [{"line": 3, "text": "7"}, {"line": 4}]},
        id="nested",
    ),
    pytest.param({"edits": '[{"line": "3"}]'}, {"edits": [{"line": 3}]}, id="list-encoded-twice"),
    pytest.param({"other": {"line": "3"}}, {"other": {"line": "3"}}, id="not-in-the-schema"),
]


@pytest.mark.parametrize(("written", "read_as"), NESTED)
def test_arguments_take_their_types_from_the_schema_at_any_depth(written, read_as):
    text = f'<tool_call>{{"name": "edit", "arguments": {json.dumps(written)}}}</tool_call>'
    assert read(text, [EDIT]).calls == [("edit", read_as)]
    # The same where the block is decoded at its end.
    text = f'<tool_call>{{"arguments": {json.dumps(written)}, "name": "edit"}}</tool_call>'
    assert read(text, [EDIT]).calls == [("edit", read_as)]


def test_only_the_first_call_is_read_where_one_is_asked_for():
    for text in (
        hermes('{"a": 1}') + hermes("{}", "g"),
        '<tool_call>[{"name":"f","arguments":{"a": 1}},{"name":"g","arguments":{}}]</tool_call>',
        '<tool_call>{"name":"f","arguments":{"a": 1}}\n{"name":"g","arguments":{}}</tool_call>',
        "<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n<function=g></function>",
    ):
        for piece in (1, len(text)):
            parser = ToolCallParser(TOOLS, new_id=lambda: "id", single=True)
            accumulator = Accumulator()
            for start in range(0, len(text), piece):
                for event in parser.feed(text[start : start + piece]):
                    accumulator.add(event)
            for event in parser.finish():
                accumulator.add(event)
            calls = accumulator.tool_calls
            assert [(c.name, json.loads(c.arguments)) for c in calls.values()] == [("f", {"a": 1})]


def pieces_of(text, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[begin:end] for begin, end in itertools.pairwise([0, *cuts, len(text)])]


MARKERS = ("<tool_call", "</tool_call", "<function=")
AWKWARD = st.lists(
    st.sampled_from(
        [
            "<",
            ">",
            "</",
            "tool_",
            "call",
            "`",
            "```",
            "json",
            "\n",
            " ",
            "{",
            "}",
            '"',
            "name",
            ":",
            "<tool_response>",
            "<parameter=a>",
            "</function>",
            "function=",
            "x",
            "é",
            "\\",
            "<b>",
        ]
    ),
    max_size=20,
).map("".join)


@given(st.one_of(st.text(), AWKWARD), st.data())
def test_text_without_markers_comes_out_unchanged(text, data):
    if any(marker in text for marker in MARKERS):
        return
    reading = Reading(pieces_of(text, data))
    assert (reading.calls, reading.text) == ([], text)


@given(
    st.lists(
        st.sampled_from(
            [
                "<tool_call>",
                "</tool_call>",
                "<function=f>",
                "<parameter=a>",
                "</parameter>",
                "\n",
                "</function>",
                "<tool_response>",
                '{"name":"f","arguments":{',
                "}",
                '"',
                "x",
                "```",
            ]
        ),
        max_size=14,
    ).map("".join),
    st.data(),
)
def test_any_mixture_of_markers_is_read_the_same_however_it_is_cut(text, data):
    assert Reading(pieces_of(text, data)).summary() == Reading([text]).summary()


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda values: st.lists(values) | st.dictionaries(st.text(), values),
    max_leaves=10,
)
SCHEMA_TYPES = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}


@pytest.mark.parametrize("form", ["hermes", "qwen3_coder"])
@given(arguments=st.dictionaries(st.text(), JSON_VALUES), data=st.data())
@example(arguments={"a": "</parameter>\n</function>\n</tool_call>"}, data=None)
@example(arguments={"a>b": "x", " ": "\r", "": "\n\n"}, data=None)
@example(arguments={"a": "x\r", "b": "\r\n", "c": "\n</parameter"}, data=None)
def test_rendered_call_is_read_back(form, arguments, data):
    types = {key: {"type": SCHEMA_TYPES[type(value)]} for key, value in arguments.items()}
    tool = ToolSpec("get_it", "", {"type": "object", "properties": types})
    text = render_call("get_it", json.dumps(arguments), form=form)
    reading = Reading(pieces_of(text, data) if data else text, [tool])
    assert (reading.calls, reading.text) == ([("get_it", arguments)], "")


def test_rendered_calls_have_the_trained_forms():
    arguments = '{"path": "a b", "n": 1, "flag": true, "list": ["x"]}'
    assert render_call("f", arguments, form="hermes") == (
        '<tool_call>\n{"name": "f", "arguments": '
        '{"path": "a b", "n": 1, "flag": true, "list": ["x"]}}\n</tool_call>'
    )
    assert render_call("f", arguments, form="qwen3_coder") == (
        "<tool_call>\n<function=f>\n<parameter=path>\na b\n</parameter>\n<parameter=n>\n1\n"
        "</parameter>\n<parameter=flag>\ntrue\n</parameter>\n<parameter=list>\n"
        '["x"]\n</parameter>\n</function>\n</tool_call>'
    )
    assert render_call("f", " ", form="qwen3_coder") == (
        "<tool_call>\n<function=f>\n</function>\n</tool_call>"
    )


@pytest.mark.parametrize("form", ["hermes", "qwen3_coder"])
def test_arguments_that_are_no_object_are_kept_as_text(form):
    assert render_call("f", '{"a": ', form=form) == (
        '<tool_call>\n{"name": "f", "arguments": "{\\"a\\":"}\n</tool_call>'
    )


def test_a_name_that_tags_cannot_carry_is_written_as_json():
    text = render_call("a>b", "{}", form="qwen3_coder")
    assert Reading([text], [ToolSpec("a>b")]).calls == [("a>b", {})]


def count_calls(text):
    parser = ToolCallParser(TOOLS, new_id=lambda: "id")
    count = 0

    def tally(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(tally)
    try:
        for start in range(0, len(text), 5):
            parser.feed(text[start : start + 5])
        parser.finish()
    finally:
        sys.setprofile(None)
    return count


LONG = [
    pytest.param("", "a <b> `c` d\n", id="prose"),
    pytest.param('<tool_call>{"name":"f","arguments":{"a":"', 'x \\" <b> ', id="json-string"),
    pytest.param('<tool_call>{"name":"f","arguments":{"a":[', '{"b":[1]},', id="json-structure"),
    pytest.param('<tool_call>{"name":"f","arguments":{"a":"', "</tool_call>", id="closing-tags"),
    pytest.param("<function=f><parameter=a>", "x </b> y\n", id="xml-value"),
    pytest.param("<function=f><parameter=a>", "</parameter> ", id="parameter-ends"),
    pytest.param("<function=f><parameter=a>", "\n</function> ", id="function-ends"),
    pytest.param("<function=f><parameter=a>", "<function=g>", id="nested-functions"),
    pytest.param("", "<tool_call>", id="opening-tags"),
    pytest.param("", hermes("{}"), id="calls"),
    pytest.param("", "```json\n", id="fences"),
    pytest.param("```", " ", id="fence-and-spaces"),
    pytest.param("<tool_call>", " ", id="opening-and-spaces"),
    pytest.param('{"name": "f", ', " ", id="bare-object"),
]


@pytest.mark.parametrize(("head", "repeated"), LONG)
def test_work_grows_with_the_length_of_the_answer(head, repeated):
    single = head + repeated * (30_000 // len(repeated))
    double = head + repeated * (60_000 // len(repeated))
    assert count_calls(double) < 2.2 * count_calls(single)
    assert count_calls(single) < 20 * len(single)


@pytest.mark.parametrize(("head", "repeated"), LONG[:5])
def test_a_megabyte_in_small_pieces_copies_no_growing_text(head, repeated):
    """Copies are no calls: this has a bound on time, far above what linear work takes (about 1 s)."""
    text = head + repeated * (1_000_000 // len(repeated))
    parser = ToolCallParser(TOOLS, new_id=lambda: "id")
    started = time.process_time()
    for start in range(0, len(text), 5):
        parser.feed(text[start : start + 5])
    parser.finish()
    assert time.process_time() - started < 15


def test_blanks_behind_a_call_take_no_time():
    parser = ToolCallParser(TOOLS, new_id=lambda: "id")
    started = time.process_time()
    parser.feed('{"name": "nobody", "arguments": {}}' + " " * 100_000 + "`")
    parser.finish()
    assert time.process_time() - started < 2


def test_tools_of_a_request_are_read():
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    function = {"name": "f", "description": "does", "parameters": schema, "strict": True}
    assert parse_tools(
        [{"type": "function", "function": function}, {"function": {"name": "g"}}]
    ) == [ToolSpec("f", "does", schema), ToolSpec("g")]
    assert parse_tools(None) == []
    assert parse_tools([]) == []


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        pytest.param({}, "tools must be a list", id="no-list"),
        pytest.param(["f"], r"tools\[0\] must be an object", id="no-object"),
        pytest.param([{"type": "custom"}], r"tools\[0\]\.type must be 'function'", id="type"),
        pytest.param([{}], r"tools\[0\]\.function must be an object", id="no-function"),
        pytest.param(
            [{"function": {"name": "f"}}, {"function": {"name": " "}}],
            r"tools\[1\]\.function\.name must be",
            id="no-name",
        ),
        pytest.param(
            [{"function": {"name": "f", "description": 1}}],
            r"tools\[0\]\.function\.description must be",
            id="description",
        ),
        pytest.param(
            [{"function": {"name": "f", "parameters": []}}],
            r"tools\[0\]\.function\.parameters must be",
            id="parameters",
        ),
    ],
)
def test_malformed_tools_are_refused_by_place(tools, message):
    with pytest.raises(ValueError, match=message):
        parse_tools(tools)


WEATHER = ToolSpec(
    "weather",
    "Tells the weather.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Name", "enum": ["Köln", "Rom"]},
            "days": {"type": "integer", "minimum": 1},
        },
        "required": ["city"],
    },
)


def test_hermes_prompt_declares_tools_as_json_lines():
    prompt = tool_prompt([WEATHER, ToolSpec("now")], form="hermes")
    _, _, rest = prompt.partition("<tools>\n")
    lines = rest.partition("\n</tools>")[0].split("\n")
    declared = []
    for line in lines[-2:]:
        declared.append(json.loads(line))
    assert [tool["function"]["name"] for tool in declared] == ["weather", "now"]
    assert declared[0]["function"]["parameters"] == WEATHER.parameters
    assert '{"name": <function-name>, "arguments": <args-json-object>}' in prompt
    assert "Köln" in prompt


def test_coder_prompt_declares_tools_as_elements():
    prompt = tool_prompt([WEATHER], form="qwen3_coder")
    assert (
        "<tools>\n<function>\n<name>weather</name>\n"
        "<description>Tells the weather.</description>\n<parameters>\n"
        "<parameter>\n<name>city</name>\n<type>string</type>\n<description>Name</description>\n"
        '<enum>["Köln","Rom"]</enum>\n</parameter>\n'
        "<parameter>\n<name>days</name>\n<type>integer</type>\n<minimum>1</minimum>\n</parameter>\n"
        '<required>["city"]</required>\n</parameters>\n</function>\n</tools>'
    ) in prompt
    assert "<function=weather>" not in prompt


def test_shortened_tools_keep_all_but_the_manuals():
    manual = "Finds a place, e.g. Paris. It has more to say.\nA lot more."
    value = {"description": "Left. As it is."}
    schema = {
        "type": "object",
        "properties": {
            "description": {"type": "string", "description": manual, "default": value},
            "list": {"type": "array", "items": {"anyOf": [{"description": manual}, {"const": 1}]}},
        },
        "required": ["description"],
    }
    [short] = shorten_tools([ToolSpec("find", manual, schema)])
    assert short.description == "Finds a place, e.g."
    assert short.parameters == {
        "type": "object",
        "properties": {
            "description": {
                "type": "string",
                "description": short.description,
                "default": value,
            },
            "list": {
                "type": "array",
                "items": {"anyOf": [{"description": short.description}, {"const": 1}]},
            },
        },
        "required": ["description"],
    }
    [long] = shorten_tools([ToolSpec("find", "x" * 1000)])
    assert long.description == "x" * 200


@pytest.mark.parametrize("form", ["hermes", "qwen3_coder"])
def test_choice_comes_last_so_that_prompts_share_their_beginning(form):
    auto = tool_prompt([WEATHER], form=form)
    required = tool_prompt([WEATHER], form=form, choice="required")
    named = tool_prompt([WEATHER], form=form, choice="weather")
    assert required.startswith(auto)
    assert named.startswith(auto)
    assert "MUST call at least one" in required
    assert "MUST call the function weather" in named
    assert "at most one" in tool_prompt([WEATHER], form=form, parallel=False)
    assert "at most one" not in auto


def test_no_tools_or_none_allowed_give_no_prompt():
    assert tool_prompt([], form="hermes") == ""
    assert tool_prompt([WEATHER], form="hermes", choice="none") == ""


def test_choice_of_an_unknown_tool_is_refused():
    with pytest.raises(ValueError, match="nope"):
        tool_prompt([WEATHER], form="hermes", choice="nope")


@pytest.mark.parametrize("form", ["hermes", "qwen3_coder"])
def test_a_prompt_has_no_example_that_reads_as_a_call(form):
    prompt = tool_prompt([WEATHER], form=form)
    assert not Reading([prompt], [WEATHER]).parser.has_calls


@pytest.mark.skipif(not CLIENT_TOOLS.is_dir(), reason="reference captures are not here")
@pytest.mark.parametrize("form", ["hermes", "qwen3_coder"])
def test_tools_of_a_real_client_are_declared_and_their_calls_read(form):
    for path in sorted(CLIENT_TOOLS.glob("*.json")):
        tools = parse_tools(json.loads(path.read_text(encoding="utf-8")).get("tools"))
        prompt = tool_prompt(tools, form=form)
        for tool in tools:
            assert tool.name in prompt
            call = render_call(tool.name, '{"path": "x.html"}', form=form)
            assert Reading([call], tools).calls == [(tool.name, {"path": "x.html"})]

"""What a client's schema accepts, and that neither it nor an answer holds the gateway up."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from qwenproxy.errors import InvalidJSONAnswer
from qwenproxy.upstream.json_schema import MAX_SCHEMA_CHARS, SchemaError, parse_schema

ITEM = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "price": {"type": "number", "minimum": 0}},
    "required": ["name", "price"],
    "additionalProperties": False,
}
ORDER = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {"items": {"type": "array", "items": {"$ref": "#/$defs/item"}}},
    "required": ["items"],
    "$defs": {"item": ITEM},
}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        pytest.param({"items": [{"name": "tea", "price": 2.5}]}, None, id="fits"),
        pytest.param([], "$: [] is not of type 'object'", id="root"),
        pytest.param({}, "$: 'items' is a required property", id="missing"),
        pytest.param(
            {"items": [{"name": "tea", "price": "2"}]},
            "$.items[0].price: '2' is not of type 'number'",
            id="type",
        ),
        pytest.param(
            {"items": [{"name": "tea", "price": -1}]},
            "$.items[0].price: -1 is less than the minimum of 0",
            id="minimum",
        ),
    ],
)
def test_a_problem_begins_with_its_path(value, problem):
    assert parse_schema(ORDER).problem(value) == problem


def test_extra_members_are_a_problem_where_the_schema_says_so():
    problem = parse_schema(ITEM).problem({"name": "tea", "price": 1, "size": 2})
    assert problem is not None
    assert "'size' was unexpected" in problem


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        pytest.param([], "object", id="list"),
        pytest.param({"type": "text"}, "$.type: ", id="type"),
        pytest.param({"properties": {"a": {"minimum": "1"}}}, "$.properties.a.minimum", id="inner"),
        pytest.param({"$ref": "#/$defs/none"}, "leads nowhere", id="missing-ref"),
        pytest.param({"$ref": "http://127.0.0.1:9/s"}, "nothing is fetched", id="remote-ref"),
        pytest.param({"$ref": "other.json"}, "nothing is fetched", id="relative-ref"),
        pytest.param({"enum": [{"type": 5}], "$ref": "#/enum/0"}, "cannot be followed", id="value"),
        pytest.param({"x": {"type": 5}, "$ref": "#/x"}, "$.type", id="unusual-ref"),
        pytest.param({"pattern": "(?=a)"}, "pattern", id="lookahead"),
        pytest.param({"pattern": "("}, "pattern", id="no-pattern"),
        pytest.param({"patternProperties": {"a": {}}}, "patternProperties", id="names"),
        pytest.param({"unevaluatedProperties": False}, "unevaluated", id="unevaluated"),
        pytest.param({"$dynamicRef": "#x"}, "$dynamicRef", id="dynamic"),
        pytest.param({"const": "x" * MAX_SCHEMA_CHARS}, "characters", id="long"),
    ],
)
def test_a_schema_that_cannot_be_checked_is_refused_before(schema, reason):
    with pytest.raises(SchemaError) as caught:
        parse_schema(schema)
    assert reason in str(caught.value)


def test_names_of_properties_are_no_keywords():
    names = ("pattern", "$ref", "$schema", "$id", "patternProperties", "enum", "$dynamicRef")
    schema = {"type": "object", "properties": {name: {"type": "integer"} for name in names}}
    for name in names:
        assert parse_schema(schema).problem({name: 1}) is None
        assert parse_schema(schema).problem({name: "1"}) is not None


def test_a_pattern_takes_linear_time():
    schema = parse_schema({"type": "string", "pattern": "^(a+)+$"})
    began = time.monotonic()
    assert schema.problem("a" * 50_000 + "b") is not None
    assert schema.problem("a" * 50_000) is None
    assert time.monotonic() - began < 1


def test_a_part_cannot_choose_other_rules():
    draft = "http://json-schema.org/draft-07/schema#"
    inner = {"$schema": draft, "$id": "http://x.test/", "type": "string", "pattern": "^(a+)+$"}
    schema = parse_schema({"type": "object", "properties": {"a": inner}})
    began = time.monotonic()
    assert schema.problem({"a": "a" * 40 + "b"}) is not None
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param({"$ref": "#"}, id="itself"),
        pytest.param({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, id="itself-twice"),
        pytest.param(
            {
                "$ref": "#/$defs/a0",
                "$defs": {
                    **{f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)},
                    "a40": True,
                },
            },
            id="doubling",
        ),
    ],
)
def test_references_without_end_are_an_error_soon(schema):
    with pytest.raises(InvalidJSONAnswer, match="could not be checked"):
        parse_schema(schema).problem({})


def test_a_reference_that_only_shows_up_later_is_an_error_too():
    schema = parse_schema({"properties": {"enum": {"$ref": "#/nope"}}})
    with pytest.raises(InvalidJSONAnswer, match="leads nowhere"):
        schema.problem({"enum": 1})


@pytest.mark.parametrize(
    ("items", "fits"),
    [([1, 2], True), ([1, 1], False), ([{"a": 1, "b": 2}, {"b": 2, "a": 1}], False)],
)
def test_equal_items_are_found(items, fits):
    schema = parse_schema({"type": "array", "uniqueItems": True})
    assert (schema.problem(items) is None) is fits


def test_a_recursive_schema_checks_a_deep_value():
    schema = parse_schema({"type": "object", "properties": {"next": {"$ref": "#"}}})
    value: object = {}
    for _ in range(30):
        value = {"next": value}
    assert schema.problem(value) is None


def test_it_is_not_loaded_before_it_is_needed():
    code = (
        "import sys; import qwenproxy.upstream.json_answers;assert 'jsonschema' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

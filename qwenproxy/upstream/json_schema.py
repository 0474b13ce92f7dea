"""A client's JSON schema, checked with bounds: neither it nor an answer may hold the gateway up.

Nothing is fetched, patterns run in linear time, references are counted. What could not be checked
within bounds is refused before an upstream is asked. Loading this takes 0.1 s and 3 MB: who needs it
imports it then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator, ValidationError, validators
from jsonschema.exceptions import SchemaError as InvalidSchema
from jsonschema.protocols import Validator
from pydantic_core import SchemaError as BadPattern
from pydantic_core import SchemaValidator, core_schema
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012, EMPTY_REGISTRY

from qwenproxy.errors import InvalidJSONAnswer
from qwenproxy.wire import json
from qwenproxy.wire.json import JSONObject, JSONValue

MAX_SCHEMA_CHARS = 50_000
# Each use of a reference; real answers need hundreds.
_MAX_REFERENCES = 20_000
_MAX_REASON_CHARS = 300
# Where the values of these stand there are no schemas.
_VALUES = ("const", "default", "enum", "example", "examples")
# Their cost cannot be bounded, or depends on what is fetched.
_REFUSED = ("$dynamicRef", "$recursiveRef", "patternProperties", "unevaluatedItems", "unevaluatedProperties")  # fmt: skip


# Where every part is a schema, and checked with the whole.
_USUAL_REFERENCE = re.compile(r"#(/(\$defs|definitions|properties)/[^/]+)*")
_MAX_UNUSUAL_REFERENCES = 20


class SchemaError(ValueError):
    """The schema is none, or cannot be checked here; the message says where and why."""


def parse_schema(schema: JSONValue) -> Schema:
    """Check a schema and make it usable.

    Raises:
        SchemaError: see there.
    """
    if not isinstance(schema, dict):
        raise SchemaError("it must be an object")
    text = json.dumps_text(schema)
    if len(text) > MAX_SCHEMA_CHARS:
        raise SchemaError(f"it has {len(text):,} characters; {MAX_SCHEMA_CHARS:,} are taken")
    return _prepare(text)


# A program sends the same schema with every call.
@lru_cache(maxsize=64)
def _prepare(text: str) -> Schema:
    schema = json.loads_text(text)
    assert isinstance(schema, dict)
    return Schema(schema, text)


class Schema:
    """A checked schema; `text` is the client's own, as JSON."""

    def __init__(self, schema: JSONObject, text: str) -> None:
        self.text = text
        self._schema = _plain(schema)
        _check(self._schema, "")
        resource = DRAFT202012.create_resource(self._schema)
        resolver = EMPTY_REGISTRY.with_resource("", resource).resolver()
        unusual = 0
        for reference in sorted(set(_references(self._schema))):
            try:
                target = resolver.lookup(reference).contents
            except Unresolvable as exc:
                raise SchemaError(f"$ref: {reference[:200]!r} leads nowhere in it") from exc
            if _USUAL_REFERENCE.fullmatch(reference):
                continue
            unusual += 1
            if unusual > _MAX_UNUSUAL_REFERENCES or not set(_VALUES).isdisjoint(
                reference.split("/")
            ):
                raise SchemaError(f"$ref: {reference[:200]!r} cannot be followed here")
            _check(target, f"$ref {reference[:200]!r}: ")

    def problem(self, value: JSONValue) -> str | None:
        """Say why a value does not fit, beginning with its path (`$.items[2].price`); null: it fits.

        Raises:
            InvalidJSONAnswer: it could not be checked within bounds.
        """
        try:
            first = next(islice(self._validator().iter_errors(value), 1), None)
        except RecursionError as exc:
            raise _unchecked("its references lead in circles") from exc
        except Unresolvable as exc:
            raise _unchecked("one of its references leads nowhere") from exc
        if first is None:
            return None
        return f"{_path(first.absolute_path)}: {first.message[:_MAX_REASON_CHARS]}"

    def _validator(self) -> Validator:
        used = 0

        def reference(
            validator: Any, reference: str, instance: JSONValue, schema: JSONObject
        ) -> Iterator[ValidationError]:
            nonlocal used
            used += 1
            if used > _MAX_REFERENCES:
                raise _unchecked("its references multiply too much")
            yield from validator._validate_reference(ref=reference, instance=instance)

        def pattern(
            validator: Any, pattern: str, instance: JSONValue, schema: JSONObject
        ) -> Iterator[ValidationError]:
            if isinstance(instance, str) and not _matcher(pattern).isinstance_python(instance):
                yield ValidationError(f"the text does not match {pattern!r}")

        def unique(
            validator: Any, is_unique: bool, instance: JSONValue, schema: JSONObject
        ) -> Iterator[ValidationError]:
            if is_unique and isinstance(instance, list):
                different = {json.dumps(item, sort_keys=True) for item in instance}
                if len(different) < len(instance):
                    yield ValidationError("the list has equal items")

        own = {"$ref": reference, "pattern": pattern, "uniqueItems": unique}
        bounded = validators.extend(Draft202012Validator, own)  # type: ignore[no-untyped-call]  # its stubs
        validator: Validator = bounded(self._schema, registry=EMPTY_REGISTRY)
        return validator


def _unchecked(why: str) -> InvalidJSONAnswer:
    return InvalidJSONAnswer(f"the answer could not be checked against the schema: {why}")


def _check(schema: Any, where: str) -> None:
    try:
        Draft202012Validator.check_schema(schema)
    except InvalidSchema as exc:
        reason = f"{_path(exc.absolute_path)}: {exc.message[:_MAX_REASON_CHARS]}"
        raise SchemaError(where + reason) from exc
    except RecursionError as exc:
        raise SchemaError("it is nested too deep") from exc


def _plain(schema: JSONObject) -> JSONObject:
    """The schema without what would change its rules in parts of it.

    Raises:
        SchemaError: it has what cannot be bounded.
    """
    copy = {}
    for name, value in schema.items():
        # They choose other rules and other places to look references up; as properties, they are schemas.
        if name in ("$schema", "$id", "id") and isinstance(value, str):
            continue
        if name in _REFUSED and isinstance(value, str | dict | bool):
            raise SchemaError(f"{name} cannot be checked here")
        if name == "$ref" and isinstance(value, str) and not value.startswith("#"):
            raise SchemaError(f"$ref: {value[:200]!r} is not in it, and nothing is fetched")
        if name == "pattern" and isinstance(value, str):
            _matcher(value)
        copy[name] = value if name in _VALUES else _plain_value(name, value)
    return copy


def _plain_value(name: str, value: JSONValue) -> JSONValue:
    if isinstance(value, list):
        return [_plain(item) if isinstance(item, dict) else item for item in value]
    if not isinstance(value, dict):
        return value
    if name in ("properties", "$defs", "definitions", "dependentSchemas"):
        # Names are the client's own here.
        return {
            key: _plain(inner) if isinstance(inner, dict) else inner for key, inner in value.items()
        }
    return _plain(value)


def _references(schema: JSONValue) -> Iterator[str]:
    if isinstance(schema, list):
        for item in schema:
            yield from _references(item)
    elif isinstance(schema, dict):
        for name, value in schema.items():
            if name == "$ref" and isinstance(value, str):
                yield value
            elif name not in _VALUES:
                yield from _references(value)


@lru_cache(maxsize=256)
def _matcher(pattern: str) -> Any:
    # pydantic's core has a matcher of linear time; Python's own can be made to run for hours.
    try:
        return SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))
    except BadPattern as exc:
        raise SchemaError(f"pattern: {pattern[:200]!r} cannot be checked here") from exc


def _path(steps: Any) -> str:
    return (
        "$" + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)[:200]
    )

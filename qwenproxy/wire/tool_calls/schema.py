"""The JSON schema of a tool's parameters, walked member by member: which types a value may have.

A schema decides how a value was meant where a model wrote it in another form: `"5"` for an integer,
`"Celsius"` for `celsius`. What has one reading only is corrected, at any depth; everything else stays as
it was written, and is the client's to refuse.
"""

from __future__ import annotations

from collections.abc import Iterator

from qwenproxy.wire import json, json_repair
from qwenproxy.wire.json import JSONError, JSONObject, JSONValue

_REFERENCE_DEPTH = 8
_MEMBER_LISTS = ("anyOf", "oneOf", "allOf")


class Schema:
    """One place of a schema: every alternative that may describe the value there."""

    __slots__ = ("_alternatives", "_members", "_root", "allowed", "takes_numbers", "types")

    def __init__(self, alternatives: list[JSONObject], root: JSONObject) -> None:
        self._alternatives = alternatives
        self._root = root
        self._members: dict[str, Schema] = {}
        # Types that the schema names; empty where it names none.
        self.types: frozenset[str] = frozenset(_types(alternatives))
        # A whole number here stays one.
        self.takes_numbers = not self.types or bool(self.types - {"string", "null"})
        # Values of an `enum` or `const`; null where there is none.
        self.allowed: list[JSONValue] | None = _allowed(alternatives)

    @classmethod
    def of(cls, parameters: JSONObject) -> Schema:
        return cls(_flat(parameters, parameters, _REFERENCE_DEPTH), parameters)

    @property
    def is_open_text(self) -> bool:
        """A text here stays the text that it is, whatever it goes on with."""
        return self.allowed is None and (not self.types or "string" in self.types)

    @property
    def is_text_alone(self) -> bool:
        """Nothing but text can stand here."""
        return self.allowed is None and self.types == {"string"}

    def has_member(self, name: str) -> bool:
        """Whether a member of this name may exist: true where the schema lists none."""
        lists = [listed for s in self._alternatives if (listed := s.get("properties"))]
        return not lists or any(isinstance(listed, dict) and name in listed for listed in lists)

    def member(self, name: str) -> Schema:
        found = self._members.get(name)
        if found is None:
            found = self._members[name] = self._below(_member_schemas(self._alternatives, name))
        return found

    def item(self) -> Schema:
        # No name of a member: they are texts that a model wrote.
        found = self._members.get("\0items")
        if found is None:
            items = [schema.get("items") for schema in self._alternatives]
            found = self._members["\0items"] = self._below(items)
        return found

    def _below(self, schemas: list[JSONValue]) -> Schema:
        flat = [one for s in schemas for one in _flat(s, self._root, _REFERENCE_DEPTH)]
        return Schema(flat, self._root)


def _member_schemas(alternatives: list[JSONObject], name: str) -> list[JSONValue]:
    found: list[JSONValue] = []
    for schema in alternatives:
        properties = schema.get("properties")
        if isinstance(properties, dict) and name in properties:
            found.append(properties[name])
        else:
            found.append(schema.get("additionalProperties"))
    return found


def _flat(schema: JSONValue, root: JSONObject, depth: int) -> list[JSONObject]:
    """The schema and all that it refers to or is made of; a schema may refer to itself."""
    if not isinstance(schema, dict) or depth == 0:
        return []
    found = [schema]
    for key in _MEMBER_LISTS:
        members = schema.get(key)
        for member in members if isinstance(members, list) else ():
            found += _flat(member, root, depth - 1)
    reference = schema.get("$ref")
    if isinstance(reference, str):
        found += _flat(_referred(reference, root), root, depth - 1)
    return found


def _referred(reference: str, root: JSONObject) -> JSONValue:
    target: JSONValue = root
    for step in reference.removeprefix("#").split("/")[1:]:
        if not isinstance(target, dict):
            return None
        target = target.get(step.replace("~1", "/").replace("~0", "~"))
    return target


def _types(alternatives: list[JSONObject]) -> Iterator[str]:
    for schema in alternatives:
        declared = schema.get("type")
        for kind in declared if isinstance(declared, list) else [declared]:
            if isinstance(kind, str):
                yield kind
        yield from map(_type_of, _listed(schema))


def _allowed(alternatives: list[JSONObject]) -> list[JSONValue] | None:
    if not any("enum" in schema or "const" in schema for schema in alternatives):
        return None
    return [value for schema in alternatives for value in _listed(schema)]


def _listed(schema: JSONObject) -> list[JSONValue]:
    allowed = schema.get("enum")
    values = allowed if isinstance(allowed, list) else []
    return [*values, schema["const"]] if "const" in schema else values


def _type_of(value: JSONValue) -> str:
    match value:
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case dict():
            return "object"
        case None:
            return "null"


def type_text(schema: Schema, text: str) -> JSONValue:
    """Give a value that was written as bare text its type.

    Without a type in the schema, text that is a JSON object, array, number or boolean is that value.
    """
    if schema.types:
        return _member_of(schema, _typed(text, schema))
    value = _parsed(text)
    return text if value is None or isinstance(value, str) else value


def type_value(schema: Schema, value: JSONValue) -> JSONValue:
    """Correct a value written as JSON where the schema allows another type alone, at any depth."""
    if isinstance(value, dict):
        return {name: type_value(schema.member(name), inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [type_value(schema.item(), inner) for inner in value]
    types = schema.types
    if not types:
        return value
    if isinstance(value, str):
        return _member_of(schema, value if "string" in types else _typed(value, schema))
    if isinstance(value, bool):
        return value if schema.takes_numbers else json.dumps_text(value)
    if isinstance(value, float):
        is_whole = "number" not in types and "integer" in types and value.is_integer()
        return int(value) if is_whole else value
    if isinstance(value, int) and not schema.takes_numbers:
        return str(value)
    return value


def _typed(text: str, schema: Schema) -> JSONValue:
    types, word = schema.types, text.strip()
    if "null" in types and word in ("null", "None"):
        return None
    if types & {"object", "array"} and word.startswith(("{", "[")):
        value = _parsed(word, repair=True)
        if isinstance(value, dict if word[0] == "{" else list):
            return type_value(schema, value)
    if "string" in types:
        return text
    if "boolean" in types and word.lower() in ("true", "false"):
        return word.lower() == "true"
    if types & {"integer", "number"}:
        value = _parsed(word)
        if isinstance(value, float) and "number" not in types and value.is_integer():
            return int(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return value
    return text


def _member_of(schema: Schema, value: JSONValue) -> JSONValue:
    """Find the one allowed text that differs in case and white space alone."""
    if schema.allowed is None or not isinstance(value, str) or value in schema.allowed:
        return value
    word = value.strip().casefold()
    alike = [v for v in schema.allowed if isinstance(v, str) and v.casefold() == word]
    return alike[0] if len(alike) == 1 else value


def _parsed(text: str, *, repair: bool = False) -> JSONValue:
    try:
        return json_repair.loads(text) if repair else json.loads_text(text)
    except JSONError:
        return None

"""OpenAI's embeddings: bodies checked, vectors in the form the client asked for, and what is recorded.

The record keeps the input whole, as one message, and of the vectors their number, length and digest:
they are the model's, can be had again, and would be most of the database.
"""

from __future__ import annotations

import binascii
import sys
from array import array
from base64 import b64decode, b64encode
from collections.abc import Sequence
from hashlib import sha256

from qwenproxy.wire import json
from qwenproxy.wire.json import JSONObject, JSONValue

DIALECT = "embeddings"
# Of recorded parameters: the message holds the input as JSON, for what is not one text.
_IS_JSON = "_input_is_json"
_FLOAT_BYTES = 4


def input_problem(value: JSONValue) -> str:
    """Say why a body's `input` is none; empty: it is a text, texts, tokens or lists of tokens."""
    items = value if isinstance(value, list) else [value]
    if not items or not all(items):
        return "input must not be empty"
    are_texts = all(isinstance(item, str) for item in items)
    if are_texts or (isinstance(value, list) and _are_tokens(items)):
        return ""
    if all(isinstance(item, list) and _are_tokens(item) for item in items):
        return ""
    return "input must be a text, a list of texts, a list of tokens or a list of such lists"


def _are_tokens(items: Sequence[JSONValue]) -> bool:
    return all(isinstance(item, int) and not isinstance(item, bool) for item in items)


def to_message(value: JSONValue) -> JSONObject:
    """The input as the message that is recorded."""
    text = value if isinstance(value, str) else json.dumps_text(value)
    return {"role": "user", "content": text}


def to_parameters(body: JSONObject) -> JSONObject:
    """The rest of a body, as it is recorded."""
    rest = {name: value for name, value in body.items() if name != "input"}
    return rest if isinstance(body["input"], str) else {**rest, _IS_JSON: True}


def to_body(parameters: JSONObject, text: str) -> JSONObject:
    """The client's body again, from what `to_parameters` and `to_message` made of it."""
    rest = {name: value for name, value in parameters.items() if name != _IS_JSON}
    return {**rest, "input": _parsed(text) if parameters.get(_IS_JSON) else text}


def read_answer(answer: JSONValue, *, as_base64: bool) -> tuple[JSONObject, JSONObject]:
    """Check an upstream's answer; return it in the form asked for, and what is recorded of it.

    Servers that know lists alone are translated for clients that ask for base64.

    Raises:
        ValueError: it is none.
    """
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(answer, dict) or not isinstance(data, list) or not data:
        raise ValueError("there is no list of embeddings")
    items: list[JSONValue] = []
    lengths: set[int] = set()
    for item in data:
        vector = item.get("embedding") if isinstance(item, dict) else None
        if not isinstance(item, dict) or not isinstance(vector, list | str):
            raise ValueError("an embedding has no vector")
        lengths.add(_length(vector))
        if as_base64 and isinstance(vector, list):
            item = {**item, "embedding": _to_base64(vector)}
        items.append(item)
    recorded: JSONObject = {
        "count": len(items),
        "dimensions": max(lengths),
        "sha256": sha256(json.dumps(items)).hexdigest(),
    }
    return {**answer, "data": items}, recorded


def to_response(recorded: str, *, model: str, usage: JSONObject | None) -> JSONObject:
    """The answer as the record shows it: `vectors` in place of the vectors."""
    body: JSONObject = {"object": "list", "data": None, "vectors": _parsed(recorded)}
    return {**body, "model": model, "usage": usage}


def _parsed(text: str) -> JSONValue:
    try:
        return json.loads_text(text)
    except json.JSONError:
        # A rule of redaction may leave something else.
        return text


def _length(vector: list[JSONValue] | str) -> int:
    if isinstance(vector, list):
        return len(vector)
    try:
        return len(b64decode(vector, validate=True)) // _FLOAT_BYTES
    except binascii.Error as exc:
        raise ValueError("a vector is not base64") from exc


def _to_base64(vector: list[JSONValue]) -> str:
    numbers = [number for number in vector if isinstance(number, int | float)]
    if len(numbers) < len(vector):
        raise ValueError("a vector holds what is no number")
    try:
        floats = array("f", numbers)
    except OverflowError as exc:
        raise ValueError("a vector holds a number that is too large") from exc
    if sys.byteorder == "big":
        floats.byteswap()
    return b64encode(floats.tobytes()).decode()

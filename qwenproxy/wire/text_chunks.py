"""Reads a chunk that differs from an earlier one in its text alone, without parsing all of it again.

Nearly every chunk of an answer repeats hundreds of bytes around a few of text. `learn` cuts a chunk at
its text and proves by parsing that another text may stand there; `read` then parses that text only.
What does not fit byte for byte is left to the parser, so that the outcome is always the parser's.
"""

from __future__ import annotations

import re

import orjson

from qwenproxy.wire.json import JSONObject, JSONValue

_FIELDS = ("content", "reasoning_content", "reasoning")
_VALUES = {
    field: re.compile(rb'"' + field.encode() + rb'"\s*:\s*("(?:[^"\\]|\\.)*")', re.DOTALL)
    for field in _FIELDS
}
# Where each chunk has something new (a time, a token's id), learning costs and never pays.
_MAX_FAILURES = 3


class TextChunks:
    """The form of one answer's text chunks; `field` is the member of `delta` that holds the text."""

    def __init__(self) -> None:
        self.field = ""
        # With the quotes around the text; an empty form fits nothing.
        self._head = b"\x00"
        self._tail = b"\x00"
        self._start = 0
        self._rest = 0
        self._was_used = True
        self._failures = 0

    def read(self, payload: bytes) -> str | None:
        """Return the text of a chunk of the form learnt; null: parse it."""
        if not payload.startswith(self._head) or not payload.endswith(self._tail):
            return None
        try:
            text: str = orjson.loads(payload[self._start : len(payload) - self._rest])
        except orjson.JSONDecodeError:
            return None
        self._was_used = True
        return text

    def learn(self, payload: bytes, body: JSONObject) -> None:
        """Take the form of a parsed chunk that says a text and nothing else."""
        if self._failures >= _MAX_FAILURES or (field := _text_field(body)) is None:
            return
        found = _VALUES[field].search(payload)
        if found is None or not _can_vary(payload, found.span(1), body, field):
            self._failures += 1
            return
        self._failures = 0 if self._was_used else self._failures + 1
        self._was_used = False
        start, end = found.span(1)
        self.field = field
        self._start, self._rest = start, len(payload) - end
        self._head, self._tail = payload[: start + 1], payload[end - 1 :]


def _text_field(body: JSONObject) -> str | None:
    """Name the one member that says anything; null where the chunk says more or something else."""
    choices = body.get("choices")
    if body.get("usage") or body.get("error") or not isinstance(choices, list) or len(choices) != 1:
        return None
    choice = choices[0]
    if not isinstance(choice, dict) or choice.get("index") not in (0, None):
        return None
    delta = choice.get("delta")
    if not isinstance(delta, dict) or any(
        choice.get(name) for name in ("text", "finish_reason", "error")
    ):
        return None
    said = [name for name, value in delta.items() if value and name != "role"]
    field = said[0] if len(said) == 1 else ""
    return field if field in _FIELDS and isinstance(delta[field], str) else None


def _can_vary(payload: bytes, span: tuple[int, int], body: JSONObject, field: str) -> bool:
    """Put another text there and see that it changes that member and nothing else."""
    delta = _delta(body)
    other = f"{delta[field]}#"
    start, end = span
    try:
        varied = orjson.loads(payload[:start] + orjson.dumps(other) + payload[end:])
    except (orjson.JSONDecodeError, TypeError):
        return False
    if _delta(varied).get(field) != other:
        return False
    _delta(varied)[field] = delta[field]
    return bool(varied == body)


def _delta(body: JSONObject) -> dict[str, JSONValue]:
    return body["choices"][0]["delta"]  # type: ignore[index,call-overload,return-value]  # checked by _text_field

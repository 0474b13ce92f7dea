"""Reads JSON that a language model wrote, with the slips that models make.

Valid JSON is read as it is. Otherwise the text is rewritten once, in linear time, and read again:
raw line breaks in strings, quotes that can only be inner ones, unknown escapes, trailing commas,
`True`/`False`/`None`, one closing bracket too many at the end or one missing. What has more than
one reading is refused, not guessed: a wrong repair would run a wrong command.
"""

from __future__ import annotations

import json as stdlib_json
import math
import re

from qwenproxy.wire import json
from qwenproxy.wire.json import JSONError, JSONValue

_PIECE = re.compile(r'\s+|["{}\[\],:]|[^\s"{}\[\],:]+')
_STRING_STOP = re.compile(r'["\\\x00-\x1f]')
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_SPACE = re.compile(r"\s*")
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
_CLOSER = {"{": "}", "[": "]"}

# What follows a closing quote; any other quote inside a string belongs to its text. The length of a
# key is bounded so that the look-ahead stays linear.
_AFTER_KEY = re.compile(r"\s*:")
_AFTER_MEMBER = re.compile(
    r'\s*(?:,\s*(?:"[^"\\]{0,200}"\s*:|[}\]]|\Z)|\}\s*(?:[,}\]]|\Z)|\Z)',
)
_AFTER_ITEM = re.compile(r'\s*(?:,\s*(?:["{\[\-0-9tfnTFN\]]|\Z)|\]\s*(?:[,}\]]|\Z)|\Z)')


def _refuse_constant(name: str) -> JSONValue:
    raise JSONError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise JSONError(f"{digits} is too large")
    return number


_DECODER = stdlib_json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def loads(text: str) -> JSONValue:
    """Parse JSON text, repaired where it can be read in one way only.

    Raises:
        JSONError: not JSON and not clearly repairable.
    """
    try:
        return json.loads_text(text)
    except JSONError:
        return json.loads_text(_Rewriter(text).rewrite())


def loads_sequence(text: str) -> list[JSONValue]:
    """Parse valid JSON values that stand one after the other.

    Raises:
        JSONError: something else is among them.
    """
    values: list[JSONValue] = []
    position = _SPACE.match(text, 0).end()  # type: ignore[union-attr]  # the pattern matches nothing too
    while position < len(text):
        try:
            value, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as exc:
            raise JSONError(str(exc)) from exc
        values.append(value)
        position = _SPACE.match(text, position).end()  # type: ignore[union-attr]  # as above
    return values


class _Rewriter:
    def __init__(self, text: str) -> None:
        self._text = text
        self._written: list[str] = []
        self._open: list[str] = []
        # The last piece that is not white space; tells a key from a value.
        self._last = ""

    def rewrite(self) -> str:
        text, position = self._text, 0
        while position < len(text):
            found = _PIECE.match(text, position)
            # The pattern's alternatives cover every character.
            assert found is not None
            piece = found[0]
            position = found.end()
            if piece == '"':
                position = self._string(position)
            elif piece in "}]":
                if not self._close(piece, text[position:]):
                    break
            else:
                self._write(piece, position)
            if not piece.isspace():
                self._last = piece
        if self._open == ["{"]:
            self._written.append("}")
        elif self._open:
            raise JSONError("brackets are not closed")
        return "".join(self._written)

    def _write(self, piece: str, position: int) -> None:
        if piece in _CLOSER:
            self._open.append(piece)
        elif piece == ",":
            following = _PIECE.match(self._text, position)
            if following is not None and following[0].isspace():
                following = _PIECE.match(self._text, following.end())
            if following is None or following[0] in "}]":
                return
        self._written.append(_PYTHON_WORDS.get(piece, piece))

    def _close(self, piece: str, rest: str) -> bool:
        """Write a closing bracket; false where it is the one too many at the end."""
        if not self._open:
            if rest.strip():
                raise JSONError("text after the value")
            return False
        if _CLOSER[self._open.pop()] != piece:
            raise JSONError("brackets do not match")
        self._written.append(piece)
        return True

    def _string(self, position: int) -> int:
        """Write the string that begins at `position`, after its quote; returns where it ends."""
        text, written = self._text, self._written
        after = self._after_string()
        inner_quotes = 0
        written.append('"')
        while True:
            found = _STRING_STOP.search(text, position)
            if found is None:
                raise JSONError("a string is not closed")
            at = found.start()
            written.append(text[position:at])
            position = at + 1
            if found[0] == '"':
                if after.match(text, position):
                    # Quotes in prose and code come in pairs; after an odd number this may be an
                    # inner one as well, and the string another. Names have none.
                    if inner_quotes % 2 or (inner_quotes and after is _AFTER_KEY):
                        raise JSONError("quotes have more than one reading")
                    written.append('"')
                    return position
                written.append('\\"')
                inner_quotes += 1
            elif found[0] == "\\":
                escape = _ESCAPE.match(text, at)
                if escape is not None:
                    written.append(escape[0])
                    position = escape.end()
                elif not text.startswith("'", position):
                    written.append("\\\\")
            else:
                written.append(f"\\u{ord(found[0]):04x}")

    def _after_string(self) -> re.Pattern[str]:
        if not self._open or self._open[-1] == "[":
            return _AFTER_ITEM
        return _AFTER_KEY if self._last in ("{", ",") else _AFTER_MEMBER

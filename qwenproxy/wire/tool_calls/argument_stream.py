"""A call's arguments as they arrive: JSON in, the same JSON out, compact and typed by the schema.

What has been handed on is never taken back: a closing quote, a comma or a bracket leaves when what
follows shows that it was one, and the last bracket never leaves here. So arguments that were cut or
cannot be read are no JSON, and no client runs them. Where the text is no valid JSON the stream stands
still, and the block's end decides (`blocks`).
"""

from __future__ import annotations

import re
from typing import Literal

from qwenproxy.wire import json
from qwenproxy.wire.json import JSONError, JSONValue
from qwenproxy.wire.tool_calls.schema import Schema, type_value

_SPACE = re.compile(r"\s+")
# Of a string: what needs no look, an escape, and anything else (the end, or no JSON).
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
# Text of a string that is written the same here: without `\/`, `\u` and half an escape.
# Possessive: a run that another character follows must not be tried in every division.
STRING_RUN = re.compile(r'(?:[^"\\\x00-\x1f]++|\\["\\bfnrt])++')
_ESCAPE = re.compile(r'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})')
_CUT_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
_SCALAR = re.compile(r'[^\s,:"{}\[\]]+')
# What stands for itself: most keys, and most numbers.
_IS_PLAIN_KEY = re.compile(r'"[ !#-\[\]-~]*+"').fullmatch
_IS_SHORT_NUMBER = re.compile(r"0|[1-9][0-9]{0,14}").fullmatch
_MAX_HELD = 512
_MAX_DEPTH = 64


class _Frame:
    """An object or array that is open."""

    __slots__ = ("closer", "expects", "schema")

    def __init__(self, opener: str, schema: Schema) -> None:
        self.closer = "}" if opener == "{" else "]"
        self.schema = schema
        self.expects: Literal["first", "key", "value", "next"] = "first"


class ArgumentStream:
    """Reads one JSON object, from its opening brace on."""

    def __init__(self, schema: Schema) -> None:
        # What came so far is the beginning of the object, and no more.
        self.is_reading = True
        # The object is whole; `rest` ends it.
        self.is_closed = False
        self._root = schema
        self._frames: list[_Frame] = []
        # Of the value that comes next, or that a string in the course of being read is.
        self._schema = schema
        self._in_string = False
        self._buffer = ""
        self._searched = 0
        # Written and not yet certain; what was read for it.
        self._pending: list[str] = []
        self._pending_raw: list[str] = []
        self._tail: list[str] = []
        self._sent: list[str] = []

    @property
    def sent(self) -> str:
        """All that was handed on."""
        return "".join(self._sent)

    @property
    def rest(self) -> str:
        """What ends an object that is whole."""
        return "".join(self._pending)

    @property
    def unread(self) -> str:
        """The text behind what was handed on, as it came."""
        return "".join([*self._pending_raw, self._buffer, *self._tail])

    def feed(self, text: str) -> str:
        """Take text; returns what of the arguments is certain now."""
        if not self.is_reading:
            self._tail.append(text)
            return ""
        if self._in_string and not self._buffer and text.isascii() and STRING_RUN.fullmatch(text):
            # Nearly every piece of a long text.
            self._sent.append(text)
            return text
        out: list[str] = []
        buffer = self._buffer + text if self._buffer else text
        position, end = 0, len(buffer)
        while position < end and self.is_reading:
            step = self._read_string if self._in_string else self._read_structure
            taken = step(buffer, position, out)
            if taken == position:
                break
            position = taken
        self._buffer = buffer[position:]
        if end - position > _MAX_HELD and not self._holds_value():
            self.is_reading = False
        if not out:
            return ""
        written = "".join(out)
        self._sent.append(written)
        return written

    def _holds_value(self) -> bool:
        return self._buffer[0] == '"' and bool(self._frames) and self._frames[-1].expects == "value"

    def _freeze(self, position: int) -> int:
        self.is_reading = False
        return position

    def _confirm(self, out: list[str], text: str) -> None:
        if self._pending:
            out += self._pending
            self._pending.clear()
            self._pending_raw.clear()
        out.append(text)

    def _await(self, text: str, raw: str) -> None:
        self._pending.append(text)
        self._pending_raw.append(raw)

    def _read_string(self, buffer: str, position: int, out: list[str]) -> int:
        """Hand on the text of an open string; its end is pending."""
        character = buffer[position]
        if character == '"':
            follows = _skip_space(buffer, position + 1)
            if follows == len(buffer):
                return position
            if buffer[follows] not in (",", self._frames[-1].closer):
                return self._freeze(position)
            self._in_string = False
            self._await('"', buffer[position:follows])
            self._frames[-1].expects = "next"
            return follows
        run = STRING_RUN.match(buffer, position)
        if run is not None and run[0].isascii():
            self._confirm(out, run[0])
            return run.end()
        if character == "\\":
            found = _ESCAPE.match(buffer, position)
            if found is None:
                is_cut = _CUT_ESCAPE.match(buffer, position) is not None
                return position if is_cut else self._freeze(position)
            return self._read_escape(buffer, found, out)
        found = _PLAIN.match(buffer, position)
        if found is None:
            return self._freeze(position)
        plain = found[0]
        self._confirm(out, plain if plain.isascii() else json.dumps_text(plain)[1:-1])
        return found.end()

    def _read_escape(self, buffer: str, found: re.Match[str], out: list[str]) -> int:
        end = found.end()
        if found[0][1:3] in ("ud", "uD") and found[0][3] in "89abAB":
            # The first half of a pair.
            second = _ESCAPE.match(buffer, end)
            if second is not None and second[0][1] == "u":
                end = second.end()
            elif end == len(buffer) or _CUT_ESCAPE.match(buffer, end):
                return found.start()
        value = json.loads_text(f'"{buffer[found.start() : end]}"')
        self._confirm(out, json.dumps_text(value)[1:-1])
        return end

    def _read_structure(self, buffer: str, position: int, out: list[str]) -> int:
        begin = position
        # Looked at here as well: a call for every bracket would cost more than the rest.
        if buffer[position] in " \t\r\n":
            begin = _skip_space(buffer, position)
            if begin == len(buffer):
                return position
        if not self._frames:
            # The caller begins at the brace.
            self._open("{", self._root, out)
            return begin + 1
        frame, character = self._frames[-1], buffer[begin]
        if frame.expects == "next":
            if character == ",":
                self._await(",", buffer[position : begin + 1])
                frame.expects = "key" if frame.closer == "}" else "value"
                self._schema = frame.schema.item() if frame.closer == "]" else frame.schema
                return begin + 1
            return self._close(buffer, position, begin)
        if frame.expects == "first" and character == frame.closer:
            return self._close(buffer, position, begin)
        if frame.expects != "value" and frame.closer == "}":
            return self._read_key(frame, buffer, position, begin, out)
        if frame.expects == "first":
            self._schema = frame.schema.item()
        return self._read_value(frame, buffer, position, begin, out)

    def _close(self, buffer: str, position: int, begin: int) -> int:
        if buffer[begin] != self._frames[-1].closer:
            return self._freeze(position)
        self._await(self._frames.pop().closer, buffer[position : begin + 1])
        if self._frames:
            self._frames[-1].expects = "next"
        else:
            self.is_closed, self.is_reading = True, False
        return begin + 1

    def _read_key(
        self, frame: _Frame, buffer: str, position: int, begin: int, out: list[str]
    ) -> int:
        if buffer[begin] != '"':
            return self._freeze(position)
        end = self._string_end(buffer, begin)
        if end is None:
            return position
        colon = _skip_space(buffer, end)
        if colon == len(buffer):
            return position
        written = buffer[begin:end]
        if _IS_PLAIN_KEY(written):
            key: JSONValue = written[1:-1]
        else:
            key = _parsed(written)
            written = json.dumps_text(key)
        if buffer[colon] != ":" or not isinstance(key, str):
            return self._freeze(position)
        self._searched = 0
        self._confirm(out, written + ":")
        frame.expects = "value"
        self._schema = frame.schema.member(key)
        return colon + 1

    def _read_value(
        self, frame: _Frame, buffer: str, position: int, begin: int, out: list[str]
    ) -> int:
        character = buffer[begin]
        if character in "{[":
            if len(self._frames) == _MAX_DEPTH:
                return self._freeze(position)
            self._open(character, self._schema, out)
            return begin + 1
        if character == '"' and self._schema.is_open_text:
            self._confirm(out, '"')
            self._in_string = True
            return begin + 1
        if character == '"':
            frame.expects = "value"
            end = self._string_end(buffer, begin)
        else:
            found = _SCALAR.match(buffer, begin)
            if found is None:
                return self._freeze(position)
            end = found.end()
        if end is None or (follows := _skip_space(buffer, end)) == len(buffer):
            return position
        written = buffer[begin:end]
        if not (_IS_SHORT_NUMBER(written) and self._schema.takes_numbers):
            value = _parsed(written)
            if value is None and written != "null":
                return self._freeze(position)
            written = json.dumps_text(type_value(self._schema, value))
        if buffer[follows] not in (",", frame.closer):
            return self._freeze(position)
        self._searched = 0
        self._await(written, buffer[position:follows])
        frame.expects = "next"
        return follows

    def _open(self, opener: str, schema: Schema, out: list[str]) -> None:
        self._confirm(out, opener)
        self._frames.append(_Frame(opener, schema))

    def _string_end(self, buffer: str, begin: int) -> int | None:
        """Where the string that begins there ends; null where that has not come.

        Looks at each character once, however often the string is fed on.
        """
        at, end = begin + (self._searched or 1), len(buffer)
        while at < end:
            found = _PLAIN.match(buffer, at)
            if found:
                at = found.end()
                if at == end:
                    break
            if buffer[at] == '"':
                return at + 1
            if buffer[at] == "\\":
                if at + 1 == end:
                    break
                at += 2
            else:
                at += 1
        self._searched = at - begin
        return None


def _skip_space(text: str, position: int) -> int:
    # Mostly there is none, and that is known for less without the pattern.
    if position == len(text) or not text[position].isspace():
        return position
    found = _SPACE.match(text, position)
    return found.end() if found else position


def _parsed(text: str) -> JSONValue:
    try:
        return json.loads_text(text)
    except JSONError:
        return None

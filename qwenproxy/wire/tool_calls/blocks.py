"""One call block in the course of being read: where it ends, and which calls it holds.

A block takes text and markers as they arrive and says when it is over; what it reads is decoded once,
at its end, so a call is delivered whole or not at all. Each piece is looked at once, whatever its
size, and nothing is joined before the end: the cost is linear. Incremental arguments would be read
where the pieces are kept (`HermesBlock.feed`, `CoderBlock.feed`); the states are already those.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, TypeAlias

from qwenproxy.wire import json_repair
from qwenproxy.wire.json import JSONError, JSONObject, JSONValue
from qwenproxy.wire.tool_calls.specs import (
    ToolIndex,
    has_parameter,
    type_json_argument,
    type_text_argument,
)

# The name as the model wrote it, and the arguments.
Call: TypeAlias = tuple[str, JSONObject]


class Marker(NamedTuple):
    # The tag, or `function` and `parameter` for the tags that carry a name.
    kind: str
    raw: str
    name: str = ""


_SPACE = re.compile(r"\s*")
_STRING_STOP = re.compile(r'["\\]')
# Quotes, brackets, and characters that no JSON has outside of strings.
_OUTSIDE_STOP = re.compile(r'["{}\[\]]|[^\s,:0-9+\-.eEtrufalsnTFNo]')
_TRAILER = re.compile(r"[\s`}\]]*")
_NAME = re.compile(r'"name"\s*:\s*"([^"\\]{1,128})"')
_NAME_REACH = 1000


class HermesBlock:
    """JSON inside `<tool_call>`: one or several objects, or a list of them."""

    def __init__(self, tools: ToolIndex) -> None:
        self.is_over = False
        self.is_call = True
        self._tools = tools
        self._parts: list[str] = []
        self._depth = 0
        self._begun = False
        self._in_string = False
        self._escaped = False
        # A quote was read inside a string; the next character tells whether it closed it.
        self._after_quote = False
        # Not JSON any more: only the closing tag ends the block now.
        self._damaged = False

    def feed(self, text: str) -> int:
        """Take text; returns how much of it belongs to the block, less than all once it is over."""
        taken = self._scan(text)
        self._parts.append(text[:taken])
        self.is_over = taken < len(text)
        return taken

    def take(self, marker: Marker) -> bool:
        """Take a marker; false where the block was over before it."""
        if self._in_text(marker):
            self.feed(marker.raw)
            return True
        self.is_over = True
        return marker.kind == "</tool_call>"

    def _in_text(self, marker: Marker) -> bool:
        closes = marker.kind == "</tool_call>"
        if self._in_string and not self._damaged:
            return not (closes and self._after_quote)
        opens = marker.kind in ("<tool_call>", "function", "<tool_response>")
        return not closes and (self._damaged or not opens) and not self._is_closed

    @property
    def _is_closed(self) -> bool:
        return self._begun and self._depth == 0 and not self._damaged

    def _scan(self, text: str) -> int:
        position, end = 0, len(text)
        while position < end and not self._damaged:
            if self._in_string:
                position = self._scan_string(text, position)
                continue
            if self._depth == 0 and self._begun:
                position = _skip(_TRAILER, text, position)
                if position == end:
                    break
                if text[position] == ",":
                    self._damaged = True
                    break
                if text[position] not in "{[":
                    return position
            found = _OUTSIDE_STOP.search(text, position)
            if found is None:
                break
            position = found.end()
            character = text[position - 1]
            if character == '"':
                self._in_string = self._begun = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                self._begun = True
            elif self._begun:
                self._damaged = True
            else:
                # A brace and then prose.
                self.is_call = False
                return position - 1
        return end

    def _scan_string(self, text: str, position: int) -> int:
        if self._escaped:
            self._escaped = False
            return position + 1
        if self._after_quote:
            position = _skip(_SPACE, text, position)
            if position < len(text):
                self._after_quote = False
                # Valid JSON has one of these after a closing quote; other quotes are the text's.
                self._in_string = text[position] not in ",:}]"
            return position
        found = _STRING_STOP.search(text, position)
        if found is None:
            return len(text)
        self._after_quote = found[0] == '"'
        self._escaped = not self._after_quote
        return found.end()

    def decode(self) -> list[Call] | None:
        """Read the calls; null where the text is none."""
        return self._decode("".join(self._parts))

    def finish(self) -> list[Call] | None:
        """Read the calls at the end of the answer; null where they were cut or cannot be read."""
        if self._in_string and not self._after_quote and not self._damaged:
            # A quote too many or too few can make the closing tag look like a string's text.
            text = "".join(self._parts).rstrip("` \t\r\n")
            whole = text.removesuffix("</tool_call>")
            return self._decode(whole) if whole != text else None
        # At most the outermost brace may be missing: with more, arguments may be.
        return self.decode() if self._depth <= 1 or self._damaged else None

    @property
    def name(self) -> str | None:
        """The name of the first call as far as it can be read now."""
        found = _NAME.search("".join(self._parts[:_NAME_REACH])[:_NAME_REACH])
        return found[1] if found else None

    @property
    def is_half(self) -> bool:
        """Whether a block that cannot be read at the answer's end is a call that was cut."""
        return not self._is_closed and (self.name is not None or not self._damaged)

    def _decode(self, text: str) -> list[Call] | None:
        values, is_repaired = _values(text.strip().rstrip("`").rstrip())
        calls: list[Call] = []
        for value in values:
            call = _call(value, is_repaired=is_repaired)
            if call is None:
                return None
            tool = self._tools.find(call[0])
            calls.append((call[0], {k: type_json_argument(tool, k, v) for k, v in call[1].items()}))
        return calls or None


def _skip(pattern: re.Pattern[str], text: str, position: int) -> int:
    found = pattern.match(text, position)
    return found.end() if found else position


def _values(text: str) -> tuple[list[JSONValue], bool]:
    try:
        values, is_repaired = json_repair.loads_sequence(text), False
    except JSONError:
        if "<tool_call>" in text or "<function=" in text:
            # Two calls may have run into one; joined, they would be a call that nobody wrote.
            return [], True
        try:
            values, is_repaired = [json_repair.loads(text)], True
        except JSONError:
            return [], True
    if len(values) == 1 and isinstance(values[0], list):
        return values[0], is_repaired
    return values, is_repaired


def _call(value: JSONValue, *, is_repaired: bool) -> Call | None:
    if not isinstance(value, dict):
        return None
    function = value.get("function")
    if "name" not in value and isinstance(function, dict):
        value = function
    name = value.get("name")
    if not isinstance(name, str) or not name:
        return None
    if "arguments" not in value and "parameters" not in value:
        # Whole and without arguments; a repaired one may have lost them.
        is_bare = value.keys() <= {"name", "id", "type"}
        return (name, {}) if is_bare and not is_repaired else None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json_repair.loads(arguments) if arguments.strip() else None
        except JSONError:
            return None
    if arguments is None:
        arguments = {}
    return (name, arguments) if isinstance(arguments, dict) else None


def bare_call(text: str) -> Call | None:
    """Read a call written as a bare JSON object, with its arguments and nothing else."""
    try:
        value = json_repair.loads(text)
    except JSONError:
        return None
    if not isinstance(value, dict) or not ({"arguments", "parameters"} & value.keys()):
        return None
    if not value.keys() <= {"name", "arguments", "parameters", "id", "type"}:
        return None
    return _call(value, is_repaired=True)


class CoderBlock:
    """`<function=name>` with `<parameter=name>` values, which have no escapes.

    A tag is structure only where structure can stand: `</parameter>` where another tag follows, a
    missing one before a tag that ends or begins something. A whole call quoted inside a value (a
    document about this very form) belongs to the value.
    """

    def __init__(self, tools: ToolIndex, name: str) -> None:
        self.is_over = False
        self.is_call = True
        self.name = _clean(name)
        self._tool = tools.find(self.name)
        # Quoted calls that are open inside the value, and whether the last tag may open one.
        self._quoted = 0
        self._may_quote = False
        self._state: Literal["head", "value", "after_value", "maybe_end", "end"] = "head"
        self._parameter = ""
        self._value: list[str] = []
        # Read after a tag that may have ended the value; the value's own text if it did not.
        self._pending: list[str] = []
        self._arguments: dict[str, str] = {}

    @property
    def is_half(self) -> bool:
        return True

    def feed(self, text: str) -> int:
        """Take text; returns how much of it belongs to the block, less than all once it is over."""
        if self._state == "value":
            self._may_quote = self._may_quote and text.isspace()
            self._value.append(text)
            return len(text)
        if not text.strip("` \t\r\n" if self._state == "maybe_end" else None):
            self._pending.append(text)
            return len(text)
        if self._state in ("after_value", "maybe_end"):
            self._resume_value()
            self._value.append(text)
            return len(text)
        self.is_over = True
        self.is_call = self._state == "end"
        return 0

    def take(self, marker: Marker) -> bool:
        """Take a marker; false where the block was over before it."""
        if self._state == "end":
            self.is_over = True
            return marker.kind == "</tool_call>"
        if self._state == "maybe_end":
            return self._take_at_maybe_end(marker)
        if self._state == "value":
            self._take_in_value(marker)
            return True
        return self._take_between(marker)

    def _take_between(self, marker: Marker) -> bool:
        if marker.kind in ("parameter", "</function>", "</tool_call>"):
            self._close_value()
            if marker.kind == "parameter":
                self._open_value(marker.name)
            elif marker.kind == "</function>":
                self._state = "end"
            else:
                self.is_over = True
            return True
        if self._state == "head":
            self.is_over = True
            self.is_call = False
            return False
        self._resume_value()
        self._take_in_value(marker)
        return True

    def _take_in_value(self, marker: Marker) -> None:
        kind = marker.kind
        if self._may_quote and kind in ("parameter", "</function>"):
            self._quoted += 1
        self._may_quote = kind == "function"
        if self._quoted:
            self._quoted -= kind == "</function>"
        elif kind == "</parameter>":
            self._state = "after_value"
            self._pending = [marker.raw]
            return
        elif kind == "</function>":
            self._state = "maybe_end"
            self._pending = [marker.raw]
            return
        elif kind == "parameter" and self._begins_parameter(marker.name):
            self._close_value()
            self._open_value(marker.name)
            return
        self._value.append(marker.raw)

    def _take_at_maybe_end(self, marker: Marker) -> bool:
        closes = marker.kind == "</tool_call>"
        if closes or marker.kind in ("<tool_call>", "function", "<tool_response>"):
            self._close_value()
            self.is_over = True
            return closes
        self._resume_value()
        self._take_in_value(marker)
        return True

    def _begins_parameter(self, name: str) -> bool:
        """Whether a parameter tag inside a value begins the next one, `</parameter>` being missing."""
        name = _clean(name)
        last = next((part for part in reversed(self._value) if part), "")
        is_at_line_start = not last or last.rstrip(" \t").endswith("\n")
        is_new = name != self._parameter and name not in self._arguments
        return is_at_line_start and is_new and has_parameter(self._tool, name)

    def _open_value(self, name: str) -> None:
        self._state = "value"
        self._parameter = _clean(name)
        self._value = []
        self._pending = []

    def _resume_value(self) -> None:
        self._value.extend(self._pending)
        self._pending = []
        self._state = "value"

    def _close_value(self) -> None:
        if self._state != "head":
            self._arguments[self._parameter] = _trim_lines("".join(self._value))

    def decode(self) -> list[Call] | None:
        arguments: JSONObject = {
            key: type_text_argument(self._tool, key, text) for key, text in self._arguments.items()
        }
        return [(self.name, arguments)]

    def finish(self) -> list[Call] | None:
        """Read the call at the end of the answer; null where it was cut."""
        if self._state == "maybe_end":
            self._close_value()
        elif self._state != "end":
            return None
        return self.decode()


def _clean(name: str) -> str:
    return name.strip().strip("\"'")


def _trim_lines(text: str) -> str:
    """Remove the line breaks that belong to the tags: one at each end."""
    if text.startswith("\r\n"):
        return text.removeprefix("\r\n").removesuffix("\n").removesuffix("\r")
    return text.removeprefix("\n").removesuffix("\n")

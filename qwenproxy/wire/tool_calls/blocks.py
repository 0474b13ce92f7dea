"""One block of JSON calls in the course of being read: where it ends, and which calls it holds.

A block takes text and markers as they arrive and says when it is over. What is certain of its first
call's arguments is handed on meanwhile (`take_arguments`), all but their last bracket; the block is
decoded once, at its end, and `rest` ends what was handed on. Each piece is looked at once, whatever its
size: the cost is linear.
"""

from __future__ import annotations

import re
from typing import NamedTuple, TypeAlias

from qwenproxy.wire import json, json_repair
from qwenproxy.wire.json import JSONError, JSONObject, JSONValue
from qwenproxy.wire.tool_calls.argument_stream import ArgumentStream
from qwenproxy.wire.tool_calls.schema import Schema, type_value
from qwenproxy.wire.tool_calls.specs import ToolIndex

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
# The common beginning of a block; arguments of others are read at the block's end.
_HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*"([^"\\]{1,128})"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_HEAD_REACH = 400


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
        # The block's beginning, until it is known whether its arguments can be followed.
        self._head: str | None = ""
        self._stream: ArgumentStream | None = None
        # The same, while all that came is the beginning of valid JSON: its brackets tell nothing then.
        self._reading: ArgumentStream | None = None
        self._certain: list[str] = []
        # Text that the stream has read and `_scan` has not.
        self._unscanned: list[str] = []
        # How much of what the stream was given last came behind the block.
        self._excess = 0

    def feed(self, text: str) -> int:
        """Take text; returns how much of it belongs to the block, less than all once it is over."""
        self._unscanned.append(text)
        reading = self._reading
        if reading is None:
            taken = len(text) - self._scan_waiting()
            self._follow(text[:taken])
            return taken
        if certain := reading.feed(text):
            self._certain.append(certain)
        if reading.is_reading:
            return len(text)
        self._reading = None
        self._excess = self._scan_waiting()
        return len(text) - self._excess

    def _scan_waiting(self) -> int:
        """Look at the text that nobody looked at yet; returns how much at its end is not the block's."""
        if not self._unscanned:
            return 0
        text = "".join(self._unscanned)
        self._unscanned.clear()
        taken = self._scan(text)
        self._parts.append(text[:taken])
        self.is_over = taken < len(text)
        return len(text) - taken

    def _follow(self, text: str) -> None:
        if self._stream is not None:
            self._stream.feed(text)
            return
        if self._head is None:
            return
        head = self._head + text
        found = _HEAD.match(head)
        if found is None:
            self._head = head if len(head) <= _HEAD_REACH else None
            return
        self._head = None
        tool = self._tools.find(found[1])
        if tool is not None:
            stream = self._stream = ArgumentStream(tool.schema)
            self._certain.append(stream.feed(head[found.end() :]))
            self._reading = stream if stream.is_reading else None

    def take_arguments(self) -> str:
        """What of the first call's arguments has become certain; empty for tools nobody has."""
        if not self._certain:
            return ""
        certain = "".join(self._certain)
        self._certain.clear()
        return certain

    def rest(self, calls: list[Call] | None) -> str:
        """End the arguments that were handed on; `calls` is what the block was decoded to.

        Arguments that cannot be read come as they were written, and are no JSON.
        """
        stream = self._stream
        assert stream is not None
        if stream.is_closed:
            return stream.rest
        sent = stream.sent
        written = encode(calls[0][1]) if calls else None
        if written is not None and written.startswith(sent):
            return written[len(sent) :]
        unread = stream.unread
        unread = unread[: len(unread) - self._excess]
        try:
            json.loads_text(sent + unread)
        except JSONError:
            return unread
        return ""

    @property
    def has_whole_arguments(self) -> bool:
        """Whether the arguments that were handed on have ended, whatever follows them."""
        return self._stream is not None and self._stream.is_closed

    def take(self, marker: Marker) -> bool:
        """Take a marker; false where the block was over before it."""
        self._scan_waiting()
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
        self._scan_waiting()
        return self._decode("".join(self._parts))

    def finish(self) -> list[Call] | None:
        """Read the calls at the end of the answer; null where they were cut or cannot be read."""
        self._scan_waiting()
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
            name, arguments = call
            tool = self._tools.find(name)
            # The whole arguments of a first call were handed on, with the types of the schema.
            if tool is not None and (calls or not self.has_whole_arguments):
                arguments = _typed(tool.schema, arguments)
            calls.append((name, arguments))
        return calls or None


def _typed(schema: Schema, arguments: JSONObject) -> JSONObject:
    try:
        return {key: type_value(schema.member(key), value) for key, value in arguments.items()}
    except RecursionError:
        return arguments


def encode(arguments: JSONValue) -> str | None:
    """Write arguments as compact JSON; null where they are nested too deep."""
    try:
        return json.dumps_text(arguments)
    except RecursionError:
        return None


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

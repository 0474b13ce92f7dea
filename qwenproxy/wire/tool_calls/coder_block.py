"""One call in the XML form in the course of being read, value by value; see `blocks`.

Values have no escapes, so what is structure and what is text is decided by what can stand where.
"""

from __future__ import annotations

from typing import Literal

from qwenproxy.wire import json
from qwenproxy.wire.json import JSONObject
from qwenproxy.wire.tool_calls.blocks import Call, Marker, encode
from qwenproxy.wire.tool_calls.schema import Schema, type_text
from qwenproxy.wire.tool_calls.specs import ToolIndex


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
        self._schema = Schema.of({}) if self._tool is None else self._tool.schema
        # Quoted calls that are open inside the value, and whether the last tag may open one.
        self._quoted = 0
        self._may_quote = False
        self._state: Literal["head", "value", "after_value", "maybe_end", "end"] = "head"
        self._parameter = ""
        self._value: list[str] = []
        # Read after a tag that may have ended the value; the value's own text if it did not.
        self._pending: list[str] = []
        self._arguments: dict[str, str] = {}
        # The value as it is handed on, where nothing but text can stand there.
        self._text: _ValueText | None = None
        self._certain: list[str] = []

    def take_arguments(self) -> str:
        """What of the arguments has become certain."""
        certain, self._certain = "".join(self._certain), []
        return certain

    def rest(self, calls: list[Call] | None) -> str:
        """End the arguments that were handed on."""
        return self.take_arguments() + "}"

    # A call whose function has not ended is cut, whatever it has so far.
    has_whole_arguments = False

    @property
    def is_half(self) -> bool:
        return True

    def feed(self, text: str) -> int:
        """Take text; returns how much of it belongs to the block, less than all once it is over."""
        if self._state == "value":
            self._may_quote = self._may_quote and text.isspace()
            self._add(text)
            return len(text)
        if not text.strip("` \t\r\n" if self._state == "maybe_end" else None):
            self._pending.append(text)
            return len(text)
        if self._state in ("after_value", "maybe_end"):
            self._resume_value()
            self._add(text)
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
        self._add(marker.raw)

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
        return is_at_line_start and is_new and (self._tool is None or self._schema.has_member(name))

    def _open_value(self, name: str) -> None:
        self._state = "value"
        self._parameter = _clean(name)
        self._value = []
        self._pending = []
        separator = "," if self._arguments else "{"
        self._certain.append(f"{separator}{json.dumps_text(self._parameter)}:")
        self._text = None
        if self._schema.member(self._parameter).is_text_alone:
            self._text = _ValueText()
            self._certain.append('"')

    def _add(self, text: str) -> None:
        self._value.append(text)
        if self._text is not None:
            self._certain.append(_inner(self._text.feed(text)))

    def _resume_value(self) -> None:
        for text in self._pending:
            self._add(text)
        self._pending = []
        self._state = "value"

    def _close_value(self) -> None:
        if self._state == "head":
            return
        text = self._arguments[self._parameter] = _trim_lines("".join(self._value))
        if self._text is not None:
            self._certain.append(_inner(self._text.finish()) + '"')
            return
        written = encode(type_text(self._schema.member(self._parameter), text))
        self._certain.append(json.dumps_text(text) if written is None else written)

    def decode(self) -> list[Call] | None:
        arguments: JSONObject = {
            key: type_text(self._schema.member(key), text) for key, text in self._arguments.items()
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


def _inner(text: str) -> str:
    return json.dumps_text(text)[1:-1] if text else ""


class _ValueText:
    """A value's text while it comes: what `_trim_lines` leaves of it."""

    def __init__(self) -> None:
        self._has_begun = False
        self._is_windows = False
        self._held = ""

    def feed(self, text: str) -> str:
        text = self._held + text
        if not self._has_begun and text in ("", "\r"):
            self._held = text
            return ""
        if not self._has_begun:
            self._has_begun = True
            self._is_windows = text.startswith("\r\n")
            text = text.removeprefix("\r\n" if self._is_windows else "\n")
        certain = text.removesuffix("\n").removesuffix("\r")
        self._held = text[len(certain) :]
        return certain

    def finish(self) -> str:
        held = self._held.removesuffix("\n")
        return held.removesuffix("\r") if self._is_windows else held


def _trim_lines(text: str) -> str:
    """Remove the line breaks that belong to the tags: one at each end."""
    if text.startswith("\r\n"):
        return text.removeprefix("\r\n").removesuffix("\n").removesuffix("\r")
    return text.removeprefix("\n").removesuffix("\n")

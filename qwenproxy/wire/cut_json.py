"""Reads the beginning of a JSON text that was cut somewhere: what of it is certain, and no more.

The text up to the cut is closed where it stands: a text value ends with its last whole character, a number
or word that may go on is left out, and so is a member without a value. Linear time.
"""

from __future__ import annotations

import re

from qwenproxy.wire import json
from qwenproxy.wire.json import JSONValue

_CLOSER = {"{": "}", "[": "]"}
_PIECE = re.compile(r'\s*+("[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\],:]|[^\s"{}\[\],:]++)', re.DOTALL)
# A text without its end, up to its last whole escape, which is the group.
_CUT_TEXT = re.compile(r'\s*+"[^"\\]*+(?:(\\(?:u[0-9a-fA-F]{4}|[^u]))[^"\\]*+)*+')
_HIGH_SURROGATE = re.compile(r"\\u[dD][89abAB]")


def loads_head(text: str) -> JSONValue:
    """Parse a JSON text that may lack its end.

    Raises:
        JSONError: it is not the beginning of a JSON text, or of one whose first value is not known.
    """
    open_with: list[str] = []
    position = kept = 0
    is_key = False
    while (found := _PIECE.match(text, position)) is not None:
        piece, position = found[1], found.end()
        if piece in _CLOSER:
            open_with.append(_CLOSER[piece])
        elif piece in _CLOSER.values():
            if not open_with or open_with.pop() != piece:
                raise json.JSONError("brackets do not match")
        elif piece in ",:" or is_key:
            # A comma in an object is followed by a key, a key by a colon.
            is_key = piece == "," and open_with[-1:] == ["}"]
            continue
        elif position == len(text) and piece[0] != '"':
            # It may go on.
            break
        kept, is_key = position, piece == "{"
    whole = text[:kept]
    if not is_key:
        whole = _with_cut_text(text, position) or whole
    return json.loads_text(whole + "".join(reversed(open_with)))


def _with_cut_text(text: str, position: int) -> str:
    """All up to the end, where a text value begins at `position` that has none; else nothing."""
    found = _CUT_TEXT.match(text, position)
    if found is None:
        return ""
    end = found.end()
    if found.end(1) == end and _HIGH_SURROGATE.match(found[1]):
        # The other half is behind the cut.
        end = found.start(1)
    return text[:end] + '"'

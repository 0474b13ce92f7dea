"""The JSON value in an answer of a model that was asked for nothing else, and often says more.

Thinking in front of it, Markdown fences and words around it are left out; the value's own text is kept
to the letter.
"""

from __future__ import annotations

import json as stdlib_json
import re

from qwenproxy.wire import json
from qwenproxy.wire.json import JSONValue

_THINKING = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
_FENCED = re.compile(r"```[A-Za-z0-9]*[ \t]*\r?\n(.*?)```", re.DOTALL)
# Places where a value could begin that are tried at most: each try may read to the end.
_MAX_PLACES = 64
_DECODER = stdlib_json.JSONDecoder()


def find_json(text: str) -> str | None:
    """Return the text of the answer's JSON value, as the model wrote it; null where there is none.

    The whole answer first, then what stands in a fence, then the longest object or list within words.
    """
    if found := _THINKING.match(text):
        text = text[found.end() :]
    text = text.strip().removeprefix("\ufeff")
    if _is_json(text):
        return text
    for fenced in _FENCED.finditer(text):
        inner = fenced[1].strip()
        if _is_json(inner):
            return inner
    return _longest(text)


def parse_found(text: str) -> JSONValue:
    """Parse what `find_json` returned."""
    return json.loads_text(text)


def _longest(text: str) -> str | None:
    longest = ""
    position = 0
    for _ in range(_MAX_PLACES):
        places = [at for at in (text.find("{", position), text.find("[", position)) if at >= 0]
        if not places:
            break
        start = min(places)
        try:
            _, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            position = start + 1
            continue
        position = end
        if end - start > len(longest) and _is_json(text[start:end]):
            longest = text[start:end]
    return longest or None


def _is_json(text: str) -> bool:
    try:
        json.loads_text(text)
    except json.JSONError:
        return False
    return True

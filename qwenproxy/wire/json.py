"""JSON as it travels: orjson, and the standard library where orjson would change a value.

What a client sends survives: integers of any length up to Python's limit of 4,300 digits, `1.0`, NUL,
lone surrogates. orjson reads integers beyond 64 bits as floats and refuses lone surrogates; both cases
take the slower road. NaN and Infinity are not JSON and are refused.
"""

from __future__ import annotations

import json
import re
from typing import TypeAlias

import orjson

JSONValue: TypeAlias = "str | int | float | bool | None | list[JSONValue] | dict[str, JSONValue]"
JSONObject: TypeAlias = dict[str, JSONValue]

# Every digit becomes 0: finding a long run is then a plain search, 13 times as fast as a pattern.
_DIGITS_AS_ZERO = bytes(48 if 48 <= byte < 58 else byte for byte in range(256))
_LONG_DIGITS = b"0" * 19
# Of 19 bytes side by side every sixth is at least three: where no three samples in a row are digits,
# there is no such run, and a sixth of the bytes was enough to see that.
_STRIDE = 6
_DIGIT_SAMPLES = b"0" * 3
# Levels that are taken from others. No real body comes near it; Python's own encoder ends at about 1,000.
MAX_DEPTH = 100
# orjson's own limit of levels.
_ENCODER_DEPTH = 254
_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


class JSONError(ValueError):
    """The bytes are not JSON."""


def _refuse_constant(name: str) -> JSONValue:
    raise JSONError(f"{name} is not JSON")


def loads(body: bytes) -> JSONValue:
    """Parse UTF-8 JSON.

    Raises:
        JSONError: not JSON, not UTF-8, nested too deep, or a number too long.
    """
    if not _has_long_digits(body):
        try:
            parsed: JSONValue = orjson.loads(body)
        except orjson.JSONDecodeError as exc:
            # A lone surrogate's escape is the one valid input that orjson refuses.
            if not _SURROGATE_ESCAPE.search(body):
                raise JSONError(str(exc)) from exc
        else:
            return parsed
    try:
        value: JSONValue = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise JSONError(str(exc)) from exc
    return value


def _has_long_digits(body: bytes) -> bool:
    if _DIGIT_SAMPLES not in body[::_STRIDE].translate(_DIGITS_AS_ZERO):
        return False
    return _LONG_DIGITS in body.translate(_DIGITS_AS_ZERO)


def is_deeper(value: JSONValue, levels: int) -> bool:
    """Tell whether objects and lists stand inside one another in more levels than this."""
    wrapped = value
    # The encoder counts many times as fast as the loop below: within as many lists as its limit has
    # over ours, it takes just what we take. It may refuse for other reasons too.
    for _ in range(_ENCODER_DEPTH - levels):
        wrapped = [wrapped]
    try:
        orjson.dumps(wrapped)
    except TypeError:
        return _depth_exceeds(value, levels)
    return False


def refuse_deep(value: JSONValue, body: bytes) -> JSONValue:
    """Give what was parsed of this body again: all of it can be written.

    Raises:
        JSONError: it is nested deeper than `MAX_DEPTH` levels.
    """
    if (
        # Nearly all that comes is too short for so many brackets, or has fewer.
        len(body) > 2 * MAX_DEPTH
        and body.count(b"[") + body.count(b"{") > MAX_DEPTH
        and is_deeper(value, MAX_DEPTH)
    ):
        raise JSONError(f"it is nested deeper than {MAX_DEPTH} levels")
    return value


def _depth_exceeds(value: JSONValue, levels: int) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        level = [
            inner
            for container in level
            for inner in (container.values() if isinstance(container, dict) else container)
            if isinstance(inner, dict | list)
        ]
    return bool(level)


def dumps(value: object, *, sort_keys: bool = False) -> bytes:
    """Write compact UTF-8 JSON; lone surrogates become escapes, everything else is literal."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS if sort_keys else None)
    except TypeError:
        # Integers beyond 64 bits and lone surrogates raise TypeError.
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=sort_keys)
        return _escape_surrogates(text)


def dumps_text(value: object) -> str:
    """Write JSON as the text that database columns hold: no NUL, no lone surrogate, no escapes else."""
    return dumps(value).decode()


def loads_text(text: str) -> JSONValue:
    """Parse JSON that is text already, raw lone surrogates included; `JSONError` as `loads`."""
    try:
        body = text.encode()
    except UnicodeEncodeError:
        # A model's emoji may arrive cut in two; JSON allows a half inside strings as an escape.
        body = _escape_surrogates(text)
    return loads(body)


def _escape_surrogates(text: str) -> bytes:
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode()


def plain(text: str) -> str:
    """Make text fit a plain database column: NUL and lone surrogates become U+FFFD."""
    return _SURROGATE.sub("\ufffd", text.replace("\x00", "\ufffd"))

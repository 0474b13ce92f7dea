"""Values that programs do not expect, and valid ones bent: of JSON, of texts, of bytes.

All of it is drawn from a `Random` that the caller seeds, so the same seed gives the same case.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

_DEEP = 3_000

TEXTS = [
    "",
    " ",
    "\x00",
    "a\x00b",
    "\ud800",
    "\udfff\ud800",
    "\ufeff",
    "\u202e\u2066",
    "😀" * 50,
    "e\u0301" * 200,
    "\r\n\r\nHTTP/1.1 200 OK",
    "../../../../etc/passwd",
    "%00%ff%zz",
    "';DROP TABLE requests_app_request;--",
    "<script>alert(1)</script>",
    "{{7*7}}{% debug %}",
    "%s%n%(x)s{0}{x!r}",
    "null",
    "NaN",
    "-0",
    "1e400",
    "9" * 400,
    "0x1F",
    "١٢٣",
    "true",
    "[]",
    "{}",
    "data:image/png;base64,AAAA",
    "data:;base64,%%%",
    "http://127.0.0.1:1/",
    "http://[::1",
    "file:///etc/passwd",
    "<tool_call>\n{",
    "<think>",
    "</think></tool_call>",
    "2026-02-30T25:61:61Z",
    "0000-01-01",
    "9999-12-31T23:59:59.999999999+23:59",
    "1" * 5_000,
    "x" * 70_000,
]
NUMBERS: list[Any] = [
    0,
    -1,
    1,
    2**31,
    -(2**31) - 1,
    2**53 + 1,
    2**63 - 1,
    2**63,
    -(2**63) - 1,
    2**64,
    10**30,
    0.1,
    -0.0,
    1e308,
    5e-324,
    float("nan"),
    float("inf"),
    float("-inf"),
]


def text(rng: Random) -> str:
    if rng.random() < 0.8:
        return rng.choice(TEXTS)
    return "".join(chr(rng.choice((rng.randrange(256), rng.randrange(0x110000)))) for _ in range(8))


def value(rng: Random) -> Any:
    """Any JSON value; NaN and infinities are spelled as Python's json does."""
    kind = rng.randrange(10)
    if kind < 3:
        return text(rng)
    if kind < 5:
        return rng.choice(NUMBERS)
    return rng.choice(
        [None, True, False, [], {}, [[]], [None], [{}], {"": None}, {"type": None}, {"a": [{}]}]
    )


def _places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    children = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, child in children:
        found += _places(child, (*path, key))
    return found


def _at(node: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        node = node[key]
    return node


def bend(rng: Random, document: Any, times: int = 1) -> Any:
    """A copy of a JSON document with members replaced, removed, doubled, renamed, added or swapped."""
    document = json.loads(json.dumps(document))
    for _ in range(times):
        *above, last = rng.choice(_places(document)) or (None,)
        if last is None:
            if rng.random() < 0.1:
                return value(rng)
            continue
        parent = _at(document, tuple(above))
        _bend_member(rng, parent, last, document)
    return document


def _bend_member(rng: Random, parent: Any, key: Any, document: Any) -> None:
    how = rng.randrange(8)
    if how < 4:
        parent[key] = value(rng)
    elif how == 4:
        del parent[key]
    elif how == 5:
        parent[key] = rng.choice([[parent[key]], {"x": parent[key]}, str(parent[key])])
    elif how == 6:
        # From another place of the same document: right kinds of things in wrong ones.
        other = _at(document, rng.choice(_places(document)))
        parent[key] = json.loads(json.dumps(other))
    elif isinstance(parent, list):
        parent += [json.loads(json.dumps(parent[key]))] * rng.choice((1, 3, 200))
    else:
        parent[text(rng)] = parent.pop(key)


def encode(rng: Random, document: Any) -> bytes:
    """A document as JSON, now and then in a form that is none or that parsers differ about."""
    plain = json.dumps(document, ensure_ascii=rng.random() < 0.5)
    how = rng.randrange(40)
    if how == 0:
        plain = plain.replace(":", ":" + "[" * _DEEP, 1)
    elif how == 1:
        plain = plain[: rng.randrange(len(plain))]
    elif how == 2 and plain.startswith("{"):
        plain = plain[:-1] + "," + plain[1:]
    elif how == 3:
        plain = '{"a":' * _DEEP + plain + "}" * _DEEP
    elif how == 4:
        plain = "\ufeff" + plain
    elif how == 5:
        return plain.encode(rng.choice(("utf-16", "utf-32", "utf-7", "cp037")), "replace")
    elif how == 6:
        return spoil(rng, plain.encode("utf-8", "surrogatepass"))
    elif how == 7:
        plain = plain.replace('"', rng.choice(("'", '\\"', '""')), rng.randrange(1, 5))
    elif how == 8:
        plain += rng.choice(("{}", "\x00", " x", ",", "/* */"))
    elif how == 9:
        plain = plain.replace(":", ": 1" + "0" * 5_000 + ', "": ', 1)
    return plain.encode("utf-8", "surrogatepass")


def spoil(rng: Random, data: bytes) -> bytes:
    """Bytes with some of them changed, removed, put in, doubled or cut off."""
    result = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(result) + 1)
        end = min(len(result), at + rng.choice((1, 2, 16)))
        how = rng.randrange(5)
        if how == 0:
            result[at:end] = rng.randbytes(end - at)
        elif how == 1:
            del result[at:end]
        elif how == 2:
            result[at:at] = rng.choice(
                (b"\0", b"\xff", b"\xc3", b"\r\n", b"\n\n", b"\x7f", b"{", b'"')
            )
        elif how == 3:
            result[at:at] = result[at:end]
        elif rng.random() < 0.3:
            del result[at:]
    return bytes(result)

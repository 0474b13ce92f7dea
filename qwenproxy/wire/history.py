"""The match form of messages and the hash chain that identifies a place in a conversation.

A digest covers what a message means, not how its JSON is written: clients re-send history with other
key orders, parts instead of a text, reasoning dropped, empty members added, and must still be found.
Each digest includes its parent's; the chain starts from the API key's id, so that digests of two keys
never meet. The first byte names the algorithm. Reasoning, names and cache markers are not covered:
the record keeps the form that was seen first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

import orjson

from qwenproxy.wire import json
from qwenproxy.wire.json import JSONObject, JSONValue

VERSION = b"\x01"
# 184 bits: two different messages of one session never share one.
_DIGEST_BYTES = 23
_SYSTEM_ROLES = ("system", "developer")
_TEXT_PARTS = ("text", "input_text", "output_text")
# What a model thought, as some clients send it back among the parts.
_REASONING_PARTS = ("reasoning", "thinking", "redacted_thinking")


class Node(NamedTuple):
    """One message of a line, without the text it is stored as: only new messages are written."""

    digest: bytes
    message: JSONObject

    @property
    def role(self) -> str:
        return str(self.message["role"])

    @property
    def content(self) -> str:
        """The message as it is stored."""
        return encode_content(self.message)


def digest_of(*parts: bytes) -> bytes:
    """Digest of bytes that are no message (system text, tools), in the same form."""
    return VERSION + sha256(b"".join(parts)).digest()[:_DIGEST_BYTES]


def root_digest(api_key_id: int) -> bytes:
    """Where every line of one API key starts."""
    return digest_of(b"key:%d" % api_key_id)


def message_digest(parent: bytes, message: Mapping[str, JSONValue]) -> bytes:
    return digest_of(parent, json.dumps(match_form(message), sort_keys=True))


def match_form(message: Mapping[str, JSONValue]) -> list[JSONValue]:
    """Reduce a chat message to what it means: `[role, text or parts, calls, tool_call_id]`."""
    role = message.get("role")
    content = _match_content(message.get("content"))
    if role == "assistant" and isinstance(content, str):
        content = content.strip()
    form: list[JSONValue] = [role, content]
    calls = _match_calls(message)
    tool_call_id = message.get("tool_call_id") or None
    if calls or tool_call_id:
        form += [calls, tool_call_id]
    return form


def _match_content(content: JSONValue) -> JSONValue:
    if content is None:
        return ""
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    parts: list[JSONValue] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in _REASONING_PARTS:
            continue
        if isinstance(part, dict) and kind in _TEXT_PARTS:
            text = part.get("text")
            texts.append(text if isinstance(text, str) else "")
            parts.append(["text", texts[-1]])
        else:
            parts.append(_match_file(part))
    return "".join(texts) if len(texts) == len(parts) else parts


def _match_file(part: JSONValue) -> JSONValue:
    if isinstance(part, dict):
        part = {name: value for name, value in part.items() if name != "cache_control"}
    return ["file", digest_of(json.dumps(part, sort_keys=True)).hex()]


def _match_calls(message: Mapping[str, JSONValue]) -> list[JSONValue]:
    calls = message.get("tool_calls")
    forms: list[JSONValue] = []
    if isinstance(calls, list):
        for call in calls:
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(call, dict) and isinstance(function, dict):
                forms.append(
                    [
                        call.get("id") or None,
                        function.get("name"),
                        _parsed(function.get("arguments")),
                    ]
                )
            else:
                forms.append(call)
    legacy = message.get("function_call")
    if isinstance(legacy, dict):
        forms.append([None, legacy.get("name"), _parsed(legacy.get("arguments"))])
    return forms


def _parsed(arguments: JSONValue) -> JSONValue:
    """What call arguments say, as one canonical text; as they are where they are no JSON."""
    value = arguments
    try:
        if isinstance(arguments, str):
            value = json.loads_text(arguments) if arguments.strip() else None
        # No arguments and an empty object are one: clients send either back.
        return ["json", json.dumps({} if value is None else value, sort_keys=True).decode()]
    except (json.JSONError, RecursionError):
        return arguments


def split_system(
    messages: Sequence[JSONObject],
) -> tuple[Sequence[JSONObject], Sequence[JSONObject]]:
    """Part the system messages at the head, which are stored as a blob, from the line below them."""
    for index, message in enumerate(messages):
        if message.get("role") not in _SYSTEM_ROLES:
            return messages[:index], messages[index:]
    return messages, []


class _Memo:
    """Digests of lines that were digested before, the last used kept, up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._lines: OrderedDict[bytes, bytes] = OrderedDict()

    def get(self, key: bytes) -> bytes:
        """The digests of a line, one after the other; empty where it is not known."""
        found = self._lines.pop(key, b"")
        if found:
            self._lines[key] = found
        return found

    def put(self, key: bytes, digests: bytes) -> None:
        if key not in self._lines:
            self._lines[key] = digests
            self._bytes += _ENTRY_BYTES + len(digests)
        while self._lines and self._bytes > self._max_bytes:
            _, dropped = self._lines.popitem(last=False)
            self._bytes -= _ENTRY_BYTES + len(dropped)


# Beside its digests: the key, its node and its place in the table.
_ENTRY_BYTES = 300
# Shorter lines are digested as fast as they are looked up.
_MEMO_MESSAGES = 8
_memo = _Memo(16 * 2**20)


def chain(api_key_id: int, messages: Sequence[JSONObject]) -> list[Node]:
    """Digest a line (without the system messages at its head), parents first.

    What stands above the last answer is the line of the turn before, nearly always with the same
    bytes: its digests are remembered by these bytes.
    """
    answered = max(
        (index for index, message in enumerate(messages) if message.get("role") == "assistant"),
        default=0,
    )
    if answered < _MEMO_MESSAGES:
        return _chain(root_digest(api_key_id), messages)
    try:
        above = orjson.dumps(messages[:answered])
        below = orjson.dumps(messages[answered:])
    except TypeError:
        return _chain(root_digest(api_key_id), messages)
    bytes_seen = sha256(b"%d:" % api_key_id)
    # Without the bracket at its end, so that the line grows by appending.
    bytes_seen.update(memoryview(above)[:-1])
    known = _memo.get(bytes_seen.digest())
    size = _DIGEST_BYTES + len(VERSION)
    nodes = [
        Node(known[at : at + size], message)
        for at, message in zip(range(0, len(known), size), messages, strict=False)
    ]
    start = nodes[-1].digest if nodes else root_digest(api_key_id)
    nodes += _chain(start, messages[len(nodes) :])
    bytes_seen.update(b",")
    bytes_seen.update(memoryview(below)[1:-1])
    _memo.put(bytes_seen.digest(), b"".join(node.digest for node in nodes))
    return nodes


def _chain(digest: bytes, messages: Sequence[JSONObject]) -> list[Node]:
    nodes = []
    for message in messages:
        digest = message_digest(digest, message)
        nodes.append(Node(digest, message))
    return nodes


def encode_content(message: Mapping[str, JSONValue]) -> str:
    """Write a message for storage: all members but the role; a bare JSON text stands for `content`."""
    if len(message) == 2 and isinstance(message.get("content"), str):
        return json.dumps_text(message["content"])
    return json.dumps_text({name: value for name, value in message.items() if name != "role"})


def decode_content(role: str, content: str) -> JSONObject:
    """Read what `encode_content` wrote."""
    stored = json.loads_text(content)
    if isinstance(stored, dict):
        return {"role": role, **stored}
    return {"role": role, "content": stored}


def text_of(message: Mapping[str, JSONValue]) -> str:
    """The text of a message, its text parts joined; empty where it has none."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "".join(
        text
        for part in content
        if isinstance(part, dict)
        and part.get("type") in _TEXT_PARTS
        and isinstance(text := part.get("text"), str)
    )

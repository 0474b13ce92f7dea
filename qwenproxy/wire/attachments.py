"""Files inside messages (images, audio, documents), taken out for storage and put back.

Clients send the bytes of a file as base64 inside a part of a message, and again with every turn. For
storage each such text is taken out and a reference stands in its place, `{"$file": {"digest": hex,
"type": media type, "bytes": size}}`; putting it back gives the message as it was, to the letter. A name
that the client itself writes like a reference gets one more `$`. A message whose content is a text, and
parts that are texts, are not looked at.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from qwenproxy.wire import json
from qwenproxy.wire.history import digest_of
from qwenproxy.wire.json import JSONObject, JSONValue

# Parts that hold what is said or thought.
TEXT_PARTS = (
    "text", "input_text", "output_text", "refusal", "reasoning", "thinking", "redacted_thinking",
)  # fmt: skip
# Members of a message of which nothing but its files is kept.
FILES = "$files"

_REFERENCE = "$file"
_LIKE_REFERENCE = re.compile(r"\$+file")
# Members whose base64 may stand without `data:` in front (`input_audio`, `file`).
_BARE = ("data", "file_data")
_DATA_URL = re.compile(r"data:([^,;\s]{0,100})((?:;[^,;]{0,100}){0,4}),", re.IGNORECASE)
_SPACE = re.compile(r"\s+")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")


class File(NamedTuple):
    """A text that was taken out of a message."""

    digest: bytes
    # Compact JSON of the text, as it is stored.
    body: str
    media_type: str
    size: int

    @property
    def facts(self) -> JSONObject:
        return {"digest": self.digest.hex(), "type": self.media_type, "bytes": self.size}


class Data(NamedTuple):
    """What a data URL, or bare base64, holds."""

    # Empty: it does not say.
    media_type: str
    content: bytes


def take_out(message: JSONObject) -> tuple[JSONObject, list[File]]:
    """Return the message with references, and what they name; the same message where it has no files."""
    content = message.get("content")
    if not isinstance(content, list) or all(map(is_text, content)):
        return message, []
    files: list[File] = []
    parts = [part if is_text(part) else _out(part, "", "", files) for part in content]
    return {**message, "content": parts}, files


def put_back(message: JSONObject, bodies: Mapping[str, str]) -> JSONObject:
    """Undo `take_out`; `bodies` are by hexadecimal digest. A reference that is not there stays."""
    content = message.get("content")
    if not isinstance(content, list) or all(map(is_text, content)):
        return message
    return {
        **message,
        "content": [part if is_text(part) else _back(part, bodies) for part in content],
    }


def change_texts(message: JSONObject, change: Callable[[str], str]) -> JSONObject:
    """Change every text of a stored message but its references."""
    changed = {name: _change(value, change, is_part=False) for name, value in message.items()}
    content = message.get("content")
    if isinstance(content, list):
        changed["content"] = [_change(part, change, is_part=not is_text(part)) for part in content]
    return changed


def _change(value: JSONValue, change: Callable[[str], str], *, is_part: bool) -> JSONValue:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_change(item, change, is_part=is_part) for item in value]
    if isinstance(value, dict) and not (is_part and _read_reference(value)):
        return {name: _change(item, change, is_part=is_part) for name, item in value.items()}
    return value


def references(content: JSONValue) -> Iterator[JSONObject]:
    """The references in the content of a stored message; what only looks like one is not among them."""
    for part in content if isinstance(content, list) else ():
        if not is_text(part):
            yield from _references(part)


def _references(value: JSONValue) -> Iterator[JSONObject]:
    if isinstance(value, dict):
        if (found := _read_reference(value)) is not None:
            yield found
            return
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _references(item)


def read_data(text: str) -> Data:
    """Decode a data URL, or bare base64.

    Raises:
        ValueError: it is neither.
    """
    found = _DATA_URL.match(text)
    media_type = found[1].lower() if found else ""
    encoded = text[found.end() :] if found else text
    if found and ";base64" not in found[2].lower():
        return Data(media_type or "text/plain", _unquoted(encoded))
    try:
        return Data(media_type, base64.b64decode(_SPACE.sub("", encoded), validate=True))
    except (binascii.Error, ValueError) as exc:
        raise ValueError("it is not base64") from exc


def write_data(data: Data) -> str:
    return f"data:{data.media_type};base64,{base64.b64encode(data.content).decode()}"


def _unquoted(text: str) -> bytes:
    """Percent escapes as bytes (RFC 2397)."""
    encoded = text.encode("utf-8", "surrogatepass")
    return _ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), encoded)


def is_text(part: JSONValue) -> bool:
    """Whether a part of a message holds what is said or thought, and no file."""
    return not isinstance(part, dict) or part.get("type") in TEXT_PARTS


def _out(value: JSONValue, name: str, hint: str, files: list[File]) -> JSONValue:
    """Replace the texts to be taken out; `hint` is the media type that their neighbours tell."""
    if isinstance(value, str):
        if not value or not (name in _BARE or value[:5].lower() == "data:"):
            return value
        file = _file(value, hint)
        files.append(file)
        return {_REFERENCE: file.facts}
    if isinstance(value, list):
        return [_out(item, name, hint, files) for item in value]
    if isinstance(value, dict):
        form = value.get("format")
        hint = f"audio/{form}" if name == "input_audio" and isinstance(form, str) else ""
        return {
            f"${inner}" if _LIKE_REFERENCE.fullmatch(inner) else inner: _out(
                item, inner, hint, files
            )
            for inner, item in value.items()
        }
    return value


def _file(text: str, hint: str) -> File:
    body = json.dumps(text)
    found = _DATA_URL.match(text)
    media_type = (found[1].lower() if found else "") or hint
    length = len(text) - (found.end() if found else 0)
    if found is None or ";base64" in found[2].lower():
        length = length * 3 // 4 - text[-2:].count("=")
    digest = digest_of(b"file", body)
    return File(digest, body.decode(), json.plain(media_type), max(0, length))


def _read_reference(value: JSONObject) -> JSONObject | None:
    found = value.get(_REFERENCE) if len(value) == 1 else None
    return found if isinstance(found, dict) else None


def _back(value: JSONValue, bodies: Mapping[str, str]) -> JSONValue:
    if isinstance(value, list):
        return [_back(item, bodies) for item in value]
    if not isinstance(value, dict):
        return value
    if (found := _read_reference(value)) is not None:
        body = bodies.get(str(found.get("digest")))
        return value if body is None else json.loads_text(body)
    return {
        name[1:] if _LIKE_REFERENCE.fullmatch(name) and name != _REFERENCE else name: _back(
            item, bodies
        )
        for name, item in value.items()
    }

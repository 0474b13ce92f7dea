"""Files of messages, read from where they are stored apart: put back into messages, or named in a few words.

The bytes are loaded where somebody asks for the whole alone: lists and transcripts get by with what a
reference says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from qwenproxy import display
from qwenproxy.wire import attachments, json
from qwenproxy.wire.json import JSONObject, JSONValue
from requests_app.models import Blob

# Members that hold base64 without `data:` in front: `input_audio`, `file`, Anthropic's `source`.
_BYTES = ("data", "file_data")
_BASE64 = re.compile("[A-Za-z0-9+/]+")
_SHOWN_CHARS = 80


def restore(messages: Sequence[JSONObject], api_key_id: int) -> list[JSONObject]:
    """Put the files of one key's messages back; one query, and none where there are no files."""
    digests = {
        str(found.get("digest"))
        for message in messages
        for found in attachments.references(message.get("content"))
    }
    bodies = _load(digests, api_key_id) if digests else {}
    return [attachments.put_back(message, bodies) for message in messages]


def _load(digests: Iterable[str], api_key_id: int) -> dict[str, str]:
    known = [digest for text in digests if (digest := _read_digest(text)) is not None]
    rows = Blob.objects.filter(api_key=api_key_id, digest__in=known, kind="file")
    return {
        bytes(digest).hex(): body for digest, body in rows.values_list("digest", "body").iterator()
    }


def _read_digest(text: str) -> bytes | None:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return None


def described(message: JSONObject) -> JSONObject:
    """The message with a few words in the place of each file."""
    words = {
        str(found.get("digest")): json.dumps_text(describe(found))
        for found in attachments.references(message.get("content"))
    }
    return attachments.put_back(message, words)


def shortened(value: JSONValue, name: str = "") -> JSONValue:
    """A body of any protocol with the bytes of files cut; the same object where it has none."""
    if isinstance(value, str):
        start = value[:_SHOWN_CHARS]
        is_file = start[:5].lower() == "data:" or (name in _BYTES and _BASE64.fullmatch(start))
        if len(value) <= _SHOWN_CHARS or not is_file:
            return value
        return f"{start}… ({display.size(len(value))} in all)"
    changed: JSONValue
    if isinstance(value, list):
        changed = [shortened(item) for item in value]
        pairs = zip(changed, value, strict=True)
    elif isinstance(value, dict):
        changed = {inner: shortened(item, inner) for inner, item in value.items()}
        pairs = zip(changed.values(), value.values(), strict=True)
    else:
        return value
    return value if all(new is old for new, old in pairs) else changed


def describe(facts: JSONObject) -> str:
    """`image/png, 345 kB`, of what a reference says."""
    size = facts.get("bytes")
    return ", ".join(
        (
            json.plain(str(facts.get("type") or "file"))[:100],
            display.size(size if isinstance(size, int) else 0),
        )
    )

"""Files of a turn for the web upstream: which parts of messages they are, and the forms of their upload.

The site keeps files in an object store (Alibaba OSS): it lends credentials, the object is put there with
a signature of version 4, and a turn names it in `files` (reference: captures of the site's own client;
signature: OSS's documentation, "Signature version 4").
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Literal, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from qwenproxy.wire.json import JSONObject, JSONValue

Kind = Literal["image", "video", "audio", "file"]
UNSIGNED = "UNSIGNED-PAYLOAD"

# Type of a part -> the member that holds its file, the member of that with the bytes, what it is.
_PARTS: Mapping[str, tuple[str, str, Kind]] = {
    "image_url": ("image_url", "url", "image"),
    "video_url": ("video_url", "url", "video"),
    "input_audio": ("input_audio", "data", "audio"),
    "file": ("file", "file_data", "file"),
}
_CLASSES = {"image": "vision", "video": "video", "audio": "audio", "file": "document"}
_EXTENSIONS = {
    "audio/mpeg": "mp3", "image/jpeg": "jpg", "image/svg+xml": "svg", "text/markdown": "md",
    "text/plain": "txt", "video/quicktime": "mov",
}  # fmt: skip
_DATA_TYPE = re.compile(r"data:([\w.+-]+/[\w.+-]+)", re.IGNORECASE)
_UNSAFE = re.compile(r"[^\w.+ -]+")
_MAX_NAME_CHARS = 80
_SERVICE = "oss/aliyun_v4_request"


class FilePart(NamedTuple):
    """A part of a message that holds a file."""

    # Places: of the message in the history, of the part in it.
    message: int
    position: int
    # `messages.3.content.1.image_url`.
    path: str
    kind: Kind
    # A data URL, an address or bare base64; empty: it holds none of them.
    source: str
    # As the client tells it; empty: it does not.
    media_type: str
    name: str


def list_files(messages: Sequence[JSONObject], first_message: int = 0) -> list[FilePart]:
    """The files in messages from this index on; their names depend on these messages alone."""
    files: list[FilePart] = []
    for index in range(first_message, len(messages)):
        content = messages[index].get("content")
        for position, part in enumerate(content if isinstance(content, list) else ()):
            if is_file(part):
                files.append(_read(part, index, position, len(files) + 1))  # type: ignore[arg-type]  # an object
    return files


def is_file(part: JSONValue) -> bool:
    return isinstance(part, dict) and part.get("type") in _PARTS


def _read(part: JSONObject, index: int, position: int, number: int) -> FilePart:
    member, inner, kind = _PARTS[str(part["type"])]
    held = part.get(member)
    held = held if isinstance(held, dict) else {inner: held}
    source = held.get(inner)
    source = source if isinstance(source, str) else ""
    found = _DATA_TYPE.match(source)
    media_type = found[1].lower() if found else ""
    if not media_type and isinstance(form := held.get("format"), str):
        media_type = "audio/mpeg" if form == "mp3" else f"audio/{form}"
    if kind == "file":
        kind = _kind_of(media_type)
    given = held.get("filename")
    name = _name(given if isinstance(given, str) else _name_in(source))
    name = name or f"{kind}-{number}.{_extension(media_type)}".rstrip(".")
    path = f"messages.{index}.content.{position}.{member}"
    return FilePart(index, position, path, kind, source, media_type, name)


def _kind_of(media_type: str) -> Kind:
    match media_type.partition("/")[0]:
        case "image":
            return "image"
        case "video":
            return "video"
        case "audio":
            return "audio"
    return "file"


def _name(name: str) -> str:
    """The last part of a name, without what an object's name or a line of text should not hold."""
    # Parentheses are replaced as well: clients of HTTP write them in two ways, and the address is signed.
    last = re.split(r"[/\\]", name)[-1]
    return _UNSAFE.sub("_", last)[-_MAX_NAME_CHARS:].strip(" .")


def _name_in(source: str) -> str:
    if not is_address(source):
        return ""
    try:
        last = urlsplit(source).path.rpartition("/")[2]
    except ValueError:
        return ""
    return unquote(last) if "." in last else ""


def is_address(source: str) -> bool:
    return source[:8].lower().startswith(("http://", "https://"))


def _extension(media_type: str) -> str:
    kind = media_type.partition("/")[2]
    return _EXTENSIONS.get(media_type, kind if kind.isalnum() else "")


def file_entry(
    *,
    kind: Kind,
    file_id: str,
    user_id: str,
    url: str,
    name: str,
    size: int,
    media_type: str,
    timestamp_ms: int,
    item_id: str,
    task_id: str,
) -> JSONObject:
    """An uploaded file as a turn names it in `files`; `item_id` and `task_id` are fresh UUIDs."""
    meta: JSONObject = {"name": name, "size": size, "content_type": media_type}
    if kind == "file":
        meta["parse_meta"] = {"parse_status": "success"}
    return {
        "type": kind,
        "file": {
            "created_at": timestamp_ms,
            "data": {},
            "filename": name,
            "hash": None,
            "id": file_id,
            "user_id": user_id,
            "meta": meta,
            "update_at": timestamp_ms,
        },
        "id": file_id,
        "url": url,
        "name": name,
        "collection_name": "",
        "progress": 0,
        "status": "uploaded",
        "greenNet": "greening" if kind == "video" else "success",
        "size": size,
        "error": "",
        "itemId": item_id,
        "file_type": media_type,
        "showType": kind,
        "file_class": _CLASSES[kind],
        "uploadTaskId": task_id,
    }


def without_signature(entry: JSONObject) -> JSONObject:
    """The entry as it may be kept: its URL lets anybody read the file while it is valid."""
    return {**entry, "url": str(entry.get("url")).partition("?")[0]}


def object_path(bucket: str, key: str) -> str:
    """The path of an object as it is signed."""
    return quote(f"/{bucket}/{key}", safe="/~")


def authorization(
    *,
    path: str,
    headers: Mapping[str, str],
    access_key_id: str,
    access_key_secret: str,
    region: str,
) -> str:
    """The `Authorization` header of a PUT without a query.

    Args:
        path: of `object_path`.
        headers: of the request, lower-case, `content-type` and `x-oss-*`; `x-oss-date` among them.
        region: as OSS names it without the prefix, `ap-southeast-1`.
    """
    timestamp = headers["x-oss-date"]
    scope = f"{timestamp[:8]}/{region}/{_SERVICE}"
    lines = "".join(f"{name}:{headers[name].strip()}\n" for name in sorted(headers))
    request = f"PUT\n{path}\n\n{lines}\n\n{UNSIGNED}"
    text = f"OSS4-HMAC-SHA256\n{timestamp}\n{scope}\n{sha256(request.encode()).hexdigest()}"
    key = f"aliyun_v4{access_key_secret}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), sha256)
    signature = hmac.digest(key, text.encode(), sha256).hex()
    return f"OSS4-HMAC-SHA256 Credential={access_key_id}/{scope},Signature={signature}"

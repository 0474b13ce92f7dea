"""The bodies of a request as its page shows them: JSON to read, and where there is none, why.

Nothing here is markup. Long texts and the bytes of files are cut until the whole is asked for; downloads
are always whole.
"""

from __future__ import annotations

import json as stdlib_json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from qwenproxy import display
from qwenproxy.access.models import REMOVED, Recorded
from qwenproxy.wire.json import JSONValue
from qwenproxy.wire.redaction import PLACEHOLDER, compile_rules
from requests_app.conversation_blocks import MAX_CHARS, pretty, size
from requests_app.files import shortened

# Of the record, in the order of the page.
LABELS = {
    "openai_request": "Request",
    "openai_response": "Response",
    "qwen_request": "Request to the upstream",
    "qwen_response": "Response of the upstream",
}
# Linux takes no argument beyond 128 kB, and the page cuts long texts.
_MAX_ARGUMENT_BYTES = MAX_CHARS
_SECRET_NAME = re.compile("auth|cookie|token|secret|password|api-?key", re.IGNORECASE)
_SECRETS = compile_rules(["@secrets"])


@dataclass(frozen=True, slots=True)
class Panel:
    name: str
    label: str
    text: str = ""
    size: str = ""
    is_cut: bool = False
    # Why there is no text.
    why: str = ""


def body_of(record: Mapping[str, Any], name: str) -> JSONValue:
    """One of `LABELS` from what `load_request` gave; null where it is not there."""
    part = record if name in ("openai_request", "qwen_request") else record["response"]
    body: JSONValue = part.get(name) if part else None
    return body


def panels(record: Mapping[str, Any], *, hidden: str, is_whole: bool) -> list[Panel]:
    """The bodies of what `load_request` gave; `hidden` says why this user may see none of them."""
    return [_panel(record, name, hidden, is_whole) for name in LABELS]


def _panel(record: Mapping[str, Any], name: str, hidden: str, is_whole: bool) -> Panel:
    label = LABELS[name]
    body = body_of(record, name)
    if hidden or body is None:
        return Panel(name, label, why=hidden or _why_missing(record, name))
    text = pretty(body)
    if is_whole:
        return Panel(name, label, text, size(text))
    short = shortened(body)
    shown = text if short is body else pretty(short)
    is_long = len(shown) > MAX_CHARS
    return Panel(
        name,
        label,
        f"{shown[:MAX_CHARS]}\n…" if is_long else shown,
        size(text),
        is_cut=is_long or short is not body,
    )


def _why_missing(record: Mapping[str, Any], name: str) -> str:
    if record["recorded"] == REMOVED:
        return f"Removed on {_day(record['content_removed_at'])}: its time was over."
    if record["recorded"] != Recorded.EVERYTHING:
        return "Not recorded: the API key kept no content when this request came."
    if name == "openai_request":
        return "Not recorded."
    if name == "qwen_request":
        return "Nothing was sent to an upstream."
    if name == "qwen_response":
        return "Nothing came from an upstream."
    response = record["response"] or {}
    code = response.get("error_code") or response.get("error_type") or "an error"
    return {
        "in_progress": "The answer has not come to its end yet.",
        "failed": f"No answer came: {code}.",
        "interrupted": "Lost: the process that answered ended before anything of the answer was stored.",
        "cancelled": "The client left before anything of the answer came.",
    }.get(str(response.get("status")), "The answer holds nothing.")


def _day(ms: int) -> str:
    return display.local_text(datetime.fromtimestamp(ms / 1000, UTC), "%Y-%m-%d")


def as_file(body: JSONValue) -> bytes:
    return (pretty(body) + "\n").encode()


def curl(base_url: str, record: Mapping[str, Any]) -> str:
    """The call as a shell command, with the key in a variable; for a POSIX shell."""
    text = stdlib_json.dumps(record["openai_request"], ensure_ascii=False)
    # Lone surrogates, which no shell can take, as JSON's escapes.
    text = text.encode("utf-8", "backslashreplace").decode()
    command = [
        "curl",
        *(["-N"] if record["stream"] else []),
        shlex.quote(base_url + record["path"]),
    ]
    lines = [
        " ".join(command),
        '-H "Authorization: Bearer $QWENPROXY_KEY"',
        "-H 'Content-Type: application/json'",
    ]
    if len(text.encode()) > _MAX_ARGUMENT_BYTES:
        # Too long for a command line: from the file that the page's download makes.
        lines.append(f"--data-binary @{shlex.quote(file_name(record, 'openai_request'))}")
    else:
        lines.append(f"--data-raw {shlex.quote(text)}")
    return " \\\n  ".join(lines)


def file_name(record: Mapping[str, Any], name: str) -> str:
    request_id = re.sub("[^A-Za-z0-9_-]", "_", str(record["request_id"]))
    return f"{request_id}-{name.replace('_', '-')}.json"


def masked_headers(headers: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The recorded headers without what may be a secret."""
    return [
        (name, PLACEHOLDER if _SECRET_NAME.search(name) else _SECRETS.text(str(value)))
        for name, value in headers.items()
    ]

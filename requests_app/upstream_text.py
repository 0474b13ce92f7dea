"""What went upstream, with its text filled in again.

The record keeps an upstream call without its text, null where it was, and the text's digest. The text
is rebuilt from the recorded messages and tools with the functions that made it; the digest tells
whether the result is the text that was sent, to the byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from qwenproxy.wire import json
from qwenproxy.wire.history import text_of
from qwenproxy.wire.json import JSONObject, JSONValue
from qwenproxy.wire.qwen_prompt import UnsupportedContent, render_prompt


def sent_text_digest(text: str) -> bytes:
    return sha256(text.encode("utf-8", "surrogatepass")).digest()


def fill_text(
    request: JSONObject, messages: Sequence[JSONObject], tools: JSONValue, *, first_message: int
) -> tuple[JSONObject, str]:
    """Return the body with its text, and the text; see `wire.events.Sent` for their forms."""
    sent = request.get("messages")
    if isinstance(sent, list):
        # One message whose content is the whole prompt: the web upstream.
        text = _prompt(messages, first_message)
        return {**request, "messages": [_with_content(message, text) for message in sent]}, text
    values: JSONObject = {
        "prompt": text_of(messages[-1]) if messages else "",
        "messages": list(messages),
        "tools": tools,
    }
    filled = {name: values[name] for name in values if name in request and request[name] is None}
    return {**request, **filled}, json.dumps_text(filled)


def _prompt(messages: Sequence[JSONObject], first_message: int) -> str:
    try:
        return render_prompt(messages, first_message=first_message)
    except UnsupportedContent:
        # The digest then says that this is not what was sent.
        return ""


def _with_content(message: JSONValue, text: str) -> JSONValue:
    if isinstance(message, dict) and message.get("content") is None:
        return {**message, "content": text}
    return message

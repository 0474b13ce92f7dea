"""What went upstream, with its text filled in again.

The record keeps an upstream call without its text, null where it was, and the text's digest. The text
is rebuilt from the recorded messages and tools with the functions that made it; the digest tells
whether the result is the text that was sent, to the byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import get_args

from qwenproxy.wire import json
from qwenproxy.wire.history import text_of
from qwenproxy.wire.json import JSONObject, JSONValue
from qwenproxy.wire.qwen_prompt import UnsupportedContent, render_prompt
from qwenproxy.wire.tool_calls import ToolForm, parse_tools, shorten_tools, tool_prompt


def fill_text(
    request: JSONObject,
    messages: Sequence[JSONObject],
    tools: JSONValue,
    *,
    first_message: int,
    digest: bytes | None,
) -> tuple[JSONObject, bool]:
    """Return the body with its text, and whether it is the text that was sent.

    Args:
        request: see `wire.events.Sent`, as are the forms of the text.
        digest: SHA-256 of the text that was sent.
    """
    sent = request.get("messages")
    if isinstance(sent, list):
        # One message whose content is the whole prompt: the web upstream.
        texts = _prompts(messages, tools, first_message)
        text = _pick(texts, digest)
        body = {**request, "messages": [_with_content(message, text) for message in sent]}
        return body, _is_digest(text, digest)
    values: JSONObject = {
        "prompt": text_of(messages[-1]) if messages else "",
        "messages": list(messages),
        "tools": tools,
    }
    filled = {name: values[name] for name in values if name in request and request[name] is None}
    return {**request, **filled}, _is_digest(json.dumps_text(filled), digest)


def _prompts(messages: Sequence[JSONObject], tools: JSONValue, first_message: int) -> Iterator[str]:
    """The prompts that could have been sent: the form in which a model calls tools is not recorded."""
    try:
        # A chat that goes on was told about its tools with its first turn.
        specs = parse_tools(tools) if first_message == 0 else []
        # What would have been too long was sent with shorter descriptions.
        for told in (specs, shorten_tools(specs)) if specs else (specs,):
            for form in get_args(ToolForm):
                yield render_prompt(
                    messages,
                    tool_text=tool_prompt(told, form=form),
                    tool_form=form,
                    first_message=first_message,
                )
    except (UnsupportedContent, ValueError):
        # Such a call is refused before it is sent.
        yield ""


def _pick(texts: Iterator[str], digest: bytes | None) -> str:
    first = text = next(texts)
    while not _is_digest(text, digest):
        following = next(texts, None)
        if following is None:
            return first
        text = following
    return text


def _is_digest(text: str, digest: bytes | None) -> bool:
    return sha256(text.encode("utf-8", "surrogatepass")).digest() == digest


def _with_content(message: JSONValue, text: str) -> JSONValue:
    if isinstance(message, dict) and message.get("content") is None:
        return {**message, "content": text}
    return message

"""The built-in imitation that answers where no upstream is connected yet, and says so every time.

It runs in the process, without a network, and serves `qwen-demo` alone.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Literal

from qwenproxy.errors import NotFound
from qwenproxy.upstream.parameters import refuse
from qwenproxy.upstream.protocol import Account, ModelInfo, UpstreamCall
from qwenproxy.wire import attachments, json
from qwenproxy.wire.events import Event, Finished, Sent, Started, TextDelta, UsageReport
from qwenproxy.wire.json import JSONObject, JSONValue

MODEL = "qwen-demo"
WORD_DELAY_S = 0.01

_MAX_QUOTED_CHARS = 400
_CHARS_PER_TOKEN = 4
_BLIND = "The demo does not look at images and files."
_CONNECT = (
    "This is the built-in demo of Qwen Proxy, not a Qwen model. To get real answers, connect an"
    " upstream: open /admin, add an upstream account (an OpenAI-compatible server such as vLLM or"
    " Ollama, a DashScope key, or your chat.qwen.ai session), and use one of its models."
)


class Demo:
    """See `Upstream`."""

    keeps_chats = False
    on_client_left: Literal["finish", "cancel"] = "cancel"

    def __init__(self, account: Account, *, word_delay_s: float = WORD_DELAY_S) -> None:
        self._account = account
        self._word_delay_s = word_delay_s

    @property
    def account(self) -> Account:
        return self._account

    async def stream(self, call: UpstreamCall) -> AsyncGenerator[Sequence[Event], None]:
        refuse("demo", call.parameters)
        if call.model != MODEL:
            raise NotFound(
                f"The demo account serves {MODEL} only.", param="model", code="model_not_found"
            )
        text: JSONObject = {"messages": list(call.messages)}
        if call.tools is not None:
            text["tools"] = call.tools
        text_json = json.dumps_text(text)
        request = {**call.parameters, "model": call.model, **dict.fromkeys(text)}
        yield (Sent(request, text_json),)
        answer = _answer(call.messages)
        yield (Started(f"demo-{uuid.uuid4().hex}", model=MODEL),)
        for word in re.findall(r"\S+\s*", answer):
            yield (TextDelta(word),)
            await asyncio.sleep(self._word_delay_s)
        stored = [attachments.take_out(message)[0] for message in call.messages]
        counted = len(json.dumps_text({**text, "messages": stored}))
        prompt_tokens = -(-counted // _CHARS_PER_TOKEN)
        completion_tokens = -(-len(answer) // _CHARS_PER_TOKEN)
        usage = UsageReport(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens)
        yield (usage, Finished("stop"))

    async def stop(self, started: Started) -> None:
        """Nothing to do: closing the iterator stops it."""

    async def list_models(self) -> list[ModelInfo]:
        return [ModelInfo(MODEL, owned_by="qwenproxy", details={"demo": True})]


def _answer(messages: Sequence[JSONObject]) -> str:
    said = [
        text
        for message in messages
        if message.get("role") == "user" and (text := _text(message.get("content")))
    ]
    closing = [_BLIND, _CONNECT] if any(map(_has_files, messages)) else [_CONNECT]
    if not said:
        return "[demo] " + "\n\n".join(closing)
    parts = [f"[demo] You said: {_quote(said[-1])}"]
    if len(said) > 1:
        # Shows that the history arrived, without a model to use it.
        parts.append(f"Before that you said: {_quote(said[-2])}")
    return "\n\n".join([*parts, *closing])


def _has_files(message: JSONObject) -> bool:
    content = message.get("content")
    return isinstance(content, list) and not all(map(attachments.is_text, content))


def _quote(text: str) -> str:
    return text if len(text) <= _MAX_QUOTED_CHARS else f"{text[:_MAX_QUOTED_CHARS]}..."


def _text(content: JSONValue) -> str:
    if isinstance(content, str):
        return content.strip()
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str)).strip()

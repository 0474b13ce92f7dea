"""OpenAI's legacy text completions: events to a client's stream or body.

The form has text only: reasoning is left out, tool calls cannot occur. Upstreams' legacy chunks are
decoded by `wire.openai_chat`, which takes their `text`.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from qwenproxy.wire import json, sse
from qwenproxy.wire.events import Event, LogProbs, TextDelta, UsageReport, add_logprobs
from qwenproxy.wire.json import JSONObject
from qwenproxy.wire.openai_chat import usage_object


class CompletionChunkEncoder:
    """Writes one answer as `text_completion` events, one per text delta."""

    def __init__(self, *, response_id: str, model: str, created: int, include_usage: bool) -> None:
        self._include_usage = include_usage
        envelope = json.dumps(
            {
                "id": response_id,
                "object": "text_completion",
                "created": created,
                "model": model,
            }
        )
        self._head = b"data: " + envelope[:-1] + b',"choices":['
        self._prefix = self._head + b'{"index":0,"text":'
        usage = b',"usage":null' if include_usage else b""
        self._suffix = b',"logprobs":null,"finish_reason":null}]' + usage + b"}\n\n"
        self._logprobs: JSONObject | None = None

    def encode(self, events: Sequence[Event]) -> bytes:
        chunks: list[bytes] = []
        for event in events:
            if isinstance(event, TextDelta):
                try:
                    text = orjson.dumps(event.text)
                except TypeError:
                    text = json.dumps(event.text)
                chunks += (self._prefix, text, self._with_logprobs(self._suffix))
            elif isinstance(event, LogProbs):
                self._logprobs = add_logprobs(self._logprobs or {}, event.value)
        return sse.escape_line_ends(b"".join(chunks))

    def finish(self, reason: str, usage: UsageReport | None) -> bytes:
        """End the stream: the chunk with `finish_reason`, the usage if asked for, the end mark."""
        end = self._suffix.replace(
            b'"finish_reason":null', b'"finish_reason":' + json.dumps(reason)
        )
        chunks = [self._prefix, b'""', self._with_logprobs(end)]
        if self._include_usage and usage is not None:
            chunks += (self._head, b'],"usage":', json.dumps(usage_object(usage)), b"}\n\n")
        chunks.append(sse.DONE)
        return b"".join(chunks)

    def _with_logprobs(self, suffix: bytes) -> bytes:
        """The end of a chunk, with the log probabilities of its text where there are any."""
        if self._logprobs is None:
            return suffix
        logprobs, self._logprobs = json.dumps(self._logprobs), None
        return suffix.replace(b'"logprobs":null', b'"logprobs":' + logprobs, 1)

    def error(self, body: JSONObject) -> bytes:
        """End the stream with an error; `body` is OpenAI's error body, no end mark follows."""
        return sse.encode_data(body)

    def keep_alive(self) -> bytes:
        return sse.KEEP_ALIVE


def completion(
    *,
    response_id: str,
    model: str,
    created: int,
    text: str,
    finish_reason: str,
    usage: UsageReport | None,
) -> JSONObject:
    """Build a whole `text_completion` body."""
    body: JSONObject = {
        "id": response_id,
        "object": "text_completion",
        "created": created,
        "model": model,
        "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}],
    }
    if usage is not None:
        body["usage"] = usage_object(usage)
    return body

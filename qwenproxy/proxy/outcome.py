"""What the record says of an answer besides its text: the upstream's own words, and estimated counts."""

from __future__ import annotations

from dataclasses import replace

from qwenproxy.access.models import Limits
from qwenproxy.errors import UpstreamError
from qwenproxy.proxy.schemas import Body
from qwenproxy.wire import attachments, history, json
from qwenproxy.wire.events import Accumulator, Started, UsageReport
from qwenproxy.wire.json import JSONObject
from requests_app.limits import counts_tokens

# OpenAI's own estimate for English; Chinese text comes out close to it by bytes as well.
_BYTES_PER_TOKEN = 4
# An image of about 900 × 900 pixels for Qwen's vision models (a token for 28 × 28); how large one is stands
# inside it, and nothing is decoded for an estimate.
TOKENS_PER_FILE = 1000


def upstream_response(answer: Accumulator, error: UpstreamError | None = None) -> str:
    """Compact JSON of what the upstream said besides text; empty where it said nothing."""
    if error is None and answer.started == Started() and answer.usage is None:
        return ""
    body: JSONObject = {
        "response_id": answer.started.response_id,
        "chat_id": answer.started.chat_id,
        "parent_id": answer.started.parent_id,
        "model": answer.started.model,
        "usage": answer.usage.raw if answer.usage else None,
    }
    if answer.raw_text:
        body["raw_text"] = answer.raw_text
    if answer.refused:
        body["refused"] = answer.refused
    if answer.logprobs is not None:
        body["logprobs"] = answer.logprobs
    if error is not None:
        body["error_body"] = error.body
        body["status"] = error.upstream_status
    return json.dumps_text(body)


def estimated_usage(body: Body, answer: Accumulator) -> UsageReport:
    """Counts from the length of the text, for upstreams that report none; a number for each file."""
    prompt = sum(_bytes_of(history.text_of(message)) for message in body.messages)
    # An agent's history is calls as much as text.
    prompt += sum(
        len(json.dumps(calls)) for message in body.messages if (calls := message.get("tool_calls"))
    )
    prompt += len(json.dumps(body.tools)) if body.tools else 0
    prompt += _BYTES_PER_TOKEN * TOKENS_PER_FILE * sum(map(_files_in, body.messages))
    written = _bytes_written(answer)
    prompt_tokens, completion_tokens = (
        -(-count // _BYTES_PER_TOKEN) for count in (prompt, written)
    )
    usage = UsageReport(prompt_tokens, completion_tokens, prompt_tokens + completion_tokens)
    return _with_reasoning(usage, answer)


def counted(body: Body, answer: Accumulator) -> UsageReport:
    """The answer's counts: as reported, what is missing of them estimated."""
    usage = answer.usage
    return estimated_usage(body, answer) if usage is None else _with_reasoning(usage, answer)


def _with_reasoning(usage: UsageReport, answer: Accumulator) -> UsageReport:
    """Count the tokens of thinking by their part of what was written, where nobody counted them."""
    if usage.reasoning_tokens is not None or not answer.reasoning:
        return usage
    part = _bytes_of(answer.reasoning) / _bytes_written(answer)
    return replace(usage, reasoning_tokens=round(usage.completion_tokens * part))


def _bytes_written(answer: Accumulator) -> int:
    written = _bytes_of(answer.text) + _bytes_of(answer.reasoning)
    return written + sum(_bytes_of(call.arguments) for call in answer.tool_calls.values())


def reserved_tokens(body: Body, limits: Limits | None, answer_tokens: int) -> int:
    """What a turn may need at most, where its key's limits ask for it: its prompt and the answer.

    `answer_tokens` stand for an answer whose length the body does not bound.
    """
    if limits is None or not counts_tokens(limits):
        return 0
    bound = body.parameters.get("max_completion_tokens") or body.parameters.get("max_tokens")
    answer = bound if isinstance(bound, int) else answer_tokens
    return estimated_usage(body, Accumulator()).prompt_tokens + answer


def _files_in(message: JSONObject) -> int:
    content = message.get("content")
    if not isinstance(content, list):
        return 0
    return sum(not attachments.is_text(part) for part in content)


def _bytes_of(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))

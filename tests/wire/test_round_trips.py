"""What one codec writes another reads back: whatever the answer, and however it is cut on its way."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.wire import openai_chat, openai_completions, qwen_web
from qwenproxy.wire.events import (
    Accumulator,
    Finished,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    UsageReport,
)
from qwenproxy.wire.openai_chat import ChatChunkEncoder, ChatStreamDecoder
from qwenproxy.wire.sse import SSEDecoder
from tests.wire.streams import CAPTURES, SYNTHETIC, counting_ids

# What begins with a marker of thinking is read as thinking, on purpose.
TEXTS = st.text(min_size=1).filter(lambda text: "<" not in text)
NAMES = st.text("abc_-", min_size=1, max_size=8)
ARGUMENTS = st.dictionaries(st.text(max_size=5), st.integers() | st.text(), max_size=3)
PIECES = st.lists(TEXTS, max_size=4)
COUNTS = st.integers(0, 10**6)


@st.composite
def answers(draw):
    """Events of a whole answer, as an upstream gives them."""
    events = [ReasoningDelta(text) for text in draw(PIECES)]
    events += [TextDelta(text) for text in draw(PIECES)]
    for index, (name, arguments) in enumerate(
        draw(st.lists(st.tuples(NAMES, ARGUMENTS), max_size=3))
    ):
        written = json.dumps(arguments)
        cut = draw(st.integers(0, len(written)))
        events.append(ToolCallDelta(index, f"id{index}", name, written[:cut]))
        events += [ToolCallDelta(index, arguments=written[cut:])] if written[cut:] else []
    has_calls = any(isinstance(event, ToolCallDelta) for event in events)
    if not events:
        events.append(TextDelta("x"))
    reason = "tool_calls" if has_calls else draw(st.sampled_from(["stop", "length"]))
    prompt, completion = draw(COUNTS), draw(COUNTS)
    events.append(UsageReport(prompt, completion, prompt + completion))
    return [*events, Finished(reason)]


def summed(events):
    answer = Accumulator()
    for event in events:
        answer.add(event)
    calls = [(c.id, c.name, json.loads(c.arguments)) for c in answer.tool_calls.values()]
    usage = answer.usage and (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    return answer.text, answer.reasoning, calls, usage, answer.finish_reason


def read(data, decoder, cuts):
    sse, events = SSEDecoder(), []
    for begin, end in itertools.pairwise(
        [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    ):
        for payload in sse.feed(data[begin:end]):
            events += decoder.feed(payload)
    for payload in sse.finish():
        events += decoder.feed(payload)
    assert decoder.error is None
    return events + decoder.finish()


CUTS = st.lists(st.integers(0, 10**6), max_size=6)
ENVELOPE = {"response_id": "chatcmpl-1", "model": "m", "created": 1, "include_usage": True}


@given(
    answers(),
    CUTS,
    st.sampled_from([("reasoning_content",), ("reasoning",), ("reasoning_content", "reasoning")]),
)
def test_a_streamed_chat_completion_is_read_back(events, cuts, fields):
    encoder = ChatChunkEncoder(**ENVELOPE, reasoning_fields=fields)
    *body, usage, finished = events
    data = b"".join(encoder.encode([event]) for event in body)
    data += encoder.finish(finished.reason, usage)
    decoder = ChatStreamDecoder(new_id=counting_ids())
    assert summed(read(data, decoder, cuts)) == summed(events)


@given(answers())
def test_a_whole_chat_completion_is_read_back(events):
    answer = Accumulator()
    for event in events:
        answer.add(event)
    body = openai_chat.completion(
        response_id="chatcmpl-1",
        model="m",
        created=1,
        message=answer.message(),
        reasoning=answer.reasoning,
        finish_reason=answer.finish_reason,
        usage=answer.usage,
    )
    decoded, error = openai_chat.decode_completion(json.dumps(body).encode(), new_id=counting_ids())
    assert error is None
    assert summed(decoded) == summed(events)


@given(st.lists(TEXTS, min_size=1, max_size=5), CUTS)
def test_a_streamed_legacy_completion_is_read_back(texts, cuts):
    encoder = openai_completions.CompletionChunkEncoder(**ENVELOPE)
    data = b"".join(encoder.encode([TextDelta(text)]) for text in texts)
    data += encoder.finish("stop", UsageReport(1, 2, 3))
    decoder = ChatStreamDecoder(new_id=counting_ids())
    assert summed(read(data, decoder, cuts)) == ("".join(texts), "", [], (1, 2), "stop")


@given(PIECES, st.lists(TEXTS, min_size=1, max_size=5), CUTS)
def test_a_web_stream_is_read(thoughts, texts, cuts):
    # Text that goes on is not told from text that is repeated as a whole, where it is the same.
    texts = [f"{number}{text}" for number, text in enumerate(texts)]
    deltas = [("think", text, "typing") for text in thoughts] + [("think", "", "finished")]
    deltas += [("answer", text, "typing") for text in texts] + [("answer", "", "finished")]
    records = [
        {"choices": [{"delta": {"phase": phase, "content": text, "status": status}}]}
        for phase, text, status in deltas
    ]
    data = "".join(f"data: {json.dumps(record)}\n\n" for record in records).encode()
    decoder = qwen_web.StreamDecoder(new_id=counting_ids())
    text, reasoning, *_ = summed(read(data, decoder, cuts))
    assert (text, reasoning) == ("".join(texts), "".join(thoughts))


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="the reference is not here")
def test_every_case_of_the_reference_is_tested_here():
    reference = CAPTURES / "synthetic"
    theirs = {path.relative_to(reference) for path in reference.rglob("*") if path.is_file()}
    assert theirs
    for path in theirs:
        assert (SYNTHETIC / path).read_bytes() == (reference / path).read_bytes(), path

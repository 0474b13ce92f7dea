"""Legacy completions, encoded for clients."""

from __future__ import annotations

import json

import pytest
from openai.types import Completion

from qwenproxy.wire.events import (
    Finished,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    UsageReport,
)
from qwenproxy.wire.openai_chat import ChatStreamDecoder
from qwenproxy.wire.openai_completions import CompletionChunkEncoder, completion
from tests.wire.streams import counting_ids, decode, payloads

USAGE = UsageReport(1, 2, 3)
USAGE_BODY = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def make_encoder(*, include_usage=False):
    return CompletionChunkEncoder(
        response_id="cmpl-1", model="qwen", created=1790000000, include_usage=include_usage
    )


def read(data):
    bodies = [json.loads(payload) for payload in payloads(data) if payload != b"[DONE]"]
    return bodies


def test_text_has_chunks_and_everything_else_has_none():
    events = [
        Started("x"),
        ReasoningDelta("hm"),
        TextDelta("a\u2028"),
        ToolCallDelta(0, "a", "f", "{}"),
        TextDelta("\ud83d"),
    ]

    data = make_encoder().encode(events)

    assert data.decode().splitlines()[0] == (
        'data: {"id":"cmpl-1","object":"text_completion","created":1790000000,"model":"qwen",'
        '"choices":[{"index":0,"text":"a\\u2028","logprobs":null,'
        '"finish_reason":null}]}'
    )
    assert [body["choices"][0]["text"] for body in read(data)] == ["a\u2028", "\ud83d"]


@pytest.mark.parametrize("include_usage", [True, False])
def test_the_end_has_the_reason_and_usage_where_it_was_asked_for(include_usage):
    encoder = make_encoder(include_usage=include_usage)
    data = encoder.encode([TextDelta("a")]) + encoder.finish("length", USAGE)

    first, second, *rest = read(data)
    assert second["choices"] == [
        {"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}
    ]
    assert data.endswith(b"\n\ndata: [DONE]\n\n")
    if include_usage:
        assert (first["usage"], second["usage"]) == (None, None)
        assert [(body["choices"], body["usage"]) for body in rest] == [([], USAGE_BODY)]
    else:
        assert rest == []
        assert "usage" not in first


def test_an_error_is_an_event():
    assert read(make_encoder().error({"error": {"message": "x"}})) == [{"error": {"message": "x"}}]


def test_a_decoder_reads_what_the_encoder_wrote():
    encoder = make_encoder(include_usage=True)
    data = encoder.encode([TextDelta("a"), TextDelta("b")]) + encoder.finish("stop", USAGE)

    assert decode(data, ChatStreamDecoder(new_id=counting_ids())) == [
        Started("cmpl-1", model="qwen"),
        TextDelta("a"),
        TextDelta("b"),
        UsageReport(1, 2, 3, raw=USAGE_BODY),
        Finished("stop"),
    ]


@pytest.mark.parametrize("usage", [USAGE, None], ids=["usage", "no-usage"])
def test_a_whole_completion_is_openais(usage):
    body = completion(
        response_id="c", model="m", created=5, text="Hi", finish_reason="stop", usage=usage
    )

    parsed = Completion.model_validate(body, strict=True)
    assert parsed.choices[0].text == "Hi"
    assert body.get("usage") == (USAGE_BODY if usage else None)

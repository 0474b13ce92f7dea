"""OpenAI chat completions, decoded from upstreams and encoded for clients."""

from __future__ import annotations

import json

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from qwenproxy.wire.events import (
    Accumulator,
    Finished,
    RawText,
    ReasoningDelta,
    Sent,
    Started,
    TextDelta,
    ToolCallDelta,
    UsageReport,
)
from qwenproxy.wire.openai_chat import (
    ChatChunkEncoder,
    ChatStreamDecoder,
    completion,
    decode_completion,
    parse_error,
    read_usage,
    usage_object,
)
from tests.wire.streams import SYNTHETIC, counting_ids, decode, payloads

FOLDER = SYNTHETIC / "openai_compat"
STARTED = Started("chatcmpl-x", model="qwen3")
USAGE = UsageReport(9, 4, 13, raw={"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13})


def make_decoder(**options):
    return ChatStreamDecoder(new_id=counting_ids(), **options)


def make_chunk(delta, finish_reason=None, **members):
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return json.dumps({"id": "x", "choices": [choice], **members}).encode()


def feed(*chunks, **options):
    """Feed payloads to a new decoder; its events without `Started`, and its error."""
    decoder = make_decoder(**options)
    events = [event for chunk in chunks for event in decoder.feed(chunk)]
    events += decoder.finish()
    return [event for event in events if not isinstance(event, Started)], decoder.error


FIXTURES = {
    "dashscope_reasoning": [
        STARTED,
        ReasoningDelta("Think."),
        TextDelta("Hi"),
        USAGE,
        Finished("stop"),
    ],
    "vllm_reasoning_new": [
        STARTED,
        ReasoningDelta("Think."),
        TextDelta("Hi"),
        USAGE,
        Finished("stop"),
    ],
    "vllm_think_leak": [
        STARTED,
        TextDelta("Think."),
        TextDelta("\n\n\nHi"),
        Finished("stop"),
    ],
    "llamacpp_timings": [STARTED, TextDelta("Hi"), Finished("stop")],
    "no_done": [STARTED, TextDelta("Hi"), Finished("stop")],
    "tool_call_stream_split": [
        STARTED,
        ToolCallDelta(0, "call_1", "f", ""),
        ToolCallDelta(0, arguments='{"a"'),
        ToolCallDelta(0, arguments=": 1}"),
        Finished("tool_calls"),
    ],
    "error_in_stream": [STARTED, TextDelta("Hi")],
}


@pytest.mark.parametrize("piece_bytes", [1 << 20, 1, 7], ids=["whole", "bytes", "sevens"])
@pytest.mark.parametrize("name", FIXTURES)
def test_a_fixture_stream_gives_its_events(name, piece_bytes):
    data = (FOLDER / f"{name}.sse").read_bytes()

    assert decode(data, make_decoder(), piece_bytes=piece_bytes) == FIXTURES[name]


def test_every_fixture_stream_is_expected():
    assert {path.stem for path in FOLDER.glob("*.sse")} == set(FIXTURES)


def test_thinking_that_is_known_to_be_open_ends_at_its_marker():
    data = (FOLDER / "vllm_think_leak.sse").read_bytes()

    assert decode(data, make_decoder(think_open=True)) == [
        STARTED,
        ReasoningDelta("Think."),
        ReasoningDelta("\n"),
        TextDelta("Hi"),
        Finished("stop"),
    ]


def test_an_error_in_a_stream_follows_the_events_before_it():
    decoder = make_decoder()
    first, second, end = payloads((FOLDER / "error_in_stream.sse").read_bytes())

    assert decoder.feed(first) == [STARTED, TextDelta("Hi")]
    assert decoder.error is None
    assert decoder.feed(second) == []
    assert decoder.error is not None
    assert (decoder.error.message, decoder.error.code, decoder.error.type) == (
        "upstream died",
        "500",
        "server_error",
    )
    assert decoder.is_done
    assert decoder.feed(end) == []
    assert decoder.finish() == []


@pytest.mark.parametrize(
    ("payload", "message", "code"),
    [
        pytest.param(b'{"error": "Model is unloaded."}', "Model is unloaded.", None, id="text"),
        pytest.param(b'{"error": {"code": 7}}', "7", "7", id="code-only"),
        pytest.param(b'{"error": true}', "The upstream reported an error.", None, id="flag"),
        pytest.param(
            b'{"object": "error", "message": "bad", "code": 400}', "bad", "400", id="vllm-old"
        ),
        pytest.param(
            b'{"code": "Throttling", "message": "slow", "request_id": "r"}',
            "slow",
            "Throttling",
            id="dashscope-native",
        ),
        pytest.param(
            b'{"choices": [{"index": 0, "delta": {}, "finish_reason": "error",'
            b' "error": {"message": "lost", "code": 502}}]}',
            "lost",
            "502",
            id="in-a-choice",
        ),
    ],
)
def test_errors_of_every_form_end_a_stream(payload, message, code):
    events, error = feed(make_chunk({"content": "Hel"}), payload, make_chunk({"content": "lo"}))

    assert events == [TextDelta("Hel")]
    assert error is not None
    assert (error.message, error.code) == (message, code)


@pytest.mark.parametrize("payload", [b"{", b"<html>", b'{"a": \xff}'], ids=["cut", "html", "utf8"])
def test_a_line_that_is_not_json_is_an_error(payload):
    events, error = feed(make_chunk({"content": "Hi"}), payload)

    assert events == [TextDelta("Hi")]
    assert error is not None
    assert error.code == "upstream_malformed"


def test_a_stream_that_ends_within_the_answer_is_cut():
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    events, error = feed(make_chunk({"content": "Hi <"}), make_chunk({"content": ""}, usage=usage))

    assert events == [TextDelta("Hi <"), USAGE]
    assert error is not None
    assert error.code == "upstream_cut"


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([], id="nothing"),
        pytest.param([make_chunk({"role": "assistant", "content": None})], id="role-only"),
        pytest.param([b"[DONE]"], id="end-mark-only"),
    ],
)
def test_a_stream_without_answer_is_empty(chunks):
    events, error = feed(*chunks)

    assert events == []
    assert error is not None
    assert error.code == "upstream_empty"


def test_an_empty_answer_with_a_finish_reason_is_whole():
    assert feed(make_chunk({}, "stop")) == ([Finished("stop")], None)


def test_the_end_mark_ends_an_answer_without_finish_reason_and_what_follows_is_ignored():
    decoder = make_decoder()
    decoder.feed(make_chunk({"content": "Hi"}))

    assert decoder.feed(b"[DONE]") == [Finished("stop")]
    assert decoder.is_done
    assert decoder.feed(make_chunk({"content": "more"})) == []
    assert decoder.finish() == []


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("eos", "stop"),
        ("max_tokens", "length"),
    ],
)
def test_finish_reasons_are_openais(reason, expected):
    assert feed(make_chunk({"content": "a"}, reason))[0][-1] == Finished(expected)


def test_usage_comes_once_before_the_end_wherever_it_was():
    def usage(tokens):
        return {"prompt_tokens": 3, "completion_tokens": tokens}

    events, error = feed(
        make_chunk({"content": "a"}, usage=usage(1)),
        make_chunk({"content": "b"}, "stop", usage=usage(2)),
        json.dumps({"choices": [], "usage": None}).encode(),
    )

    assert error is None
    assert events == [
        TextDelta("a"),
        TextDelta("b"),
        UsageReport(3, 2, 5, raw=usage(2)),
        Finished("stop"),
    ]


def test_counts_of_usage_that_are_none_are_left_out_and_none_is_beyond_bounds():
    usage = {
        "prompt_tokens": -(2**63), "completion_tokens": 10**400, "total_tokens": True,
        "completion_tokens_details": {"reasoning_tokens": -1},
    }  # fmt: skip
    most = 2**31 - 1
    assert read_usage(usage) == UsageReport(0, most, most, raw=usage)
    assert read_usage({"prompt_tokens": -1, "completion_tokens": "7"}) is None


def test_details_of_usage_are_read():
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    events, _ = feed(make_chunk({"content": "a"}, "stop", usage=usage))

    assert events[1] == UsageReport(10, 5, 15, 2, 4, usage)


@pytest.mark.parametrize("usage", [{}, [], "none", {"prompt_tokens": "9"}, {"prompt_tokens": True}])
def test_strange_usage_is_ignored(usage):
    assert feed(make_chunk({"content": "a"}, "stop", usage=usage))[0] == [
        TextDelta("a"),
        Finished("stop"),
    ]


@pytest.mark.parametrize(
    "payload",
    [
        b"[]",
        b"1",
        b"null",
        b'{"choices": null}',
        b'{"choices": [null, 1, {}]}',
        b'{"choices": [{"delta": 1}]}',
        b'{"choices": [{"delta": {"content": 5, "tool_calls": [3], "reasoning": {}}}]}',
        b'{"choices": [{"index": 1, "delta": {"content": "another choice"}}]}',
        b'{"type": "ping"}',
    ],
)
def test_strange_chunks_are_ignored(payload):
    assert feed(payload, make_chunk({"content": "a"}, "stop")) == (
        [TextDelta("a"), Finished("stop")],
        None,
    )


def test_text_comes_in_several_members():
    parts = [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]
    events, _ = feed(
        b'{"choices": [{"text": "a"}]}', make_chunk({"content": parts}), make_chunk({}, "stop")
    )

    assert events == [TextDelta("a"), TextDelta("bc"), Finished("stop")]


def test_equal_reasoning_in_both_members_comes_once():
    events, _ = feed(make_chunk({"reasoning": "a", "reasoning_content": "a"}, "stop"))

    assert events == [ReasoningDelta("a"), Finished("stop")]


class TestToolCalls:
    def calls(self, *deltas, reason="stop"):
        events, error = feed(
            *(make_chunk({"tool_calls": delta}) for delta in deltas), make_chunk({}, reason)
        )
        assert error is None
        answer = Accumulator()
        for event in events:
            answer.add(event)
        return [
            (call.id, call.name, call.arguments) for call in answer.tool_calls.values()
        ], answer.finish_reason

    def test_ids_and_indices_are_made_where_they_are_missing(self):
        found = self.calls(
            [{"function": {"name": "f", "arguments": "{}"}}],
            [{"function": {"name": "g", "arguments": '{"a"'}}],
            [{"function": {"arguments": ": 1}"}}],
        )

        assert found == (
            [("call_new_1", "f", "{}"), ("call_new_2", "g", '{"a": 1}')],
            "tool_calls",
        )

    def test_arguments_may_be_an_object_with_long_numbers(self):
        found = self.calls(
            [{"index": 0, "id": "a", "function": {"name": "f", "arguments": {"n": 10**29}}}]
        )

        assert found[0] == [("a", "f", '{"n":1' + "0" * 29 + "}")]

    def test_several_calls_with_one_index_are_told_apart_by_id_and_name(self):
        found = self.calls(
            [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{"}}],
            [{"index": 0, "function": {"arguments": "}"}}],
            [{"index": 0, "id": "b", "function": {"name": "g", "arguments": "{"}}],
            [{"index": 0, "function": {"arguments": "}"}}],
        )

        assert found[0] == [("a", "f", "{}"), ("b", "g", "{}")]

    def test_an_id_that_changes_with_every_piece_does_not_split_a_call(self):
        found = self.calls(
            [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{"}}],
            [{"index": 0, "id": "b", "function": {"name": None, "arguments": "}"}}],
        )

        assert found[0] == [("a", "f", "{}")]

    def test_a_name_that_is_repeated_with_its_id_does_not_split_a_call(self):
        piece = {"index": 0, "id": "a", "function": {"name": "f", "arguments": "1"}}

        assert self.calls([piece], [piece])[0] == [("a", "f", "11")]

    def test_interleaved_calls_go_by_their_index(self):
        found = self.calls(
            [
                {"index": 3, "id": "a", "function": {"name": "f", "arguments": ""}},
                {"index": 5, "id": "b", "function": {"name": "g", "arguments": ""}},
            ],
            [{"index": 5, "function": {"arguments": "5"}}],
            [{"index": 3, "function": {"arguments": "3"}}],
        )

        assert found[0] == [("a", "f", "3"), ("b", "g", "5")]

    def test_pieces_before_the_name_wait_for_it(self):
        events, _ = feed(
            make_chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"arguments": "{"}}]}),
            make_chunk({"tool_calls": [{"index": 0, "function": {"name": "f"}}]}),
            make_chunk({"tool_calls": [{"index": 0, "function": {"arguments": "}"}}]}, "stop"),
        )

        assert events[:2] == [ToolCallDelta(0, "a", "f", "{"), ToolCallDelta(0, arguments="}")]

    def test_a_call_without_arguments_has_none(self):
        assert self.calls([{"id": "a", "function": {"name": "f"}}])[0] == [("a", "f", "{}")]

    def test_arguments_cut_by_the_token_limit_stay_cut(self):
        found = self.calls(
            [{"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"a'}}],
            [{"index": 1, "id": "b", "function": {"name": "g"}}],
            reason="length",
        )

        assert found == ([("a", "f", '{"a'), ("b", "g", "")], "length")

    def test_the_legacy_function_call_is_one_call(self):
        events, _ = feed(
            make_chunk({"function_call": {"name": "f", "arguments": "{"}}),
            make_chunk({"function_call": {"arguments": "}"}}),
            make_chunk({}, "function_call"),
        )

        assert events == [
            ToolCallDelta(0, "call_new_1", "f", "{"),
            ToolCallDelta(0, arguments="}"),
            Finished("tool_calls"),
        ]


class TestWholeAnswers:
    def test_a_json_answer_gives_the_events_of_a_stream(self):
        body = {
            "id": "c",
            "model": "m",
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": "<think>\nhm\n</think>\n\nHi",
                        "tool_calls": [
                            {
                                "id": "a",
                                "type": "function",
                                "function": {"name": "f", "arguments": "{}"},
                            }
                        ],
                    },
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13},
        }

        events, error = decode_completion(json.dumps(body).encode(), new_id=counting_ids())

        assert error is None
        assert events == [
            Started("c", model="m"),
            ReasoningDelta("hm\n"),
            TextDelta("Hi"),
            ToolCallDelta(0, "a", "f", "{}"),
            USAGE,
            Finished("tool_calls"),
        ]

    @pytest.mark.parametrize(
        ("body", "code"),
        [
            pytest.param(b'{"error": {"message": "bad", "code": "x"}}', "x", id="error"),
            pytest.param(b"<html>", "upstream_malformed", id="html"),
            pytest.param(b"", "upstream_empty", id="nothing"),
            pytest.param(
                b'{"usage":%b%b}' % (b"[" * 500, b"]" * 500), "upstream_malformed", id="too deep"
            ),
            pytest.param(b'{"choices": []}', "upstream_empty", id="no-choice"),
        ],
    )
    def test_what_is_no_answer_is_an_error(self, body, code):
        _, error = decode_completion(body, new_id=counting_ids())

        assert error is not None
        assert error.code == code

    def test_the_legacy_form_is_read(self):
        body = b'{"id": "c", "choices": [{"text": "Hi", "finish_reason": null}]}'

        events, error = decode_completion(body, new_id=counting_ids())

        assert (events, error) == ([Started("c"), TextDelta("Hi"), Finished("stop")], None)


ERRORS = json.loads((FOLDER / "errors.json").read_bytes())
EXPECTED_ERRORS = {
    "openai_object": ("bad", "invalid_parameter_error", "invalid_request_error"),
    "dashscope_native": ("bad", "InvalidParameter", None),
    "dashscope_throttle": (
        "Allocated quota exceeded, please increase your quota limit.",
        "Throttling.AllocationQuota",
        "limit_requests",
    ),
    "vllm_old": ("bad", "400", "BadRequestError"),
    "fastapi_detail": ("body.messages: field required", None, None),
    "llamacpp_ctx": (
        "the request exceeds the available context size",
        "400",
        "exceed_context_size_error",
    ),
    "lmstudio_string": ("Model is unloaded.", None, None),
    "plain_text": ("Bad Gateway", None, None),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_bodies_of_every_form_are_read(name):
    body = ERRORS[name]["body"]
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()

    error = parse_error(ERRORS[name]["status"], data)

    assert (error.message, error.code, error.type) == EXPECTED_ERRORS[name]
    assert error.raw == body


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param(b"", "HTTP 502", id="nothing"),
        pytest.param(b"{}", "HTTP 502", id="empty-object"),
        pytest.param(b"[1]", "HTTP 502", id="list"),
        pytest.param(b"\xff", "\ufffd", id="not-utf8"),
        pytest.param(b"<html><title> 502 Bad\n</title>", "502 Bad", id="page"),
        pytest.param(b"<html>", "HTTP 502", id="page-without-title"),
        pytest.param(b'{"detail": "Not Found"}', "Not Found", id="detail-text"),
        pytest.param(b'{"detail": ["a"]}', '"a"', id="detail-list"),
        pytest.param(b'{"detail": {"a": 1}}', '{"a":1}', id="detail-object"),
        pytest.param(b"x" * 9000, "x" * 500, id="long"),
    ],
)
def test_bodies_that_say_little_still_give_a_message(body, message):
    assert parse_error(502, body).message == message


class TestEncoding:
    def make_encoder(self, *, include_usage=False):
        return ChatChunkEncoder(
            response_id="chatcmpl-1", model="qwen", created=1790000000, include_usage=include_usage
        )

    def read(self, data):
        """Read chunks as a strict client does."""
        found = payloads(data)
        bodies = [json.loads(payload) for payload in found if payload != b"[DONE]"]
        for body in bodies:
            ChatCompletionChunk.model_validate(body, strict=True)
        return bodies

    def test_a_text_chunk_is_openais_to_the_letter(self):
        encoder = self.make_encoder()
        encoder.encode([TextDelta("a")])

        assert (
            encoder.encode([TextDelta('"é\n')])
            == (
                'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1790000000,'
                '"model":"qwen","choices":[{"index":0,'
                '"delta":{"content":"\\"é\\n"},"logprobs":null,"finish_reason":null}]}\n\n'
            ).encode()
        )

    @pytest.mark.parametrize(
        ("event", "delta"),
        [
            (TextDelta("Hi"), {"role": "assistant", "content": "Hi"}),
            (
                ReasoningDelta("hm"),
                {"role": "assistant", "content": None, "reasoning_content": "hm"},
            ),
            (
                ToolCallDelta(0, "a", "f", "{"),
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "index": 0,
                            "id": "a",
                            "type": "function",
                            "function": {"name": "f", "arguments": "{"},
                        }
                    ],
                },
            ),
        ],
        ids=["text", "reasoning", "call"],
    )
    def test_the_first_chunk_carries_the_role(self, event, delta):
        encoder = self.make_encoder()

        assert self.read(encoder.encode([event]))[0]["choices"][0]["delta"] == delta
        assert "role" not in self.read(encoder.encode([event]))[0]["choices"][0]["delta"]

    def test_every_delta_has_a_chunk_and_other_events_have_none(self):
        events = [
            Sent({}, ""),
            Started("x"),
            ReasoningDelta("a"),
            TextDelta("b"),
            TextDelta("c"),
            RawText("d"),
            ToolCallDelta(1, arguments="}"),
            USAGE,
            Finished("stop"),
        ]

        bodies = self.read(self.make_encoder().encode(events))

        assert [body["choices"][0]["delta"] for body in bodies] == [
            {"role": "assistant", "content": None, "reasoning_content": "a"},
            {"content": "b"},
            {"content": "c"},
            {"tool_calls": [{"index": 1, "function": {"arguments": "}"}}]},
        ]
        assert all("usage" not in body for body in bodies)
        assert self.make_encoder().encode([Started("x")]) == b""

    @pytest.mark.parametrize("text", ["\ud83d", "a\0b", "\u2028", "\u2029\x85", "😀\r\n", "</x>"])
    def test_every_text_arrives_unharmed(self, text):
        encoder = self.make_encoder()
        data = encoder.encode([TextDelta(text), ReasoningDelta(text), ToolCallDelta(0, "a", text)])

        first, second, third = self.read(data)
        assert first["choices"][0]["delta"]["content"] == text
        assert second["choices"][0]["delta"]["reasoning_content"] == text
        assert third["choices"][0]["delta"]["tool_calls"][0]["function"]["name"] == text
        # Clients that split at Unicode line ends see whole lines as well.
        assert len(data.decode().splitlines()) == 6

    def test_the_end_has_usage_only_where_it_was_asked_for(self):
        encoder = self.make_encoder()
        encoder.encode([TextDelta("a")])
        data = encoder.finish("length", USAGE)

        (body,) = self.read(data)
        assert body["choices"] == [
            {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
        ]
        assert "usage" not in body
        assert data.endswith(b"}\n\ndata: [DONE]\n\n")

    def test_with_usage_every_chunk_has_it_and_the_last_counts(self):
        encoder = self.make_encoder(include_usage=True)
        data = encoder.encode([TextDelta("a")]) + encoder.finish("stop", USAGE)

        first, second, last = self.read(data)
        assert (first["usage"], second["usage"]) == (None, None)
        assert last["choices"] == []
        assert last["usage"] == {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
        assert {first["id"], second["id"], last["id"]} == {"chatcmpl-1"}

    def test_without_counts_there_is_no_usage_chunk(self):
        (body,) = self.read(self.make_encoder(include_usage=True).finish("stop", None))

        assert body["choices"][0]["delta"] == {"role": "assistant", "content": ""}

    def test_an_error_ends_the_stream_without_end_mark(self):
        body = {"error": {"message": "x", "type": "upstream_error", "param": None, "code": "y"}}

        data = self.make_encoder().error(body)

        assert [json.loads(payload) for payload in payloads(data)] == [body]

    def test_a_decoder_reads_what_the_encoder_wrote(self):
        events = [
            ReasoningDelta("hm"),
            TextDelta("Hi"),
            ToolCallDelta(0, "a", "f", "{"),
            ToolCallDelta(0, arguments="}"),
        ]
        encoder = self.make_encoder(include_usage=True)

        data = encoder.encode(events) + encoder.finish("tool_calls", USAGE)

        assert decode(data, make_decoder()) == [
            Started("chatcmpl-1", model="qwen"),
            *events,
            USAGE,
            Finished("tool_calls"),
        ]


def test_usage_has_details_only_where_they_are_known():
    assert usage_object(UsageReport(1, 2, 3, 4, 5)) == {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "total_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 5},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }


@pytest.mark.parametrize("usage", [USAGE, None], ids=["usage", "no-usage"])
def test_a_whole_completion_is_openais(usage):
    body = completion(
        response_id="c",
        model="m",
        created=5,
        message={"role": "assistant", "content": "Hi"},
        reasoning="hm",
        finish_reason="stop",
        usage=usage,
    )

    parsed = ChatCompletion.model_validate(body, strict=True)
    assert body["choices"] == [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "Hi",
                "refusal": None,
                "reasoning_content": "hm",
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert (parsed.usage is None) == (usage is None)


def test_without_thinking_a_message_has_no_member_for_it():
    body = completion(
        response_id="c",
        model="m",
        created=5,
        message={"role": "assistant", "content": "Hi"},
        reasoning="",
        finish_reason="stop",
        usage=None,
    )

    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": "Hi",
        "refusal": None,
    }


@pytest.mark.parametrize(
    ("members", "stop_text"),
    [
        pytest.param({"stop_reason": "END"}, "END", id="vllm"),
        pytest.param({"matched_stop": "END"}, "END", id="sglang"),
        pytest.param({"stop_reason": 151645}, None, id="a-token"),
    ],
)
def test_the_stop_text_that_a_server_names_is_told(members, stop_text):
    chunk = json.loads(make_chunk({"content": "a"}, "stop"))
    chunk["choices"][0] |= members
    events, _ = feed(json.dumps(chunk).encode())
    assert events[-1] == Finished("stop", stop_text=stop_text)

"""The web upstream: bodies, the answer stream, the model list."""

from __future__ import annotations

import json

import pytest

from qwenproxy.wire.events import (
    Finished,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    UsageReport,
)
from qwenproxy.wire.qwen_web import StreamDecoder, chat_new_body, completion_body, models
from tests.wire.streams import CAPTURES, SYNTHETIC, counting_ids, decode

CHAT = "11111111-1111-4111-8111-111111111111"
USER_NODE = "22222222-2222-4222-8222-222222222222"
ANSWER_NODE = "33333333-3333-4333-8333-333333333333"
STARTED = Started(ANSWER_NODE, CHAT, USER_NODE)
STOP = Finished("stop")


def make_decoder():
    return StreamDecoder(new_id=counting_ids())


def make_usage(input_tokens, output_tokens, **details):
    return {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "characters": 0,
        "total_tokens": input_tokens + output_tokens,
        "input_tokens_details": {"text_tokens": input_tokens},
        "output_tokens_details": {"text_tokens": output_tokens, **details},
    }


def text_deltas(text, size):
    return [TextDelta(text[start : start + size]) for start in range(0, len(text), size)]


HELLO = [
    STARTED,
    TextDelta("Hel"),
    TextDelta("lo"),
    UsageReport(20, 2, 22, raw=make_usage(20, 2)),
    STOP,
]
CUT_USAGE = UsageReport(20, 1, 21, raw=make_usage(20, 1))
IMAGE_URL = f"https://cdn.qwenlm.ai/output/ACCOUNT/t2i/{ANSWER_NODE}"
IMAGE_USAGE = {
    "input_tokens": 0,
    "output_tokens": 0,
    "characters": 0,
    "width": 1344,
    "image_count": 1,
    "height": 768,
}
HERMES = (
    "I will read the file first.\n\n<tool_call>\n"
    '{"name": "read_file", "arguments": {"path": "src/naïve.py"}}\n</tool_call>'
)
CODER = (
    "<tool_call>\n<function=write_file>\n<parameter=path>\na.html\n</parameter>\n"
    '<parameter=content>\n<b>1 < 2 && "x"</b>\n</parameter>\n'
    "<parameter=mode>\n420\n</parameter>\n</function>\n</tool_call>"
)
# The events of each stream and the kind of the error that ends it, if one does.
FIXTURES = {
    "variant_crlf": (HELLO, None),
    "variant_no_space_done": (HELLO, None),
    "variant_no_trailing_newline": (HELLO, None),
    "variant_cumulative_content": (
        [STARTED, TextDelta("Hel"), TextDelta("lo"), TextDelta(" you"), STOP],
        None,
    ),
    "think_full_answer": (
        [
            STARTED,
            ReasoningDelta("The user "),
            ReasoningDelta("wants the"),
            ReasoningDelta(" capital "),
            ReasoningDelta("of France"),
            ReasoningDelta(". That is"),
            ReasoningDelta(" Paris."),
            TextDelta("Paris "),
            TextDelta("is the"),
            TextDelta(" capit"),
            TextDelta("al of "),
            TextDelta("France"),
            TextDelta("."),
            UsageReport(900, 16, 916, reasoning_tokens=6, raw=make_usage(900, 16)),
            STOP,
        ],
        None,
    ),
    "thinking_summary_growing": (
        [
            STARTED,
            ReasoningDelta("Reading the question\nI look at what is asked."),
            ReasoningDelta("  \nIt is about France."),
            ReasoningDelta("\n\nRecalling the fact\nThe capital is Paris."),
            TextDelta("Paris."),
            UsageReport(900, 45, 945, reasoning_tokens=44, raw=make_usage(900, 45)),
            STOP,
        ],
        None,
    ),
    "web_search_builtin": (
        [
            STARTED,
            ReasoningDelta("Deciding to search\nI need fresh data."),
            ReasoningDelta("\n\nUsing the result\nThe page says 18 degrees."),
            TextDelta("It is "),
            TextDelta("about "),
            TextDelta("18 °C "),
            TextDelta("in Par"),
            TextDelta("is. [["),
            TextDelta("1]]"),
            UsageReport(
                900 + 2400,
                20 + 15,
                3335,
                reasoning_tokens=12 + 9,
                raw=[make_usage(900, 20), make_usage(2400, 15)],
            ),
            STOP,
        ],
        None,
    ),
    "image_gen_keepalive": (
        [
            STARTED,
            TextDelta(f"![image]({IMAGE_URL}/a.png?key=REMOVED)\n"),
            TextDelta(f"![image]({IMAGE_URL}/b.png?key=REMOVED)\n"),
            UsageReport(0, 0, 0, raw=IMAGE_USAGE),
            STOP,
        ],
        None,
    ),
    "local_tool_native": (
        [
            STARTED,
            ReasoningDelta("Need a file\nI call the tool."),
            ToolCallDelta(0, "call_new_1", "read_file", '{"path":"README.md"}'),
            UsageReport(1200, 40, 1240, reasoning_tokens=15, raw=make_usage(1200, 40)),
            Finished("tool_calls"),
        ],
        None,
    ),
    "text_tool_hermes": (
        [
            STARTED,
            *text_deltas(HERMES, 5),
            UsageReport(900, 23, 923, raw=make_usage(900, 23)),
            STOP,
        ],
        None,
    ),
    "text_tool_qwen3_coder_xml": (
        [
            STARTED,
            *text_deltas(CODER, 4),
            UsageReport(900, 46, 946, raw=make_usage(900, 46)),
            STOP,
        ],
        None,
    ),
    "eof_without_finished": (HELLO[:-1], "cut"),
    "created_only": ([STARTED], "empty"),
    "empty_answer": ([STARTED, UsageReport(20, 0, 20, raw=make_usage(20, 0))], "empty"),
    "midstream_error_string": ([STARTED, TextDelta("Hel"), CUT_USAGE], "internal"),
    "midstream_error_object": ([STARTED, TextDelta("Hel"), CUT_USAGE], "invalid"),
    "midstream_status_error": ([STARTED, TextDelta("Hel"), CUT_USAGE], "internal"),
}


def test_every_fixture_stream_is_expected():
    assert {path.stem for path in SYNTHETIC.glob("*.sse")} == set(FIXTURES)


def in_runs(events):
    """The events, with neighbouring pieces of text as one."""
    runs = []
    for event in events:
        if runs and isinstance(event, TextDelta) and isinstance(runs[-1], TextDelta):
            runs[-1] = TextDelta(runs[-1].text + event.text)
        else:
            runs.append(event)
    return runs


# That the payloads are the same for a cut at every byte is tested with the SSE decoder.
@pytest.mark.parametrize("piece_bytes", [1 << 20, 1, 7], ids=["whole", "bytes", "sevens"])
@pytest.mark.parametrize("name", FIXTURES)
def test_a_fixture_stream_gives_its_events(name, piece_bytes):
    decoder = make_decoder()
    expected, kind = FIXTURES[name]

    events = decode((SYNTHETIC / f"{name}.sse").read_bytes(), decoder, piece_bytes=piece_bytes)

    # The end of a line may begin a marker, and comes with what follows.
    assert in_runs(events) == in_runs(expected)
    assert (decoder.error and decoder.error.failure.kind) == kind
    assert decoder.is_done


@pytest.mark.parametrize(
    ("name", "message", "code"),
    [
        (
            "eof_without_finished",
            "The upstream's stream ended within the answer.",
            "upstream_cut",
        ),
        ("created_only", "The upstream gave no answer.", "upstream_empty"),
        ("midstream_error_string", "Internal error!", None),
        ("midstream_error_object", "Something wrong with the input.", "invalid_input"),
        ("midstream_status_error", "The upstream's answer failed.", None),
    ],
)
def test_an_error_in_a_stream_names_its_cause(name, message, code):
    decoder = make_decoder()

    decode((SYNTHETIC / f"{name}.sse").read_bytes(), decoder)

    assert decoder.error is not None
    assert (decoder.error.message, decoder.error.code) == (message, code)


CREATED = {
    "response.created": {"chat_id": CHAT, "parent_id": USER_NODE, "response_id": ANSWER_NODE}
}
END = {"choices": [{"delta": {"content": "", "status": "finished", "phase": "answer"}}]}


def make_record(content="", phase="answer", status="typing", response_id=ANSWER_NODE, **delta):
    return {
        "choices": [
            {
                "delta": {
                    "role": "assistant",
                    "content": content,
                    "phase": phase,
                    "status": status,
                    **delta,
                }
            }
        ],
        "response_id": response_id,
    }


def feed(*records):
    """Feed records to a new decoder; its events without `Started`, and the error's kind."""
    decoder = make_decoder()
    events = [
        event
        for record in records
        for event in decoder.feed(
            record if isinstance(record, bytes) else json.dumps(record).encode()
        )
    ]
    events += decoder.finish()
    kind = decoder.error.failure.kind if decoder.error else None
    return [event for event in events if not isinstance(event, Started)], kind


def joined(events):
    return "".join(event.text for event in events if isinstance(event, TextDelta | ReasoningDelta))


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(make_record("other", response_id="other"), id="foreign-response"),
        pytest.param({"response.created": {"response_id": "other"}}, id="second-created"),
        pytest.param({"response.info": {"action": "keep_alive"}}, id="heartbeat"),
        pytest.param(make_record("x", phase="new_phase"), id="unknown-phase"),
        pytest.param(make_record("", phase="think", status="finished"), id="end-of-thinking"),
        pytest.param(make_record("x", phase="web_search", status="finished"), id="end-of-search"),
        pytest.param(make_record("x", role="function", status="finished"), id="function-result"),
        pytest.param(make_record("x", function_call={"name": "f"}), id="built-in-call"),
        pytest.param(make_record(None), id="null"),
        pytest.param({"choices": []}, id="no-choice"),
        pytest.param({"choices": [None, {}, {"delta": 1}]}, id="strange-choices"),
        pytest.param(make_record("", phase="thinking_summary", extra=None), id="no-summary"),
        pytest.param(
            make_record("", phase="thinking_summary", extra={"summary_thought": {"content": "x"}}),
            id="summary-no-list",
        ),
        pytest.param(b"[]", id="list"),
        pytest.param(b"[DONE]", id="end-mark"),
        pytest.param({}, id="empty"),
    ],
)
def test_what_is_no_part_of_the_answer_is_ignored(record):
    assert feed(CREATED, make_record("a"), record, make_record("b"), END) == (
        [TextDelta("a"), TextDelta("b"), STOP],
        None,
    )


def test_nothing_is_read_after_the_end():
    decoder = make_decoder()
    for record in (CREATED, make_record("a"), END):
        decoder.feed(json.dumps(record).encode())

    assert decoder.is_done
    assert decoder.feed(json.dumps(make_record("b")).encode()) == []
    assert decoder.finish() == []
    assert decoder.error is None


def test_a_stream_without_its_first_record_starts_with_its_answer():
    decoder = make_decoder()

    events = decoder.feed(json.dumps(make_record("a")).encode())

    assert events == [Started(ANSWER_NODE), TextDelta("a")]


def test_deltas_without_a_phase_are_the_answer():
    record = {"choices": [{"delta": {"role": "assistant", "content": "a"}}]}
    end = {"choices": [{"delta": {"status": "finished"}}]}

    assert feed(record, end) == ([TextDelta("a"), STOP], None)


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        pytest.param(b"{", "malformed", id="not-json"),
        pytest.param(b"\xff", "malformed", id="not-utf8"),
        pytest.param(b'{"usage":%b%b}' % (b"[" * 500, b"]" * 500), "malformed", id="too deep"),
        pytest.param(
            {"success": False, "data": {"code": "RateLimited", "details": "x", "num": 3}},
            "rate_limited",
            id="envelope",
        ),
        pytest.param(
            {"error": {"code": "x", "message": "Allocated quota exceeded, ..."}},
            "rate_limited",
            id="quota",
        ),
        pytest.param({"error": {"code": "Too_Many_Requests"}}, "parallel", id="too-fast"),
        pytest.param({"ret": ["FAIL_SYS_USER_VALIDATE"]}, "challenge", id="challenge"),
        pytest.param(
            make_record("The chat is in progress!", status="error"), "busy", id="status-with-text"
        ),
    ],
)
def test_errors_of_every_form_follow_the_text_before_them(record, kind):
    assert feed(CREATED, make_record("Hel"), record, make_record("lo")) == (
        [TextDelta("Hel")],
        kind,
    )


@pytest.mark.parametrize(
    ("records", "kind"),
    [
        pytest.param([], "empty", id="nothing"),
        pytest.param([CREATED], "empty", id="created"),
        pytest.param([CREATED, make_record("a", phase="think")], "cut", id="thinking"),
        pytest.param([CREATED, make_record("a", phase="think"), END], "empty", id="only-thinking"),
        pytest.param([CREATED, make_record("a")], "cut", id="text"),
    ],
)
def test_an_answer_without_its_end_is_an_error(records, kind):
    assert feed(*records)[1] == kind


class TestCumulativeText:
    @pytest.mark.parametrize(
        ("chunks", "text"),
        [
            pytest.param(["Hel", "Hello", "Hello", "Hello you"], "Hello you", id="cumulative"),
            pytest.param(["Hel", "lo"], "Hello", id="increments"),
            pytest.param(["ha", "haha"], "hahaha", id="tiny-start"),
            pytest.param(["1", "10", "100"], "110100", id="digits"),
            pytest.param(["abc", "d", "abcdabcd"], "abcdabcdabcd", id="late-and-short"),
            pytest.param(
                ["a" * 40, "b", "a" * 40 + "b" + "c"], "a" * 40 + "bc", id="late-and-long"
            ),
            pytest.param(["abc", "abcd", "e"], "abcde", id="turns-to-increments"),
        ],
    )
    def test_a_repetition_of_all_text_is_left_out(self, chunks, text):
        events, kind = feed(CREATED, *(make_record(chunk) for chunk in chunks), END)

        assert kind is None
        assert joined(events) == text


class TestThinkingSummary:
    def summary(self, *lists):
        records = [
            make_record(
                phase="thinking_summary",
                extra={
                    name: {"content": content}
                    for name, content in (("summary_title", titles), ("summary_thought", thoughts))
                    if content is not None
                },
            )
            for titles, thoughts in lists
        ]
        return joined(feed(CREATED, *records)[0])

    def test_thoughts_without_titles_are_paragraphs(self):
        assert self.summary((None, ["a"]), (None, ["ab", "c"])) == "ab\n\nc"

    def test_a_title_may_come_before_its_thought(self):
        assert self.summary((["T"], []), (["T"], ["a"]), (["T", "U"], ["a"])) == "T\na\n\nU"

    def test_a_repeated_list_gives_nothing(self):
        assert self.summary((["T"], ["a"]), (["T"], ["a"])) == "T\na"

    def test_another_first_item_starts_a_new_list(self):
        assert self.summary((["T"], ["a"]), (["U"], ["b"])) == "T\na\n\nU\nb"

    def test_a_shorter_list_is_a_new_list(self):
        assert self.summary((["T", "U"], ["a", "b"]), (["T"], ["a"])) == "T\na\n\nU\nb\n\nT\na"

    def test_a_rewritten_item_comes_as_a_whole(self):
        assert self.summary((["T", "U"], ["a", "b"]), (["T", "U"], ["a", "c"])) == (
            "T\na\n\nU\nb\nc"
        )


class TestUsage:
    def usage(self, *usages):
        records = [{**make_record("x", phase="other"), "usage": usage} for usage in usages]
        events, _ = feed(CREATED, *records)
        return events

    def test_counts_of_rounds_are_added_up(self):
        first = make_usage(902, 175, reasoning_tokens=100)
        second = make_usage(5319, 161)

        assert self.usage(make_usage(902, 1), first, {}, make_usage(5319, 2), second) == [
            UsageReport(6221, 336, 6557, 100, None, [first, second])
        ]

    def test_cached_tokens_stand_in_two_places(self):
        top = {**make_usage(10, 2), "cached_tokens": 0}
        nested = {**make_usage(10, 1), "prompt_tokens_details": {"cached_tokens": 4}}

        assert self.usage(top) == [UsageReport(10, 2, 12, None, 0, top)]
        assert self.usage(top, nested) == [UsageReport(20, 3, 23, None, 4, [top, nested])]

    def test_counts_that_are_none_count_nothing_and_none_is_beyond_bounds(self):
        said = {**make_usage(-5, 10**400, reasoning_tokens=-1), "cached_tokens": True}
        assert self.usage(said) == [
            UsageReport(
                0, 2**31 - 1, 2**31 - 1, reasoning_tokens=None, cached_tokens=None, raw=said
            )
        ]

    @pytest.mark.parametrize("usage", [None, {}, [], "x", {"output_tokens_details": {}}])
    def test_strange_usage_is_ignored(self, usage):
        assert self.usage(usage) == []


def test_equal_image_urls_come_once():
    record = make_record("https://x/a.png", phase="image_gen")
    end = make_record("https://x/a.png", phase="image_gen", status="finished")

    assert feed(CREATED, record, record, end) == (
        [TextDelta("![image](https://x/a.png)\n"), STOP],
        None,
    )


def test_native_calls_keep_their_order_and_long_numbers():
    extra = {
        "local_mcp": {
            "s": [
                {"tool_name": "s-f", "params": {"n": 10**29}},
                {"tool_name": "g"},
                {"params": {}},
                None,
            ],
            "t": [{"tool_name": "s-h", "params": {}}],
            "u": None,
        }
    }
    typing = make_record(phase="local_tool", extra=extra)
    end = make_record(phase="local_tool", extra=extra, status="finished")

    assert feed(CREATED, typing, end) == (
        [
            ToolCallDelta(0, "call_new_1", "f", '{"n":1' + "0" * 29 + "}"),
            ToolCallDelta(1, "call_new_2", "g", "{}"),
            ToolCallDelta(2, "call_new_3", "s-h", "{}"),
            Finished("tool_calls"),
        ],
        None,
    )


def test_a_lone_surrogate_in_the_answer_survives():
    record = json.dumps(make_record("PLACE")).replace("PLACE", "\\ud83d").encode()

    assert feed(CREATED, record, END)[0] == [TextDelta("\ud83d"), STOP]


def test_a_new_chat_is_asked_for_as_a_browser_does():
    assert chat_new_body("qwen3-max", timestamp_ms=1790000000123, chat_mode="guest") == {
        "title": "New Chat",
        "models": ["qwen3-max"],
        "chat_mode": "guest",
        "chat_type": "t2t",
        "timestamp": 1790000000123,
        "project_id": "",
    }


def make_completion(**options):
    return completion_body(
        **{
            "chat_id": CHAT,
            "model": "qwen3-max",
            "parent_id": ANSWER_NODE,
            "text": "Hello",
            "thinking": False,
            "thinking_budget": None,
            "timestamp_s": 1790000000,
            "chat_mode": "normal",
            "fid": "f",
            "child_id": "c",
            **options,
        }
    )


def test_a_turn_is_one_user_message_below_its_parent():
    assert make_completion() == {
        "stream": True,
        "version": "2.1",
        "incremental_output": True,
        "chat_id": CHAT,
        "chat_mode": "normal",
        "model": "qwen3-max",
        "parent_id": ANSWER_NODE,
        "messages": [
            {
                "id": None,
                "fid": "f",
                "parentId": ANSWER_NODE,
                "childrenIds": ["c"],
                "role": "user",
                "content": "Hello",
                "user_action": "chat",
                "files": [],
                "timestamp": 1790000000,
                "models": ["qwen3-max"],
                "model": "",
                "chat_type": "t2t",
                "feature_config": {
                    "thinking_enabled": False,
                    "output_schema": "phase",
                    "research_mode": "normal",
                    "auto_thinking": False,
                    "thinking_mode": "Fast",
                    "thinking_format": "summary",
                    "auto_search": False,
                },
                "extra": {"meta": {"subChatType": "t2t"}},
                "sub_chat_type": "t2t",
                "parent_id": ANSWER_NODE,
            }
        ],
        "timestamp": 1790000000,
    }


def test_the_first_turn_names_no_parent_three_times():
    body = make_completion(parent_id=None)
    message = body["messages"][0]

    assert (body["parent_id"], message["parentId"], message["parent_id"]) == (None, None, None)


def test_thinking_is_asked_for_with_its_budget():
    features = make_completion(thinking=True, thinking_budget=4096)["messages"][0]["feature_config"]

    assert features == {
        "thinking_enabled": True,
        "output_schema": "phase",
        "research_mode": "normal",
        "auto_thinking": False,
        "thinking_mode": "Thinking",
        "thinking_format": "summary",
        "auto_search": False,
        "thinking_budget": 4096,
    }


def test_a_budget_without_thinking_is_not_sent():
    features = make_completion(thinking_budget=4096)["messages"][0]["feature_config"]

    assert "thinking_budget" not in features


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"data": [{"id": "a"}, {"id": "b"}]}, id="plain"),
        pytest.param({"success": True, "data": {"data": [{"id": "a"}, {"id": "b"}]}}, id="wrapped"),
        pytest.param({"data": [{"id": "a"}, None, {}, {"id": "b"}]}, id="with-strangers"),
        pytest.param([{"id": "a"}, {"id": "b"}], id="bare"),
    ],
)
def test_models_are_read_from_every_wrapping(body):
    assert models(json.dumps(body).encode()) == [{"id": "a"}, {"id": "b"}]


@pytest.mark.parametrize("body", [b"<html>", b'{"success": false, "data": {}}', b"{}", b"1"])
def test_what_is_no_model_list_is_refused(body):
    with pytest.raises(ValueError, match=r"."):
        models(body)


class TestCaptures:
    """Real traffic of October 2025, where it is at hand."""

    @pytest.fixture
    def folder(self):
        folder = CAPTURES / "qwen_web"
        if not folder.is_dir():
            pytest.skip("the captures are not here")
        return folder

    @pytest.mark.parametrize("piece_bytes", [1 << 20, 997, 1], ids=["whole", "reads", "bytes"])
    def test_a_captured_stream_is_read_whole(self, folder, piece_bytes):
        decoder = make_decoder()

        events = decode(
            (folder / "stream_answer.sse").read_bytes(), decoder, piece_bytes=piece_bytes
        )

        assert decoder.error is None
        assert isinstance(events[0], Started)
        assert all(isinstance(event, TextDelta) for event in events[1:-2])
        # 823 records: the first, two empty ones and the end have no text.
        assert len(events[1:-2]) == 819
        text = joined(events)
        assert text.startswith("Greetings, Cosmic Traveler! 🌌\n\nYou")
        assert text.endswith(" upon.*")
        usage, end = events[-2:]
        assert isinstance(usage, UsageReport)
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (33, 838, 871)
        assert usage.cached_tokens == 0
        assert end == STOP

    def test_captured_models_are_read(self, folder):
        found = models((folder / "models.json").read_bytes())

        assert len(found) == 4
        assert found[0]["id"] == "qwen3-max"

    def test_a_captured_body_has_no_member_that_ours_lacks(self, folder):
        captured = json.loads((folder / "stream_answer.request.json").read_bytes())
        ours = make_completion()

        assert set(captured) <= set(ours)
        assert set(captured["messages"][0]) <= set(ours["messages"][0])
        assert set(captured["messages"][0]["feature_config"]) <= set(
            ours["messages"][0]["feature_config"]
        )


def test_a_phase_that_is_no_text_is_passed_over():
    events = make_decoder().feed(
        b'{"choices": [{"delta": {"phase": ["answer"], "status": "finished", "content": "x"}}]}'
    )
    assert events == [Started(None)]


def test_a_call_that_is_no_json_fails_the_answer():
    decoder = make_decoder()
    decoder.feed(b'{"choices": [{"delta": {"extra": {"local_mcp": \xff}}}]}')
    assert decoder.error is not None
    assert "not JSON" in decoder.error.failure.message


@pytest.mark.parametrize("unusable", ["\ud800", "a\r\nb", "世", ""])
def test_ids_that_no_address_can_carry_are_none(unusable):
    record = {"response.created": {"response_id": unusable, "chat_id": unusable, "parent_id": "p"}}
    assert make_decoder().feed(json.dumps(record).encode()) == [Started(None, None, "p")]


def test_a_failure_keeps_what_the_upstream_said():
    decoder = make_decoder()
    record = {"choices": [{"delta": {"status": "error", "content": "世 is full"}}]}
    decoder.feed(json.dumps(record).encode())
    assert decoder.error is not None
    assert "世 is full" in str(decoder.error)

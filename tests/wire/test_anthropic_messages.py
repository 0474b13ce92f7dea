"""Anthropic's bodies to the chat form and back; events to Anthropic's streams and messages."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.wire import anthropic_bodies, anthropic_messages, history
from qwenproxy.wire.anthropic_bodies import SIGNATURE, FieldError, to_body, to_chat, user_of
from qwenproxy.wire.anthropic_messages import MessageEncoder, mark_stop, whole_message
from qwenproxy.wire.events import (
    Accumulator,
    Event,
    Finished,
    ReasoningDelta,
    Started,
    TextDelta,
    ToolCallDelta,
    UsageReport,
)
from qwenproxy.wire.openai_chat import ChatStreamDecoder
from qwenproxy.wire.sse import SSEDecoder


def body(*messages: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 9, "messages": list(messages), **fields}


def user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def text(value: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **fields}


def chat_messages(*messages: Any, **fields: Any) -> list[Any]:
    return to_chat(body(*messages, **fields)).messages


CALL_BLOCK = {"type": "tool_use", "id": "t1", "name": "read", "input": {"path": "/a"}}
CALL = {
    "id": "t1",
    "type": "function",
    "function": {"name": "read", "arguments": '{"path":"/a"}'},
}
MARKER = {"cache_control": {"type": "ephemeral"}}


class TestBodies:
    def test_one_block_is_a_text_whatever_markers_it_has(self):
        forms = [{"role": "user", "content": "Hi"}, user(text("Hi")), user(text("Hi", **MARKER))]
        assert [chat_messages(form) for form in forms] == [[{"role": "user", "content": "Hi"}]] * 3

    def test_several_blocks_stay_apart(self):
        (message,) = chat_messages(user(text("a"), text("b")))
        assert message["content"] == [text("a"), text("b")]

    def test_system_text_comes_first(self):
        assert chat_messages(user(text("Hi")), system="S")[0] == {"role": "system", "content": "S"}
        assert chat_messages(user(text("Hi")), system=[text("S", **MARKER)])[0]["content"] == "S"
        assert chat_messages(user(text("Hi")), system="") == [{"role": "user", "content": "Hi"}]

    def test_a_line_that_changes_with_every_request_is_no_context(self):
        def sent(build: str) -> Any:
            line = f"x-anthropic-billing-header: cc_version={build};"
            return to_chat(body(user(text("Hi")), system=[text(line), text("S")]))

        assert sent("1").messages == sent("2").messages
        assert "cc_version=1" in str(sent("1").unmapped["system.0"])

    @pytest.mark.parametrize("content", ["Be quick.", [text("Be quick.")]])
    def test_what_the_system_says_within_the_line_is_a_reminder(self, content):
        form = to_chat(body(user(text("Hi")), {"role": "system", "content": content}))
        assert form.messages[1] == {
            "role": "user",
            "content": "<system-reminder>\nBe quick.\n</system-reminder>",
        }
        assert form.unmapped == {"messages.1.role": "system"}

    @pytest.mark.parametrize(
        ("block", "told"),
        [
            (
                {"source": {"type": "text", "media_type": "text/plain", "data": "D"}, "title": "T"},
                "T\n\nD",
            ),
            ({"source": {"type": "content", "content": [text("a"), text("b")]}}, "a\nb"),
            ({"source": {"type": "content", "content": "a"}}, "a"),
        ],
    )
    def test_a_document_that_is_text_is_told_as_text(self, block, told):
        (message,) = chat_messages(user({"type": "document", **block}))
        assert message["content"] == told

    def test_results_come_before_what_the_user_says(self):
        results = [
            {"type": "tool_result", "tool_use_id": "t1", "content": "one"},
            {"type": "tool_result", "tool_use_id": "t2", "content": [text("two"), text("three")]},
        ]
        assert chat_messages(user(*results, text("Go on."))) == [
            {"role": "tool", "tool_call_id": "t1", "content": "one"},
            {"role": "tool", "tool_call_id": "t2", "content": "two\nthree"},
            {"role": "user", "content": "Go on."},
        ]
        assert len(chat_messages(user(*results))) == 2

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            ("no such file", "Error: no such file"),
            ("Error: no such file", "Error: no such file"),
            ("<tool_use_error>no</tool_use_error>", "<tool_use_error>no</tool_use_error>"),
            (None, "Error"),
        ],
    )
    def test_a_failed_tool_is_told_as_one(self, content, told):
        block = {"type": "tool_result", "tool_use_id": "t1", "content": content, "is_error": True}
        form = to_chat(body(user(block)))
        assert form.messages[0]["content"] == told
        assert form.unmapped == {"messages.0.content.0.is_error": True}

    def test_an_image_of_a_tool_is_shown_by_the_user(self):
        image = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
        block = {"type": "tool_result", "tool_use_id": "t1", "content": [image]}
        tool, shown = chat_messages(user(block))
        assert tool["content"]
        assert shown["content"] == [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]

    def test_an_answer_is_one_message(self):
        thinking = {"type": "thinking", "thinking": "hm", "signature": SIGNATURE}
        sent = {"role": "assistant", "content": [thinking, text("a"), text("b"), CALL_BLOCK]}
        form = to_chat(body(sent))
        assert form.messages == [
            {
                "role": "assistant",
                "content": "ab",
                "reasoning_content": "hm",
                "tool_calls": [CALL],
            }
        ]
        assert form.unmapped == {}

    def test_the_answer_that_was_given_has_the_digest_of_what_comes_back(self):
        answer = Accumulator()
        for event in (
            ReasoningDelta("hm"),
            TextDelta("Look.\n"),
            ToolCallDelta(0, "t1", "read", '{"path": "/a"}'),
            ToolCallDelta(1, "t2", "now"),
        ):
            answer.add(event)
        given_back = whole_message(
            response_id="msg_1",
            model="m",
            message=answer.message(),
            reasoning="hm",
            finish_reason="tool_calls",
            usage=None,
        )
        (message,) = chat_messages({"role": "assistant", "content": given_back["content"]})
        root = history.root_digest(1)
        assert history.message_digest(root, message) == history.message_digest(
            root, answer.message()
        )

    @pytest.mark.parametrize(
        ("sent", "param"),
        [
            pytest.param(body(), "messages", id="none"),
            pytest.param(body("x"), "messages.0.role", id="no object"),
            pytest.param(body({"role": "tool", "content": ""}), "messages.0.role", id="role"),
            pytest.param(body({"role": "user"}), "messages.0.content", id="no content"),
            pytest.param(body(user("x")), "messages.0.content.0", id="no block"),
            pytest.param(body(user({"type": "text"})), "messages.0.content.0.text", id="no text"),
            pytest.param(
                body(user({"type": "image", "source": {"type": "file", "file_id": "x"}})),
                "messages.0.content.0.source.type",
                id="file",
            ),
            pytest.param(
                body(user({"type": "document", "source": {"type": "url", "url": "x"}})),
                "messages.0.content.0.source.type",
                id="document by address",
            ),
            pytest.param(
                body({"role": "assistant", "content": [{**CALL_BLOCK, "input": "x"}]}),
                "messages.0.content.0.input",
                id="input",
            ),
            pytest.param(
                body({"role": "assistant", "content": [{"type": "server_tool_use"}]}),
                "messages.0.content.0.type",
                id="server tool's call",
            ),
            pytest.param(body(user(), system=5), "system", id="system"),
            pytest.param(body(user(), system=[{"type": "image"}]), "system.0.type", id="picture"),
            pytest.param(body(user(), tools={}), "tools", id="tools"),
            pytest.param(body(user(), tools=[1]), "tools.0", id="tool"),
            pytest.param(body(user(), tools=[{"name": "a"}]), "tools.0.input_schema", id="schema"),
            pytest.param(body(user(), tools=[{"name": ""}]), "tools.0.name", id="name"),
            pytest.param(body(user(), tool_choice="any"), "tool_choice.type", id="choice"),
            pytest.param(body(user(), stop_sequences=["a", 1]), "stop_sequences", id="stop"),
            pytest.param(body(user(), thinking=True), "thinking.type", id="thinking"),
            pytest.param(
                body(user(), thinking={"type": "enabled", "budget_tokens": True}),
                "thinking.budget_tokens",
                id="budget",
            ),
            pytest.param(body(user(), output_config=1), "output_config", id="output"),
            pytest.param(body(user(), mcp_servers=[{}]), "mcp_servers", id="mcp"),
        ],
    )
    def test_what_is_wrong_is_named(self, sent, param):
        with pytest.raises(FieldError) as caught:
            to_chat(sent)
        assert caught.value.param == param

    @pytest.mark.parametrize(
        ("fields", "parameters"),
        [
            ({"tool_choice": {"type": "auto"}}, {"tool_choice": "auto"}),
            ({"tool_choice": {"type": "none"}}, {"tool_choice": "none"}),
            (
                {"tool_choice": {"type": "tool", "name": "read"}},
                {"tool_choice": {"type": "function", "function": {"name": "read"}}},
            ),
            ({"thinking": {"type": "disabled"}}, {"enable_thinking": False}),
            ({"thinking": {"type": "adaptive"}}, {"enable_thinking": True}),
            ({"output_config": {"effort": "max"}}, {"reasoning_effort": "high"}),
            ({"service_tier": "auto", "unknown": 1}, {"unknown": 1}),
            ({"stop_sequences": []}, {}),
        ],
    )
    def test_parameters_take_their_names_upstream(self, fields, parameters):
        tool = {"name": "read", "input_schema": {}}
        found = to_chat(body(user(text("Hi")), tools=[tool], **fields)).parameters
        assert found == {"max_tokens": 9, **parameters}

    def test_a_choice_without_tools_is_not_passed(self):
        sent = body(user(text("Hi")), tools=[], tool_choice={"type": "any"})
        assert to_chat(sent).parameters == {"max_tokens": 9}

    @pytest.mark.parametrize(
        ("user_id", "found"),
        [
            ("u1", "u1"),
            ("user_ab_account__session_11111111-1111-4111-8111-111111111111", "user_ab_account_"),
            ('{"device_id":"d","session_id":"s"}', '{"device_id":"d"}'),
            ('{"device_id":"d"}', '{"device_id":"d"}'),
            ("{not json", "{not json"),
            (None, None),
        ],
    )
    def test_a_user_is_one_over_all_sessions(self, user_id, found):
        assert user_of({"metadata": {"user_id": user_id}}) == found
        assert user_of({}) is None


NAMES = st.text("abc", min_size=1, max_size=4)
TEXTS = st.text(min_size=1, max_size=20)
TEXT_BLOCKS = st.builds(text, TEXTS)
IMAGES = st.sampled_from(
    [
        {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
        {
            "type": "document",
            "title": "T",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "aGk="},
        },
    ]
)
CALLS = st.builds(
    lambda name, value: {"type": "tool_use", "id": name, "name": name, "input": {"a": value}},
    NAMES,
    st.integers() | TEXTS,
)
RESULTS = st.builds(
    lambda name, content: {"type": "tool_result", "tool_use_id": name, "content": content},
    NAMES,
    TEXTS,
)
THINKING = st.builds(
    lambda value: {"type": "thinking", "thinking": value, "signature": SIGNATURE}, TEXTS
)


def _turn(question: Any, thinking: Any, said: str, calls: Any, results: Any) -> list[Any]:
    blocks = [*thinking, *([text(said)] if thinking or calls else []), *calls]
    answer = {"role": "assistant", "content": blocks or said}
    turn = [{"role": "user", "content": question}, answer]
    return [*turn, user(*results, text("On.")), {"role": "assistant", "content": "Yes."}]


TURNS = st.builds(
    _turn,
    TEXTS | st.lists(TEXT_BLOCKS | IMAGES, min_size=2, max_size=3),
    st.lists(THINKING, max_size=1),
    TEXTS,
    st.lists(CALLS, max_size=2),
    st.lists(RESULTS, min_size=1, max_size=2),
)


@given(turns=st.lists(TURNS, min_size=1, max_size=3), system=st.none() | TEXTS)
def test_a_body_comes_back_as_it_was(turns, system):
    tools = [{"name": "read", "description": "d", "input_schema": {"type": "object"}}]
    parameters = {"model": "m", "max_tokens": 9, "thinking": {"type": "adaptive"}}
    sent = {**parameters, "messages": [m for turn in turns for m in turn], "tools": tools}
    if system is not None:
        sent["system"] = system
    form = to_chat(sent)
    assert form.unmapped == {}
    assert to_body(parameters, form.messages, form.tools) == sent


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "name", "input", "source", "x"]),
            inner,
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.sampled_from(["messages", "system", "tools", "tool_choice", "thinking", "metadata"]),
        JSON,
    )
)
def test_no_body_breaks_the_codec(sent):
    with contextlib.suppress(FieldError):
        user_of(sent)
        form = to_chat(sent)
        to_body({}, form.messages, form.tools)


def encoder(*, thinking: bool = True) -> MessageEncoder:
    return MessageEncoder(response_id="msg_1", model="m", input_tokens=3, thinking=thinking)


def read(data: bytes) -> list[Any]:
    lines = data.decode().split("\n\n")
    assert lines.pop() == ""
    bodies = []
    for event in lines:
        name, _, payload = event.partition("\n")
        bodies.append(json.loads(payload.removeprefix("data: ")))
        assert name == f"event: {bodies[-1]['type']}"
    return bodies


def kinds(bodies: list[Any]) -> list[str]:
    return [
        found["content_block"]["type"]
        if found["type"] == "content_block_start"
        else found["delta"]["type"]
        if found["type"] == "content_block_delta"
        else found["type"]
        for found in bodies
    ]


USAGE = UsageReport(10, 5, 15, cached_tokens=4)
EVENTS: list[Event] = [
    Started("x"),
    ReasoningDelta("h"),
    ReasoningDelta("m"),
    TextDelta("a"),
    TextDelta("b"),
    ToolCallDelta(0, "t1", "read", ""),
    ToolCallDelta(0, arguments='{"path"'),
    ToolCallDelta(0, arguments=':"/a"}'),
    ToolCallDelta(1, "t2", "now", "{}"),
    USAGE,
    Finished("tool_calls"),
]


class TestStreams:
    def test_blocks_follow_one_another(self):
        coder = encoder()
        found = read(coder.encode(EVENTS) + coder.finish("tool_calls", USAGE))
        assert kinds(found) == [
            "message_start",
            "thinking", "thinking_delta", "thinking_delta", "signature_delta", "content_block_stop",
            "text", "text_delta", "text_delta", "content_block_stop",
            "tool_use", "input_json_delta", "input_json_delta", "content_block_stop",
            "tool_use", "input_json_delta", "content_block_stop",
            "message_delta", "message_stop",
        ]  # fmt: skip
        assert [b["index"] for b in found if "index" in b] == [0] * 5 + [1] * 4 + [2] * 4 + [3] * 3
        assert found[0]["message"]["usage"]["input_tokens"] == 3
        assert found[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
        assert found[-2]["usage"] == {
            "input_tokens": 6,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 4,
            "output_tokens": 5,
        }

    @pytest.mark.parametrize("at", range(len(EVENTS)))
    def test_batches_make_no_difference(self, at):
        whole, parted = encoder(), encoder()
        expected = whole.encode(EVENTS)
        assert parted.encode(EVENTS[:at]) + parted.encode(EVENTS[at:]) == expected

    def test_thinking_that_was_not_asked_for_is_left_out(self):
        coder = encoder(thinking=False)
        found = kinds(read(coder.encode([ReasoningDelta("hm"), TextDelta("a")])))
        assert found == ["message_start", "text", "text_delta"]

    def test_calls_whose_pieces_are_mixed_leave_one_after_the_other(self):
        coder = encoder()
        events = [
            ToolCallDelta(0, "t1", "a", ""),
            ToolCallDelta(1, "t2", "b", ""),
            ToolCallDelta(1, arguments='{"y":'),
            ToolCallDelta(0, arguments='{"x":1}'),
            ToolCallDelta(1, arguments="2}"),
            TextDelta("end"),
        ]
        found = read(coder.encode(events) + coder.finish("tool_calls", None))
        assert kinds(found) == [
            "message_start",
            "tool_use", "input_json_delta", "content_block_stop",
            "tool_use", "input_json_delta", "input_json_delta", "content_block_stop",
            "text", "text_delta", "content_block_stop",
            "message_delta", "message_stop",
        ]  # fmt: skip

    def test_mixed_pieces_cost_no_more_the_longer_the_call_is(self, monkeypatch):
        looks = []
        loads = anthropic_messages.json.loads_text
        monkeypatch.setattr(
            anthropic_messages.json, "loads_text", lambda t: looks.append(t) or loads(t)
        )
        coder = encoder()
        coder.encode([ToolCallDelta(0, "t1", "a", '{"x":"'), ToolCallDelta(1, "t2", "b", "{}")])
        coder.encode([ToolCallDelta(0, arguments="}")] * 5000)
        assert len(looks) <= 20
        found = kinds(
            read(coder.encode([ToolCallDelta(0, arguments='"}')]) + coder.finish("", None))
        )
        assert found.count("tool_use") == 1

    def test_a_call_that_broke_off_lets_the_rest_out_at_the_end(self):
        coder = encoder()
        events = [ToolCallDelta(0, "t1", "a", '{"x'), ToolCallDelta(1, "t2", "b", "{}")]
        found = read(coder.encode(events) + coder.finish("length", None))
        assert kinds(found)[-5:] == [
            "tool_use", "input_json_delta", "content_block_stop", "message_delta", "message_stop",
        ]  # fmt: skip
        assert found[-2]["delta"]["stop_reason"] == "max_tokens"

    def test_the_empty_object_of_a_call_without_arguments_may_come_late(self):
        coder = encoder()
        events = [
            ToolCallDelta(0, "t1", "a", ""),
            ToolCallDelta(1, "t2", "b", "{}"),
            ToolCallDelta(0, arguments="{}"),
        ]
        found = kinds(read(coder.encode(events) + coder.finish("tool_calls", None)))
        assert found.count("tool_use") == found.count("content_block_stop") == 2

    def test_an_empty_answer_has_a_beginning_and_an_end(self):
        found = kinds(read(encoder().finish("stop", None)))
        assert found == ["message_start", "message_delta", "message_stop"]

    def test_silence_begins_the_message_once(self):
        coder = encoder()
        data = coder.keep_alive() + coder.keep_alive() + coder.encode([TextDelta("a")])
        assert kinds(read(data)) == ["message_start", "ping", "ping", "text", "text_delta"]

    def test_an_error_is_an_event(self):
        error = {"type": "error", "error": {"type": "api_error", "message": "x\u2028"}}
        assert read(encoder().error(error)) == [error]

    def test_line_ends_in_text_end_no_line(self):
        data = encoder().encode([TextDelta("a\u2028\u0085\nb\ud83d")])
        assert len(data.splitlines()) == len(data.decode().splitlines())
        assert read(data)[-1]["delta"]["text"] == "a\u2028\u0085\nb\ud83d"


def _upstream_stream() -> bytes:
    deltas: list[Any] = [
        {"role": "assistant"},
        {"reasoning_content": "hm ü"},
        {"content": "Loök"},
        {"content": " here"},
        {"tool_calls": [{"index": 0, "id": "t1", "function": {"name": "read", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
    ]
    chunks = [{"id": "x", "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append(
        {"id": "x", "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    )
    lines = [f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n" for chunk in chunks]
    return ("".join(lines) + "data: [DONE]\n\n").encode()


UPSTREAM = _upstream_stream()


def through(*pieces: bytes) -> tuple[bytes, Accumulator]:
    lines, decoder = SSEDecoder(), ChatStreamDecoder(new_id=lambda: "id")
    coder, answer, out = encoder(), Accumulator(), b""
    for piece in pieces:
        events = [event for payload in lines.feed(piece) for event in decoder.feed(payload)]
        for event in events:
            answer.add(event)
        out += coder.encode(events)
    return out + coder.finish(answer.finish_reason or "", answer.usage), answer


def test_every_split_of_an_upstreams_stream_gives_the_same_stream():
    expected, _ = through(UPSTREAM)
    for at in range(1, len(UPSTREAM)):
        assert through(UPSTREAM[:at], UPSTREAM[at:])[0] == expected


def test_a_whole_message_is_what_its_stream_adds_up_to():
    data, answer = through(UPSTREAM)
    starts = [b for b in read(data) if b["type"] == "content_block_start"]
    message = whole_message(
        response_id="msg_1",
        model="m",
        message=answer.message(),
        reasoning=answer.reasoning,
        finish_reason="tool_calls",
        usage=None,
    )
    content: Any = message["content"]
    assert [block["type"] for block in content] == [s["content_block"]["type"] for s in starts]
    assert content == [
        {"type": "thinking", "thinking": "hm ü", "signature": SIGNATURE},
        text("Loök here"),
        {"type": "tool_use", "id": "t1", "name": "read", "input": {"a": 1}},
    ]
    assert message["stop_reason"] == "tool_use"


@pytest.mark.parametrize("arguments", ["", "{", "[1]", '"x"'])
def test_arguments_that_are_no_object_become_an_empty_one(arguments):
    call = {"id": "t1", "function": {"name": "a", "arguments": arguments}}
    assert anthropic_bodies.tool_use(call)["input"] == {}


def test_a_call_that_was_cut_is_not_made_with_other_arguments():
    def call(arguments):
        function = {"name": "write", "arguments": arguments}
        return {"id": "c", "type": "function", "function": function}

    for arguments, inputs in (('{"a":"x', [{"b": 1}]), ('{"a":"x"}', [{"b": 1}, {"a": "x"}])):
        message = whole_message(
            response_id="msg_1",
            model="m",
            message={"content": None, "tool_calls": [call('{"b":1}'), call(arguments)]},
            reasoning="",
            finish_reason="length",
            usage=None,
        )
        assert [block["input"] for block in message["content"]] == inputs


def test_a_call_of_a_tool_is_told_before_a_stop_text():
    answer = {"stop_reason": "tool_use", "stop_sequence": None}
    mark_stop(answer, "END")
    assert answer == {"stop_reason": "tool_use", "stop_sequence": None}

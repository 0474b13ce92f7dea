from __future__ import annotations

import asyncio
import json

import pytest

from qwenproxy.errors import (
    ContextLengthExceeded,
    NotFound,
    UpstreamAuthExpired,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRateLimited,
    UpstreamRefused,
    UpstreamTimeout,
)
from qwenproxy.upstream import http
from qwenproxy.upstream.openai_compatible import OpenAICompatible, stream_error
from qwenproxy.upstream.protocol import Credentials, ModelInfo, Upstream, UpstreamCall
from qwenproxy.wire.events import Finished, ReasoningDelta, Sent, Started, TextDelta, UsageReport
from qwenproxy.wire.openai_chat import StreamError
from tests.doubles import model as small_model
from tests.doubles.openai_compatible import CHAT, COMPLETIONS, FIXTURES, MODELS, error
from tests.doubles.server import Reply, unused_port
from tests.upstream.conftest import ask, make_account

MESSAGES = [{"role": "user", "content": "Say hello"}]
CALL = UpstreamCall("qwen3-8b", MESSAGES)


def ask_double(served, *replies, call=CALL):
    served.double.enqueue(*replies)
    return ask(OpenAICompatible, make_account(served.url), call)


def list_models(account):
    async def main():
        async with http.open_client() as client:
            return await OpenAICompatible(client, account).list_models()

    return asyncio.run(main())


def test_it_is_an_upstream():
    upstream: Upstream = OpenAICompatible(None, make_account("http://x"))
    assert not upstream.keeps_chats
    assert upstream.on_client_left == "cancel"


def test_answer_is_streamed_with_usage(openai_compatible):
    outcome = ask_double(openai_compatible, "Hello 世界!")
    assert outcome.error is None
    kinds = [type(event) for event in outcome.events]
    assert kinds[:2] == [Sent, Started]
    assert kinds[-2:] == [UsageReport, Finished]
    assert outcome.answer.text == "Hello 世界!"
    assert outcome.answer.finish_reason == "stop"
    assert outcome.answer.started.model == "qwen3-8b"


def test_sent_comes_alone_before_the_upstream_is_asked(openai_compatible):
    outcome = ask_double(openai_compatible, Reply(silent=True))
    assert [type(event) for event in outcome.events] == [Sent]
    assert isinstance(outcome.error, UpstreamTimeout)


def test_everything_the_client_sent_goes_up_unchanged(openai_compatible):
    call = UpstreamCall(
        "qwen3-8b",
        [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "x", "extra": [1.0, None]},
        ],
        parameters={"temperature": 0.5, "seed": 10**30, "chat_template_kwargs": {"a": True}},
        tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
    )
    outcome = ask_double(openai_compatible, call=call)
    body = openai_compatible.double.requests[0].body
    assert body == {
        "temperature": 0.5,
        "seed": 10**30,
        "chat_template_kwargs": {"a": True},
        "model": "qwen3-8b",
        "messages": call.messages,
        "tools": call.tools,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sent = outcome.answer.sent
    assert sent.request == {**body, "messages": None, "tools": None}
    assert json.loads(sent.text) == {"messages": call.messages, "tools": call.tools}
    assert sent.first_message == 0


def test_lone_surrogates_and_nul_go_up_as_escapes(openai_compatible):
    call = UpstreamCall("m", [{"role": "user", "content": "a\ud83db\x00"}])
    ask_double(openai_compatible, "ok", call=call)
    assert openai_compatible.double.requests[0].body["messages"][0]["content"] == "a\ud83db\x00"


def test_context_reaches_the_model(openai_compatible):
    first = ask_double(openai_compatible, call=UpstreamCall("m", [user("pick a word")]))
    history = [user("pick a word"), first.answer.message(), user("what was your word?")]
    second = ask_double(openai_compatible, call=UpstreamCall("m", history))
    assert small_model.word_in(first.answer.text)
    assert small_model.word_in(second.answer.text) == small_model.word_in(first.answer.text)
    third = ask_double(openai_compatible, call=UpstreamCall("m", history[2:]))
    assert third.answer.text == small_model.UNKNOWN


def user(text):
    return {"role": "user", "content": text}


def test_prompt_goes_to_completions(openai_compatible):
    call = UpstreamCall("m", MESSAGES, parameters={"echo": False}, prompt="Say hello")
    outcome = ask_double(openai_compatible, call=call)
    request = openai_compatible.double.requests[0]
    assert request.path == COMPLETIONS
    assert request.body["prompt"] == "Say hello"
    assert "messages" not in request.body
    assert outcome.answer.text == "You said: Say hello"
    assert outcome.answer.sent.request["prompt"] is None
    assert json.loads(outcome.answer.sent.text) == {"prompt": "Say hello"}


def test_tool_calls_and_reasoning_arrive(openai_compatible):
    calls = [
        {"id": f"call_{i}", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
        for i in range(2)
    ]
    outcome = ask_double(openai_compatible, Reply(reasoning="Let me think", tool_calls=calls))
    assert outcome.answer.reasoning == "Let me think"
    assert outcome.answer.message()["tool_calls"] == calls
    assert outcome.answer.finish_reason == "tool_calls"


@pytest.mark.parametrize("piece_bytes", [1, 7, 100_000])
@pytest.mark.parametrize(
    ("name", "text", "reasoning"),
    [
        pytest.param("dashscope_reasoning", None, True, id="dashscope"),
        pytest.param("vllm_reasoning_new", None, True, id="vllm"),
        pytest.param("vllm_think_leak", None, None, id="think in text"),
        pytest.param("llamacpp_timings", None, None, id="llama.cpp"),
        pytest.param("no_done", None, None, id="no end mark"),
        pytest.param("tool_call_stream_split", "", None, id="tool call"),
    ],
)
def test_every_servers_stream_is_read_however_it_is_cut(
    openai_compatible, name, text, reasoning, piece_bytes
):
    raw = (FIXTURES / f"{name}.sse").read_bytes()
    outcome = ask_double(openai_compatible, Reply(raw=raw, piece_bytes=piece_bytes))
    assert outcome.error is None
    assert isinstance(outcome.events[-1], Finished)
    assert outcome.answer.has_content
    assert "think>" not in outcome.answer.text
    if text is not None:
        assert outcome.answer.text == text
    if reasoning is not None:
        assert bool(outcome.answer.reasoning) == reasoning


def test_text_cut_within_characters_is_whole(openai_compatible):
    outcome = ask_double(openai_compatible, Reply(text="多字节 🙂 text", piece_bytes=1))
    assert outcome.answer.text == "多字节 🙂 text"


def test_crlf_is_read(openai_compatible):
    assert ask_double(openai_compatible, Reply(text="a b", crlf=True)).answer.text == "a b"


def test_stream_labelled_as_plain_text_is_read(openai_compatible):
    reply = Reply(text="a b", headers={"content-type": "text/plain"})
    assert ask_double(openai_compatible, reply).answer.text == "a b"


@pytest.mark.parametrize("prefix", ["", "\n \n"])
def test_json_instead_of_a_stream_is_read(openai_compatible, prefix):
    body = {
        "id": "x",
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "whole", "reasoning_content": "why"},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
    outcome = ask_double(openai_compatible, Reply(body=prefix + json.dumps(body)))
    assert outcome.error is None
    assert (outcome.answer.text, outcome.answer.reasoning) == ("whole", "why")
    assert outcome.answer.usage.total_tokens == 3
    assert outcome.events[-1] == Finished("stop")


@pytest.mark.parametrize(
    ("reply", "expected", "status"),
    [
        pytest.param(error("openai_object"), UpstreamRefused, 400, id="openai"),
        pytest.param(error("dashscope_native"), UpstreamRefused, 400, id="dashscope native"),
        pytest.param(error("dashscope_throttle"), UpstreamRateLimited, 429, id="throttle"),
        pytest.param(error("vllm_old"), UpstreamRefused, 400, id="vllm old"),
        pytest.param(error("fastapi_detail"), UpstreamRefused, 400, id="fastapi"),
        pytest.param(error("llamacpp_ctx"), ContextLengthExceeded, 400, id="llama.cpp length"),
        pytest.param(error("lmstudio_string"), UpstreamRefused, 400, id="lm studio"),
        pytest.param(error("plain_text"), UpstreamError, 502, id="plain text"),
        pytest.param(
            Reply(body={"error": {"message": "no", "code": "invalid_api_key"}}, status=401),
            UpstreamAuthExpired,
            503,
            id="401",
        ),
        pytest.param(
            Reply(body={"error": {"message": "unpaid", "code": "Arrearage"}}, status=400),
            UpstreamAuthExpired,
            503,
            id="unpaid",
        ),
        pytest.param(Reply(body="no", status=403), UpstreamAuthExpired, 503, id="403"),
        pytest.param(
            Reply(body={"error": 'model "x" not found, try pulling it first'}, status=404),
            UpstreamRefused,
            404,
            id="model not found",
        ),
        pytest.param(
            Reply(body={"detail": "Not Found"}, status=404), UpstreamError, 502, id="no such path"
        ),
        pytest.param(
            Reply(
                body={"error": {"message": "Range of input length should be [1, 983616]"}},
                status=400,
            ),
            ContextLengthExceeded,
            400,
            id="dashscope length",
        ),
        pytest.param(
            Reply(
                body={
                    "object": "error",
                    "message": "This model's maximum context length is 4096 tokens.",
                    "type": "BadRequestError",
                    "code": 400,
                },
                status=400,
            ),
            ContextLengthExceeded,
            400,
            id="vllm length",
        ),
        pytest.param(Reply(body="", status=500), UpstreamError, 502, id="500 without a body"),
        pytest.param(
            Reply(body="<html><title>504 Gateway Time-out</title></html>", status=504),
            UpstreamTimeout,
            504,
            id="504 page",
        ),
        pytest.param(
            Reply(body="", status=307, headers={"location": "/x"}),
            UpstreamError,
            502,
            id="redirect",
        ),
        pytest.param(
            Reply(body="<html>Sign in to the Wi-Fi</html>"),
            UpstreamProtocolError,
            502,
            id="page with 200",
        ),
        pytest.param(Reply(body="{broken"), UpstreamProtocolError, 502, id="broken json with 200"),
        pytest.param(Reply(body=""), UpstreamError, 502, id="nothing with 200"),
        pytest.param(
            Reply(body={"error": {"message": "busy", "code": 429}}),
            UpstreamRateLimited,
            429,
            id="429 with 200",
        ),
    ],
)
def test_refusals_are_mapped(openai_compatible, reply, expected, status):
    outcome = ask_double(openai_compatible, reply)
    assert type(outcome.error) is expected
    assert outcome.error.http_status == status
    assert [type(event) for event in outcome.events] == [Sent]


def test_rejected_key_is_not_quoted(openai_compatible):
    reply = Reply(body={"error": {"message": "Incorrect API key: sk-12345"}}, status=401)
    outcome = ask_double(openai_compatible, reply)
    assert "sk-12345" not in outcome.error.message


def test_refusal_keeps_what_the_upstream_named(openai_compatible):
    body = {"error": {"message": "bad", "param": "messages.0", "code": "data_inspection_failed"}}
    failure = ask_double(openai_compatible, Reply(body=body, status=400)).error
    assert (failure.message, failure.param, failure.error_code) == (
        "bad",
        "messages.0",
        "data_inspection_failed",
    )
    assert failure.upstream_status == 400
    assert json.loads(failure.body) == body


def test_retry_after_is_kept(openai_compatible):
    reply = Reply(body={"error": "slow down"}, status=429, headers={"retry-after": "17"})
    failure = ask_double(openai_compatible, reply).error
    assert isinstance(failure, UpstreamRateLimited)
    assert failure.retry_after_s == 17


def test_refused_connection(openai_compatible):
    account = make_account(f"http://127.0.0.1:{unused_port()}")
    outcome = ask(OpenAICompatible, account, CALL)
    assert type(outcome.error) is UpstreamError
    assert "connection refused" in outcome.error.message


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        pytest.param(Reply(text="one two three", cut_after=3), UpstreamError, id="cut"),
        pytest.param(
            Reply(text="one two three", silent_after=3), UpstreamTimeout, id="falls silent"
        ),
        pytest.param(
            Reply(text="one two three", malformed_line=b"data: {broken\n\n"),
            UpstreamProtocolError,
            id="malformed line",
        ),
        pytest.param(
            Reply(raw=(FIXTURES / "error_in_stream.sse").read_bytes()),
            UpstreamError,
            id="error in the stream",
        ),
        pytest.param(
            Reply(raw=b'data: {"choices":[{"index":0,"delta":{"content":"one"}}]}\n\n'),
            UpstreamError,
            id="ends within the answer",
        ),
    ],
)
def test_what_was_read_before_a_failure_is_kept(openai_compatible, reply, expected):
    outcome = ask_double(openai_compatible, reply)
    assert type(outcome.error) is expected
    assert outcome.answer.text.strip() in ("one", "one two", "Hi")
    assert outcome.answer.finish_reason is None


ENDED = (
    b'data: {"choices":[{"index":0,"delta":{"content":"one"}}]}\n'
    b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\n'
)
COUNTED = (
    b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}\n'
)


@pytest.mark.parametrize("counted", [b"", COUNTED], ids=["uncounted", "counted"])
@pytest.mark.parametrize("ending", ["cut", "hangs", "cut within a line", "no end mark"])
def test_an_answer_that_has_ended_is_whole_however_its_stream_ends(
    openai_compatible, monkeypatch, ending, counted
):
    monkeypatch.setattr(http, "TAIL_TIMEOUT_S", 0.05)
    raw, lines = ENDED + counted, (ENDED + counted).count(b"\n")
    reply = {
        "cut": Reply(raw=raw, cut_after=lines),
        "hangs": Reply(raw=raw + b"data: [DONE]\n", silent_after=lines),
        "cut within a line": Reply(raw=raw + b'data: {"choi'),
        "no end mark": Reply(raw=raw),
    }[ending]
    outcome = ask_double(openai_compatible, reply)
    assert outcome.error is None
    assert outcome.answer.text == "one"
    assert outcome.answer.finish_reason == "length"
    assert (outcome.answer.usage is not None) == bool(counted)


def test_a_tail_that_trickles_has_one_limit_for_all_of_it(openai_compatible, monkeypatch):
    monkeypatch.setattr(http, "TAIL_TIMEOUT_S", 0.1)
    reply = Reply(raw=ENDED + b": still here\n", endless=True)
    assert ask_double(openai_compatible, reply).answer.finish_reason == "length"
    assert openai_compatible.double.left.get(timeout=5) == CHAT


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        pytest.param(
            {"error": {"message": "Allocated quota exceeded", "code": "Throttling.RateQuota"}},
            UpstreamRateLimited,
            id="quota",
        ),
        pytest.param(
            {"error": {"message": "input too long", "code": "context_length_exceeded"}},
            ContextLengthExceeded,
            id="length",
        ),
        pytest.param(
            {"error": {"message": "inappropriate", "code": "data_inspection_failed"}},
            UpstreamRefused,
            id="content check",
        ),
        pytest.param(
            {"error": {"message": "CUDA out of memory", "code": 500}}, UpstreamError, id="500"
        ),
    ],
)
def test_errors_inside_a_stream_are_mapped(openai_compatible, record, expected):
    raw = b"data: " + json.dumps(record).encode() + b"\n\n"
    assert type(ask_double(openai_compatible, Reply(raw=raw)).error) is expected


def test_a_failure_without_a_body_keeps_none():
    assert stream_error(StreamError("It ended.", code="upstream_cut"), account_name="a").body == ""


def test_line_without_end_is_given_up(openai_compatible, monkeypatch):
    monkeypatch.setattr(
        "qwenproxy.wire.sse.SSEDecoder.__init__.__kwdefaults__", {"max_line_bytes": 10_000}
    )
    reply = Reply(raw=b"data: " + b"x" * 5_000, endless=True)
    outcome = ask_double(openai_compatible, reply)
    assert type(outcome.error) is UpstreamProtocolError
    assert openai_compatible.double.left.get(timeout=5) == CHAT


def test_endless_json_is_given_up(openai_compatible, monkeypatch):
    monkeypatch.setattr(http, "MAX_JSON_BODY_BYTES", 10_000)
    reply = Reply(raw=b"[" * 1_000, endless=True)
    outcome = ask_double(openai_compatible, reply)
    assert type(outcome.error) is UpstreamProtocolError


def test_closing_an_endless_answer_closes_the_connection(openai_compatible):
    openai_compatible.double.enqueue(Reply(text="again", endless=True))

    async def main():
        async with http.open_client() as client:
            stream = OpenAICompatible(client, make_account(openai_compatible.url)).stream(CALL)
            texts = 0
            async for batch in stream:
                texts += sum(isinstance(event, TextDelta) for event in batch)
                if texts > 100:
                    break
            await stream.aclose()
            await asyncio.to_thread(openai_compatible.double.left.get, timeout=5)

    asyncio.run(main())


def test_cancelling_the_reader_closes_the_connection(openai_compatible):
    reply = Reply(text="one two three four", pause_after=3)
    openai_compatible.double.enqueue(reply)

    async def main():
        async with http.open_client() as client:
            upstream = OpenAICompatible(client, make_account(openai_compatible.url))

            async def read():
                async for _ in upstream.stream(CALL):
                    pass

            task = asyncio.create_task(read())
            await asyncio.to_thread(reply.paused.wait, 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(openai_compatible.double.left.get, timeout=5)

    asyncio.run(main())


def test_events_of_one_read_come_together(openai_compatible):
    raw = (FIXTURES / "vllm_reasoning_new.sse").read_bytes()
    outcome = ask_double(openai_compatible, Reply(raw=raw, piece_bytes=len(raw)))
    assert len(outcome.batches) <= 3
    assert any(isinstance(event, ReasoningDelta) for event in outcome.events)


def test_connection_serves_again_after_an_answer(openai_compatible):
    served = []
    original = openai_compatible.double.answer

    async def answer(request, exchange):
        served.append(exchange.scope["client"])
        await original(request, exchange)

    openai_compatible.double.answer = answer
    openai_compatible.double.enqueue("one", "two", "three")
    outcome = ask(OpenAICompatible, make_account(openai_compatible.url), CALL, CALL, CALL)
    assert outcome.answer.text == "three"
    assert len(served) == 3
    assert len(set(served)) == 1


def test_key_and_extra_headers_are_sent(openai_compatible):
    openai_compatible.double.api_key = "secret"
    credentials = Credentials(api_key=" secret\n", headers={"X-Team": "a"})
    outcome = ask(
        OpenAICompatible, make_account(openai_compatible.url, credentials=credentials), CALL
    )
    assert outcome.error is None
    headers = openai_compatible.double.requests[0].headers
    assert headers["x-team"] == "a"
    assert headers["user-agent"].startswith("qwenproxy/")
    assert headers["content-type"] == "application/json"


def test_wrong_key(openai_compatible):
    openai_compatible.double.api_key = "secret"
    assert type(ask_double(openai_compatible).error) is UpstreamAuthExpired


@pytest.mark.parametrize(
    ("base_url", "resolved"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/v1/chat/completions", "http://127.0.0.1:8000/v1"),
        ("https://host/api/openai", "https://host/api/openai"),
    ],
)
def test_base_url_is_completed(base_url, resolved):
    assert OpenAICompatible.resolve_base_url(base_url) == resolved


def test_models_are_listed(openai_compatible):
    models = list_models(make_account(openai_compatible.url))
    assert models == [
        ModelInfo(model_id, 1732711466, "double", 32768, {"max_model_len": 32768})
        for model_id in openai_compatible.double.models
    ]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param({"models": [{"id": "a"}]}, [ModelInfo("a")], id="models"),
        pytest.param([{"id": "a"}, 3, {"object": "model"}], [ModelInfo("a")], id="bare list"),
        pytest.param(["a", "b"], [ModelInfo("a"), ModelInfo("b")], id="texts"),
        pytest.param(
            {"models": [{"name": "a", "size": 1}, {"model": "b"}, {"id": "", "name": "c"}]},
            [
                ModelInfo("a", details={"size": 1}),
                ModelInfo("b"),
                ModelInfo("c", details={"id": ""}),
            ],
            id="other names of the id",
        ),
        pytest.param(
            {"data": [], "models": [{"name": "a"}]}, [ModelInfo("a")], id="two lists, one filled"
        ),
        pytest.param(
            {"data": [{"id": "a", "owned_by": None, "meta": {"n_ctx_train": 4096}}]},
            [ModelInfo("a", context_length=4096, details={"meta": {"n_ctx_train": 4096}})],
            id="llama.cpp",
        ),
        pytest.param({"data": None}, [], id="empty"),
        pytest.param({"data": []}, [], id="nothing"),
    ],
)
def test_odd_model_lists_are_read(openai_compatible, body, expected):
    openai_compatible.double.enqueue(Reply(body=body), path=MODELS)
    assert list_models(make_account(openai_compatible.url)) == expected


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({}, id="no list"),
        pytest.param({"items": [{"id": "a"}]}, id="a list elsewhere"),
        pytest.param({"data": {"id": "a"}}, id="an object"),
        pytest.param({"data": [3, {"title": "a"}, {"id": " "}]}, id="no usable entry"),
    ],
)
def test_a_list_in_an_unknown_form_is_not_an_empty_one(openai_compatible, body):
    openai_compatible.double.enqueue(Reply(body=body), path=MODELS)
    with pytest.raises(UpstreamProtocolError, match="something else"):
        list_models(make_account(openai_compatible.url))


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        pytest.param(Reply(body={"detail": "Not Found"}, status=404), NotFound, id="no list"),
        pytest.param(Reply(body="", status=401), UpstreamAuthExpired, id="401"),
        pytest.param(Reply(body="<html>", status=200), UpstreamProtocolError, id="page"),
        pytest.param(Reply(silent=True), UpstreamTimeout, id="silence"),
        pytest.param(Reply(refused=True), UpstreamError, id="closed"),
    ],
)
def test_failures_of_the_model_list_are_mapped(openai_compatible, reply, expected):
    # Twice: aiohttp repeats a GET whose connection was closed.
    openai_compatible.double.enqueue(reply, reply, path=MODELS)
    with pytest.raises(expected):
        list_models(make_account(openai_compatible.url))

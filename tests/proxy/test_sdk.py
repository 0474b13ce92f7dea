"""The official OpenAI SDK against both kinds of upstream."""

from __future__ import annotations

import asyncio

import openai
import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, OpenAI

from qwenproxy.access.keys import create_api_key
from requests_app.models import Request, Response
from tests.conftest import NO_TLS
from tests.doubles.server import Reply
from tests.proxy.conftest import HELLO, ended_response

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}},
                "required": ["a"],
                "additionalProperties": False,
            },
            "strict": True,
        },
    }
]


def test_headers_of_the_raw_response_name_the_record(open_gateway, upstream):
    gateway = open_gateway()
    raw = gateway.sdk.chat.completions.with_raw_response.create(
        model=upstream.model, messages=HELLO
    )
    row = Response.objects.get()
    assert raw.headers["x-request-id"] == row.request.request_id == raw.request_id
    assert raw.headers["x-session-id"] == row.session_id
    assert raw.parse().id == row.response_id
    assert raw.parse()._request_id == row.request.request_id


def test_headers_of_a_stream_name_the_record_before_its_end(open_gateway, upstream):
    held = Reply(text="one two three", pause_after=3)
    upstream.enqueue(held)
    gateway = open_gateway()
    with gateway.sdk.chat.completions.with_streaming_response.create(
        model=upstream.model, messages=HELLO, stream=True
    ) as raw:
        row = Response.objects.get()
        assert row.status == "in_progress"
        assert raw.headers["x-request-id"] == row.request.request_id
        assert raw.headers["x-session-id"] == row.session_id
        held.resume.set()
        assert "[DONE]" in list(raw.iter_lines())[-2]


def test_the_stream_helper_accumulates(open_gateway, upstream):
    upstream.enqueue(Reply(text="one two three", reasoning="hm hm"))
    with open_gateway().sdk.chat.completions.stream(
        model=upstream.model, messages=HELLO, stream_options={"include_usage": True}
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == "one two three"
    assert final.choices[0].finish_reason == "stop"
    assert final.usage.total_tokens == Response.objects.get().total_tokens


def test_the_stream_helper_reads_tool_calls(open_gateway, upstream):
    if upstream.kind == "qwen_web":
        reply = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    else:
        call = {"id": "c1", "type": "function"}
        call["function"] = {"name": "add", "arguments": '{"a": 1}'}
        reply = Reply(text="", tool_calls=[call])
    upstream.enqueue(reply)
    with open_gateway().sdk.chat.completions.stream(
        model=upstream.model, messages=HELLO, tools=TOOLS
    ) as stream:
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert (call.function.name, call.function.parsed_arguments) == ("add", {"a": 1})
    assert final.choices[0].finish_reason == "tool_calls"
    assert ended_response().finish_reason == "tool_calls"


def test_a_client_that_closes_the_stream_early_is_let_go(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible")
    upstream.enqueue(Reply(text="one two three", silent_after=3))
    gateway = open_gateway()
    with gateway.sdk.chat.completions.create(
        model=upstream.model, messages=HELLO, stream=True
    ) as stream:
        next(stream)
    row = ended_response()
    assert (row.status, row.client_left) == ("cancelled", True)


def test_each_kind_of_refusal_has_its_exception(open_gateway, serve_upstream, settings):
    upstream = serve_upstream("openai_compatible")
    gateway = open_gateway()
    settings.MAX_BODY_BYTES = 5000
    long = [{"role": "user", "content": "x" * 6000}]
    _, records_key = create_api_key(name="records-only", scopes=("records",))
    model = upstream.model
    cases = [
        (openai.AuthenticationError, 401, "qp-wrong", model, HELLO),
        (openai.PermissionDeniedError, 403, records_key, model, HELLO),
        (openai.NotFoundError, 404, gateway.api_key, "qwen9-imaginary", HELLO),
        (openai.BadRequestError, 400, gateway.api_key, model, []),
        (openai.APIStatusError, 413, gateway.api_key, model, long),
    ]
    for exception, status, key, asked, messages in cases:
        client = gateway.sdk.with_options(api_key=key)
        for stream in (False, True):
            with pytest.raises(exception) as caught:
                client.chat.completions.create(model=asked, messages=messages, stream=stream)
            assert caught.value.status_code == status
            assert caught.value.type
    assert Request.objects.count() == len(upstream.turns) == 0


def test_the_sdk_s_own_retries_ask_again_and_each_is_on_record(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible")
    slow_down = Reply(
        body={"error": {"message": "slow"}}, status=429, headers={"retry-after": "0.01"}
    )
    upstream.enqueue(slow_down)
    gateway = open_gateway(UPSTREAM_RETRIES=0)
    client: OpenAI = gateway.sdk.with_options(max_retries=1)
    answer = client.chat.completions.create(model=upstream.model, messages=HELLO)
    assert answer.choices[0].message.content == "You said: Hello"
    rows = Response.objects.order_by("id")
    assert [(row.status, row.http_status) for row in rows] == [("failed", 429), ("completed", 200)]


def test_the_asynchronous_client(open_gateway, upstream):
    gateway = open_gateway()

    async def main():
        async with AsyncOpenAI(
            base_url=f"{gateway.url}/v1",
            api_key=gateway.api_key,
            max_retries=0,
            http_client=DefaultAsyncHttpxClient(verify=NO_TLS),
        ) as client:
            create = client.chat.completions.create
            whole = await create(model=upstream.model, messages=HELLO)
            assert whole.choices[0].message.content == "You said: Hello"
            chunks = [
                chunk
                async for chunk in await create(model=upstream.model, messages=HELLO, stream=True)
            ]
            assert "".join(c.choices[0].delta.content or "" for c in chunks) == "You said: Hello"
            listed = [model.id async for model in await client.models.list()]
            assert upstream.model in listed
            with pytest.raises(openai.BadRequestError) as caught:
                await create(model=upstream.model, messages=[])
            assert caught.value.param == "messages"
            upstream.enqueue(Reply(text="one two three", cut_after=3))
            with pytest.raises(openai.APIError, match="broke off|middle|end"):
                async for _ in await create(model=upstream.model, messages=HELLO, stream=True):
                    pass
            many = [create(model=upstream.model, messages=HELLO) for _ in range(20)]
            answers = await asyncio.gather(*many)
            assert {a.choices[0].message.content for a in answers} == {"You said: Hello"}

    asyncio.run(main())
    assert Response.objects.filter(status="completed").count() == 22
    assert Response.objects.filter(status="failed").count() == 1

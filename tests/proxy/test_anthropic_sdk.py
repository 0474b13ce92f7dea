"""The official Anthropic SDK against both kinds of upstream."""

from __future__ import annotations

import json
from collections.abc import Iterator

import anthropic
import pytest
from anthropic import Anthropic, DefaultHttpxClient

from requests_app.models import Request, Response
from sessions_app.models import Session
from tests.conftest import NO_TLS
from tests.doubles.server import Reply
from tests.proxy.conftest import HELLO

TOOL = {
    "name": "read_file",
    "description": "Reads a file.",
    "input_schema": {
        "type": "object",
        "properties": {"path": {"type": "string"}},
        "required": ["path"],
    },
}
FILE = "The word is heron-0123456789ab."


@pytest.fixture
def client(open_gateway, upstream) -> Iterator[Anthropic]:
    gateway = open_gateway()
    with Anthropic(
        base_url=gateway.url,
        api_key=gateway.api_key,
        max_retries=0,
        http_client=DefaultHttpxClient(verify=NO_TLS, timeout=30),
    ) as client:
        yield client


def call_reply(kind: str, number: int) -> Reply:
    arguments = {"path": f"/file-{number}"}
    if kind == "qwen_web":
        call = json.dumps({"name": "read_file", "arguments": arguments})
        return Reply(text=f"Let me look.\n<tool_call>\n{call}\n</tool_call>")
    call = {"name": "read_file", "arguments": json.dumps(arguments)}
    return Reply(
        text="Let me look.",
        tool_calls=[{"id": f"call_{number}", "type": "function", "function": call}],
    )


def test_a_message(client, upstream):
    raw = client.messages.with_raw_response.create(
        model=upstream.model, max_tokens=100, messages=HELLO
    )
    message = raw.parse()
    row = Response.objects.get()
    assert message.content[0].text == "You said: Hello"
    assert message.stop_reason == "end_turn"
    assert message.id == row.response_id
    assert message._request_id == row.request.request_id
    assert message.usage.output_tokens == row.completion_tokens


def test_the_stream_helper_accumulates(client, upstream):
    upstream.enqueue(Reply(text="one two three", reasoning="hm hm"))
    with client.messages.stream(
        model=upstream.model,
        max_tokens=2000,
        messages=HELLO,
        thinking={"type": "enabled", "budget_tokens": 1024},
    ) as stream:
        texts = [event.text for event in stream if event.type == "text"]
        final = stream.get_final_message()
    thinking, text = final.content
    assert "".join(texts) == text.text == "one two three"
    assert thinking.thinking == "hm hm"
    assert thinking.signature
    row = Response.objects.get()
    assert (final.usage.input_tokens, final.usage.output_tokens) == (
        row.prompt_tokens,
        row.completion_tokens,
    )


@pytest.mark.parametrize("beta", [False, True])
def test_a_tool_loop_reads_files_in_one_conversation(client, upstream, beta):
    messages = client.beta.messages if beta else client.messages
    history = [{"role": "user", "content": "Read the files."}]
    turns = 6
    for number in range(turns):
        upstream.enqueue(call_reply(upstream.kind, number))
        with messages.stream(
            model=upstream.model, max_tokens=100, messages=history, tools=[TOOL]
        ) as stream:
            final = stream.get_final_message()
        assert final.stop_reason == "tool_use"
        (call,) = [block for block in final.content if block.type == "tool_use"]
        assert (call.name, call.input) == ("read_file", {"path": f"/file-{number}"})
        history.append({"role": "assistant", "content": final.content})
        result = {"type": "tool_result", "tool_use_id": call.id, "content": FILE}
        history.append({"role": "user", "content": [result]})
    upstream.enqueue("Done.")
    last = messages.create(model=upstream.model, max_tokens=100, messages=history, tools=[TOOL])
    assert last.content[0].text == "Done."
    assert Session.objects.count() == 1
    matches = list(Request.objects.order_by("id").values_list("match", flat=True))
    assert matches == ["new"] + ["continued"] * turns
    if upstream.kind == "qwen_web":
        assert len(upstream.double.chats) == 1
        sent = upstream.turns[-1].body["messages"][0]["content"]
        assert FILE in sent
        assert "Read the files." not in sent


def test_errors_are_those_of_the_sdk(client, upstream):
    with pytest.raises(anthropic.BadRequestError, match=r"messages\.0\.role"):
        client.messages.create(
            model=upstream.model, max_tokens=9, messages=[{"role": "tool", "content": ""}]
        )
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="wrong").messages.create(
            model=upstream.model, max_tokens=9, messages=HELLO
        )


def test_an_error_within_a_stream_is_raised(client, upstream):
    upstream.enqueue(Reply(text="one two three four", cut_after=3))
    # The web upstream's error is told as well.
    with (
        pytest.raises(anthropic.APIStatusError),
        client.messages.stream(model=upstream.model, max_tokens=9, messages=HELLO) as stream,
    ):
        stream.get_final_message()


def test_tokens_are_counted(client, upstream):
    counted = client.messages.count_tokens(
        model=upstream.model, messages=HELLO, system="Be brief.", tools=[TOOL]
    )
    assert counted.input_tokens > 10


def test_a_bearer_token_is_a_key_as_well(client, upstream):
    bearer = client.with_options(api_key=None, auth_token=client.api_key)
    assert bearer.messages.create(model=upstream.model, max_tokens=9, messages=HELLO).content

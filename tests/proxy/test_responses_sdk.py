"""The official OpenAI SDK's `client.responses` against both kinds of upstream."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from requests_app.models import Request
from sessions_app.models import Session
from tests.doubles.server import Reply

TOOL: Any = {
    "type": "function",
    "name": "read_file",
    "description": "Reads a file.",
    "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
    "strict": False,
}
FILE = "The word is heron-0123456789ab."


def call_reply(kind: str, number: int) -> Reply:
    arguments = {"path": f"/file-{number}"}
    if kind == "qwen_web":
        call = json.dumps({"name": "read_file", "arguments": arguments})
        return Reply(text=f"Let me look.\n<tool_call>\n{call}\n</tool_call>")
    call = {"name": "read_file", "arguments": json.dumps(arguments)}
    return Reply(
        text="Let me look.",
        reasoning="hm hm",
        tool_calls=[{"id": f"call_{number}", "type": "function", "function": call}],
    )


@pytest.fixture
def client(open_gateway, upstream) -> openai.OpenAI:
    return open_gateway().sdk


def test_a_response_is_created_read_and_deleted(client, upstream):
    response = client.responses.create(model=upstream.model, input="Hello")
    assert response.output_text == "You said: Hello"
    assert client.responses.retrieve(response.id).output_text == response.output_text
    items = client.responses.input_items.list(response.id)
    assert [item.content[0].text for item in items] == ["Hello"]
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


def test_the_stream_helper_accumulates(client, upstream):
    upstream.enqueue(Reply(text="one two three", reasoning="hm hm"))
    with client.responses.stream(model=upstream.model, input="Hello") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == "one two three"
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert final.output[0].content[0].text == "hm hm"


@pytest.mark.parametrize("by_reference", [False, True])
def test_an_agent_reads_files_turn_by_turn(client, upstream, by_reference):
    upstream.enqueue(*(call_reply(upstream.kind, n) for n in range(3)), Reply(text="All read."))
    history: list[Any] = [{"role": "user", "content": "Read them."}]
    given, previous = history, openai.omit
    for _ in range(4):
        with client.responses.stream(
            model=upstream.model, input=given, tools=[TOOL], previous_response_id=previous
        ) as stream:
            response = stream.until_done().get_final_response()
        calls = [item for item in response.output if item.type == "function_call"]
        results = [
            {"type": "function_call_output", "call_id": call.call_id, "output": FILE}
            for call in calls
        ]
        history = [*history, *response.output, *results]
        given, previous = (results, response.id) if by_reference else (history, openai.omit)
    assert response.output_text == "All read."
    assert Session.objects.count() == 1
    matches = list(Request.objects.order_by("id").values_list("match", flat=True))
    assert matches == ["new"] + ["continued"] * 3
    if upstream.kind == "qwen_web":
        assert len(upstream.double.chats) == 1
    assert FILE in json.dumps(upstream.turns[-1].body)


def test_a_streamed_background_goes_on_without_its_client(client, upstream):
    upstream.enqueue(Reply(text="one two three four", delay_s=0.05))
    stream = client.responses.create(
        model=upstream.model, input="Hello", background=True, stream=True
    )
    response_id = next(iter(stream)).response.id
    stream.close()
    for _ in range(1000):
        response = client.responses.retrieve(response_id)
        if response.status != "in_progress":
            break
    assert (response.status, response.output_text) == ("completed", "one two three four")


def test_unknown_responses_raise_what_openai_raises(client, upstream):
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(
            model=upstream.model, input="Hello", previous_response_id="resp_nothing"
        )
    assert raised.value.code == "previous_response_not_found"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_nothing")

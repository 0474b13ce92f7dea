"""Every form of answer, held to what OpenAI and Anthropic publish; members of ours are listed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from requests_app.models import Response
from tests.conftest import sse_bodies
from tests.doubles.server import Reply
from tests.proxy.conftest import ended_response
from tests.published import OURS, anthropic_problem, event_problem, problem, published_members

LOGPROBS = b"".join(
    b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
    for choice in (
        {
            "index": 0,
            "delta": {"content": "one"},
            "logprobs": {
                "content": [{"token": "one", "logprob": -0.5, "bytes": [111], "top_logprobs": []}],
                "refusal": None,
            },
        },
        {"index": 0, "delta": {}, "finish_reason": "stop"},
    )
)
SCHEMA = {
    "type": "object",
    "properties": {"word": {"type": "string"}},
    "required": ["word"],
    "additionalProperties": False,
}
PARAMETERS = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
NAMED = {"name": "read_file", "description": "Reads a file."}
JSON_SCHEMA = {"name": "word", "schema": SCHEMA, "strict": True}


def calls(kind: str, text: str = "Let me look.") -> Reply:
    """Two calls beside each other, in the upstream's own form."""
    given = [{"path": "/a"}, {"path": "/b"}]
    if kind == "qwen_web":
        blocks = [json.dumps({"name": "read_file", "arguments": one}) for one in given]
        return Reply(
            text=text + "".join(f"\n<tool_call>\n{block}\n</tool_call>" for block in blocks)
        )
    function = [{"name": "read_file", "arguments": json.dumps(one)} for one in given]
    return Reply(
        text=text,
        tool_calls=[
            {"id": f"call_{number}", "type": "function", "function": one}
            for number, one in enumerate(function)
        ],
    )


@dataclass(frozen=True)
class Form:
    """A form of answer: what the upstream says, and what of it each API asks for."""

    reply: Callable[[str], Reply]
    chat: dict[str, Any] | None = None
    responses: dict[str, Any] | None = None
    messages: dict[str, Any] | None = None
    # Empty: both kinds of upstream.
    kind: str = ""
    # It fails: streamed within the stream, whole with a status.
    fails: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    completions: dict[str, Any] | None = None


FORMS = {
    "text": Form(lambda kind: Reply(text="one two three"), {}, {}, {}, completions={}),
    "usage": Form(
        lambda kind: Reply(text="one"),
        {"stream_options": {"include_usage": True}},
        completions={"stream_options": {"include_usage": True}},
    ),
    "logprobs": Form(
        lambda kind: Reply(raw=LOGPROBS), {"logprobs": True}, kind="openai_compatible"
    ),
    "details of usage": Form(
        lambda kind: Reply(
            text="one",
            usage={
                "prompt_tokens": 9,
                "completion_tokens": 5,
                "total_tokens": 14,
                "prompt_tokens_details": {"cached_tokens": 4},
                "completion_tokens_details": {"reasoning_tokens": 2},
            },
        ),
        {"stream_options": {"include_usage": True}},
        {},
        {},
        kind="openai_compatible",
    ),
    "reasoning": Form(
        lambda kind: Reply(text="one", reasoning="hm hm"),
        {},
        {},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    ),
    "both names of reasoning": Form(
        lambda kind: Reply(text="one", reasoning="hm hm"),
        {},
        settings={"QWENPROXY_REASONING_FIELDS": ("reasoning_content", "reasoning")},
    ),
    "summary": Form(
        lambda kind: Reply(text="one", reasoning="hm hm"),
        responses={
            "reasoning": {"effort": "high", "summary": "auto"},
            "metadata": {"a": "b"},
            "user": "ann",
        },
    ),
    "tools": Form(
        calls,
        {"tools": [{"type": "function", "function": {**NAMED, "parameters": PARAMETERS}}]},
        {
            "tools": [{"type": "function", **NAMED, "parameters": PARAMETERS, "strict": True}],
            "tool_choice": {"type": "function", "name": "read_file"},
            "parallel_tool_calls": True,
        },
        {"tools": [{**NAMED, "input_schema": PARAMETERS}]},
    ),
    "tools alone": Form(
        lambda kind: calls(kind, ""),
        {"tools": [{"type": "function", "function": {**NAMED, "parameters": PARAMETERS}}]},
        {"tools": [{"type": "function", "name": "read_file", "parameters": PARAMETERS}]},
        {"tools": [{**NAMED, "input_schema": PARAMETERS}], "tool_choice": {"type": "any"}},
    ),
    "custom tool": Form(
        lambda kind: (
            Reply(text='<tool_call>\n{"name": "run", "arguments": {"input": "ls"}}\n</tool_call>')
            if kind == "qwen_web"
            else Reply(
                text="",
                tool_calls=[
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "run", "arguments": '{"input": "ls"}'},
                    }
                ],
            )
        ),
        responses={"tools": [{"type": "custom", "name": "run", "description": "Runs."}]},
    ),
    "json_schema": Form(
        lambda kind: Reply(text='{"word": "heron"}'),
        {"response_format": {"type": "json_schema", "json_schema": JSON_SCHEMA}},
        {"text": {"format": {"type": "json_schema", **JSON_SCHEMA}}},
    ),
    "length": Form(
        lambda kind: Reply(text="one", finish_reason="length"),
        {"max_tokens": 5},
        {"max_output_tokens": 5, "temperature": 0.5, "top_p": 0.5},
        {},
        kind="openai_compatible",
    ),
    "refusal": Form(
        lambda kind: Reply(text="one", finish_reason="content_filter"),
        {},
        {},
        {},
        kind="openai_compatible",
    ),
    "error": Form(
        lambda kind: Reply(text="one two three", cut_after=4),
        {},
        {},
        {},
        fails=True,
    ),
    "error in a call": Form(
        lambda kind: Reply(
            raw=b"".join(
                b"data: "
                + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode()
                + b"\n\n"
                for delta in (
                    {"content": "Let me look."},
                    {
                        "tool_calls": [
                            {
                                "index": 0,
                                "id": "call_1",
                                "function": {"name": "read_file", "arguments": '{"pa'},
                            }
                        ]
                    },
                )
            )
            + b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'
        ),
        {"tools": [{"type": "function", "function": {**NAMED, "parameters": PARAMETERS}}]},
        {"tools": [{"type": "function", "name": "read_file", "parameters": PARAMETERS}]},
        {"tools": [{**NAMED, "input_schema": PARAMETERS}]},
        kind="openai_compatible",
        fails=True,
    ),
}
PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
WHOLE = {
    "chat": "CreateChatCompletionResponse",
    "completions": "CreateCompletionResponse",
    "responses": "Response",
}


def cases() -> list[Any]:
    return [
        pytest.param(kind, api, form, id=f"{api}-{name}-{kind}")
        for name, form in FORMS.items()
        for api in PATHS
        for kind in ("openai_compatible", "qwen_web")
        if getattr(form, api) is not None and form.kind in ("", kind)
    ]


def body_of(api: str, model: str, form: Form) -> dict[str, Any]:
    fields = {"model": model, **(getattr(form, api) or {})}
    if api in ("responses", "completions"):
        return {"input" if api == "responses" else "prompt": "Hello", **fields}
    messages = [{"role": "user", "content": "Hello"}]
    return {"messages": messages, **({"max_tokens": 2000} if api == "messages" else {}), **fields}


def why_not(api: str, body: Any, name: str) -> str:
    """Why a body or event of one of the APIs is not what is published; empty: it is."""
    if api == "messages":
        return anthropic_problem("error" if body["type"] == "error" else name, body)
    if isinstance(body.get("error"), dict) and body.get("object") != "response":
        return problem("ErrorResponse", body)
    if api == "responses" and name == "event":
        return event_problem(body)
    if api == "chat" and name == "event":
        return problem("CreateChatCompletionStreamResponse", body)
    # OpenAI has one component for whole completions and for their chunks.
    return problem(WHOLE[api], body)


def problems(api: str, name: str, *bodies: Any) -> list[str]:
    found = [(why_not(api, body, name), body) for body in bodies]
    return [f"{json.dumps(body)[:2000]}: {why}" for why, body in found if why]


def recorded_problems(gateway: Any) -> list[str]:
    """The same of each response that GET gives, and of its input."""
    found = []
    for row in Response.objects.order_by("id"):
        path = f"/v1/responses/{row.response_id}"
        found += problems("responses", "whole", gateway.http.get(path).json())
        found.append(problem("ResponseItemList", gateway.http.get(f"{path}/input_items").json()))
    return [why for why in found if why]


@pytest.mark.parametrize(("kind", "api", "form"), cases())
def test_each_form_of_answer_is_what_is_published(open_gateway, serve_upstream, kind, api, form):
    upstream = serve_upstream(kind)
    gateway = open_gateway(**form.settings)
    body = body_of(api, upstream.model, form)
    asked = PATHS[api] if api == "completions" and kind == "openai_compatible" else None
    upstream.enqueue(form.reply(kind), path=asked)
    streamed = gateway.http.post(PATHS[api], json={**body, "stream": True})
    assert streamed.status_code == 200, streamed.text
    events = sse_bodies(streamed.text)
    assert len(events) > 1
    upstream.enqueue(form.reply(kind), path=asked)
    whole = gateway.http.post(PATHS[api], json=body)
    assert (whole.status_code == 200) is not form.fails
    found = problems(api, "event", *events) + problems(api, "message", whole.json())
    if api == "responses":
        found += recorded_problems(gateway)
    assert not found, "\n".join(found)


def test_responses_without_an_end_are_what_is_published(open_gateway, upstream):
    gateway = open_gateway()
    body = {"model": upstream.model, "input": "Hello"}
    upstream.enqueue(Reply(text="one two three", delay_s=0.5))
    begun = gateway.http.post("/v1/responses", json={**body, "background": True}).json()
    path = f"/v1/responses/{begun['id']}"
    running = gateway.http.get(path).json()
    cancelled = gateway.http.post(f"{path}/cancel").json()
    assert (running["status"], cancelled["status"]) == ("in_progress", "cancelled")
    found = problems("responses", "whole", begun, running, cancelled)
    assert gateway.http.post("/v1/responses", json=body).status_code == 200
    for fields in (
        {"status": "interrupted", "error_code": "interrupted", "error_message": "it ended"},
        {"status": "failed", "error_code": "context_length_exceeded", "error_message": "long"},
    ):
        Response.objects.exclude(response_id=begun["id"]).update(finish_reason="error", **fields)
        found += recorded_problems(gateway)
    assert not found, "\n".join(found)


def test_an_answer_whose_client_left_is_what_is_published(open_gateway, upstream):
    gateway = open_gateway()
    reply = Reply(text="one two three", pause_after=3)
    upstream.enqueue(reply)
    body = {"model": upstream.model, "input": "Hello", "stream": True}
    with gateway.http.stream("POST", "/v1/responses", json=body) as stream:
        assert next(stream.iter_bytes())
        assert reply.paused.wait(10)
    # What the web upstream had said by then goes on record with it.
    reply.resume.set()
    ended_response()
    found = recorded_problems(gateway)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("wanted", ["float", "base64"])
def test_embeddings_are_what_is_published(open_gateway, serve_upstream, wanted):
    upstream = serve_upstream("openai_compatible")
    body = {"model": upstream.model, "input": ["tea", "milk"], "encoding_format": wanted}
    answer = open_gateway().http.post("/v1/embeddings", json=body).json()
    if wanted == "base64":
        # The document has numbers alone; what the member `encoding_format` asks for is text.
        for item in answer["data"]:
            assert isinstance(item["embedding"], str)
            item["embedding"] = [0.5]
    assert problem("CreateEmbeddingResponse", answer) == ""


def test_models_are_what_is_published(open_gateway, upstream):
    gateway = open_gateway()
    listed = gateway.http.get("/v1/models").json()
    assert listed["data"]
    listed["data"] = [_without_own_details(model) for model in listed["data"]]
    assert problem("ListModelsResponse", listed) == ""
    one = gateway.http.get(f"/v1/models/{upstream.model}").json()
    assert problem("Model", _without_own_details(one)) == ""


def _without_own_details(model: dict[str, Any]) -> dict[str, Any]:
    """What else its upstream tells of a model is passed on, under whatever name."""
    known = published_members("Model") | set(OURS["Model"])
    return {name: value for name, value in model.items() if name in known}


@pytest.mark.parametrize("api", PATHS)
def test_errors_are_what_is_published(open_gateway, upstream, api):
    gateway = open_gateway()
    wrong = {"model": 1}, {"model": "no such model"}, {"stream": "yes"}
    right = body_of(api, upstream.model, FORMS["text"])
    answers = [gateway.http.post(PATHS[api], json={**right, **fields}) for fields in wrong]
    answers.append(gateway.http.post(PATHS[api], json=right, headers={"Authorization": "x"}))
    answers.append(gateway.http.post(PATHS[api], content=b"{"))
    assert [answer.status_code for answer in answers] == [400, 404, 400, 401, 400]
    found = problems(api, "whole", *(answer.json() for answer in answers))
    assert not found, "\n".join(found)


def test_counted_tokens_are_what_is_published(open_gateway, upstream):
    body = {"model": upstream.model, "messages": [{"role": "user", "content": "Hello"}]}
    answer = open_gateway().http.post("/v1/messages/count_tokens", json=body)
    assert anthropic_problem("count", answer.json()) == ""


@pytest.mark.parametrize("place", OURS)
def test_members_that_stand_as_ours_are_not_published_by_now(place):
    """A newer document may have them: then they need no reason any more."""
    assert not set(OURS[place]) & published_members(place)


def test_a_closed_schema_refuses_what_it_does_not_name():
    model = {"id": "a", "object": "model", "created": 1, "owned_by": "b"}
    assert problem("Model", model) == ""
    assert "surprise" in problem("Model", {**model, "surprise": 1})
    assert "created" in problem("Model", {**model, "created": "1"})
    assert "owned_by" in problem("Model", {**model, "owned_by": None})
    stop = {"type": "message_stop"}
    assert anthropic_problem("event", stop) == ""
    assert "surprise" in anthropic_problem("event", {**stop, "surprise": 1})
    assert event_problem({"type": "response.surprise"})

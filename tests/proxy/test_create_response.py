"""`POST /v1/responses` against both kinds of upstream, by plain HTTP; what comes is held to the SDK's types."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types.responses import Response as OpenAIResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from qwenproxy.access import auth
from qwenproxy.access.models import ApiKey
from qwenproxy.wire.redaction import compile_rules
from requests_app.models import Request, Response
from sessions_app.models import Session, UpstreamChat
from tests.conftest import sse_bodies
from tests.doubles.server import Reply
from tests.proxy.conftest import ended_response, wait_until

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
PARAMETERS = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
TOOL = {
    "type": "function",
    "name": "read_file",
    "description": "Reads a file of the work tree, and gives its text back.",
    "parameters": PARAMETERS,
    "strict": False,
}
LONG = "A text that is long enough to be stored with the messages alone, and named by reference."


def ask(gateway, model: str, given: Any = "Hello", **fields: Any) -> Any:
    body = {"model": model, "input": given, **fields}
    return gateway.http.post("/v1/responses", json=body)


def answered(gateway, model: str, given: Any = "Hello", **fields: Any) -> Any:
    """A whole answer, which has to be what OpenAI's SDK knows."""
    answer = ask(gateway, model, given, **fields)
    assert answer.status_code == 200, answer.text
    OpenAIResponse.model_validate(answer.json())
    return answer.json()


def stream(gateway, model: str, given: Any = "Hello", **fields: Any) -> list[Any]:
    """A stream's events, each of which has to be one that the SDK knows, under its name, in its order."""
    answer = ask(gateway, model, given, stream=True, **fields)
    assert answer.status_code == 200, answer.text
    events = sse_bodies(answer.text)
    names = [line[7:] for line in answer.text.splitlines() if line.startswith("event: ")]
    assert names == [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        EVENT.validate_python(event)
    return events


def text_of(body: Any) -> str:
    return "".join(
        part["text"]
        for item in body["output"]
        if item["type"] == "message"
        for part in item["content"]
    )


def calls(upstream, *named: tuple[str, dict[str, Any]], text: str = "Let me look.") -> Reply:
    """An answer that calls tools, in the upstream's own form."""
    if upstream.kind == "qwen_web":
        blocks = [
            f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
            for name, arguments in named
        ]
        return Reply(text="\n".join([text, *blocks]))
    return Reply(
        text=text,
        tool_calls=[
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for number, (name, arguments) in enumerate(named)
        ],
    )


def recorded_input(gateway, response_id: str) -> Any:
    record = gateway.http.get(f"/v1/responses/{response_id}/record").json()
    request = gateway.http.get(f"/v1/requests/{record['request']['id']}").json()
    return request["openai_request"]


def test_a_whole_answer_is_a_response(open_gateway, upstream):
    gateway = open_gateway()
    answer = ask(gateway, upstream.model, metadata={"a": "b"}, temperature=0.5)
    body = answer.json()
    OpenAIResponse.model_validate(body)
    row = ended_response()
    assert body["id"] == row.response_id
    assert body["id"].startswith("resp_")
    assert (body["object"], body["status"], body["model"]) == (
        "response",
        "completed",
        upstream.model,
    )
    assert [item["type"] for item in body["output"]] == ["message"]
    assert text_of(body) == "You said: Hello"
    assert body["usage"]["input_tokens"] == row.prompt_tokens
    assert body["usage"]["output_tokens"] == row.completion_tokens
    assert (body["metadata"], body["temperature"], body["store"]) == ({"a": "b"}, 0.5, True)
    assert row.request.dialect == "responses"
    assert answer.headers["x-request-id"] == row.request.request_id


def test_a_stream_ends_with_the_whole_answer(open_gateway, upstream):
    for _ in range(2):
        upstream.enqueue(Reply(text="one two three", reasoning="hm hm"))
    gateway = open_gateway()
    events = stream(gateway, upstream.model)
    whole = answered(gateway, upstream.model)
    streamed = events[-1]["response"]
    assert events[-1]["type"] == "response.completed"
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    name, other = streamed["id"].removeprefix("resp_"), whole["id"].removeprefix("resp_")
    same = json.loads(json.dumps(streamed).replace(name, other))
    for body in (same, whole):
        del body["created_at"], body["completed_at"]
    assert same == whole
    reasoning, message = whole["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "hm hm"}]
    assert message["content"][0]["text"] == "one two three"
    deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    assert "".join(deltas) == "one two three"
    assert len(deltas) > 1


def test_a_summary_that_is_asked_for_is_one(open_gateway, upstream):
    upstream.enqueue(Reply(text="one", reasoning="hm hm"))
    events = stream(open_gateway(), upstream.model, reasoning={"summary": "auto"})
    reasoning = events[-1]["response"]["output"][0]
    assert reasoning["summary"] == [{"type": "summary_text", "text": "hm hm"}]
    assert "response.reasoning_summary_text.delta" in {event["type"] for event in events}


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_loop_goes_on_in_one_conversation(open_gateway, upstream, streamed):
    gateway = open_gateway()
    upstream.enqueue(calls(upstream, ("read_file", {"path": "/a"})), Reply(text="It says so."))
    if streamed:
        first = stream(gateway, upstream.model, tools=[TOOL])[-1]["response"]
    else:
        first = answered(gateway, upstream.model, tools=[TOOL])
    message, call = first["output"]
    assert message["content"][0]["text"].strip() == "Let me look."
    assert (call["type"], call["name"], call["status"]) == (
        "function_call",
        "read_file",
        "completed",
    )
    assert json.loads(call["arguments"]) == {"path": "/a"}
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "the file"}
    history = [{"role": "user", "content": "Hello"}, *first["output"], result]
    second = answered(gateway, upstream.model, history, tools=[TOOL])
    assert text_of(second) == "It says so."
    assert Session.objects.count() == 1
    assert list(Request.objects.order_by("id").values_list("match", flat=True)) == [
        "new",
        "continued",
    ]
    assert "the file" in json.dumps(upstream.turns[-1].body)


def test_parallel_calls_are_items_of_their_own(open_gateway, upstream):
    upstream.enqueue(calls(upstream, ("read_file", {"path": "/a"}), ("read_file", {"path": "/b"})))
    events = stream(open_gateway(), upstream.model, tools=[TOOL])
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "function_call"]
    paths = [json.loads(item["arguments"])["path"] for item in output[1:]]
    assert paths == ["/a", "/b"]
    for item in output[1:]:
        deltas = [
            event["delta"]
            for event in events
            if event["type"] == "response.function_call_arguments.delta"
            and event["item_id"] == item["id"]
        ]
        assert "".join(deltas) == item["arguments"]


def test_five_turns_by_previous_response_id_are_one_session_and_one_chat(open_gateway, upstream):
    gateway = open_gateway()
    instructions = "You are brief."
    body = answered(
        gateway, upstream.model, "Please pick a word.", instructions=instructions, stream=False
    )
    word = text_of(body).rstrip(".").split()[-1]
    for text in ("one", "two", "three", "What was your word?"):
        body = answered(
            gateway,
            upstream.model,
            text,
            instructions=instructions,
            previous_response_id=body["id"],
        )
    assert word in text_of(body)
    assert Session.objects.count() == 1
    assert body["previous_response_id"]
    if upstream.kind == "qwen_web":
        assert UpstreamChat.objects.count() == len(upstream.double.chats) == 1
        uses = list(Request.objects.order_by("id").values_list("upstream", flat=True))
        assert uses == ["new"] + ["continued"] * 4


def test_instructions_are_not_carried_over_and_system_items_are(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible")
    gateway = open_gateway()
    given = [
        {"role": "developer", "content": "Speak of herons."},
        {"role": "user", "content": "Hello"},
    ]
    first = answered(gateway, upstream.model, given, instructions="Be brief.")
    second = answered(gateway, upstream.model, "Two", previous_response_id=first["id"])
    answered(
        gateway,
        upstream.model,
        "Three",
        previous_response_id=second["id"],
        instructions="Be loud.",
    )
    sent = [turn.body["messages"] for turn in upstream.turns]
    assert [
        [part["text"] for part in messages[0]["content"]] for messages in (sent[0], sent[2])
    ] == [
        ["Be brief.", "Speak of herons."],
        ["Be loud.", "Speak of herons."],
    ]
    assert "Speak of herons." in json.dumps(sent[1][0])
    assert "Be brief." not in json.dumps(sent[1])
    assert [message["role"] for message in sent[1]] == ["system", "user", "assistant", "user"]


def test_only_a_stored_and_whole_response_of_the_same_key_is_gone_on_from(
    open_gateway, upstream, admin_key
):
    gateway = open_gateway()
    unstored = answered(gateway, upstream.model, store=False)["id"]
    theirs = gateway.http.post(
        "/v1/responses",
        json={"model": upstream.model, "input": "Hello"},
        headers={"Authorization": f"Bearer {admin_key}"},
    ).json()["id"]
    deleted = answered(gateway, upstream.model)["id"]
    assert gateway.http.delete(f"/v1/responses/{deleted}").json() == {
        "id": deleted,
        "object": "response",
        "deleted": True,
    }
    for previous in (unstored, theirs, deleted, "resp_nothing", "", "msg_1", "resp_\0"):
        answer = ask(gateway, upstream.model, previous_response_id=previous)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == (
            "previous_response_not_found",
            "previous_response_id",
        )
    assert gateway.http.post("/v1/responses/resp_%00/cancel").status_code == 404
    for gone in (unstored, deleted):
        for path in ("", "/input_items"):
            assert gateway.http.get(f"/v1/responses/{gone}{path}").status_code == 404
        assert gateway.http.post(f"/v1/responses/{gone}/cancel").status_code == 404
        record = gateway.http.get(f"/v1/responses/{gone}/record").json()
        assert record["response_id"] == gone
        assert record["openai_response"]["id"] == gone


def test_a_failed_response_keeps_its_part_and_is_not_gone_on_from(open_gateway, upstream):
    upstream.enqueue(Reply(text="one two three four five", cut_after=4))
    gateway = open_gateway()
    events = stream(gateway, upstream.model)
    assert events[-1]["type"] == "response.failed"
    told = events[-1]["response"]
    assert (told["status"], told["error"]["code"]) == ("failed", "server_error")
    assert "one" in text_of(told)
    failed = ended_response().response_id
    body = gateway.http.get(f"/v1/responses/{failed}").json()
    OpenAIResponse.model_validate(body)
    assert body["error"] == told["error"]
    assert (body["status"], body["output"]) == ("failed", told["output"])
    error = ask(gateway, upstream.model, previous_response_id=failed).json()["error"]
    assert error["code"] == "previous_response_unusable"
    assert "failed" in error["message"]


def test_an_error_before_the_answer_is_a_status(open_gateway, upstream):
    gateway = open_gateway()
    answer = ask(gateway, "no-such-model", stream=True)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_a_key_without_content_says_why_nothing_goes_on(open_gateway, upstream):
    gateway = open_gateway()
    ApiKey.objects.update(recorded="metadata")
    auth.invalidate()
    body = answered(gateway, upstream.model)
    error = ask(gateway, upstream.model, previous_response_id=body["id"]).json()["error"]
    assert "lets no content be recorded" in error["message"]
    assert error["param"] == "previous_response_id"
    assert gateway.http.get(f"/v1/responses/{body['id']}").status_code == 404
    assert ask(gateway, upstream.model, background=True).status_code == 400


def test_what_redaction_changed_is_not_gone_on_from(open_gateway, upstream):
    gateway = open_gateway(REDACTION=compile_rules(["heron"]))
    body = answered(gateway, upstream.model, "I saw a heron")
    error = ask(gateway, upstream.model, previous_response_id=body["id"]).json()["error"]
    assert "redacted" in error["message"]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_system_text_that_redaction_changed_is_not_gone_on_from(open_gateway, upstream, role):
    gateway = open_gateway(REDACTION=compile_rules(["heron"]))
    given = [{"role": role, "content": "Speak of a heron."}, {"role": "user", "content": "Hello"}]
    body = answered(gateway, upstream.model, given)
    answer = ask(gateway, upstream.model, previous_response_id=body["id"])
    assert answer.status_code == 400
    assert "redacted" in answer.json()["error"]["message"]
    assert len(upstream.turns) == 1


def test_get_gives_the_response_that_was_given(open_gateway, upstream):
    gateway = open_gateway()
    upstream.enqueue(
        Reply(text="one", reasoning="hm"), calls(upstream, ("read_file", {"path": "/a"}))
    )
    for fields in ({"instructions": LONG}, {"tools": [TOOL], "instructions": LONG}):
        given = answered(gateway, upstream.model, **fields)
        got = gateway.http.get(f"/v1/responses/{given['id']}").json()
        for body in (given, got):
            assert body.pop("completed_at")
        assert got == given
        record = gateway.http.get(f"/v1/responses/{given['id']}/record").json()
        assert record["openai_response"]["output"] == given["output"]
        assert isinstance(record["id"], int)
    refused = gateway.http.get(f"/v1/responses/{given['id']}?stream=true")
    assert refused.json()["error"]["param"] == "stream"


def test_the_record_gives_the_body_back_exactly(open_gateway, upstream):
    gateway = open_gateway()
    given = [
        {
            "type": "message",
            "id": "msg_1",
            "role": "developer",
            "content": [{"type": "input_text", "text": LONG}, {"type": "input_text", "text": "b"}],
        },
        {"role": "user", "content": f"{LONG} 1"},
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": f"{LONG} 2"}],
            "encrypted_content": "secret",
        },
        {
            "type": "message",
            "role": "assistant",
            "phase": "commentary",
            "content": [{"type": "output_text", "text": f"{LONG} 3", "annotations": []}],
        },
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "call_1",
            "name": "spawn",
            "namespace": "agents",
            "arguments": json.dumps({"path": f"{LONG} 4"}),
            "status": "completed",
        },
        {
            "type": "custom_tool_call",
            "call_id": "call_2",
            "name": "apply_patch",
            "input": f"{LONG} 5",
        },
        {"type": "function_call_output", "call_id": "call_1", "output": f"{LONG} 6"},
        {
            "type": "custom_tool_call_output",
            "call_id": "call_2",
            "output": [{"type": "input_text", "text": f"{LONG} 7"}],
        },
        {"role": "developer", "content": f"{LONG} 8"},
        {"role": "user", "content": [{"type": "input_text", "text": f"{LONG} 9", "_ref": [1]}]},
    ]
    grammar = {"type": "grammar", "syntax": "lark", "definition": 'start: "x"'}
    tools = [
        TOOL,
        {"type": "custom", "name": "apply_patch", "description": "Edits.", "format": grammar},
        {
            "type": "namespace",
            "name": "agents",
            "description": "Agents.",
            "tools": [{**TOOL, "name": "spawn", "strict": None}],
        },
        {"type": "web_search", "external_web_access": False},
    ]
    sent = {"instructions": f"{LONG} 0", "tools": tools, "metadata": {"k": "v"}}
    body = answered(gateway, upstream.model, given, **sent)
    recorded = recorded_input(gateway, body["id"])
    assert "web_search" in recorded.pop("_unmapped")["tools.3"]
    assert recorded == {"model": upstream.model, "input": given, **sent}
    parameters = Request.objects.get().parameters
    # Reasoning, a system text within the line, and a member that reads like a reference.
    assert [n for n in range(10) if f"{LONG} {n}" in parameters] == [2, 8, 9]
    assert [item["type"] for item in body["tools"]] == ["function", "custom", "namespace"]


def test_a_custom_tool_takes_and_gives_bare_text(open_gateway, upstream):
    gateway = open_gateway()
    tool = {"type": "custom", "name": "apply_patch", "description": "Edits files."}
    upstream.enqueue(calls(upstream, ("apply_patch", {"input": "*** Begin\n"})), Reply(text="ok"))
    events = stream(gateway, upstream.model, tools=[tool])
    call = events[-1]["response"]["output"][-1]
    assert (call["type"], call["name"], call["input"]) == (
        "custom_tool_call",
        "apply_patch",
        "*** Begin\n",
    )
    deltas = [e["delta"] for e in events if e["type"] == "response.custom_tool_call_input.delta"]
    assert deltas == ["*** Begin\n"]
    result = {"type": "custom_tool_call_output", "call_id": call["call_id"], "output": "done"}
    history = [{"role": "user", "content": "Hello"}, *events[-1]["response"]["output"], result]
    answered(gateway, upstream.model, history, tools=[tool])
    assert Session.objects.count() == 1


def test_calls_of_a_namespace_come_back_with_both_names(open_gateway, upstream):
    tool = {"type": "namespace", "name": "files", "description": "Files.", "tools": [TOOL]}
    upstream.enqueue(calls(upstream, ("files__read_file", {"path": "/a"})))
    body = answered(open_gateway(), upstream.model, tools=[tool])
    call = body["output"][-1]
    assert (call["namespace"], call["name"]) == ("files", "read_file")


def test_input_items_are_paged(open_gateway, upstream):
    gateway = open_gateway()
    first = answered(gateway, upstream.model, "one")
    second = answered(gateway, upstream.model, "two", previous_response_id=first["id"])
    path = f"/v1/responses/{second['id']}/input_items"
    page = gateway.http.get(path, params={"order": "asc", "limit": 2}).json()
    assert [item["content"][0]["text"] for item in page["data"]] == ["one", "You said: one"]
    assert (page["has_more"], page["last_id"]) == (True, page["data"][-1]["id"])
    rest = gateway.http.get(path, params={"order": "asc", "after": page["last_id"]}).json()
    assert [item["content"][0]["text"] for item in rest["data"]] == ["two"]
    assert not rest["has_more"]
    newest = gateway.http.get(path, params={"limit": 1}).json()
    assert newest["data"] == rest["data"]
    for wrong in ({"limit": 101}, {"limit": 0}, {"order": "up"}, {"after": "x"}):
        assert gateway.http.get(path, params=wrong).status_code == 400


def test_references_to_items_are_resolved_from_the_record(open_gateway, upstream):
    gateway = open_gateway()
    first = answered(gateway, upstream.model, "one")
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    given = [{"role": "user", "content": "one"}, reference, {"role": "user", "content": "two"}]
    body = answered(gateway, upstream.model, given)
    assert Session.objects.count() == 1
    assert recorded_input(gateway, body["id"])["input"] == given
    reference["id"] = "msg_" + "0" * 32
    answer = ask(gateway, upstream.model, given)
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == "input.1.id"


def test_the_background_is_polled_and_cancelled(open_gateway, upstream):
    gateway = open_gateway()
    body = answered(gateway, upstream.model, background=True)
    assert (body["status"], body["background"], body["output"]) == ("in_progress", True, [])

    def ended() -> Any:
        got = gateway.http.get(f"/v1/responses/{body['id']}").json()
        return got if got["status"] != "in_progress" else None

    got = wait_until(ended)
    assert (got["status"], text_of(got)) == ("completed", "You said: Hello")
    again = gateway.http.post(f"/v1/responses/{body['id']}/cancel").json()
    assert again == got
    upstream.enqueue(Reply(text="one two three", delay_s=0.5))
    running = answered(gateway, upstream.model, background=True)["id"]
    error = ask(gateway, upstream.model, previous_response_id=running).json()["error"]
    assert "in progress" in error["message"]
    cancelled = gateway.http.post(f"/v1/responses/{running}/cancel").json()
    OpenAIResponse.model_validate(cancelled)
    assert cancelled["status"] == "cancelled"
    row = Response.objects.get(response_id=running)
    assert (row.status, row.error_code) == ("cancelled", "cancelled")
    plain = answered(gateway, upstream.model)["id"]
    assert gateway.http.post(f"/v1/responses/{plain}/cancel").status_code == 400


def test_an_answer_that_was_cut_is_incomplete(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible")
    upstream.enqueue(Reply(text="one", finish_reason="length"))
    gateway = open_gateway()
    events = stream(gateway, upstream.model)
    body = events[-1]["response"]
    assert events[-1]["type"] == "response.incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert gateway.http.get(f"/v1/responses/{body['id']}").json() == body


def test_an_answer_that_its_process_left_is_incomplete(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible")
    gateway = open_gateway()
    given = answered(gateway, upstream.model)
    # As `requests_app.settling` leaves it.
    Response.objects.update(
        status="interrupted",
        finish_reason="error",
        error_code="interrupted",
        error_message="the gateway's process ended before the answer did",
    )
    body = gateway.http.get(f"/v1/responses/{given['id']}").json()
    OpenAIResponse.model_validate(body)
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {})
    assert "process ended" in body["error"]["message"]
    assert text_of(body) == text_of(given)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": [1]}, "input.0"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"role": "user", "content": [{"type": "x"}]}]}, "input.0.content.0.type"),
        ({"input": [{"type": "compaction", "encrypted_content": "x"}]}, "input.0.type"),
        ({"input": [{"type": "function_call"}]}, "input.0.name"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input.0.content.0.image_url",
        ),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.name"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"text": {"format": {"type": "x"}}}, "text.format.type"),
        ({"reasoning": {"effort": "x"}}, "reasoning.effort"),
        ({"reasoning": 1}, "reasoning"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"store": 1}, "store"),
        ({"background": True, "store": False}, "background"),
        ({"previous_response_id": 1}, "previous_response_id"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"stream": "yes"}, "stream"),
        ({"model": 1}, "model"),
    ],
)
def test_a_wrong_body_names_its_member(open_gateway, serve_upstream, fields, param):
    upstream = serve_upstream("openai_compatible")
    answer = open_gateway().http.post(
        "/v1/responses", json={"model": upstream.model, "input": "Hello", **fields}
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_parameters_go_upstream_in_the_chat_form(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible")
    schema = {"type": "object", "properties": {}}
    answered(
        open_gateway(),
        upstream.model,
        max_output_tokens=7,
        reasoning={"effort": "minimal"},
        text={"format": {"type": "json_schema", "name": "a", "schema": schema, "strict": True}},
        tools=[TOOL, {"type": "web_search"}],
        tool_choice={"type": "function", "name": "read_file"},
        parallel_tool_calls=False,
        top_p=0.5,
        seed=3,
    )
    body = upstream.turns[-1].body
    assert (body["max_tokens"], body["reasoning_effort"], body["top_p"], body["seed"]) == (
        7,
        "low",
        0.5,
        3,
    )
    described = {"name": "a", "schema": schema, "strict": True}
    assert body["response_format"] == {"type": "json_schema", "json_schema": described}
    function = {name: value for name, value in TOOL.items() if name != "type"}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "read_file"}}
    assert body["parallel_tool_calls"] is False
    assert not {"input", "text", "reasoning", "max_output_tokens"} & body.keys()

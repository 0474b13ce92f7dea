"""An agent with tools over the web upstream, whose calls are text: none is lost, none comes twice."""

from __future__ import annotations

import json

import pytest

from requests_app.models import Request
from tests.doubles.server import Reply

TURNS = 100
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "read_file",
            "parameters": {
                "type": "object",
                "properties": {"path": {"type": "string"}, "line": {"type": "integer"}},
                "required": ["path"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "write_file",
            "parameters": {
                "type": "object",
                "properties": {"path": {"type": "string"}, "content": {"type": "string"}},
            },
        },
    },
]


def hermes(name, arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def coder(name, arguments):
    values = "".join(f"<parameter={k}>\n{v}\n</parameter>\n" for k, v in arguments.items())
    return f"<tool_call>\n<function={name}>\n{values}</function>\n</tool_call>"


def scripted(turn):
    """What the model writes in a turn, and the calls that it means."""
    write = hermes if turn % 2 else coder
    read = {"path": f"src/naïve-{turn}.py", "line": turn}
    content = f'if a < {turn}:\n    print("<tool_call> {turn}")\n\\d+ é 🙂'
    calls = [("read_file", read)]
    if turn % 3 == 0:
        calls.append(("write_file", {"path": f"{turn}.html", "content": content}))
    if turn % 5 == 0:
        calls.append(("read_file", {"path": f"other-{turn}"}))
    text = "" if turn % 4 else f"Turn {turn}: I look.\n\n"
    end = "\n<tool_response>\nmade up\n</tool_response>\n" if turn % 7 == 0 else ""
    return text + "\n".join(write(*call) for call in calls) + end, calls


def streamed(answer):
    """The calls of a streamed answer, as a client adds them up."""
    text, calls = "", {}
    for chunk in answer:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            for delta in choice.delta.tool_calls or []:
                call = calls.setdefault(delta.index, {"id": "", "name": "", "arguments": ""})
                call["id"] += delta.id or ""
                call["name"] += delta.function.name or ""
                call["arguments"] += delta.function.arguments or ""
            reason = choice.finish_reason or ""
    return text, [calls[index] for index in sorted(calls)], reason


@pytest.mark.slow
def test_a_hundred_turns_lose_no_call_and_double_none(open_gateway, serve_upstream):
    upstream = serve_upstream("qwen_web")
    gateway = open_gateway()
    messages = [{"role": "user", "content": "Mend it."}]
    seen_ids = set()
    for turn in range(TURNS):
        answer, expected = scripted(turn)
        upstream.enqueue(Reply(text=answer))
        stream = gateway.sdk.chat.completions.create(
            model=upstream.model, messages=messages, tools=TOOLS, stream=True
        )
        text, calls, reason = streamed(stream)
        assert [(call["name"], json.loads(call["arguments"])) for call in calls] == expected
        assert reason == "tool_calls"
        assert seen_ids.isdisjoint(call["id"] for call in calls)
        seen_ids.update(call["id"] for call in calls)
        messages.append(
            {
                "role": "assistant",
                "content": text or None,
                "tool_calls": [
                    {
                        "id": call["id"],
                        "type": "function",
                        "function": {"name": call["name"], "arguments": call["arguments"]},
                    }
                    for call in calls
                ],
            }
        )
        messages += [
            {"role": "tool", "tool_call_id": call["id"], "content": f"result {turn}.{number}"}
            for number, call in enumerate(calls)
        ]
    used = list(Request.objects.order_by("id").values_list("upstream", flat=True))
    assert used == ["new"] + ["continued"] * (TURNS - 1)
    # Each result went up once, in the turn after its call.
    sent = [turn.body["messages"][0]["content"] for turn in upstream.turns]
    for turn in range(TURNS - 1):
        count = len(scripted(turn)[1])
        assert sent[turn + 1].count("<tool_response>") == count
        assert all(f"result {turn}.{number}" in sent[turn + 1] for number in range(count))


def test_a_call_that_the_site_took_for_its_own_is_asked_for_again(open_gateway, serve_upstream):
    upstream = serve_upstream("qwen_web")
    gateway = open_gateway()
    answer, expected = scripted(1)
    upstream.enqueue(Reply(text="Tool read_file does not exists."), Reply(text=answer))
    messages = [{"role": "user", "content": "Mend it."}]
    stream = gateway.sdk.chat.completions.create(
        model=upstream.model, messages=messages, tools=TOOLS, stream=True
    )
    text, calls, reason = streamed(stream)
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == expected
    assert (text, reason) == ("", "tool_calls")

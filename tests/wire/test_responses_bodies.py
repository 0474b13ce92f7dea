"""Inputs of the Responses API as messages: what belongs together, and the same whether sent or remembered."""

from __future__ import annotations

from typing import Any

import pytest

from qwenproxy.wire.anthropic_bodies import FieldError
from qwenproxy.wire.json import JSONValue
from qwenproxy.wire.responses_bodies import to_chat
from qwenproxy.wire.responses_record import recorded, to_body

IMAGE = "data:image/png;base64," + "iVBORw0KGgo" * 20
CALL = {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"}
OLD: list[JSONValue] = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "input_text", "text": "Look."}]},
]
REPLY: list[JSONValue] = [
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
    {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "I look.", "annotations": []}],
    },
    CALL,
]
NEW: list[JSONValue] = [
    {
        "type": "function_call_output",
        "call_id": "call_1",
        "output": [{"type": "input_image", "image_url": IMAGE, "detail": "high"}],
    },
    {"role": "developer", "content": "Be loud."},
    {"role": "user", "content": "What is it?"},
]


def messages(items: list[JSONValue], **fields: Any) -> Any:
    return to_chat({"input": items, **fields}).messages


def test_items_of_one_answer_are_one_message():
    assert messages([*OLD, *REPLY])[-1] == {
        "role": "assistant",
        "content": "I look.",
        "reasoning_content": "hm",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "look", "arguments": "{}"},
            }
        ],
    }


def test_a_result_has_its_files_in_the_next_message():
    result, files, reminder, question = messages(NEW)
    assert result["role"] == "tool"
    assert "next message" in result["content"]
    assert files["content"] == [
        {"type": "image_url", "image_url": {"url": IMAGE, "detail": "high"}}
    ]
    assert reminder["content"] == "<system-reminder>\nBe loud.\n</system-reminder>"
    assert question == {"role": "user", "content": "What is it?"}


def test_what_is_remembered_reads_as_what_is_sent_again():
    before = messages([*OLD, *REPLY])
    remembered = to_chat({"input": NEW}, before).messages
    assert remembered == messages([*OLD, *REPLY, *NEW])
    # New instructions stand before what the earlier input said as the system.
    head = to_chat({"input": NEW, "instructions": "First."}, before).messages[0]
    assert [part["text"] for part in head["content"]] == ["First.", "Be brief."]


@pytest.mark.parametrize("before", [(), ({"role": "user", "content": "Hi"},)])
def test_a_record_gives_back_what_was_sent(before):
    sent: Any = {"input": [*OLD, *REPLY, *NEW], "instructions": "Long enough to be kept once. " * 3}
    form = to_chat(sent, before)
    parameters = recorded(sent, form)
    assert IMAGE not in str(parameters)
    assert sent["instructions"] not in str(parameters)
    assert to_body(parameters, form.messages, form.tools) == sent


def test_a_record_whose_messages_have_another_form_gives_items_of_them():
    sent: Any = {"input": [{"role": "user", "content": "A long text " * 10}]}
    parameters = recorded(sent, to_chat(sent))
    other: Any = [{"role": "user", "content": None}]
    assert to_body(parameters, other, None)["input"] == [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": ""}]}
    ]


def test_an_unresolved_reference_names_itself():
    with pytest.raises(FieldError) as raised:
        to_chat({"input": [{"type": "item_reference", "id": "msg_1"}]})
    assert raised.value.param == "input.0.id"

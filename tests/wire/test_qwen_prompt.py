"""A history as one text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.wire.qwen_web import UnsupportedContent, render_prompt

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": "Hi!"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "a",
            "type": "function",
            "function": {"name": "read", "arguments": '{"n": 1.0, "b":123456789012345678901}'},
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "a", "content": "text"}
REPLY = (
    "The conversation so far follows, oldest message first. Each message begins with a label in "
    "brackets. Write the assistant's next message, without a label and without repeating anything."
)
CONTINUE = (
    "The conversation so far follows, oldest message first. Each message begins with a label in "
    "brackets. Its last message is yours and not finished: go on exactly where it ends, without a "
    "label and without repeating anything."
)


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        pytest.param([USER], "Hello", id="user"),
        pytest.param([{"role": "user", "content": " a\n"}], " a\n", id="user-to-the-letter"),
        pytest.param([SYSTEM, USER], "Be brief.\n\nHello", id="system"),
        pytest.param(
            [SYSTEM, {"role": "developer", "content": "In French."}, USER],
            "Be brief.\n\nIn French.\n\nHello",
            id="two-systems",
        ),
        pytest.param([{"role": "system", "content": ""}, USER], "Hello", id="empty-system"),
        pytest.param([USER, {"role": "user", "content": "you"}], "Hello\n\nyou", id="two-users"),
        pytest.param(
            [SYSTEM, USER, ANSWER, {"role": "user", "content": "Bye"}],
            f"Be brief.\n\n{REPLY}\n\n[User]\nHello\n\n[Assistant]\nHi!\n\n[User]\nBye",
            id="history",
        ),
        pytest.param(
            [USER, ANSWER], f"{CONTINUE}\n\n[User]\nHello\n\n[Assistant]\nHi!", id="ends-in-answer"
        ),
        pytest.param(
            [USER, CALL, RESULT],
            f"{REPLY}\n\n[User]\nHello\n\n[Assistant]\n"
            '<tool_call>\n{"name": "read", "arguments": {"n": 1.0, "b":123456789012345678901}}\n'
            "</tool_call>\n\n[Tool result]\n<tool_response>\ntext\n</tool_response>",
            id="call-and-result",
        ),
        pytest.param(
            [USER, ANSWER, {**SYSTEM, "content": "Now loud."}, USER],
            f"{REPLY}\n\n[User]\nHello\n\n[Assistant]\nHi!\n\n[System]\nNow loud.\n\n[User]\nHello",
            id="system-within",
        ),
        pytest.param([], "", id="nothing"),
    ],
)
def test_a_history_is_one_text(messages, prompt):
    assert render_prompt(messages) == prompt


def test_tools_come_after_the_system_text():
    assert render_prompt([SYSTEM, USER], tool_text="TOOLS") == "Be brief.\n\nTOOLS\n\nHello"
    assert render_prompt([USER], tool_text="TOOLS") == "TOOLS\n\nHello"


@pytest.mark.parametrize(
    ("messages", "first_message", "prompt"),
    [
        pytest.param([SYSTEM, USER, ANSWER, USER], 3, "Hello", id="user"),
        pytest.param(
            [SYSTEM, USER, CALL, RESULT],
            3,
            "<tool_response>\ntext\n</tool_response>",
            id="result",
        ),
        pytest.param(
            [USER, CALL, RESULT, RESULT, USER],
            2,
            "<tool_response>\ntext\n</tool_response>\n\n"
            "<tool_response>\ntext\n</tool_response>\n\nHello",
            id="results-and-user",
        ),
        pytest.param([USER, ANSWER, SYSTEM, USER], 2, "Be brief.\n\nHello", id="new-system"),
    ],
)
def test_only_what_a_chat_does_not_know_is_sent(messages, first_message, prompt):
    assert render_prompt(messages, first_message=first_message) == prompt


@pytest.mark.parametrize("content", ["", " \n", None, []], ids=["empty", "blank", "null", "list"])
def test_an_empty_result_is_visible(content):
    prompt = render_prompt([{"role": "tool", "content": content}])

    assert prompt == "<tool_response>\n(no output)\n</tool_response>"


@pytest.mark.parametrize(
    ("arguments", "rendered"),
    [
        ("", "{}"),
        (None, "{}"),
        ("{cut", '"{cut"'),
        ({"a": 1}, '{"a":1}'),
        ('{"a": "\ud800"}', '{"a": "\ud800"}'),
    ],
    ids=["empty", "null", "not-json", "object", "lone-surrogate"],
)
def test_arguments_of_every_form_are_rendered(arguments, rendered):
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}

    prompt = render_prompt([{"role": "assistant", "content": "x", "tool_calls": [call, None]}])

    assert prompt.endswith(
        f'[Assistant]\nx\n<tool_call>\n{{"name": "f", "arguments": {rendered}}}\n</tool_call>'
    )


def test_the_legacy_function_form_is_rendered():
    prompt = render_prompt(
        [
            {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "ok"},
        ]
    )

    assert prompt == (
        f'{REPLY}\n\n[Assistant]\n<tool_call>\n{{"name": "f", "arguments": {{}}}}\n</tool_call>'
        "\n\n[Tool result]\n<tool_response>\nok\n</tool_response>"
    )


def test_text_parts_are_joined_by_lines():
    parts = [
        {"type": "text", "text": "<task>"},
        {"type": "input_text", "text": "b"},
        {"type": "refusal", "refusal": "no"},
        "d",
    ]

    assert render_prompt([{"role": "user", "content": parts}]) == "<task>\nb\nno\nd"


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


def test_a_file_beside_a_question_leaves_no_text():
    content = [IMAGE, {"type": "text", "text": "What is it?"}]
    assert render_prompt([{"role": "user", "content": content}]) == "What is it?"
    assert render_prompt([{"role": "user", "content": [IMAGE]}]) == ""


def test_a_history_names_its_files_where_they_stood():
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "One"}, IMAGE]},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [IMAGE, {"type": "text", "text": "Two"}]},
    ]
    prompt = render_prompt(messages)
    assert "[User]\nOne\n[Attached: image-1.png]" in prompt
    assert "[User]\n[Attached: image-2.png]\nTwo" in prompt
    # What a chat knows has no names of this turn.
    assert render_prompt(messages, first_message=2) == "Two"


@pytest.mark.parametrize(
    ("content", "part_type"),
    [
        pytest.param([{"type": "tool_use", "id": "x"}], "tool_use", id="call"),
        pytest.param([{"type": "text", "text": 5}], "text", id="number-as-text"),
        pytest.param([{}], "None", id="no-type"),
        pytest.param([5], "int", id="number"),
        pytest.param({"a": 1}, "dict", id="object"),
    ],
)
def test_what_is_not_text_is_refused_by_its_place(content, part_type):
    with pytest.raises(UnsupportedContent) as caught:
        render_prompt([SYSTEM, {"role": "user", "content": content}])

    assert (caught.value.index, caught.value.part_type) == (1, part_type)


def test_what_the_chat_knows_may_hold_anything():
    image = {"role": "user", "content": [{"type": "image_url"}]}

    assert render_prompt([image, ANSWER, USER], first_message=2) == "Hello"


roles = st.sampled_from(["system", "user", "assistant", "tool"])
contents = st.text(st.characters(exclude_categories=()), min_size=1, max_size=20)


@given(st.lists(st.tuples(roles, contents), min_size=1, max_size=6))
def test_every_text_is_in_the_prompt_unchanged_and_in_order(items):
    prompt = render_prompt([{"role": role, "content": text} for role, text in items])

    position = 0
    for role, text in items:
        if role == "tool" and not text.strip():
            continue
        position = prompt.index(text, position) + len(text)


@given(contents)
def test_a_lone_user_message_is_exactly_its_text(text):
    assert render_prompt([{"role": "user", "content": text}]) == text

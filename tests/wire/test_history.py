"""The digest covers what a message means: every habit of clients gives the same one, nothing else does."""

from __future__ import annotations

import itertools
import json as stdlib_json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.wire import json
from qwenproxy.wire.history import (
    VERSION,
    _chain,
    _Memo,
    chain,
    decode_content,
    digest_of,
    encode_content,
    match_form,
    message_digest,
    root_digest,
    split_system,
    text_of,
)

ROOT = root_digest(1)
CALL = {"id": "c1", "type": "function", "function": {"name": "ls", "arguments": '{"a":1,"b":[2]}'}}
ANSWER = {"role": "assistant", "content": "It is 4."}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
QUESTION = {"role": "user", "content": "2+2?"}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "4"}


def with_function(**members):
    return {**CALLS, "tool_calls": [{**CALL, "function": {**CALL["function"], **members}}]}


HABITS = {
    "members in another order": (ANSWER, dict(reversed(ANSWER.items()))),
    "a list of one part": (QUESTION, {**QUESTION, "content": [{"type": "text", "text": "2+2?"}]}),
    "several parts": (
        QUESTION,
        {**QUESTION, "content": [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]},
    ),
    "parts of the other dialect": (
        ANSWER,
        {**ANSWER, "content": [{"type": "output_text", "text": "It is 4.", "annotations": []}]},
    ),
    "cache markers on a part": (
        QUESTION,
        {
            **QUESTION,
            "content": [{"type": "text", "text": "2+2?", "cache_control": {"type": "ephemeral"}}],
        },
    ),
    "a cache marker on the message": (QUESTION, {**QUESTION, "cache_control": {"type": "x"}}),
    "nulls": (
        ANSWER,
        {**ANSWER, "tool_calls": None, "function_call": None, "refusal": None, "audio": None},
    ),
    "empty calls and annotations": (ANSWER, {**ANSWER, "tool_calls": [], "annotations": []}),
    "reasoning sent back": (ANSWER, {**ANSWER, "reasoning_content": "2 and 2", "reasoning": "x"}),
    "reasoning sent back as a part": (
        ANSWER,
        {
            **ANSWER,
            "content": [
                {"type": "thinking", "thinking": "2 and 2", "signature": "s"},
                {"type": "text", "text": "It is 4."},
            ],
        },
    ),
    "space around an answer": (ANSWER, {**ANSWER, "content": "\n\nIt is 4. \n"}),
    "names, ids, indexes": (
        CALLS,
        {**CALLS, "name": "bot", "id": "msg_1", "tool_calls": [{**CALL, "index": 0}]},
    ),
    "no type on a call": (
        CALLS,
        {**CALLS, "tool_calls": [{"id": "c1", "function": CALL["function"]}]},
    ),
    "content empty beside calls": (CALLS, {**CALLS, "content": ""}),
    "content blank beside calls": (CALLS, {**CALLS, "content": "\n\n"}),
    "content absent beside calls": (CALLS, {"role": "assistant", "tool_calls": [CALL]}),
    "content of no parts beside calls": (CALLS, {**CALLS, "content": []}),
    "arguments in another order": (CALLS, with_function(arguments='{ "b": [2], "a": 1 }')),
    "arguments as an object": (CALLS, with_function(arguments={"b": [2], "a": 1})),
    "arguments escaped": (
        with_function(arguments='{"p":"日"}'),
        with_function(arguments='{"p":"\\u65e5"}'),
    ),
    "no arguments": (with_function(arguments="{}"), with_function(arguments="")),
    "arguments null": (with_function(arguments="{}"), with_function(arguments=None)),
    "an empty call id on an answer": (ANSWER, {**ANSWER, "tool_call_id": ""}),
    "a result in parts": (RESULT, {**RESULT, "content": [{"type": "text", "text": "4"}]}),
    "a result with its tool's name": (RESULT, {**RESULT, "name": "ls"}),
    "a picture with a cache marker": (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]},
        {
            "role": "user",
            "content": [
                {
                    "image_url": {"url": "data:,x"},
                    "type": "image_url",
                    "cache_control": {"type": "ephemeral"},
                }
            ],
        },
    ),
}


@pytest.mark.parametrize("habit", HABITS)
def test_a_habit_of_clients_leaves_the_digest_alone(habit):
    first, second = HABITS[habit]
    assert message_digest(ROOT, first) == message_digest(ROOT, second)


DIFFERENCES = {
    "text": (ANSWER, {**ANSWER, "content": "It is 5."}),
    "role": (QUESTION, {**QUESTION, "role": "assistant"}),
    "space around a question": (QUESTION, {**QUESTION, "content": " 2+2?"}),
    "space within an answer": (ANSWER, {**ANSWER, "content": "It  is 4."}),
    "call id": (CALLS, {**CALLS, "tool_calls": [{**CALL, "id": "c2"}]}),
    "call name": (CALLS, with_function(name="cat")),
    "call arguments": (CALLS, with_function(arguments='{"a":1,"b":[3]}')),
    "arguments that are no JSON": (
        with_function(arguments='{"a":1'),
        with_function(arguments='{"a":2'),
    ),
    "arguments that look like others": (
        with_function(arguments='["json","{}"]'),
        with_function(arguments="{}"),
    ),
    "number and text": (with_function(arguments='{"a":1}'), with_function(arguments='{"a":"1"}')),
    "order of calls": (
        {**CALLS, "tool_calls": [CALL, {**CALL, "id": "c2"}]},
        {**CALLS, "tool_calls": [{**CALL, "id": "c2"}, CALL]},
    ),
    "calls beside a text": (CALLS, {**CALLS, "content": "see"}),
    "the call that a result answers": (RESULT, {**RESULT, "tool_call_id": "c2"}),
    "a picture": (
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,y"}}]},
    ),
    "text that looks like a picture's form": (
        {"role": "user", "content": '[["file","00"]]'},
        {"role": "user", "content": [{"type": "file"}]},
    ),
    "numbers that floats cannot tell apart": (
        with_function(arguments='{"n":123456789012345678901234567890}'),
        with_function(arguments='{"n":123456789012345678901234567891}'),
    ),
}


@pytest.mark.parametrize("difference", DIFFERENCES)
def test_a_difference_in_meaning_changes_the_digest(difference):
    first, second = DIFFERENCES[difference]
    assert message_digest(ROOT, first) != message_digest(ROOT, second)


def test_all_messages_that_differ_have_digests_of_their_own():
    messages = [message for pair in DIFFERENCES.values() for message in pair]
    forms = {json.dumps(match_form(message)) for message in messages}
    assert len({message_digest(ROOT, message) for message in messages}) == len(forms)


def test_keys_and_parents_part_the_same_message():
    digests = {message_digest(root, QUESTION) for root in map(root_digest, range(100))}
    assert len(digests) == 100
    above = [digest_of(b"a"), digest_of(b"b")]
    assert message_digest(above[0], QUESTION) != message_digest(above[1], QUESTION)


def test_a_digest_names_its_algorithm_and_fits_its_column():
    digest = message_digest(ROOT, QUESTION)
    assert digest[:1] == VERSION
    assert len(digest) == 24


def test_the_algorithm_gives_what_it_gave():
    # Stored digests are found by these bytes: another algorithm needs another VERSION.
    line = [QUESTION, CALLS, RESULT, ANSWER]
    assert [node.digest.hex() for node in chain(7, line)] == DIGESTS


DIGESTS = [
    "0174061e5f7d0f68d10e4355626a6501ad7c916a9ca19184",
    "0101623737e28568ce37c927da7127131b9216c9009c9724",
    "01f51ff9722131cb91076bdcd04f636b70f85409555e5057",
    "01700be5c087dedeb1dc998c885e8705adbca803bae5232f",
]


@pytest.mark.parametrize("depth", [200, 500, 1000, 5000])
def test_arguments_nested_beyond_sense_have_a_digest(depth):
    deep = "[" * depth + "]" * depth
    assert len(message_digest(ROOT, with_function(arguments=deep))) == 24


def test_a_chain_depends_on_all_that_came_before():
    line = [QUESTION, ANSWER, QUESTION, ANSWER]
    digests = [node.digest for node in chain(1, line)]
    assert len(set(digests)) == 4
    edited = [{**QUESTION, "content": "3+3?"}, *line[1:]]
    assert not set(digests) & {node.digest for node in chain(1, edited)}
    assert [node.digest for node in chain(1, line[:2])] == digests[:2]


@pytest.mark.parametrize(
    ("roles", "head"),
    [
        pytest.param(["system", "developer", "user", "system"], 2, id="head only"),
        pytest.param(["user", "system"], 0, id="none"),
        pytest.param(["system"], 1, id="nothing else"),
    ],
)
def test_system_messages_at_the_head_are_parted(roles, head):
    messages = [{"role": role, "content": "x"} for role in roles]
    system, line = split_system(messages)
    assert (list(system), list(line)) == (messages[:head], messages[head:])


texts = st.text(alphabet=st.characters(codec=None), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
parts = st.lists(st.builds(lambda text: {"type": "text", "text": text}, texts), max_size=3)
messages = st.builds(
    lambda content, extra: {"role": "assistant", "content": content, **extra},
    texts | parts | st.none(),
    st.dictionaries(
        texts.filter(lambda name: name not in ("role", "content", "tool_calls", "function_call")),
        values,
        max_size=3,
    ),
)


@given(messages)
def test_what_is_stored_is_what_was_sent(message):
    stored = encode_content(message)
    stored.encode("utf-8")
    assert "\x00" not in stored
    assert decode_content("assistant", stored) == message


@given(messages, texts)
def test_storing_and_reading_leave_the_digest_alone(message, name):
    message["tool_calls"] = [{"id": name, "function": {"name": name, "arguments": name}}]
    again = decode_content("assistant", encode_content(message))
    assert message_digest(ROOT, again) == message_digest(ROOT, message)


@given(values)
def test_arguments_may_be_written_in_any_way(value):
    ways = [
        stdlib_json.dumps(value),
        stdlib_json.dumps(value, ensure_ascii=False, indent=2, sort_keys=False),
        json.dumps_text(value),
    ]
    digests = {message_digest(ROOT, with_function(arguments=way)) for way in ways}
    assert len(digests) == 1


@given(st.lists(texts, max_size=4))
def test_a_text_is_the_same_cut_into_parts(cuts):
    whole = {"role": "user", "content": "".join(cuts)}
    cut = {"role": "user", "content": [{"type": "text", "text": text} for text in cuts]}
    assert message_digest(ROOT, whole) == message_digest(ROOT, cut)
    assert text_of(whole) == text_of(cut)


def test_text_of_reads_texts_alone():
    content = [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}]
    assert text_of({"role": "user", "content": content}) == "ab"
    assert text_of({"role": "user", "content": None}) == text_of({"role": "user"}) == ""


def test_the_habits_may_be_combined():
    variants = [QUESTION, HABITS["several parts"][1], HABITS["cache markers on a part"][1]]
    answers = [ANSWER, HABITS["nulls"][1], HABITS["space around an answer"][1]]
    lines = itertools.product(variants, answers)
    assert len({chain(1, line)[-1].digest for line in lines}) == 1


def long_line(turns, *, first="Begin"):
    line = [{"role": "user", "content": first}]
    for number in range(turns):
        call = {**CALL, "id": f"c{number}"}
        line += [
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"c{number}", "content": "ok"},
        ]
    return line


def test_a_line_that_grows_has_the_digests_that_it_has_alone():
    # Twice: what was remembered the first time is used the second time.
    for _ in range(2):
        for turns in (3, 5, 6, 7, 7, 9, 20):
            line = long_line(turns)
            nodes = chain(1, line)
            assert nodes == _chain(ROOT, line)
            assert [node.message for node in nodes] == line


@pytest.mark.parametrize("place", [0, 5, 11, 12])
def test_a_changed_line_has_digests_of_its_own(place):
    line = long_line(6)
    chain(1, line)
    changed = [dict(message) for message in line]
    changed[place] |= {"content": "changed"}
    changed += long_line(1)[1:]
    assert chain(1, changed) == _chain(ROOT, changed)


def test_remembered_digests_are_those_of_one_key():
    longer = long_line(7)
    chain(1, long_line(6))
    assert chain(2, longer) == _chain(root_digest(2), longer)
    assert not {n.digest for n in chain(1, longer)} & {n.digest for n in chain(2, longer)}


@pytest.mark.parametrize("odd", ["\ud800", 2**70], ids=["surrogate", "long integer"])
def test_what_the_fast_encoder_refuses_is_digested_all_the_same(odd):
    line = long_line(6)
    line[3] = {**line[3], "extra": odd}
    for turns in (0, 1):
        longer = line + long_line(turns)[1:]
        assert chain(1, longer) == _chain(ROOT, longer)


def test_the_memo_keeps_what_was_used_last_within_its_bytes():
    memo = _Memo(1000)
    memo.put(b"a", b"1" * 24)
    memo.put(b"b", b"2" * 24)
    memo.put(b"b", b"2" * 24)
    assert memo.get(b"a")
    memo.put(b"c", b"3" * 100)
    memo.put(b"d", b"4" * 24)
    assert [bool(memo.get(key)) for key in (b"a", b"b", b"c", b"d")] == [False, False, True, True]
    memo.put(b"e", b"5" * 5000)
    assert memo.get(b"e") == b""

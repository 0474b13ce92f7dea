from __future__ import annotations

from hashlib import sha256
from typing import get_args

import pytest

from qwenproxy.wire import json
from qwenproxy.wire.qwen_prompt import render_prompt
from qwenproxy.wire.tool_calls import ToolForm, parse_tools, shorten_tools, tool_prompt
from tests.factories import (
    make_account,
    make_api_key,
    make_blob,
    make_line,
    make_message,
    make_request,
    make_response,
    make_session,
    make_turn,
)
from tests.records_api import RecordsClient

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.records_api")]

SYSTEM = [{"role": "system", "content": "Be brief."}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
QUESTION = {"role": "user", "content": "Where?"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"n": 1.0}'}}
    ],
}
RESULT = {"role": "tool", "content": "here", "tool_call_id": "c1"}
PARAMETERS = {"model": "qwen3-max", "temperature": 0.5, "stream": False, "user": "ann"}


def upstream_request(text, **request):
    return {
        "upstream_request": json.dumps_text({"request": request, "first_message": 0}),
        "upstream_text_digest": sha256(text.encode()).digest(),
    }


def make_agent_request(session, **fields):
    prompt = make_line(session, QUESTION, CALL, RESULT)
    return make_request(
        session,
        prompt,
        system=make_blob(session.api_key, "system", SYSTEM),
        tools=make_blob(session.api_key, "tools", TOOLS),
        parameters=json.dumps_text(PARAMETERS),
        **fields,
    )


def test_the_body_of_the_client_is_rebuilt():
    session = make_session()
    request_row = make_agent_request(session)
    detail = RecordsClient(session.api_key).get(f"/requests/{request_row.pk}")
    messages = [*SYSTEM, QUESTION, CALL, RESULT]
    assert detail["openai_request"] == {**PARAMETERS, "messages": messages, "tools": TOOLS}


def test_a_branch_is_rebuilt_without_its_siblings():
    session = make_session()
    root = make_line(session, QUESTION, CALL)
    make_message(session, {"role": "user", "content": "other"}, root)
    prompt = make_message(session, RESULT, root)
    request_row = make_request(session, prompt)
    detail = RecordsClient(session.api_key).get(f"/requests/{request_row.pk}")
    assert detail["openai_request"]["messages"] == [QUESTION, CALL, RESULT]


def test_a_legacy_completion_is_rebuilt():
    session = make_session()
    prompt = make_line(session, {"role": "user", "content": "Once upon"})
    reply = make_message(session, {"role": "assistant", "content": " a time"}, prompt)
    request_row = make_request(session, prompt, dialect="completions")
    make_response(request_row, reply, response_id="cmpl-1", usage_source="reported")
    detail = RecordsClient(session.api_key).get(f"/requests/{request_row.pk}")
    assert detail["openai_request"] == {"model": "qwen3-max", "prompt": "Once upon"}
    answer = detail["response"]["openai_response"]
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["text"] == " a time"


def test_a_request_of_system_text_alone():
    session = make_session()
    system = make_blob(session.api_key, "system", SYSTEM)
    request_row = make_request(session, None, system=system)
    detail = RecordsClient(session.api_key).get(f"/requests/{request_row.pk}")
    assert detail["openai_request"]["messages"] == SYSTEM


def test_texts_survive_unharmed():
    session = make_session()
    body = {"role": "user", "content": "\0\ud800 你好", "n": 10**30, "x": [1.0, None]}
    request_row = make_request(
        session, make_line(session, body), parameters='{"seed":123456789012345678901234567890}'
    )
    detail = RecordsClient(session.api_key).get(f"/requests/{request_row.pk}")
    assert detail["openai_request"] == {"seed": 123456789012345678901234567890, "messages": [body]}
    assert isinstance(detail["openai_request"]["messages"][0]["x"][0], float)


def test_every_other_field():
    session = make_session()
    account = make_account("house")
    attempts = [{"account": "house", "started": 1, "ms": 2, "cause": None}]
    response_row = make_turn(
        session, request={"account": account, "attempts": json.dumps_text(attempts)}
    )
    records = RecordsClient(session.api_key)
    detail = records.get(f"/requests/{response_row.request.request_id}")
    (listed,) = records.get("/requests")["data"]
    assert {name: detail[name] for name in listed} == listed
    assert (detail["user_agent"], detail["account"]) == ("tests/1", "house")
    assert detail["attempts"] == attempts
    response = records.get(f"/responses/{response_row.pk}")
    del response["request"]
    assert detail["response"] == response


def test_a_request_that_never_went_upstream():
    session = make_session()
    response_row = make_turn(session, answer=None)
    detail = RecordsClient(session.api_key).get(f"/requests/{response_row.request.pk}")
    assert (detail["qwen_request"], detail["qwen_request_exact"]) == (None, None)


def test_the_call_of_an_openai_compatible_upstream():
    session = make_session()
    text = json.dumps_text({"messages": [*SYSTEM, QUESTION, CALL, RESULT], "tools": TOOLS})
    request_row = make_agent_request(
        session, **upstream_request(text, model="qwen3", stream=True, messages=None, tools=None)
    )
    detail = RecordsClient(session.api_key).get(f"/requests/{request_row.pk}")
    assert detail["qwen_request"] == {
        "model": "qwen3",
        "stream": True,
        "messages": [*SYSTEM, QUESTION, CALL, RESULT],
        "tools": TOOLS,
    }
    assert detail["qwen_request_exact"] is True


def test_a_text_that_is_not_quite_the_one_sent():
    session = make_session()
    sent = upstream_request('{"messages":[{"content":"Where?","role":"user"}]}', messages=None)
    request_row = make_request(session, make_line(session, QUESTION), **sent)
    detail = RecordsClient(session.api_key).get(f"/requests/{request_row.pk}")
    assert detail["qwen_request"] == {"messages": [QUESTION]}
    assert detail["qwen_request_exact"] is False


def test_the_call_of_the_web_upstream():
    session = make_session()
    sent = upstream_request(
        "Where?", chat_id="c1", parent_id=None, messages=[{"role": "user", "content": None}]
    )
    request_row = make_request(session, make_line(session, QUESTION), **sent)
    detail = RecordsClient(session.api_key).get(f"/requests/{request_row.pk}")
    assert detail["qwen_request"] == {
        "chat_id": "c1",
        "parent_id": None,
        "messages": [{"role": "user", "content": "Where?"}],
    }
    assert detail["qwen_request_exact"] is True


@pytest.mark.parametrize("told", [parse_tools(TOOLS), shorten_tools(parse_tools(TOOLS))])
@pytest.mark.parametrize("form", get_args(ToolForm))
def test_tools_told_to_the_web_upstream(form, told):
    session = make_session()
    text = render_prompt(
        [*SYSTEM, QUESTION, CALL, RESULT],
        tool_text=tool_prompt(told, form=form),
        tool_form=form,
    )
    sent = upstream_request(text, messages=[{"role": "user", "content": None}])
    request_row = make_agent_request(session, **sent)
    detail = RecordsClient(session.api_key).get(f"/requests/{request_row.pk}")
    assert detail["qwen_request"]["messages"] == [{"role": "user", "content": text}]
    assert detail["qwen_request_exact"] is True


def test_a_prompt_that_cannot_be_rebuilt():
    session = make_session()
    prompt = make_line(session, {"role": "user", "content": [{"type": "image_url"}]})
    sent = upstream_request("?", messages=[{"role": "user", "content": None}])
    detail = RecordsClient(session.api_key).get(
        f"/requests/{make_request(session, prompt, **sent).pk}"
    )
    assert detail["qwen_request"]["messages"] == [{"role": "user", "content": ""}]
    assert detail["qwen_request_exact"] is False


def test_a_turn_that_went_on_in_its_chat_sent_the_new_part_alone():
    session = make_session()
    answer = {"role": "assistant", "content": "Here."}
    prompt = make_line(session, QUESTION, answer, {"role": "user", "content": "And now?"})
    request = {"chat_id": "c1", "messages": [{"role": "user", "content": None}]}
    request_row = make_request(
        session,
        prompt,
        upstream_request=json.dumps_text({"request": request, "first_message": 2}),
        upstream_text_digest=sha256(b"And now?").digest(),
    )
    detail = RecordsClient(session.api_key).get(f"/requests/{request_row.pk}")
    assert detail["qwen_request"]["messages"] == [{"role": "user", "content": "And now?"}]
    assert detail["qwen_request_exact"] is True


def test_both_ids_name_the_same_request():
    session = make_session()
    request_row = make_turn(session).request
    records = RecordsClient(session.api_key)
    assert records.get(f"/requests/{request_row.pk}") == records.get(
        f"/requests/{request_row.request_id}"
    )


@pytest.mark.parametrize("reference", ["0", "999999999", str(2**63), "9" * 40, "req_nope"])
@pytest.mark.parametrize("path", ["", "/response"])
def test_no_such_request(reference, path):
    records = RecordsClient(make_api_key())
    assert records.error(f"/requests/{reference}{path}") == (404, "request_not_found")


@pytest.mark.parametrize(
    "reference", ["nope", "-1", "1.0", "٣", "chatcmpl-1", "req_", "req_%00", "9" * 41, "1%20"]
)
@pytest.mark.parametrize("path", ["", "/response"])
def test_neither_kind_of_id(reference, path):
    records = RecordsClient(make_api_key())
    assert records.error(f"/requests/{reference}{path}") == (400, "invalid_id")


def test_keys_see_their_own_and_admins_all():
    request_row = make_turn(make_session()).request
    other = make_api_key()
    for path in ("", "/response"):
        for reference in (request_row.pk, request_row.request_id):
            url = f"/requests/{reference}{path}"
            assert RecordsClient(other).error(url) == (404, "request_not_found")
            assert RecordsClient(other, "admin").get(url)


def test_four_queries_however_long_the_line(django_assert_num_queries):
    session = make_session()
    line = make_line(session, *({"role": "user", "content": str(n)} for n in range(20)))
    request_row = make_turn(session, "last", parent=line).request
    # Its id, its row, its line, its response.
    with django_assert_num_queries(4):
        detail = RecordsClient(session.api_key).get(f"/requests/{request_row.pk}")
    assert len(detail["openai_request"]["messages"]) == 21

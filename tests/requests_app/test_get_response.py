from __future__ import annotations

from datetime import timedelta

import pytest

from qwenproxy.wire import json
from tests.factories import START, START_MS, make_api_key, make_line, make_session, make_turn
from tests.records_api import RecordsClient

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.records_api")]


def test_every_field():
    session = make_session()
    upstream = {"response_id": "a1", "chat_id": "c1", "parent_id": "u1", "usage": {"input": 11}}
    response_row = make_turn(
        session,
        request={"created_at": START},
        response={
            "upstream_parent_id": "u1",
            "upstream_response": json.dumps_text(upstream),
            "reasoning": "Hmm.",
            "reasoning_tokens": 3,
            "cached_tokens": 5,
            "ttft_ms": 120,
        },
    )
    request_row = response_row.request
    records = RecordsClient(session.api_key)
    assert records.get(f"/responses/{response_row.pk}") == {
        "id": response_row.pk,
        "request_id": request_row.pk,
        "session_id": session.id,
        "response_id": response_row.response_id,
        "timestamp": START_MS,
        "parent_id": "u1",
        "completion_tokens": 7,
        "prompt_tokens": 11,
        "total_tokens": 18,
        "reasoning_tokens": 3,
        "cached_tokens": 5,
        "usage_source": "reported",
        "status": "completed",
        "finish_reason": "stop",
        "error": None,
        "error_type": None,
        "error_code": None,
        "http_status": 200,
        "client_left": False,
        "ttft_ms": 120,
        "duration_ms": 1500,
        "created_at": START_MS,
        "completed_at": START_MS + 1500,
        "qwen_response": upstream,
        "openai_response": {
            "id": response_row.response_id,
            "object": "chat.completion",
            "created": START_MS // 1000,
            "model": "qwen3-max",
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": "Hi!",
                        "refusal": None,
                        "reasoning_content": "Hmm.",
                    },
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": 11,
                "completion_tokens": 7,
                "total_tokens": 18,
                "prompt_tokens_details": {"cached_tokens": 5},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
        },
        "request": {
            "id": request_row.pk,
            "request_id": request_row.request_id,
            "model": "qwen3-max",
            "stream": False,
            "timestamp": START_MS,
        },
    }


def test_three_names_of_the_same_response():
    session = make_session()
    response_row = make_turn(session)
    records = RecordsClient(session.api_key)
    detail = records.get(f"/responses/{response_row.pk}")
    assert detail == records.get(f"/responses/{response_row.response_id}")
    assert detail == records.get(f"/requests/{response_row.request.request_id}/response")


def test_a_failed_call_without_any_answer():
    session = make_session()
    response_row = make_turn(session, answer=None)
    detail = RecordsClient(session.api_key).get(f"/responses/{response_row.pk}")
    assert (detail["status"], detail["finish_reason"]) == ("failed", "error")
    assert (detail["error"], detail["http_status"]) == ("The upstream failed.", 502)
    assert (detail["qwen_response"], detail["openai_response"]) == (None, None)


def test_a_cut_stream_keeps_the_part_that_arrived():
    session = make_session()
    response_row = make_turn(
        session,
        answer="Once upon",
        response={"status": "failed", "finish_reason": "error", "error_message": "cut"},
    )
    detail = RecordsClient(session.api_key).get(f"/responses/{response_row.pk}")
    assert (detail["finish_reason"], detail["error"]) == ("error", "cut")
    (choice,) = detail["openai_response"]["choices"]
    assert choice["message"]["content"] == "Once upon"
    assert choice["finish_reason"] == "error"


def test_a_running_answer():
    session = make_session()
    response_row = make_turn(session, answer=None, response={"status": "in_progress"})
    detail = RecordsClient(session.api_key).get(f"/responses/{response_row.pk}")
    assert detail["status"] == "in_progress"
    for name in ("finish_reason", "duration_ms", "completed_at", "openai_response"):
        assert detail[name] is None


def test_tool_calls():
    session = make_session()
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    response_row = make_turn(session, answer=None)
    reply = make_line(
        session,
        {"role": "assistant", "content": None, "tool_calls": calls},
        parent=response_row.request.prompt,
    )
    response_row.reply = reply
    response_row.finish_reason = "tool_calls"
    response_row.save()
    detail = RecordsClient(session.api_key).get(f"/responses/{response_row.pk}")
    (choice,) = detail["openai_response"]["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": calls,
    }
    # No usage was reported and none was estimated.
    assert "usage" not in detail["openai_response"]


@pytest.mark.parametrize("reference", ["0", "123456", str(2**63), "chatcmpl-x", "cmpl-x", "resp_x"])
def test_no_such_response(reference):
    records = RecordsClient(make_api_key())
    assert records.error(f"/responses/{reference}") == (404, "response_not_found")


@pytest.mark.parametrize("reference", ["nope", "-1", "req_1", "٣", "chatcmpl-", "chatcmpl-%00"])
def test_neither_kind_of_id(reference):
    records = RecordsClient(make_api_key())
    assert records.error(f"/responses/{reference}") == (400, "invalid_id")


def test_keys_see_their_own_and_admins_all():
    response_row = make_turn(make_session())
    other = make_api_key()
    for reference in (response_row.pk, response_row.response_id):
        url = f"/responses/{reference}"
        assert RecordsClient(other).error(url) == (404, "response_not_found")
        assert RecordsClient(other, "admin").get(url)["id"] == response_row.pk


def test_two_queries(django_assert_num_queries):
    response_row = make_turn(make_session())
    with django_assert_num_queries(2):
        RecordsClient(response_row.api_key).get(f"/responses/{response_row.pk}")


def test_milliseconds_are_rounded_down():
    session = make_session()
    moment = START.replace(microsecond=999_999)
    response_row = make_turn(
        session,
        request={"created_at": moment},
        response={"completed_at": moment + timedelta(microseconds=1)},
    )
    detail = RecordsClient(session.api_key).get(f"/responses/{response_row.pk}")
    assert (detail["created_at"] % 1000, detail["completed_at"] % 1000) == (999, 0)

from __future__ import annotations

from datetime import timedelta

import pytest

from requests_app.models import Request
from tests.factories import (
    START,
    START_MS,
    make_api_key,
    make_blob,
    make_request,
    make_response,
    make_session,
    make_turn,
)
from tests.records_api import RecordsClient

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.records_api")]


@pytest.fixture
def api_key():
    return make_api_key()


@pytest.fixture
def records(api_key):
    return RecordsClient(api_key)


def listed(records, **query):
    return [row["request_id"] for row in records.get("/requests", **query)["data"]]


def test_every_field(records, api_key):
    session = make_session(api_key)
    response_row = make_turn(session, request={"created_at": START, "stream": True})
    request_row = response_row.request
    body = records.get("/requests")
    assert (body["object"], body["total"], body["limit"], body["offset"]) == ("list", 1, 50, 0)
    assert (body["has_more"], body["next_cursor"]) == (False, None)
    assert body["data"] == [
        {
            "id": request_row.pk,
            "session_id": session.id,
            "request_id": request_row.request_id,
            "timestamp": START_MS,
            "method": "POST",
            "path": "/v1/chat/completions",
            "model": "qwen3-max",
            "stream": True,
            "created_at": START_MS,
            "api_key": api_key.pk,
            "dialect": "chat",
            "match": "new",
            "upstream": "new",
            "recorded": "everything",
            "response_summary": {
                "response_id": response_row.response_id,
                "status": "completed",
                "finish_reason": "stop",
                "total_tokens": 18,
                "duration_ms": 1500,
                "error": None,
            },
        }
    ]


def test_a_failed_call_says_what_failed(records, api_key):
    make_turn(make_session(api_key), answer=None)
    summary = records.get("/requests")["data"][0]["response_summary"]
    assert (summary["finish_reason"], summary["error"]) == ("error", "The upstream failed.")


def test_a_running_call_has_no_end_yet(records, api_key):
    make_turn(make_session(api_key), answer=None, response={"status": "in_progress"})
    summary = records.get("/requests")["data"][0]["response_summary"]
    assert (summary["status"], summary["finish_reason"]) == ("in_progress", None)
    assert summary["duration_ms"] is None


def test_a_request_without_a_response_row(records, api_key):
    make_request(make_session(api_key))
    assert records.get("/requests")["data"][0]["response_summary"] is None


def test_keys_see_their_own_and_admins_all(api_key):
    own, other = make_request(make_session(api_key)), make_request(make_session())
    assert listed(RecordsClient(api_key)) == [own.request_id]
    assert listed(RecordsClient(api_key), session_id=other.session_id) == []
    assert listed(RecordsClient(api_key), api_key=other.api_key_id) == []
    assert listed(RecordsClient(api_key, "admin")) == [other.request_id, own.request_id]
    assert listed(RecordsClient(api_key, "admin"), api_key=other.api_key_id) == [other.request_id]


@pytest.fixture
def three_requests(api_key):
    """Newest first: c failed and streamed, b ran on another model, a completed."""
    session = make_session(api_key, id="s1")
    hour = timedelta(hours=1)
    a = make_request(session, request_id="req_a", created_at=START)
    b = make_request(
        make_session(api_key, id="s2"),
        request_id="req_b",
        created_at=START + hour,
        model="qwen3-coder",
    )
    c = make_request(session, request_id="req_c", created_at=START + 2 * hour, stream=True)
    make_response(a)
    make_response(b, status="in_progress")
    make_response(c, status="failed")


@pytest.mark.parametrize(
    ("query", "names"),
    [
        pytest.param({}, "cba", id="none"),
        pytest.param({"session_id": "s1"}, "ca", id="session"),
        pytest.param({"session_id": "s3"}, "", id="unknown-session"),
        pytest.param({"model": "qwen3-coder"}, "b", id="model"),
        pytest.param({"stream": "true"}, "c", id="streamed"),
        pytest.param({"stream": "false"}, "ba", id="whole"),
        pytest.param({"status": "failed"}, "c", id="status"),
        pytest.param({"status": "cancelled"}, "", id="no-such-status"),
        pytest.param({"start_date": START_MS + 3600_000}, "cb", id="start"),
        pytest.param({"end_date": START_MS + 3600_000}, "ba", id="end"),
        pytest.param({"session_id": "s1", "stream": "false", "status": "completed"}, "a", id="all"),
        pytest.param({"status": "failed", "end_date": START_MS}, "", id="status-and-date"),
        pytest.param({"order": "ASC"}, "abc", id="ascending"),
        pytest.param({"orderBy": "id", "order": "ASC"}, "abc", id="by-id"),
        pytest.param({"status": "completed", "orderBy": "id"}, "a", id="status-by-id"),
        pytest.param({"orderBy": "timestamp", "limit": "1", "offset": "1"}, "b", id="page"),
        pytest.param({"offset": str(2**63 - 1)}, "", id="largest-offset"),
    ],
)
@pytest.mark.usefixtures("three_requests")
def test_filters(records, query, names):
    assert listed(records, **query) == [f"req_{name}" for name in names]
    if "limit" not in query and "offset" not in query:
        assert records.get("/requests", **query)["total"] == len(names)


@pytest.mark.parametrize("query", [{}, {"status": "completed"}], ids=["all", "by-status"])
@pytest.mark.parametrize("order_by", ["created_at", "timestamp", "id"])
@pytest.mark.parametrize("order", ["ASC", "DESC"])
def test_cursor_pages_are_the_offset_pages(records, api_key, query, order_by, order):
    session = make_session(api_key)
    for number in range(5):
        created_at = START + timedelta(seconds=number // 2)
        make_response(make_request(session, created_at=created_at), created_at=created_at)
    query = {**query, "orderBy": order_by, "order": order}
    expected = listed(records, **query)
    seen: list[str] = []
    cursor: dict[str, str] = {}
    for _ in range(3):
        page = records.get("/requests", limit=2, **cursor, **query)
        seen += [row["request_id"] for row in page["data"]]
        cursor = {"cursor": page["next_cursor"]}
    assert page["next_cursor"] is None
    assert seen == expected
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("query", "code"),
    [
        pytest.param({"limit": "0"}, "invalid_limit", id="limit"),
        pytest.param({"limit": "1001"}, "invalid_limit", id="limit-too-large"),
        pytest.param({"limit": "abc"}, "invalid_limit", id="limit-not-a-number"),
        pytest.param({"offset": "-1"}, "invalid_offset", id="offset"),
        pytest.param({"offset": str(10**30)}, "invalid_offset", id="offset-huge"),
        pytest.param({"orderBy": "model"}, "invalid_order", id="order-by"),
        pytest.param({"orderBy": "message_count"}, "invalid_order", id="order-by-of-sessions"),
        pytest.param({"order": "UP"}, "invalid_order", id="order"),
        pytest.param({"stream": "yes"}, "invalid_stream", id="stream"),
        pytest.param({"stream": "True"}, "invalid_stream", id="stream-in-python"),
        pytest.param({"stream": ""}, "invalid_stream", id="stream-empty"),
        pytest.param({"status": "done"}, "invalid_status", id="status"),
        pytest.param({"status": ""}, "invalid_status", id="status-empty"),
        pytest.param({"api_key": "mine"}, "invalid_api_key_id", id="api-key"),
        pytest.param({"api_key": "0"}, "invalid_api_key_id", id="api-key-zero"),
        pytest.param({"api_key": str(2**63)}, "invalid_api_key_id", id="api-key-huge"),
        pytest.param({"session_id": "\0"}, "invalid_session_id", id="nul-in-session"),
        pytest.param({"model": "a\0"}, "invalid_model", id="nul-in-model"),
        pytest.param({"start_date": "x"}, "invalid_start_date", id="start"),
        pytest.param({"start_date": 2, "end_date": 1}, "invalid_date_range", id="range"),
        pytest.param({"cursor": "x"}, "invalid_cursor", id="cursor"),
        pytest.param({"cursor": "created_at~DESC~1~x"}, "invalid_cursor", id="cursor-id"),
        pytest.param({"cursor": f"id~DESC~~{2**63}"}, "invalid_cursor", id="cursor-too-large"),
    ],
)
def test_bad_values(records, query, code):
    assert records.error("/requests", **query) == (400, code)


def test_two_queries_and_no_bodies(records, api_key, django_assert_num_queries):
    system = make_blob(api_key, "system", [{"role": "system", "content": "Be brief."}])
    for _ in range(4):
        make_turn(make_session(api_key), request={"system": system})
    with django_assert_num_queries(2) as captured:
        assert len(records.get("/requests")["data"]) == 4
    sql = captured.captured_queries[1]["sql"]
    for column in ("content", "parameters", "upstream_request", "upstream_response", '"body"'):
        assert column not in sql


@pytest.mark.parametrize(
    ("condition", "order", "index"),
    [
        pytest.param({}, "created_at", "request_created", id="all"),
        pytest.param({"api_key": 1}, "created_at", "request_key_created", id="one-key"),
        pytest.param({"model": "m"}, "created_at", "request_model_created", id="model"),
        pytest.param(
            {"response__status": "failed"},
            "response__created_at",
            "response_status_created",
            id="status",
        ),
    ],
)
@pytest.mark.usefixtures("three_requests")
def test_the_newest_are_read_from_an_index_in_their_order(condition, order, index):
    order_id = "response__id" if order.startswith("response") else "id"
    rows = Request.objects.filter(**condition).order_by(f"-{order}", f"-{order_id}")
    plan = rows.values("id", order)[:51].explain()
    if "SEARCH" in plan or "SCAN" in plan:
        assert index in plan
        assert "TEMP B-TREE" not in plan

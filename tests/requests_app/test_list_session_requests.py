from __future__ import annotations

import pytest

from tests.factories import make_api_key, make_session, make_turn
from tests.records_api import RecordsClient

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.records_api")]


def test_the_requests_of_one_session_newest_first():
    session = make_session()
    request_ids = [make_turn(session, question).request.request_id for question in "ab"]
    make_turn(make_session(session.api_key))
    body = RecordsClient(session.api_key).get(f"/sessions/{session.id}/requests")
    assert [row["request_id"] for row in body["data"]] == request_ids[::-1]
    assert body["session_id"] == session.id
    assert (body["object"], body["total"], body["limit"], body["offset"]) == ("list", 2, 100, 0)
    assert (body["has_more"], body["next_cursor"]) == (False, None)


def test_pages_and_filters():
    session = make_session()
    for question in "abc":
        make_turn(session, question, answer=None if question == "b" else "ok")
    records = RecordsClient(session.api_key)
    url = f"/sessions/{session.id}/requests"
    page = records.get(url, limit=2)
    assert page["has_more"]
    assert len(records.get(url, limit=2, cursor=page["next_cursor"])["data"]) == 1
    assert records.get(url, status="failed")["total"] == 1
    assert records.error(url, limit="0") == (400, "invalid_limit")
    assert records.error(url, order="x") == (400, "invalid_order")


@pytest.mark.parametrize("scope", ["records", "admin"])
def test_another_keys_session(scope):
    session = make_session()
    make_turn(session)
    records = RecordsClient(make_api_key(), scope)
    if scope == "admin":
        assert records.get(f"/sessions/{session.id}/requests")["total"] == 1
    else:
        assert records.error(f"/sessions/{session.id}/requests") == (404, "session_not_found")


def test_no_such_session():
    records = RecordsClient(make_api_key())
    for session_id in ("nope", "a%00b"):
        assert records.error(f"/sessions/{session_id}/requests") == (404, "session_not_found")


def test_three_queries(django_assert_num_queries):
    session = make_session()
    make_turn(session)
    with django_assert_num_queries(3):
        RecordsClient(session.api_key).get(f"/sessions/{session.id}/requests")

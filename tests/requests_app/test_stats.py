from __future__ import annotations

import pytest

from tests.factories import make_api_key, make_session, make_turn
from tests.records_api import RecordsClient

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.records_api")]

NOTHING = {
    "total_responses": 0,
    "total_completion_tokens": 0,
    "total_prompt_tokens": 0,
    "total_tokens": 0,
    "avg_duration_ms": 0,
}
# Two whole answers of 1000 and 1501 ms and one that runs.
THREE = {
    "total_responses": 3,
    "total_completion_tokens": 14,
    "total_prompt_tokens": 22,
    "total_tokens": 36,
    "avg_duration_ms": 1250,
}


@pytest.fixture
def session():
    session = make_session()
    make_turn(session, "a", response={"duration_ms": 1000})
    make_turn(session, "b", response={"duration_ms": 1501})
    make_turn(session, "c", answer=None, response={"status": "in_progress"})
    make_turn(make_session())
    return session


def test_of_a_session(session):
    records = RecordsClient(session.api_key)
    detail = records.get(f"/sessions/{session.id}")
    assert records.get(f"/sessions/{session.id}/stats") == {
        "session_id": session.id,
        "message_count": 2,
        "created_at": detail["created_at"],
        "last_accessed": detail["last_accessed"],
        "usage": THREE,
    }


def test_of_an_empty_session():
    session = make_session()
    body = RecordsClient(session.api_key).get(f"/sessions/{session.id}/stats")
    assert body["usage"] == NOTHING
    assert all(type(value) is int for value in body["usage"].values())


def test_of_no_session():
    records = RecordsClient(make_api_key())
    assert records.error("/sessions/nope/stats") == (404, "session_not_found")


def test_of_another_keys_session(session):
    other = make_api_key()
    url = f"/sessions/{session.id}/stats"
    assert RecordsClient(other).error(url) == (404, "session_not_found")
    assert RecordsClient(other, "admin").get(url)["usage"] == THREE


@pytest.mark.parametrize("spelling", ["session_id", "sessionId"])
def test_of_the_responses_of_a_session(session, spelling):
    records = RecordsClient(session.api_key)
    expected = {"session_id": session.id, "statistics": THREE}
    assert records.get("/responses/stats", **{spelling: session.id}) == expected


def test_of_all_responses(session):
    records = RecordsClient(session.api_key)
    assert records.get("/responses/stats") == {"session_id": "all", "statistics": THREE}
    everything = RecordsClient(session.api_key, "admin").get("/responses/stats")
    assert everything["statistics"]["total_responses"] == 4


def test_what_a_key_may_not_see_counts_nothing(session):
    records = RecordsClient(make_api_key())
    assert records.get("/responses/stats")["statistics"] == NOTHING
    assert records.get("/responses/stats", session_id=session.id)["statistics"] == NOTHING


def test_two_spellings_that_differ(session):
    records = RecordsClient(session.api_key)
    query = {"session_id": session.id, "sessionId": session.id}
    assert records.get("/responses/stats", **query)["statistics"] == THREE
    query["sessionId"] = "other"
    assert records.error("/responses/stats", **query) == (400, "invalid_session_id")
    assert records.error("/responses/stats", session_id="\0") == (400, "invalid_session_id")


def test_one_query_each(session, django_assert_num_queries):
    records = RecordsClient(session.api_key)
    with django_assert_num_queries(1):
        records.get("/responses/stats")
    with django_assert_num_queries(2):
        records.get(f"/sessions/{session.id}/stats")

from __future__ import annotations

import pytest

from tests.factories import make_api_key, make_session, make_turn
from tests.records_api import RecordsClient

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.records_api")]

NOT_FOUND = (404, "session_not_found")


def test_the_same_object_as_in_the_list():
    session = make_session()
    make_turn(session)
    records = RecordsClient(session.api_key)
    detail = records.get(f"/sessions/{session.id}")
    assert detail == records.get("/sessions")["data"][0]
    assert detail["request_count"] == 1
    assert detail["first_user_message"] == "Hello"


def test_keys_see_their_own_and_admins_all():
    session = make_session()
    other = make_api_key()
    assert RecordsClient(other).error(f"/sessions/{session.id}") == NOT_FOUND
    assert RecordsClient(other, "admin").get(f"/sessions/{session.id}")["id"] == session.id


@pytest.mark.parametrize(
    "session_id",
    [
        pytest.param("nope", id="unknown"),
        pytest.param("a%00b", id="nul"),
        pytest.param("%F0%9F%98%80", id="emoji"),
        pytest.param("x" * 3000, id="long"),
        pytest.param("'%20OR%201=1--", id="sql"),
    ],
)
def test_an_unknown_id(session_id):
    assert RecordsClient(make_api_key()).error(f"/sessions/{session_id}") == NOT_FOUND


def test_three_queries(django_assert_num_queries):
    session = make_session()
    make_turn(session)
    # The session, the id of its first user message, that message's text.
    with django_assert_num_queries(3):
        RecordsClient(session.api_key).get(f"/sessions/{session.id}")

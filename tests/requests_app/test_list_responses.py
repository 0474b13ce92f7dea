from __future__ import annotations

import pytest

from tests.factories import make_api_key, make_session, make_turn
from tests.records_api import RecordsClient

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.records_api")]


@pytest.fixture
def api_key():
    return make_api_key()


@pytest.fixture
def records(api_key):
    return RecordsClient(api_key)


def test_newest_first_without_bodies(records, api_key):
    session = make_session(api_key)
    rows = [make_turn(session, question) for question in "abc"]
    body = records.get("/responses")
    assert [row["id"] for row in body["data"]] == [row.pk for row in rows[::-1]]
    assert (body["object"], body["total"], body["limit"], body["offset"]) == ("list", 3, 50, 0)
    detail = records.get(f"/responses/{rows[-1].pk}")
    for name in ("qwen_response", "openai_response", "request"):
        del detail[name]
    assert body["data"][0] == detail


def test_filters(records, api_key):
    first, second = make_session(api_key), make_session(api_key)
    whole = make_turn(first)
    failed = make_turn(second, answer=None)
    for query, expected in (
        ({"session_id": first.id}, [whole.pk]),
        ({"session_id": "nope"}, []),
        ({"status": "failed"}, [failed.pk]),
        ({"status": "failed", "session_id": first.id}, []),
        ({"order": "ASC"}, [whole.pk, failed.pk]),
        ({"orderBy": "id", "limit": 1}, [failed.pk]),
    ):
        assert [row["id"] for row in records.get("/responses", **query)["data"]] == expected


def test_keys_see_their_own_and_admins_all(records, api_key):
    make_turn(make_session())
    assert records.get("/responses")["total"] == 0
    assert RecordsClient(api_key, "admin").get("/responses")["total"] == 1


def test_cursor_pages(records, api_key):
    session = make_session(api_key)
    expected = [make_turn(session, question).pk for question in "abcde"][::-1]
    seen: list[int] = []
    cursor: dict[str, str] = {}
    while len(seen) < 5:
        page = records.get("/responses", limit=2, **cursor)
        seen += [row["id"] for row in page["data"]]
        cursor = {"cursor": page["next_cursor"]}
    assert seen == expected
    assert not page["has_more"]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        pytest.param({"limit": "-5"}, "invalid_limit", id="limit"),
        pytest.param({"offset": "x"}, "invalid_offset", id="offset"),
        pytest.param({"orderBy": "last_accessed"}, "invalid_order", id="order-by"),
        pytest.param({"status": "ok"}, "invalid_status", id="status"),
        pytest.param({"session_id": "\0"}, "invalid_session_id", id="nul"),
    ],
)
def test_bad_values(records, query, code):
    assert records.error("/responses", **query) == (400, code)


def test_two_queries_and_no_bodies(records, api_key, django_assert_num_queries):
    for _ in range(3):
        make_turn(make_session(api_key))
    with django_assert_num_queries(2) as captured:
        records.get("/responses")
    sql = captured.captured_queries[1]["sql"]
    for column in ('"content"', '"upstream_response"', '"reasoning"'):
        assert column not in sql

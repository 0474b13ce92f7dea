from __future__ import annotations

from datetime import timedelta

import pytest
from django.test.utils import CaptureQueriesContext

from sessions_app.models import Session
from tests.factories import (
    START,
    START_MS,
    make_api_key,
    make_chat,
    make_line,
    make_message,
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


def test_an_empty_list(records):
    assert records.get("/sessions") == {
        "object": "list",
        "data": [],
        "total": 0,
        "limit": 50,
        "offset": 0,
        "has_more": False,
        "next_cursor": None,
    }


def test_every_field(records, api_key):
    session = make_session(api_key, created_at=START, user_id="ann", external_id="ext", title="Hel")
    chat = make_chat(session)
    make_turn(
        session,
        "Hello\nthere",
        reply={"upstream_chat": chat, "upstream_id": "a1", "upstream_parent_id": "u1"},
    )
    Session.objects.update(last_accessed=START + timedelta(milliseconds=1501))
    assert records.get("/sessions")["data"] == [
        {
            "id": session.id,
            "chat_id": chat.chat_id,
            "parent_id": "u1",
            "message_count": 2,
            "request_count": 1,
            "first_user_message": "Hello\nthere",
            "title": "Hel",
            "user_id": "ann",
            "external_id": "ext",
            "api_key": api_key.pk,
            "created_at": START_MS,
            "last_accessed": START_MS + 1501,
            "expires_at": START_MS + 24 * 3600 * 1000,
            "content_removed_at": None,
            "pinned_at": None,
        }
    ]


def test_a_session_without_an_upstream_chat_has_no_chat_ids(records, api_key):
    make_turn(make_session(api_key))
    (row,) = records.get("/sessions")["data"]
    assert (row["chat_id"], row["parent_id"]) == (None, None)


@pytest.mark.parametrize(
    ("bodies", "text"),
    [
        pytest.param(
            [{"role": "user", "content": "  Grüße 你好\n"}], "  Grüße 你好\n", id="as-written"
        ),
        pytest.param(
            [{"role": "user", "content": "\0\ud800 x"}], "\0\ud800 x", id="odd-characters"
        ),
        pytest.param(
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is "},
                        {"type": "image_url", "image_url": {"url": "data:,"}},
                        {"type": "text", "text": "this?"},
                    ],
                }
            ],
            "What is this?",
            id="parts",
        ),
        pytest.param(
            [{"role": "assistant", "content": "Welcome"}, {"role": "user", "content": "Hi"}],
            "Hi",
            id="assistant-first",
        ),
        pytest.param([{"role": "assistant", "content": "Welcome"}], None, id="none"),
        pytest.param([{"role": "user", "content": "x" * 500}], "x" * 500, id="longer-than-a-title"),
    ],
)
def test_first_user_message(records, api_key, bodies, text):
    make_line(make_session(api_key, title="other"), *bodies)
    assert records.get("/sessions")["data"][0]["first_user_message"] == text


def test_the_first_user_message_is_the_one_that_came_first(records, api_key):
    session = make_session(api_key)
    for content in ("first", "edited"):
        make_message(session, {"role": "user", "content": content})
    assert records.get("/sessions")["data"][0]["first_user_message"] == "first"


def test_newest_first(records, api_key):
    ids = [make_session(api_key, created_at=START + timedelta(hours=n)).id for n in (1, 3, 2)]
    listed = [row["id"] for row in records.get("/sessions")["data"]]
    assert listed == [ids[1], ids[2], ids[0]]


def test_keys_see_their_own_and_admins_all(api_key):
    own, other = make_session(api_key), make_session()
    assert [r["id"] for r in RecordsClient(api_key).get("/sessions")["data"]] == [own.id]
    everything = RecordsClient(api_key, "admin").get("/sessions")
    assert {r["id"] for r in everything["data"]} == {own.id, other.id}
    assert everything["total"] == 2


@pytest.mark.parametrize(
    "order_by", ["created_at", "timestamp", "last_accessed", "message_count", "id"]
)
@pytest.mark.parametrize("order", ["ASC", "DESC"])
def test_cursor_pages_and_offset_pages_are_the_same(records, api_key, order_by, order):
    for number in range(7):
        moment = START + timedelta(hours=number // 3)
        make_session(api_key, created_at=moment, message_count=number // 2)
    query = {"orderBy": order_by, "order": order}
    expected = [row["id"] for row in records.get("/sessions", **query)["data"]]
    column = {"timestamp": "created_at"}.get(order_by, order_by)
    sign = "-" if order == "DESC" else ""
    assert expected == [s.id for s in Session.objects.order_by(sign + column, sign + "id")]

    by_offset, by_cursor, cursor = [], [], {}
    for offset in range(0, 8, 2):
        page = records.get("/sessions", limit=2, offset=offset, **query)
        assert page["has_more"] is (offset < 6)
        assert page["total"] == 7
        by_offset += [row["id"] for row in page["data"]]
        page = records.get("/sessions", limit=2, **cursor, **query)
        by_cursor += [row["id"] for row in page["data"]]
        cursor = {"cursor": page["next_cursor"]}
    assert page["next_cursor"] is None
    assert by_offset == by_cursor == expected


def test_nothing_is_lost_or_doubled_while_sessions_are_added(records, api_key):
    old = [make_session(api_key).id for _ in range(4)]
    page = records.get("/sessions", limit=2)
    make_session(api_key, created_at=START + timedelta(days=1))
    rest = records.get("/sessions", limit=2, cursor=page["next_cursor"])
    assert [row["id"] for row in page["data"] + rest["data"]] == old[::-1]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        pytest.param({"user_id": "ann"}, ["a"], id="user"),
        pytest.param({"user_id": ""}, [], id="empty-user-is-no-wildcard"),
        pytest.param({"model": "qwen3-coder"}, ["b"], id="model"),
        pytest.param({"model": "qwen3-coder", "user_id": "ann"}, [], id="combined"),
        pytest.param({"start_date": START_MS + 3600_000}, ["b"], id="start-inclusive"),
        pytest.param({"end_date": START_MS}, ["a"], id="end-inclusive-of-its-millisecond"),
        pytest.param({"end_date": START_MS - 1}, [], id="end"),
        pytest.param({"start_date": START_MS, "end_date": START_MS}, ["a"], id="one-millisecond"),
        pytest.param({"start_date": -(10**30), "end_date": 10**30}, ["b", "a"], id="beyond-dates"),
    ],
)
def test_filters(records, api_key, query, names):
    first = make_session(api_key, id="a", user_id="ann", created_at=START)
    second = make_session(api_key, id="b", created_at=START + timedelta(hours=1))
    make_turn(first)
    make_turn(second, request={"model": "qwen3-coder"})
    listed = records.get("/sessions", **query)
    assert [row["id"] for row in listed["data"]] == names
    assert listed["total"] == len(names)


def test_a_session_with_many_requests_for_a_model_is_listed_once(records, api_key):
    session = make_session(api_key)
    for question in "abc":
        make_turn(session, question)
    assert records.get("/sessions", model="qwen3-max")["total"] == 1


@pytest.mark.parametrize(
    "value", ["0", "-1", "1001", "", "ten", "1.5", "٣", "1_0", " 1", "9" * 5000]
)
def test_a_bad_limit(records, value):
    assert records.error("/sessions", limit=value) == (400, "invalid_limit")


@pytest.mark.parametrize("value", ["-1", "", "x", "1e3", "٣", str(2**63), "9" * 5000])
def test_a_bad_offset(records, value):
    assert records.error("/sessions", offset=value) == (400, "invalid_offset")


def test_the_largest_offset_is_an_empty_page(records, api_key):
    make_session(api_key)
    for offset in (2**31, 2**62, 2**63 - 2, 2**63 - 1):
        page = records.get("/sessions", offset=offset)
        assert (page["data"], page["offset"], page["has_more"]) == ([], offset, False)
        assert page["total"] == 1


@pytest.mark.parametrize(
    "query",
    [
        pytest.param({"orderBy": "title"}, id="other-column"),
        pytest.param({"orderBy": ""}, id="empty"),
        pytest.param({"orderBy": "created_at; DROP TABLE x"}, id="sql"),
        pytest.param({"orderBy": "api_key__secret_hash"}, id="relation"),
        pytest.param({"orderBy": "-created_at"}, id="sign"),
        pytest.param({"order": "sideways"}, id="direction"),
        pytest.param({"order": "desc"}, id="lower-case"),
        pytest.param({"order": ""}, id="empty-direction"),
    ],
)
def test_a_bad_order(records, query):
    assert records.error("/sessions", **query) == (400, "invalid_order")


@pytest.mark.parametrize(
    ("query", "code"),
    [
        pytest.param({"start_date": "2", "end_date": "1"}, "invalid_date_range", id="range"),
        pytest.param({"start_date": "yesterday"}, "invalid_start_date", id="start"),
        pytest.param({"end_date": "1.5"}, "invalid_end_date", id="end"),
        pytest.param({"end_date": "٣"}, "invalid_end_date", id="digits-of-another-script"),
        pytest.param({"user_id": "a\0b"}, "invalid_user_id", id="nul-in-user"),
        pytest.param({"model": "\0"}, "invalid_model", id="nul-in-model"),
    ],
)
def test_a_bad_filter(records, query, code):
    assert records.error("/sessions", **query) == (400, code)


@pytest.mark.parametrize(
    "cursor",
    [
        pytest.param("", id="empty"),
        pytest.param("created_at~DESC~", id="no-value"),
        pytest.param("created_at~DESC~1~", id="no-id"),
        pytest.param("created_at~DESC~~x", id="no-moment"),
        pytest.param("created_at~DESC~one~x", id="not-a-number"),
        pytest.param("created_at~DESC~9223372036854775807~x", id="beyond-dates"),
        pytest.param("created_at~DESC~99999999999999999999~x", id="beyond-integers"),
        pytest.param("created_at~DESC~1~x\0", id="nul"),
        pytest.param("created_at~ASC~1~x", id="other-direction"),
        pytest.param("id~DESC~~x", id="other-order"),
    ],
)
def test_a_bad_cursor(records, cursor):
    assert records.error("/sessions", cursor=cursor) == (400, "invalid_cursor")


def test_a_cursor_with_an_offset(records):
    query = {"cursor": "created_at~DESC~1~x", "offset": "1"}
    assert records.error("/sessions", **query) == (400, "invalid_cursor")


def test_four_queries_however_many_sessions(records, api_key, django_assert_num_queries):
    for _ in range(5):
        make_turn(make_session(api_key))
    # Number, page, ids of the first user messages, their texts.
    with django_assert_num_queries(4) as captured:
        assert len(records.get("/sessions")["data"]) == 5
    assert isinstance(captured, CaptureQueriesContext)
    page = captured.captured_queries[1]["sql"]
    assert '"content"' not in page


def test_totals_are_counted_no_further_than_ten_thousand(records, api_key, monkeypatch):
    monkeypatch.setattr("sessions_app.paging.MAX_TOTAL", 3)
    for _ in range(5):
        make_session(api_key)
    page = records.get("/sessions", limit=2)
    assert (page["total"], page["has_more"]) == (4, True)
    assert len(records.get("/sessions", limit=2, offset=4)["data"]) == 1

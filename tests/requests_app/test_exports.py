from __future__ import annotations

import csv
import io
import json
from datetime import timedelta

import pytest
from asgiref.sync import async_to_sync
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import RequestFactory
from django.urls import resolve
from django.utils import timezone

from qwenproxy.access.staff import EXPORTED
from qwenproxy.database import close_pool, run_in_db
from requests_app import exports
from requests_app.models import Request
from requests_app.records import RecordReader, load_request
from sessions_app import lines
from tests.factories import make_api_key, make_blob, make_session, make_turn
from tests.requests_app.ended import make_ended

pytestmark = pytest.mark.django_db(transaction=True)
REQUESTS, SESSIONS = "/admin/export/requests/", "/admin/export/sessions/"


@pytest.fixture(autouse=True)
def _pool():
    yield
    close_pool()


@pytest.fixture
def user():
    return User.objects.create_superuser("root", password="x")


def open_export(user, url, **query):
    """The response as the view makes it: the test client would close it on the event loop."""
    request = RequestFactory().get(url, query)
    request.user = user
    match = resolve(url)
    return match.func(request)


async def read(response, pieces=None):
    taken = []
    async for piece in response.streaming_content:
        taken.append(piece)
        if len(taken) == pieces:
            break
    return b"".join(taken).decode()


@pytest.fixture
def fetch(user):
    def run(url, **query):
        response = open_export(user, url, **query)
        text = async_to_sync(read)(response)
        # As Django's handler does, in a thread.
        response.close()
        return text

    return run


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def make_many(count, **fields):
    now = timezone.now()
    moments = [now - timedelta(minutes=1, seconds=number) for number in range(count)]
    return make_ended([make_session(make_api_key("=cmd()"))], moments, **fields)


@pytest.mark.parametrize(
    "query",
    [{}, {"span": "all"}, {"status": "failed"}, {"stream": "0"}, {"slower": "5"}, {"path": "/x"}],
    ids=lambda query: "-".join(query) or "default",
)
def test_an_export_is_what_the_list_shows(fetch, monkeypatch, query):
    monkeypatch.setattr(exports, "CHUNK_ROWS", 7)
    monkeypatch.setattr(exports, "_SCANNED_ROWS", 5)
    status = ["failed" if number % 3 == 0 else "completed" for number in range(30)]
    duration = [6000 if number % 4 == 0 else 100 for number in range(30)]
    rows = make_many(30, status=status, duration_ms=duration)
    expected = [
        row.request.request_id
        for row in rows
        if query.get("status") in (None, row.status)
        and (not query.get("slower") or row.duration_ms > 5000)
        and "path" not in query
    ]
    found = rows_of(fetch(REQUESTS, format="csv", **query))
    assert [row["request_id"] for row in found] == expected
    entry = LogEntry.objects.get()
    assert entry.action_flag == EXPORTED
    details = json.loads(entry.change_message)
    assert (details["rows"], details["is_whole"]) == (len(expected), True)
    assert details["filter"] == query


def test_cells_that_begin_a_formula_are_defused(fetch):
    make_many(1, model="-1+1\ufffd")
    row = rows_of(fetch(REQUESTS, format="csv"))[0]
    assert (row["api_key"], row["model"]) == ("'=cmd()", "'-1+1\ufffd")
    assert set(row) == set(exports.CSV_COLUMNS)


def test_lines_hold_both_bodies(fetch):
    session = make_session()
    now = timezone.now()
    texts = ["plain", "two\nlines", "<script>\ud800"]
    for number, text in enumerate(texts):
        make_turn(session, text, request={"created_at": now - timedelta(minutes=number + 1)})
    lines = [json.loads(line) for line in fetch(REQUESTS).splitlines()]
    assert [line["openai_request"]["messages"][-1]["content"] for line in lines] == texts
    assert lines[0]["response"]["openai_response"]["choices"][0]["message"]["content"] == "Hi!"
    chosen = Request.objects.order_by("id").first()
    lines = fetch(REQUESTS, ids=f"{chosen.pk},x,,{10**20}").splitlines()
    assert [json.loads(line)["id"] for line in lines] == [chosen.pk]


def test_sessions_are_lines_with_their_messages(fetch, monkeypatch):
    monkeypatch.setattr(exports, "_CHUNK_BODIES", 2)
    monkeypatch.setattr(exports, "_CHUNK_MESSAGES", 3)
    session = make_session(title="Plan")
    make_turn(session, "one")
    make_turn(session, "two")
    make_turn(make_session(), "else")
    lines = [json.loads(line) for line in fetch(SESSIONS).splitlines()]
    assert {line["id"] for line in lines} >= {session.pk}
    line = next(line for line in lines if line["id"] == session.pk)
    assert [m["message"]["content"] for m in line["messages"]] == ["one", "Hi!", "two", "Hi!"]
    assert len(fetch(SESSIONS, q=session.pk).splitlines()) == 1


def test_who_may_not_read_gets_counters_only(client, settings):
    user = User.objects.create_user("viewer", password="x", is_staff=True)
    client.force_login(user)
    assert client.get(REQUESTS, {"format": "csv"}).status_code == 403
    names = ["view_request", "view_session"]
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    assert client.get(REQUESTS, {"format": "csv"}).status_code == 200
    assert client.get(REQUESTS).status_code == 403
    assert client.get(SESSIONS).status_code == 403
    assert client.get(REQUESTS, {"format": "xml"}).status_code == 404
    user.user_permissions.add(Permission.objects.get(codename="view_payload"))
    settings.PAYLOADS = "off"
    assert client.get(REQUESTS).status_code == 403


def test_only_failed_requests_have_bodies_where_the_others_are_hidden(fetch, settings):
    settings.PAYLOADS = "errors"
    session, now = make_session(), timezone.now()
    make_turn(session, "fine", request={"created_at": now - timedelta(minutes=1)})
    make_turn(session, "broken", None, request={"created_at": now - timedelta(minutes=2)})
    text = fetch(REQUESTS)
    assert "broken" in text
    assert "fine" not in text


def test_a_client_that_leaves_ends_it(user, monkeypatch):
    monkeypatch.setattr(exports, "CHUNK_ROWS", 10)
    monkeypatch.setattr(exports, "_PIECE_BYTES", 1500)
    make_many(30)
    response = open_export(user, REQUESTS, format="csv")
    text = async_to_sync(read)(response, 1)
    response.close()
    # The head of the table and the first chunk.
    assert len(rows_of(text)) == 10
    details = json.loads(LogEntry.objects.get().change_message)
    assert (details["rows"], details["is_whole"]) == (10, False)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_rows_that_come_meanwhile_move_no_other(user, monkeypatch, form):
    monkeypatch.setattr(exports, "CHUNK_ROWS", 4)
    monkeypatch.setattr(exports, "_CHUNK_BODIES", 3)
    monkeypatch.setattr(exports, "_PIECE_BYTES", 1)
    expected = [row.request.request_id for row in make_many(30)]

    async def read_slowly(response):
        pieces = []
        async for piece in response.streaming_content:
            pieces.append(piece)
            # Newer than all, as they come (the table's head stands before its rows), and one that goes.
            if len(pieces) > 1:
                await run_in_db(make_many, 1)
            if len(pieces) == 3:
                gone = Request.objects.filter(request_id=expected[20])
                await run_in_db(gone.delete)
        return b"".join(pieces).decode()

    response = open_export(user, REQUESTS, format=form)
    text = async_to_sync(read_slowly)(response)
    response.close()
    rows = rows_of(text) if form == "csv" else [json.loads(line) for line in text.splitlines()]
    assert [row["request_id"] for row in rows] == expected[:20] + expected[21:]


def test_lines_are_what_each_request_is_alone(fetch, monkeypatch):
    monkeypatch.setattr(lines, "MAX_CHARS", 40)
    monkeypatch.setattr(lines, "_BATCH_MESSAGES", 3)
    sessions = [make_session(make_api_key(f"key {number}")) for number in range(3)]
    line = dict.fromkeys(sessions)
    for number in range(12):
        session = sessions[number % 3]
        blob = make_blob(session.api_key, "system", [{"role": "system", "content": f"s{number}"}])
        response = make_turn(
            session,
            f"question {number}",
            None if number == 7 else f"answer {number}",
            parent=line[session],
            request={
                "system": blob if number % 2 else None,
                "created_at": timezone.now() - timedelta(minutes=number + 1),
            },
        )
        # One of them forks.
        line[session] = response.reply if number != 4 else line[session]
    expected = [load_request(row.pk) for row in Request.objects.order_by("-created_at")]
    assert [json.loads(line) for line in fetch(REQUESTS).splitlines()] == expected
    assert max(len(one["openai_request"]["messages"]) for one in expected) == 8


def test_requests_of_one_session_cost_no_query_each(django_assert_max_num_queries):
    session = make_session()
    line = None
    for number in range(40):
        line = make_turn(session, f"{number}", parent=line).reply
    pks = list(Request.objects.order_by("-id").values_list("pk", flat=True))
    with django_assert_max_num_queries(5):
        assert len(list(RecordReader().read(pks))) == 40


def test_a_filter_that_nothing_matches_is_cut_into_calls(user, monkeypatch):
    monkeypatch.setattr(exports, "_SCANNED_ROWS", 5)
    monkeypatch.setattr(exports, "_PIECE_S", 0)
    make_many(30)
    calls = []
    response = open_export(user, REQUESTS, format="jsonl", span="all", path="/x")
    take = exports.Export._next
    monkeypatch.setattr(exports.Export, "_next", lambda self: calls.append(take(self)) or calls[-1])
    assert async_to_sync(read)(response) == ""
    response.close()
    assert len(calls) > 6

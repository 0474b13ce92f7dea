from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from requests_app import live
from requests_app.models import Response
from tests.factories import make_api_key, make_request, make_response, make_session, make_turn

pytestmark = pytest.mark.django_db


def rows(client, **query):
    response = client.get(reverse("admin:live_rows"), query)
    assert response.status_code == 200
    return response.json()


def ids(answer):
    return [row["id"] for row in answer["rows"]]


def make_rows(count, session=None, **fields):
    session = session or make_session()
    response = {
        name: fields.pop(name) for name in ("status", "error_code", "ttft_ms") if name in fields
    }
    made = [make_request(session, **fields) for _ in range(count)]
    for row in made:
        make_response(row, **response)
    return [row.pk for row in made]


@pytest.fixture
def viewer(client):
    user = User.objects.create_user("viewer", password="x", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_request"))
    client.force_login(user)
    return client


def test_it_begins_with_the_newest_and_goes_on_from_there(viewer):
    made = make_rows(live.FIRST_ROWS + 3)
    answer = rows(viewer)
    assert ids(answer) == made[:2:-1]
    assert answer["newest"] == made[-1]
    assert ids(rows(viewer, after=answer["newest"])) == []
    later = make_rows(2)
    assert ids(rows(viewer, after=answer["newest"])) == later[::-1]


def test_an_empty_record(viewer):
    assert rows(viewer) == {"rows": [], "newest": 0, "complete_from": 0}


def test_a_row_says_what_lists_say_and_nothing_that_was_said(viewer, settings):
    settings.REPORTING_ZONE = ZoneInfo("Asia/Kolkata")
    session = make_session(make_api_key("<b>agent"), title="secret title")
    response_row = make_turn(
        session,
        "secret question",
        None,
        request={"created_at": datetime(2026, 11, 1, 20, 0, 0, 5000, tzinfo=UTC)},
        response={"ttft_ms": 40, "prompt_tokens": 1234, "error_message": "secret error"},
    )
    (row,) = rows(viewer)["rows"]
    request_row = response_row.request
    assert row == {
        "id": request_row.pk,
        "time": "11-02 01:30",
        "full": "2026-11-02 01:30:00",
        "exact": "2026-11-01T20:00:00.005Z",
        "request": request_row.request_id[:12],
        "session": session.pk,
        "key": "<b>agent",
        "model": "qwen3-max",
        "status": "failed",
        "error": "upstream_error",
        "first_token": "40 ms",
        "total": "1.5 s",
        "tokens_in": "1,234",
        "tokens_out": "0",
    }


def test_of_this_day_the_time_alone_is_told(viewer):
    make_rows(1, created_at=datetime.now(UTC))
    assert re.fullmatch(r"\d\d:\d\d:\d\d", rows(viewer)["rows"][0]["time"])


def test_running_requests_tell_their_age_and_are_read_again_until_they_end(viewer):
    began = datetime.now(UTC) - timedelta(seconds=90)
    (running,) = make_rows(1, status="in_progress", created_at=began)
    (row,) = rows(viewer)["rows"]
    assert row["status"] == "in_progress"
    assert 90 <= float(row["total"].removesuffix(" s")) < 100
    Response.objects.filter(request=running).update(status="completed", duration_ms=91_000)
    (row,) = rows(viewer, after=running, ids=running)["rows"]
    assert (row["status"], row["total"]) == ("completed", "91.0 s")


def test_what_is_new_and_watched_at_once_comes_once(viewer):
    made = make_rows(3, status="in_progress")
    answer = rows(viewer, after=made[0], ids=",".join(map(str, made)))
    assert sorted(ids(answer)) == made


def test_more_than_fit_are_told_by_where_the_rows_are_complete_from(viewer, monkeypatch):
    monkeypatch.setattr(live, "MAX_ROWS", 5)
    made = make_rows(9)
    answer = rows(viewer, after=made[0])
    assert ids(answer) == made[:-6:-1]
    assert answer["complete_from"] == made[4]
    assert rows(viewer, after=made[3])["complete_from"] == made[3]


def test_no_more_than_so_many_are_searched_for_a_filter(viewer, monkeypatch):
    monkeypatch.setattr(live, "_SEARCHED", 4)
    make_rows(1, model="rare")
    made = make_rows(4)
    assert rows(viewer, model="rare", after=1) == {
        "rows": [],
        "newest": made[-1],
        "complete_from": made[-1] - 4,
    }


def test_filters_are_those_of_the_list_of_requests(viewer):
    session = make_session()
    ours = make_rows(1, session, model="通义")
    failed = make_rows(1, status="failed", error_code="upstream_error")
    running = make_rows(1, status="in_progress")
    assert ids(rows(viewer, model="通义")) == ours
    assert ids(rows(viewer, key=session.api_key_id)) == ours
    # What runs may end so: the page waits for it.
    assert ids(rows(viewer, status="failed")) == running + failed
    assert ids(rows(viewer, status="in_progress")) == running
    assert ids(rows(viewer, status="failed", model="通义")) == []


@pytest.mark.parametrize(
    "query",
    [
        {"after": "x"},
        {"after": "9" * 30, "ids": "9" * 30},
        {"after": "-1", "ids": "1,,x,\0,٣"},
        {"ids": "1," * 100_000},
        {"key": "1 OR 1=1", "status": "done", "model": ""},
        {"after": "1.5", "key": "9" * 19},
    ],
)
def test_what_cannot_be_meant_is_left_out(viewer, query):
    made = make_rows(2)
    assert sorted(ids(rows(viewer, **query))) == made


def test_a_model_that_no_database_can_be_asked_for_is_not_there(viewer):
    make_rows(1)
    assert ids(rows(viewer, model="a\0b")) == []


def test_a_tick_costs_the_same_whatever_there_is(admin_client):
    make_rows(20)
    running = make_rows(20, status="in_progress")
    query = {"after": 1, "ids": ",".join(map(str, running[:10]))}
    rows(admin_client, **query)
    with CaptureQueriesContext(
        connection,
    ) as queries:
        rows(admin_client, **query)
    own = [one["sql"] for one in queries if "requests_app_request" in one["sql"]]
    assert len(own) == 2
    # Beside them, who is asking.
    assert len(queries) == 4
    assert not [sql for sql in own if "content" in sql or "parameters" in sql]


def test_watched_rows_beyond_the_new_ones_cost_one_query_more(admin_client):
    running = make_rows(20, status="in_progress")
    with CaptureQueriesContext(connection) as queries:
        assert (
            len(rows(admin_client, after=running[-1], ids=",".join(map(str, running)))["rows"])
            == 20
        )
    assert len(queries) == 5


def test_answers_are_not_kept(viewer):
    response = viewer.get(reverse("admin:live_rows"))
    assert "no-store" in response.headers["Cache-Control"]


@pytest.mark.parametrize("name", ["live", "live_rows"])
def test_they_are_for_those_who_may_see_requests(client, name):
    url = reverse(f"admin:{name}")
    assert client.get(url).status_code == 302
    client.force_login(User.objects.create_user("staff", password="x", is_staff=True))
    assert client.get(url).status_code == 403


def test_the_page_hands_its_filter_on(viewer):
    api_key = make_api_key("agent <i>")
    make_api_key("gone", revoked_at=datetime.now(UTC))
    response = viewer.get(
        reverse("admin:live"), {"key": api_key.pk, "status": "failed", "model": '"><script>x'}
    )
    text = response.content.decode()
    assert response.status_code == 200
    assert f'<option value="{api_key.pk}" selected>agent &lt;i&gt;</option>' in text
    assert "gone" not in text
    assert "<script>x" not in text
    assert response.context["config"]["params"] == {
        "status": "failed",
        "key": str(api_key.pk),
        "model": '"><script>x',
    }


def test_the_page_costs_the_same_whatever_there_is(admin_client):
    make_rows(3)
    url = reverse("admin:live")
    admin_client.get(url)
    with CaptureQueriesContext(connection) as few:
        admin_client.get(url)
    for _ in range(5):
        make_rows(3, make_session())
    with CaptureQueriesContext(connection) as many:
        admin_client.get(url)
    assert len(few) == len(many) <= 8


def test_overlap_covers_what_may_be_committed_late(viewer, settings):
    settings.RECORDER_DEADLINE_S = 15
    config = viewer.get(reverse("admin:live")).context["config"]
    assert SimpleNamespace(**config).overlap_ms == 20_000

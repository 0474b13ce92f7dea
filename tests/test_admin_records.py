from __future__ import annotations

import re
from datetime import timedelta
from urllib.parse import urlencode

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.urls import reverse

from qwenproxy.wire import json
from requests_app.models import Request, Response
from sessions_app.models import Message, Session
from tests.factories import (
    START,
    make_account,
    make_api_key,
    make_blob,
    make_line,
    make_message,
    make_session,
    make_turn,
)

pytestmark = pytest.mark.django_db

HOSTILE = '<script>document.title="owned"</script><img src=x onerror=alert(1)>'
SESSIONS = "/admin/sessions_app/session/"
REQUESTS = "/admin/requests_app/request/"
RESPONSES = "/admin/requests_app/response/"
PAYLOADS = (
    '"content"',
    '"parameters"',
    '"upstream_request"',
    '"upstream_response"',
    '"reasoning"',
    '"attempts"',
    '"body"',
)


@pytest.fixture
def staff_client(client):
    """A client of a staff user who may view sessions, requests and responses, and no more."""
    user = User.objects.create_user("staff", password="x", is_staff=True)
    codenames = ["view_session", "view_request", "view_response"]
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client.force_login(user)
    return client


def page(client, url, **query):
    response = client.get(url, query)
    assert response.status_code == 200
    return response.content.decode()


def listed(client, url, **query):
    """The primary keys that a list of all time links to, in their order."""
    text = page(client, url, **{"span": "all", **query})
    table = text[text.index('id="result_list"') :] if 'id="result_list"' in text else ""
    ids = re.findall(rf'href="{url}([^/"]+)/change/', table)
    return list(dict.fromkeys(ids))


def test_lists_are_newest_first(admin_client):
    rows = [make_turn(make_session()) for _ in range(3)]
    assert listed(admin_client, REQUESTS) == [str(row.request_id) for row in rows[::-1]]
    Session.objects.filter(pk=rows[0].session_id).update(last_accessed=START + timedelta(days=999))
    assert listed(admin_client, SESSIONS)[0].replace("_2D", "-") == rows[0].session_id


@pytest.mark.parametrize("url", [SESSIONS, REQUESTS])
def test_lists_load_no_texts_and_a_fixed_number_of_queries(
    admin_client, url, django_assert_max_num_queries
):
    api_key = make_api_key()
    blob = make_blob(api_key, "system", [{"role": "system", "content": "x"}])
    for _ in range(5):
        make_turn(make_session(api_key), request={"system": blob})
    # Login session and user, the page, the number, the chips' menus, and for sessions what they amount
    # to; PostgreSQL has a transaction with a time limit besides, within a test's a savepoint.
    with django_assert_max_num_queries(6 if connection.vendor == "sqlite" else 10) as captured:
        page(admin_client, url, span="all")
    for query in captured.captured_queries:
        assert not any(column in query["sql"] for column in PAYLOADS), query["sql"]
    sqls = [query["sql"] for query in captured.captured_queries]
    counts = [sql for sql in sqls if "COUNT(" in sql and "GROUP BY" not in sql]
    assert counts
    assert all("LIMIT 10001" in sql for sql in counts)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "url",
    [
        f"{REQUESTS}?span=24h",
        f"{REQUESTS}?status=failed",
        f"{SESSIONS}?span=all",
        f"{SESSIONS}?key=1",
    ],
)
def test_lists_cost_no_more_than_their_budget(admin_client, url, django_assert_max_num_queries):
    # Not within a test's transaction: as they are served.
    for _ in range(3):
        make_turn(make_session())
    page(admin_client, url)
    with django_assert_max_num_queries(8):
        page(admin_client, url)


@pytest.mark.parametrize("query", [{}, {"status": "completed"}], ids=["all", "by-status"])
def test_pages_are_cut_by_keyset(admin_client, monkeypatch, query):
    monkeypatch.setattr("requests_app.admin.RequestAdmin.list_per_page", 2)
    session = make_session()
    rows = [make_turn(session, str(n), request={"created_at": START}) for n in range(5)]
    expected = [str(row.request_id) for row in rows[::-1]]
    seen, url = [], f"{REQUESTS}?{urlencode({'span': 'all', **query})}"
    pages = []
    while url:
        text = page(admin_client, url)
        pages.append(url)
        seen += list(dict.fromkeys(re.findall(rf'href="{REQUESTS}(\d+)/change/', text)))
        older = re.search(r'rel="next" href="([^"]+)"', text)
        url = REQUESTS + older[1].replace("&amp;", "&") if older else None
        assert "5 requests" in text
    assert seen == expected
    assert all("OFFSET" not in url for url in pages)

    newer = re.search(r'rel="prev" href="([^"]+)"', text)
    assert newer
    back = page(admin_client, REQUESTS + newer[1].replace("&amp;", "&"))
    assert list(dict.fromkeys(re.findall(rf'href="{REQUESTS}(\d+)/change/', back))) == expected[2:4]


@pytest.mark.parametrize("text", ["", "x", "1", "1~x", "99999999999999999999~1", "~", "1~1~1"])
@pytest.mark.parametrize("name", ["older", "newer"])
def test_a_broken_link_shows_the_first_page(admin_client, name, text):
    row = make_turn(make_session())
    assert listed(admin_client, REQUESTS, **{name: text}) == [str(row.request_id)]


def test_filters(admin_client):
    old = make_turn(make_session(), answer=None)
    api_key = old.api_key_id
    make_turn(make_session(), request={"created_at": START})
    for query, expected in (
        ({"status": "failed"}, [str(old.request_id)]),
        ({"status": "cancelled"}, []),
        ({"status": "unheard-of"}, []),
        ({"key": api_key}, [str(old.request_id)]),
        ({"session": old.session_id}, [str(old.request_id)]),
        ({"span": "24h", "status": "failed"}, []),
    ):
        assert listed(admin_client, REQUESTS, **query) == expected


def test_search_is_for_ids_from_their_beginning(admin_client):
    session = make_session(id="0a1b2c3d-0000-4000-8000-000000000000")
    row = make_turn(session, request={"request_id": "req_abcdef"})
    Response.objects.update(response_id="chatcmpl-abcdef")
    make_turn(make_session())
    for url, term, expected in (
        (SESSIONS, "0a1b2c3d", ["0a1b2c3d-0000-4000-8000-000000000000"]),
        (SESSIONS, "a1b", []),
        (REQUESTS, "req_abc", [str(row.request_id)]),
        (REQUESTS, "chatcmpl-abc", [str(row.request_id)]),
        (REQUESTS, "abcdef", []),
        (REQUESTS, "re", listed(admin_client, REQUESTS)),
        (REQUESTS, "%", []),
    ):
        found = [pk.replace("_2D", "-") for pk in listed(admin_client, url, q=term)]
        assert found == expected, term


@pytest.mark.parametrize("model", ["session", "request", "response"])
def test_records_are_read_only(admin_client, model):
    row = make_turn(make_session())
    app = "sessions_app" if model == "session" else "requests_app"
    pk = {"session": row.session_id, "request": row.request_id, "response": row.pk}[model]
    assert admin_client.get(f"/admin/{app}/{model}/add/").status_code == 403
    url = reverse(f"admin:{app}_{model}_delete", args=[pk])
    assert admin_client.get(url).status_code == (200 if model == "session" else 403)
    before = list(Request.objects.values()), list(Response.objects.values())
    admin_client.post(reverse(f"admin:{app}_{model}_change", args=[pk]), {"title": "x"})
    assert (list(Request.objects.values()), list(Response.objects.values())) == before


def test_a_conversation(admin_client):
    api_key = make_api_key("notebook")
    session = make_session(api_key, title=HOSTILE, user_id=HOSTILE, external_id=HOSTILE)
    system = make_blob(api_key, "system", [{"role": "system", "content": "Be brief."}])
    tools = make_blob(api_key, "tools", [{"type": "function", "function": {"name": "look"}}])
    first = make_turn(session, HOSTILE, "fine \ud800", response={"reasoning": "Let me think."})
    call = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": HOSTILE, "arguments": '{"n":1}'}}
        ],
    }
    parts = [{"type": "text", "text": "and this"}, {"type": "image_url", "image_url": {"url": "x"}}]
    line = make_line(
        session,
        {"role": "user", "content": parts},
        call,
        {"role": "tool", "content": "tool result", "tool_call_id": "c"},
        parent=first.reply,
    )
    make_turn(session, "why?", None, parent=line, response={"error_message": f"broken {HOSTILE}"})
    make_turn(session, "last", parent=line, request={"system": system, "tools": tools})
    text = page(admin_client, reverse("admin:sessions_app_session_change", args=[session.pk]))
    assert "<script>document" not in text
    assert "<img src=x" not in text
    assert "&lt;script&gt;document.title=&quot;owned&quot;" in text
    for expected in ("Be brief.", "1 tool offered", "Let me think.", "and this", "image_url"):
        assert expected in text
    for expected in ("tool result", "&quot;n&quot;: 1", "fine �", "notebook", "branch 2/2"):
        assert expected in text
    # The failed call is on the other line.
    assert "broken" not in text
    other = re.search(r'href="\?leaf=(\d+)&amp;from=0#m\d+" aria-label="Branch before"', text)
    assert other
    url = reverse("admin:sessions_app_session_change", args=[session.pk])
    assert "broken" in page(admin_client, url, leaf=other[1])


def test_a_conversation_with_nothing_in_it(admin_client):
    session = make_session()
    url = reverse("admin:sessions_app_session_change", args=[session.pk])
    assert "No message is recorded." in page(admin_client, url)


def test_a_leaf_of_another_session_is_not_shown(admin_client):
    session = make_session()
    make_turn(session, "mine")
    foreign = make_message(make_session(), {"role": "user", "content": "foreign"})
    url = reverse("admin:sessions_app_session_change", args=[session.pk])
    for leaf in (foreign.pk, 10**18, "x", "٣"):
        text = page(admin_client, url, leaf=leaf)
        assert "mine" in text
        assert "foreign" not in text


def test_a_long_conversation_comes_in_parts(admin_client, django_assert_max_num_queries):
    session = make_session()
    leaf = make_line(session, *({"role": "user", "content": f"m{n:03}m"} for n in range(230)))
    Session.objects.update(last_reply=leaf)
    url = reverse("admin:sessions_app_session_change", args=[session.pk])
    with django_assert_max_num_queries(12):
        text = page(admin_client, url)
    assert "m099m" in text
    assert "m100m" not in text
    assert "Messages 1 to 100 of 230" in text
    text = page(admin_client, url, leaf=leaf.pk)
    assert "m229m" in text
    assert "m199m" not in text
    assert 'rel="next"' not in text


def test_long_texts_are_cut_until_asked_for(admin_client):
    session = make_session()
    make_turn(session, "x" * 70_000 + "THE-END")
    url = reverse("admin:sessions_app_session_change", args=[session.pk])
    text = page(admin_client, url)
    assert "THE-END" not in text
    shown = re.search(r'href="\?([^"#]+)#[^"]+">show all \(70.0 kB\)', text)
    assert shown
    assert "THE-END" in page(admin_client, url + "?" + shown[1].replace("&amp;", "&"))
    request_url = reverse("admin:requests_app_request_change", args=[Request.objects.get().pk])
    text = page(admin_client, request_url)
    assert "THE-END" not in text
    assert "Show all (" in text
    assert "THE-END" in page(admin_client, request_url, full=1)


def test_the_bodies_of_a_request(admin_client, django_assert_max_num_queries):
    session = make_session()
    attempts = [{"account": "first", "started": 1, "ms": 5, "cause": f"timeout {HOSTILE}"}]
    row = make_turn(
        session,
        f"{HOSTILE} \ud800\0",
        request={"account": make_account("house"), "attempts": json.dumps_text(attempts)},
        response={"upstream_response": '{"response_id":"r1"}'},
    )
    url = reverse("admin:requests_app_request_change", args=[row.request_id])
    # Login session and user, the row and its key, what REST reads (row, line, response), the reply, and
    # the audit log: content type, whether it is there, the entry.
    with django_assert_max_num_queries(11):
        text = page(admin_client, url)
    assert "<script>document" not in text
    for expected in ('id="openai_request"', 'id="qwen_response"', "house", "timeout &lt;script"):
        assert expected in text
    assert "Nothing was sent to an upstream." in text
    assert "\\ud800" in text
    assert row.response_id in text


def test_a_responses_page_is_its_requests(admin_client):
    row = make_turn(make_session())
    response = admin_client.get(reverse("admin:requests_app_response_change", args=[row.pk]))
    assert response.url == reverse("admin:requests_app_request_change", args=[row.request_id])
    assert admin_client.get(RESPONSES).url == REQUESTS


@pytest.mark.parametrize("url", [SESSIONS, REQUESTS, RESPONSES])
@pytest.mark.parametrize("pk", ["nope", "0", str(2**63), "a%00b"])
def test_a_row_that_is_not_there(admin_client, url, pk):
    assert admin_client.get(f"{url}{pk}/change/").status_code == 404


def test_a_session_is_deleted_with_all_that_hangs_on_it(admin_client):
    kept = make_turn(make_session())
    session = make_turn(make_session(title=HOSTILE)).session
    url = reverse("admin:sessions_app_session_delete", args=[session.pk])
    text = page(admin_client, url)
    assert "<script>document" not in text
    assert "Requests with their responses: 1" in text
    assert admin_client.post(url, {"post": "yes"}).status_code == 302
    assert [row.pk for row in Response.objects.all()] == [kept.pk]
    assert Message.objects.count() == 2


def test_several_sessions_are_deleted_together(admin_client):
    sessions = [make_turn(make_session()).session for _ in range(3)]
    chosen = {"action": "delete_selected", "_selected_action": [s.pk for s in sessions[:2]]}
    assert "Are you sure" in admin_client.post(SESSIONS, chosen).content.decode()
    admin_client.post(SESSIONS, {**chosen, "post": "yes"})
    assert [session.pk for session in Session.objects.all()] == [sessions[2].pk]
    assert Request.objects.count() == 1


def test_who_may_view_may_not_delete(staff_client):
    session = make_turn(make_session()).session
    assert listed(staff_client, SESSIONS)
    url = reverse("admin:sessions_app_session_change", args=[session.pk])
    assert "Delete this session" not in page(staff_client, url)
    delete_url = reverse("admin:sessions_app_session_delete", args=[session.pk])
    assert staff_client.post(delete_url, {"post": "yes"}).status_code == 403
    chosen = {"action": "delete_selected", "_selected_action": [session.pk], "post": "yes"}
    staff_client.post(SESSIONS, chosen)
    assert Session.objects.exists()


def test_staff_without_permissions_see_nothing(client):
    client.force_login(User.objects.create_user("staff", password="x", is_staff=True))
    row = make_turn(make_session())
    for url in (
        SESSIONS,
        REQUESTS,
        RESPONSES,
        reverse("admin:sessions_app_session_change", args=[row.session_id]),
        reverse("admin:requests_app_request_change", args=[row.request_id]),
        reverse("admin:requests_app_response_change", args=[row.pk]),
    ):
        assert client.get(url).status_code == 403

"""The audit log in the browser: who did what, in words, without a way to change it."""

from __future__ import annotations

import json

import pytest
from django.contrib import admin
from django.contrib.admin.models import ADDITION, DELETION, LogEntry
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from qwenproxy.access import staff
from qwenproxy.access.models import ApiKey
from requests_app.models import Request, Response
from sessions_app.models import Session
from tests.factories import make_api_key, make_session

pytestmark = pytest.mark.django_db

AUDIT = "/admin/admin/logentry/"
OWN = {Session, Request, Response, LogEntry}


def log(user, target, action=staff.VIEWED, message="", **fields):
    row = None if isinstance(target, type) else target
    return LogEntry.objects.create(
        user=user,
        content_type=ContentType.objects.get_for_model(target),
        object_id=None if row is None else str(row.pk),
        object_repr="" if row is None else str(row)[:200],
        action_flag=action,
        change_message=message,
        **fields,
    )


def page_of(client, **query):
    response = client.get(AUDIT, query)
    assert response.status_code == 200
    return response.content.decode()


@pytest.fixture
def root(admin_user):
    return admin_user


@pytest.mark.parametrize(
    ("action", "message", "shown"),
    [
        pytest.param(ADDITION, '[{"added": {}}]', ">added<", id="added"),
        pytest.param(
            2, json.dumps([{"changed": {"fields": ["Name"]}}]), "Changed Name.", id="changed"
        ),
        pytest.param(2, "Rotated.", "Rotated.", id="text"),
        pytest.param(DELETION, "", ">deleted<", id="deleted"),
        pytest.param(staff.VIEWED, "", ">viewed<", id="viewed"),
        pytest.param(
            staff.EXPORTED,
            json.dumps({"rows": 3, "filter": {"span": "24h"}}),
            "rows: 3, filter span: 24h",
            id="exported",
        ),
        pytest.param(9, "[1", "action 9", id="unknown"),
        pytest.param(2, "[[]]", ">changed<", id="other JSON"),
        pytest.param(2, '[{"changed": {"fields": 3}}]', ">changed<", id="other form"),
        pytest.param(2, "7", ">changed<", id="number"),
    ],
)
def test_it_tells_in_words_what_was_done(admin_client, root, action, message, shown):
    row = make_api_key("the-key")
    log(root, row, action, message)
    page = page_of(admin_client)
    assert shown in page
    assert root.username in page
    assert "the-key" in page
    url = reverse("admin:access_apikey_change", args=[row.pk])
    assert (f'href="{url}"' in page) == (action != DELETION)


def test_what_has_no_page_is_named_without_a_link(admin_client, root):
    kind = ContentType.objects.create(app_label="gone", model="thing")
    log(root, Request, staff.EXPORTED)
    LogEntry.objects.create(
        user=root, content_type=kind, object_id="1", object_repr="a <b>", action_flag=2
    )
    LogEntry.objects.create(user=root, object_repr="\u202eold", action_flag=2)
    page = page_of(admin_client)
    assert "a list" in page
    assert "thing" in page
    assert "a &lt;b&gt;" in page


def test_it_is_filtered_by_user_action_and_time(admin_client, root):
    other = User.objects.create_user("other", is_staff=True)
    row = make_session(title="first title")
    log(other, row, staff.VIEWED)
    log(root, make_api_key("later-key"), staff.EXPORTED)
    old = log(root, make_api_key("old-key"), ADDITION)
    LogEntry.objects.filter(pk=old.pk).update(
        action_time=timezone.now() - timezone.timedelta(days=9)
    )
    assert "later-key" not in page_of(admin_client, user=other.pk)
    assert row.pk in page_of(admin_client, user=other.pk)
    assert "later-key" in page_of(admin_client, action="exported")
    assert "old-key" not in page_of(admin_client, action="exported")
    assert "old-key" in page_of(admin_client)
    assert "old-key" not in page_of(admin_client, span="7d")


@pytest.mark.parametrize(
    "query",
    [
        {"user": "x"},
        {"user": "9" * 30},
        {"user": "\0"},
        {"action": "no"},
        {"span": "no"},
        {"older": "x"},
        {"older": "1~"},
        {"newer": "9" * 40 + "~1"},
    ],
)
def test_a_forged_address_is_never_an_error(admin_client, root, query):
    log(root, make_api_key())
    page_of(admin_client, **query)


def test_it_is_read_by_keyset_newest_first_with_the_same_queries_at_any_length(admin_client, root):
    key = make_api_key()

    def queries():
        with CaptureQueriesContext(connection) as captured:
            page = page_of(admin_client)
        return len(captured), page

    log(root, key, message="number 0")
    few, _ = queries()
    for number in range(1, 60):
        log(root, key if number % 2 else make_session(), message=f"number {number}")
    many, page = queries()
    assert many == few <= 10
    assert page.index("number 59<") < page.index("number 10<")
    assert "number 9<" not in page
    older = page.split('rel="next" href="')[1].split('"')[0].replace("&amp;", "&")
    page = admin_client.get(AUDIT + older).content.decode()
    assert "number 9<" in page
    assert "number 10<" not in page
    assert 'rel="prev"' in page


def test_nobody_changes_it(admin_client, root):
    entry = log(root, make_api_key())
    assert admin_client.get(AUDIT + "add/").status_code == 403
    assert admin_client.post(f"{AUDIT}{entry.pk}/delete/", {"post": "yes"}).status_code == 403
    assert admin_client.get(f"{AUDIT}{entry.pk}/change/").url == AUDIT
    assert "delete_selected" not in page_of(admin_client)


def test_it_is_for_those_who_may_see_it(client):
    staff_member = User.objects.create_user("someone", is_staff=True)
    client.force_login(staff_member)
    assert client.get(AUDIT).status_code == 403
    assert client.get(f"{AUDIT}1/change/").status_code == 403
    assert client.get(f"{AUDIT}1/history/").status_code in (302, 403)


def test_no_list_of_records_groups_by_date():
    ours = [row for model, row in admin.site._registry.items() if model in OWN]
    assert {row.model for row in ours} == OWN
    assert [row for row in ours if row.date_hierarchy] == []


def test_the_navigation_leads_there(admin_client):
    page = page_of(admin_client)
    assert 'aria-current="page">Audit<' in page
    users = admin_client.get("/admin/auth/group/").content.decode()
    assert 'aria-current="page">Users &amp; groups<' in users


def test_a_key_made_in_the_admin_is_in_it_without_its_secret(admin_client):
    answer = admin_client.post(
        "/admin/access/apikey/add/", {"name": "n", "scopes": ["chat"], "recorded": "everything"}
    )
    assert answer.status_code == 200
    row = ApiKey.objects.get()
    entry = LogEntry.objects.get()
    assert entry.object_repr == str(row)
    assert ">added<" in page_of(admin_client)


def test_a_search_that_the_list_does_not_have_is_passed_over(admin_client, root):
    log(root, root)
    assert ">viewed<" in page_of(admin_client, q="nobody")

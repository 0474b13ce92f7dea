"""API keys in the browser: a secret is shown once, and what is entered is held to the same rules."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from qwenproxy.access import keys
from qwenproxy.access.models import ApiKey, KeyUsage, Limits
from tests.access.test_accounts import all_rows
from tests.access.test_admin import act, change_url, viewer
from tests.factories import make_api_key

pytestmark = pytest.mark.django_db

KEYS = "/admin/access/apikey/"


def key_form(**changes):
    return {"name": "agent", "scopes": ["chat"], "recorded": "everything", **changes}


def page_url(row, page):
    return reverse(f"admin:access_apikey_{page}", args=[row.pk])


def shown_secret(answer):
    return re.search(r'<code id="secret">(qp-[\w-]+)</code>', answer.content.decode())[1]


def test_a_new_keys_secret_is_on_the_answering_page_alone(admin_client):
    answer = admin_client.post(KEYS + "add/", key_form(scopes=["chat", "records"]))
    secret = shown_secret(answer)
    row = ApiKey.objects.get()
    assert row.secret_hash == keys.hash_api_key(secret)
    assert row.scopes == "chat records"
    assert "no-store" in answer["Cache-Control"]
    assert secret not in all_rows()
    assert secret not in str(answer.cookies)
    for url in (KEYS, change_url(row), change_url(row).replace("change", "history")):
        assert secret not in admin_client.get(url).content.decode()


@pytest.mark.parametrize("button", ["_continue", "_addanother", "_popup"])
def test_every_way_to_save_shows_the_secret(admin_client, button):
    answer = admin_client.post(KEYS + "add/", key_form(**{button: "1"}))
    assert ApiKey.objects.get().secret_hash == keys.hash_api_key(shown_secret(answer))


@pytest.mark.parametrize(
    "form",
    [
        pytest.param({"scopes": []}, id="no scope"),
        pytest.param({"scopes": ["root"]}, id="unknown scope"),
        pytest.param({"name": ""}, id="no name"),
        pytest.param({"name": "a\u2028b"}, id="unprintable name"),
        pytest.param({"tokens_per_day": "-1"}, id="negative limit"),
        pytest.param({"tokens_per_day": "1.5"}, id="fraction"),
        pytest.param({"tokens_per_day": "9" * 17}, id="huge limit"),
        pytest.param({"expires_at": "2020-01-01"}, id="end in the past"),
        pytest.param({"expires_at": "soon"}, id="no date"),
        pytest.param({"allowed_models": "x" * 201}, id="long pattern"),
        pytest.param({"recorded": "nothing"}, id="unknown recording"),
    ],
)
def test_an_incomplete_key_is_not_made(admin_client, form):
    assert "errorlist" in admin_client.post(KEYS + "add/", key_form(**form)).content.decode()
    assert not ApiKey.objects.exists()


def test_name_and_scopes_can_be_changed_and_the_secret_stays(admin_client):
    row, secret = keys.create_api_key(name="k", scopes=["chat"])
    page = admin_client.get(change_url(row)).content.decode()
    assert re.search(r'value="chat"[^>]*checked', page)
    admin_client.post(change_url(row), key_form(name="new", scopes=["records", "admin"]))
    row.refresh_from_db()
    assert (row.name, row.scopes) == ("new", "records admin")
    assert row.secret_hash == keys.hash_api_key(secret)


def test_the_list_names_keys_without_their_hashes(admin_client):
    row, _ = keys.create_api_key(name="agent", scopes=["chat"])
    page = admin_client.get(KEYS).content.decode()
    assert "agent" in page
    assert row.prefix in page
    assert row.secret_hash not in page + admin_client.get(change_url(row)).content.decode()


def test_revoking_is_for_good(admin_client):
    row, _ = keys.create_api_key(name="k", scopes=["chat"])
    act(admin_client, "revoke", row)
    row.refresh_from_db()
    first = row.revoked_at
    act(admin_client, "revoke", row)
    row.refresh_from_db()
    assert row.revoked_at == first is not None
    assert 'name="revoked_at' not in admin_client.get(change_url(row)).content.decode()


def test_rotating_shows_the_new_secret_once(admin_client):
    row, old = keys.create_api_key(name="k", scopes=["chat"])
    secret = shown_secret(act(admin_client, "rotate", row))
    row.refresh_from_db()
    assert row.secret_hash == keys.hash_api_key(secret)
    assert row.previous_hash == keys.hash_api_key(old)


def test_only_one_key_that_is_in_use_is_rotated(admin_client):
    rows = [keys.create_api_key(name=name, scopes=["chat"])[0] for name in "ab"]
    assert "Select one key" in act(admin_client, "rotate", *rows).content.decode()
    keys.revoke_api_key(rows[0])
    assert "cannot be rotated" in act(admin_client, "rotate", rows[0]).content.decode()


def test_keys_are_not_deleted(admin_client):
    row, _ = keys.create_api_key(name="k", scopes=["chat"])
    url = reverse("admin:access_apikey_delete", args=[row.pk])
    assert admin_client.post(url, {"post": "yes"}).status_code == 403
    act(admin_client, "delete_selected", row)
    assert ApiKey.objects.exists()


def test_who_may_only_look_cannot_revoke(client):
    row, _ = keys.create_api_key(name="k", scopes=["chat"])
    client.force_login(viewer("apikey"))
    assert client.get(change_url(row)).status_code == 200
    act(client, "revoke", row)
    assert client.get(page_url(row, "revoke")).status_code == 403
    assert client.post(page_url(row, "revoke")).status_code == 403
    assert client.post(page_url(row, "rotate"), {"overlap": "1h"}).status_code == 403
    row.refresh_from_db()
    assert (row.revoked_at, row.previous_hash) == (None, None)


def test_everything_that_a_key_has_can_be_entered_and_changed(admin_client):
    form = key_form(
        expires_at="2999-01-31 12:00",
        allowed_models="qwen3-*\r\n\r\n qwq \r\n",
        requests_per_minute="0",
        tokens_per_month="1000000000000",
        recorded="metadata",
    )
    shown_secret(admin_client.post(KEYS + "add/", form))
    row = ApiKey.objects.get()
    assert row.expires_at == datetime(2999, 1, 31, 12, tzinfo=UTC)
    assert row.allowed_models == "qwen3-*\nqwq"
    assert row.limits == Limits(requests_per_minute=0, tokens_per_month=10**12)
    assert row.recorded == "metadata"
    page = admin_client.get(change_url(row)).content.decode()
    assert 'value="2999-01-31 12:00"' in page
    assert "qwen3-*\nqwq</textarea>" in page
    admin_client.post(change_url(row), key_form(expires_at="", tokens_per_day="5"))
    row.refresh_from_db()
    assert (row.expires_at, row.allowed_models) == (None, "")
    assert row.limits == Limits(tokens_per_day=5)


def test_an_end_that_is_not_touched_stays_to_the_second_and_in_the_past(admin_client):
    end = datetime(2026, 1, 31, 12, 0, 59, 123456, tzinfo=UTC)
    row = make_api_key(expires_at=end)
    form = key_form(name="renamed", expires_at="2026-01-31 12:00")
    assert admin_client.post(change_url(row), form).status_code == 302
    row.refresh_from_db()
    assert (row.name, row.expires_at) == ("renamed", end)


def test_a_form_that_was_open_meanwhile_takes_nothing_back(admin_client, monkeypatch):
    row = make_api_key("old", tokens_per_day=5)
    save = ApiKey.save

    def revoke_first(self, **kwargs):
        ApiKey.objects.update(revoked_at=timezone.now(), tokens_per_day=7)
        save(self, **kwargs)

    monkeypatch.setattr(ApiKey, "save", revoke_first)
    admin_client.post(
        change_url(row), key_form(name="new", scopes=["chat", "records"], tokens_per_day="5")
    )
    row.refresh_from_db()
    assert (row.name, row.tokens_per_day) == ("new", 7)
    assert row.revoked_at is not None


@pytest.mark.parametrize(
    ("fields", "state", "text"),
    [
        pytest.param({}, "active", "active", id="active"),
        pytest.param(
            {"expires_at": timedelta(days=3, hours=1)}, "active", "expires in 3 days", id="ending"
        ),
        pytest.param({"expires_at": timedelta(0)}, "expired", "expired", id="expired"),
        pytest.param({"revoked_at": timedelta(0)}, "revoked", "revoked", id="revoked"),
    ],
)
def test_the_list_shows_states_and_is_filtered_by_them(admin_client, fields, state, text):
    now = timezone.now()
    row = make_api_key("the-key", **{name: now + span for name, span in fields.items()})
    for asked in ("active", "expired", "revoked"):
        page = admin_client.get(KEYS, {"state": asked}).content.decode()
        assert ("the-key" in page) == (asked == state)
        assert (f'field-state">{text}<' in page) == (asked == state)
    assert text in admin_client.get(change_url(row)).content.decode()


def test_the_list_asks_the_database_as_often_for_many_keys_as_for_one(admin_client):
    def queries():
        with CaptureQueriesContext(connection) as captured:
            assert admin_client.get(KEYS).status_code == 200
        return len(captured)

    make_api_key(tokens_per_day=5)
    few = queries()
    for _ in range(10):
        make_api_key(tokens_per_day=5)
    assert queries() == few


def test_a_key_shows_its_limits_and_what_it_has_used(admin_client):
    row = make_api_key(max_concurrent=4, tokens_per_day=2_000_000)
    now = timezone.now()
    KeyUsage.objects.create(
        api_key=row, span="day", slot=int(now.timestamp() // 86400), requests=3, tokens=1234
    )
    assert "4 at once, 2,000,000 tokens/day" in admin_client.get(KEYS).content.decode()
    page = admin_client.get(change_url(row)).content.decode()
    assert "3 requests and 1,234 tokens in this day" in page
    assert "last minute" not in page
    assert "not counted" in admin_client.get(change_url(make_api_key())).content.decode()


def test_the_page_of_a_key_rotates_it_with_an_overlap_of_choice(admin_client):
    row, old = keys.create_api_key(name="k")
    assert page_url(row, "rotate") in admin_client.get(change_url(row)).content.decode()
    assert 'value="24h" selected' in admin_client.get(page_url(row, "rotate")).content.decode()
    answer = admin_client.post(page_url(row, "rotate"), {"overlap": "7d"})
    secret = shown_secret(answer)
    assert "no-store" in answer["Cache-Control"]
    row.refresh_from_db()
    assert row.secret_hash == keys.hash_api_key(secret)
    assert row.previous_hash == keys.hash_api_key(old)
    left = row.previous_expires_at - timezone.now()
    assert timedelta(days=6, hours=23) < left <= timedelta(days=7)
    assert LogEntry.objects.get().change_message == "Rotated."


@pytest.mark.parametrize("overlap", ["", "soon", "9999999w", "31d"])
def test_another_overlap_is_refused(admin_client, overlap):
    row = make_api_key()
    answer = admin_client.post(page_url(row, "rotate"), {"overlap": overlap}, follow=True)
    assert 'class="error"' in answer.content.decode()
    assert ApiKey.objects.get().previous_hash is None


def test_the_page_of_a_key_revokes_it_once_asked_twice(admin_client):
    row = make_api_key("the-key")
    url = page_url(row, "revoke")
    assert url in admin_client.get(change_url(row)).content.decode()
    assert "for good" in admin_client.get(url).content.decode()
    assert ApiKey.objects.get().revoked_at is None
    for _ in range(2):
        answer = admin_client.post(url, follow=True)
        assert "is revoked" in answer.content.decode()
    assert LogEntry.objects.get().change_message == "Revoked."
    page = admin_client.get(change_url(row)).content.decode()
    assert url not in page
    assert page_url(row, "rotate") not in page
    refused = admin_client.post(page_url(row, "rotate"), {"overlap": "1h"}, follow=True)
    assert "cannot be rotated" in refused.content.decode()


@pytest.mark.parametrize("page", ["rotate", "revoke"])
@pytest.mark.parametrize("object_id", ["0", "x", "9" * 30])
def test_a_page_of_no_key_is_not_found(admin_client, page, object_id):
    assert admin_client.get(f"{KEYS}{object_id}/{page}/").status_code == 404

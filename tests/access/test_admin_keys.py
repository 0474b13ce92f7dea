"""API keys in the browser: a secret is shown once, and what is entered is held to the same rules."""

from __future__ import annotations

import html
import json
import re
import shlex
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.conf import settings
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from qwenproxy.access import keys
from qwenproxy.access.models import ApiKey, KeyUsage, Limits
from tests.access.test_accounts import all_rows
from tests.access.test_admin import act, change_url, viewer
from tests.access.test_staff import make_groups
from tests.factories import make_api_key, make_session
from tests.requests_app.ended import make_ended
from tests.requests_app.test_rollups import roll_all

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


@pytest.fixture
def operator(client):
    make_groups()
    user = User.objects.create_user("operator", password="x", is_staff=True)
    user.groups.add(Group.objects.get(name="Operator"))
    client.force_login(user)
    return client


def test_an_operator_gives_no_key_the_scope_admin(operator):
    refused = operator.post(KEYS + "add/", key_form(scopes=["chat", "admin"]))
    assert "Only a superuser" in refused.content.decode()
    assert not ApiKey.objects.exists()
    operator.post(KEYS + "add/", key_form(scopes=["chat", "records"]))
    row = ApiKey.objects.get()
    operator.post(change_url(row), key_form(scopes=["admin"]))
    row.refresh_from_db()
    assert row.scopes == "chat records"


def test_an_operator_comes_by_no_secret_of_a_key_with_the_scope_admin(operator):
    row, secret = keys.create_api_key(name="k", scopes=["admin"])
    assert "/rotate/" not in operator.get(change_url(row)).content.decode()
    assert operator.get(page_url(row, "rotate")).status_code == 403
    assert operator.post(page_url(row, "rotate"), {"overlap": "0"}).status_code == 403
    # What else there is of it they may change.
    operator.post(change_url(row), key_form(name="other", scopes=["admin"]))
    row.refresh_from_db()
    assert (row.name, row.secret_hash) == ("other", keys.hash_api_key(secret))
    assert operator.post(page_url(row, "revoke")).status_code == 302


def test_the_list_names_keys_without_their_hashes(admin_client):
    row, _ = keys.create_api_key(name="agent", scopes=["chat"])
    page = admin_client.get(KEYS).content.decode()
    assert "agent" in page
    assert row.prefix in page
    assert row.secret_hash not in page + admin_client.get(change_url(row)).content.decode()


def revoke(client, *rows):
    form = {"action": "revoke", "confirmed": "1", "_selected_action": [row.pk for row in rows]}
    return client.post(KEYS, form, follow=True)


def test_revoking_is_for_good(admin_client):
    row, _ = keys.create_api_key(name="k", scopes=["chat"])
    revoke(admin_client, row)
    row.refresh_from_db()
    first = row.revoked_at
    revoke(admin_client, row)
    row.refresh_from_db()
    assert row.revoked_at == first is not None
    assert 'name="revoked_at' not in admin_client.get(change_url(row)).content.decode()


def test_rotating_shows_the_new_secret_once(admin_client):
    row, old = keys.create_api_key(name="k", scopes=["chat"])
    page = act(admin_client, "rotate", row)
    assert page.redirect_chain == [(page_url(row, "rotate"), 302)]
    secret = shown_secret(admin_client.post(page_url(row, "rotate"), {"overlap": "24h"}))
    row.refresh_from_db()
    assert row.secret_hash == keys.hash_api_key(secret)
    assert row.previous_hash == keys.hash_api_key(old)


def test_only_one_key_that_is_in_use_is_rotated(admin_client):
    rows = [keys.create_api_key(name=name, scopes=["chat"])[0] for name in "ab"]
    assert "Select one key" in act(admin_client, "rotate", *rows).content.decode()
    keys.revoke_api_key(rows[0])
    answer = admin_client.post(page_url(rows[0], "rotate"), {"overlap": "24h"}, follow=True)
    assert "cannot be rotated" in answer.content.decode()


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
        content_days="30",
    )
    shown_secret(admin_client.post(KEYS + "add/", form))
    row = ApiKey.objects.get()
    assert row.expires_at == datetime(2999, 1, 31, 12, tzinfo=UTC)
    assert row.allowed_models == "qwen3-*\nqwq"
    assert row.limits == Limits(requests_per_minute=0, tokens_per_month=10**12)
    assert (row.recorded, row.content_days, row.record_days) == ("metadata", 30, None)
    page = admin_client.get(change_url(row)).content.decode()
    assert 'value="2999-01-31T12:00"' in page
    assert "qwen3-*\nqwq</textarea>" in page
    admin_client.post(change_url(row), key_form(expires_at="", tokens_per_day="5"))
    row.refresh_from_db()
    assert (row.expires_at, row.allowed_models) == (None, "")
    assert row.limits == Limits(tokens_per_day=5)


def test_an_end_that_is_not_touched_stays_to_the_second_and_in_the_past(admin_client):
    end = datetime(2026, 1, 31, 12, 0, 59, 123456, tzinfo=UTC)
    row = make_api_key(expires_at=end)
    form = key_form(name="renamed", expires_at="2026-01-31T12:00")
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
    ("fields", "lists", "text"),
    [
        pytest.param({}, {"", "active", "all"}, "active", id="active"),
        pytest.param(
            {"expires_at": timedelta(days=3, hours=1)},
            {"", "active", "expiring", "all"},
            "in 3 days",
            id="ending",
        ),
        pytest.param({"expires_at": timedelta(0)}, {"", "expired", "all"}, "expired", id="expired"),
        pytest.param({"revoked_at": timedelta(0)}, {"revoked", "all"}, "revoked", id="revoked"),
    ],
)
def test_the_list_shows_states_and_is_filtered_by_them(admin_client, fields, lists, text):
    now = timezone.now()
    row = make_api_key("the-key", **{name: now + span for name, span in fields.items()})
    for asked in ("", "active", "expiring", "expired", "revoked", "all", "forged"):
        page = admin_client.get(KEYS, {"state": asked} if asked else {}).content.decode()
        is_there = (asked if asked != "forged" else "") in lists
        assert ("the-key" in page) == is_there
        assert (f">{text}<" in page) >= is_there
    assert f">{text}<" in admin_client.get(change_url(row)).content.decode()


def test_the_list_asks_the_database_as_often_for_many_keys_as_for_one(admin_client):
    def queries():
        with CaptureQueriesContext(connection) as captured:
            assert admin_client.get(KEYS).status_code == 200
        return len(captured)

    make_api_key(tokens_per_day=5)
    few = queries()
    for _ in range(10):
        key = make_api_key(tokens_per_day=5)
        make_ended([make_session(key)], [timezone.now() - timedelta(minutes=1)])
    assert queries() == few <= 14


def test_a_key_shows_its_limits_and_what_it_has_used(admin_client):
    row = make_api_key(max_concurrent=4, tokens_per_day=2_000_000)
    now = timezone.now()
    KeyUsage.objects.create(
        api_key=row, span="day", slot=int(now.timestamp() // 86400), requests=3, tokens=1234
    )
    for url in (KEYS, change_url(row)):
        page = admin_client.get(url).content.decode()
        assert "0 of 4 at once used" in page
        assert "1,234 of 2,000,000 tokens/day used" in page
        assert "requests/min" not in page
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


TOKEN = "t" * 32


def test_a_form_that_is_sent_again_makes_no_second_key_and_shows_nothing(admin_client):
    token = re.search(
        r'name="once" value="([\w-]{32})"', admin_client.get(KEYS + "add/").content.decode()
    )[1]
    secret = shown_secret(admin_client.post(KEYS + "add/", key_form(once=token)))
    row = ApiKey.objects.get()
    again = admin_client.post(KEYS + "add/", key_form(once=token), follow=True)
    assert again.redirect_chain == [(change_url(row), 302)]
    assert "was sent before" in again.content.decode()
    assert secret not in again.content.decode()
    assert list(ApiKey.objects.all()) == [row]
    assert LogEntry.objects.count() == 1


def test_a_rotation_that_is_sent_again_rotates_once(admin_client):
    row, _ = keys.create_api_key(name="k")
    form = {"overlap": "24h", "once": TOKEN}
    secret = shown_secret(admin_client.post(page_url(row, "rotate"), form))
    again = admin_client.post(page_url(row, "rotate"), form, follow=True)
    assert "was sent before" in again.content.decode()
    row.refresh_from_db()
    assert row.secret_hash == keys.hash_api_key(secret)
    assert LogEntry.objects.count() == 1


@pytest.mark.parametrize("token", ["", "x", "\0" * 32, "é" * 32, "a" * 33])
def test_a_forged_token_is_none(admin_client, token):
    for _ in range(2):
        shown_secret(admin_client.post(KEYS + "add/", key_form(once=token)))
    assert ApiKey.objects.count() == 2


def test_a_token_opens_no_session(admin_client, client):
    admin_client.post(KEYS + "add/", key_form(once=TOKEN))
    client.cookies[settings.SESSION_COOKIE_NAME] = "once" + TOKEN
    assert client.get(KEYS).status_code == 302


def test_a_form_with_a_mistake_can_be_sent_again(admin_client):
    page = admin_client.post(KEYS + "add/", key_form(once=TOKEN, name="")).content.decode()
    assert f'name="once" value="{TOKEN}"' in page
    shown_secret(admin_client.post(KEYS + "add/", key_form(once=TOKEN)))


def test_the_page_of_the_secret_says_how_to_use_it(admin_client, settings):
    settings.PUBLIC_URL = "https://gateway.example"
    form = key_form(allowed_models="qwen*\nit's <b>")
    answer = admin_client.post(KEYS + "add/", form)
    secret, page = shown_secret(answer), html.unescape(answer.content.decode())
    assert (
        f"curl https://gateway.example/v1/chat/completions \\\n  -H 'Authorization: Bearer {secret}'"
        in page
    )
    assert "export OPENAI_BASE_URL=https://gateway.example/v1" in page
    body = re.search(r"-d (.*)</pre>", page)[1]
    assert json.loads(shlex.split(body)[0])["model"] == "it's <b>"
    assert "<b>" not in answer.content.decode()


def test_the_line_to_try_names_no_model_that_the_gateway_may_lack(admin_client):
    page = html.unescape(admin_client.post(KEYS + "add/", key_form()).content.decode())
    body = re.search(r"-d (.*)</pre>", page)[1]
    assert "model" not in json.loads(shlex.split(body)[0])
    assert "model=client.models.list().data[0].id" in page


def test_a_key_that_may_not_ask_models_is_shown_what_it_may(admin_client):
    page = admin_client.post(KEYS + "add/", key_form(scopes=["records"])).content.decode()
    assert "/v1/sessions" in page
    assert "chat/completions" not in page


def test_moments_are_those_of_the_reporting_zone(admin_client, settings):
    settings.REPORTING_ZONE = ZoneInfo("Asia/Kolkata")
    admin_client.post(KEYS + "add/", key_form(expires_at="2999-01-31T12:00"))
    row = ApiKey.objects.get()
    assert row.expires_at == datetime(2999, 1, 31, 6, 30, tzinfo=UTC)
    page = admin_client.get(change_url(row)).content.decode()
    assert 'type="datetime-local" name="expires_at" value="2999-01-31T12:00"' in page
    assert "In Asia/Kolkata" in page


def test_keys_are_disabled_and_enabled_again(admin_client):
    row, gone = make_api_key(), make_api_key(revoked_at=timezone.now())
    page = act(admin_client, "expire", row, gone).content.decode()
    assert "1 disabled." in page
    row.refresh_from_db()
    gone.refresh_from_db()
    assert row.expires_at <= timezone.now()
    assert gone.expires_at is None
    assert "expired at once" in LogEntry.objects.get().change_message
    admin_client.post(change_url(row), key_form(expires_at=""))
    row.refresh_from_db()
    assert row.expires_at is None


def test_several_keys_are_revoked_once_asked_twice(admin_client):
    rows = [make_api_key(f"key-{name}") for name in "ab"]
    page = act(admin_client, "revoke", *rows).content.decode()
    assert "Revoke 2 keys" in page
    assert "key-a" in page
    assert not ApiKey.objects.filter(revoked_at__isnull=False).exists()
    assert "2 revoked." in revoke(admin_client, *rows).content.decode()
    assert not ApiKey.objects.filter(revoked_at=None).exists()


def test_a_key_shows_what_it_did_of_late(admin_client):
    row, idle = make_api_key("busy"), make_api_key("idle")
    session, now = make_session(row), timezone.now()
    make_ended([session], [now - timedelta(hours=1)] * 2 + [now - timedelta(days=2)])
    make_ended([session], [now - timedelta(hours=2)], status="failed", error_code="x")
    roll_all(now)
    with CaptureQueriesContext(connection) as captured:
        page = admin_client.get(KEYS).content.decode()
    assert not [query for query in captured if "upstream_response" in query["sql"]]
    assert re.search(rf'\?key={row.pk}&amp;span=24h">3</a>', page)
    assert "1 h ago" in page
    assert "not on record" in page
    page = admin_client.get(change_url(row)).content.decode()
    assert "3 requests</a>" in page
    assert "4 requests</a>" in page
    assert "1 failed" in page
    assert f"?key={row.pk}&amp;span=all" in page
    assert "no requests" in admin_client.get(change_url(idle)).content.decode()


def test_hostile_names_stay_inert(admin_client):
    name = "<script>alert(1)</script>" + "\u202e" + "x" * 40
    row = make_api_key(name, allowed_models="<img src=x onerror=alert(1)>\n" + "m" * 200)
    for url in (KEYS, change_url(row), page_url(row, "revoke"), page_url(row, "rotate")):
        page = admin_client.get(url).content.decode()
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert "&lt;script&gt;" in page


def test_changes_are_in_the_audit_log_without_secrets(admin_client):
    answer = admin_client.post(KEYS + "add/", key_form())
    row, secrets = ApiKey.objects.get(), [shown_secret(answer)]
    admin_client.post(change_url(row), key_form(name="other", tokens_per_day="5"))
    secrets.append(shown_secret(admin_client.post(page_url(row, "rotate"), {"overlap": "1h"})))
    admin_client.post(page_url(row, "revoke"))
    entries = list(LogEntry.objects.order_by("id"))
    said = [entry.get_change_message() for entry in entries]
    assert said == ["Added.", "Changed Name and Tokens per day.", "Rotated.", "Revoked."]
    row.refresh_from_db()
    told = "".join(f"{entry.object_repr}{entry.change_message}" for entry in entries)
    for secret in (*secrets, row.secret_hash, row.previous_hash):
        assert secret not in told


def test_who_may_only_look_sees_no_figures_of_requests_to_follow(client):
    row = make_api_key()
    ended = [timezone.now() - timedelta(minutes=1)]
    make_ended([make_session(row)], ended, status="failed", error_code="x")
    client.force_login(viewer("apikey"))
    for url in (KEYS, change_url(row)):
        assert "requests_app/request" not in client.get(url).content.decode()

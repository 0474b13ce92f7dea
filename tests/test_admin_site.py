from __future__ import annotations

import re
from html.parser import HTMLParser
from zoneinfo import ZoneInfo

import pytest
from django.contrib.auth.models import User
from django.db import DataError, connection
from django.db.migrations.recorder import MigrationRecorder
from django.urls import reverse

from qwenproxy.admin_pages import POLICY
from qwenproxy.proxy.discovery import Found
from requests_app.admin_sessions import SessionAdmin
from tests.factories import make_account, make_session, make_turn

pytestmark = pytest.mark.django_db


def text_of(client, url):
    response = client.get(url)
    assert response.status_code == 200
    return response.content.decode()


def test_the_navigation_is_by_task(admin_client):
    text = text_of(admin_client, "/admin/")
    names = ["Overview", "Traffic", "Sessions", "Requests", "Access", "API keys"]
    names += ["Upstream accounts", "Users &amp; groups", "System"]
    names += ["Migrations", "Audit"]
    places = [text.index(f">{name}<") for name in names]
    assert places == sorted(places)
    assert "banner" not in text


def test_a_user_without_permissions_sees_the_migrations_alone(client):
    client.force_login(User.objects.create_user("staff", password="x", is_staff=True))
    text = text_of(client, "/admin/")
    assert ">Migrations<" in text
    assert ">Sessions<" not in text


@pytest.mark.parametrize("user", ["nobody", "customer"])
def test_the_migrations_are_for_staff(client, user):
    if user == "customer":
        client.force_login(User.objects.create_user("customer", password="x"))
    response = client.get("/admin/migrations/")
    assert response.status_code == 302
    assert response.url.startswith("/admin/login/")


def test_migrations_of_an_up_to_date_database(admin_client):
    text = text_of(admin_client, "/admin/migrations/")
    assert "Database is up to date." in text
    assert "0003_retention" in text


def test_waiting_migrations(admin_client):
    MigrationRecorder(connection).record_unapplied("sessions_app", "0003_retention")
    text = text_of(admin_client, "/admin/migrations/")
    assert "1 migration not applied." in text
    assert "1 pending" in text
    text = text_of(admin_client, "/admin/")
    assert "1 migration not applied." in text
    assert reverse("admin:migrations") in text


def test_migrations_of_a_newer_version(admin_client):
    MigrationRecorder(connection).record_applied("requests_app", "0099_later")
    text = text_of(admin_client, "/admin/migrations/")
    assert "1 applied migration unknown to this version." in text
    assert "0099_later" in text
    assert "unknown to this version" in text_of(admin_client, "/admin/")


@pytest.mark.parametrize("url", ["/admin/", "/admin/migrations/"])
def test_they_touch_no_table_of_ours_while_migrations_wait(admin_client, url, monkeypatch):
    monkeypatch.setattr(
        "qwenproxy.dashboard.front.found",
        lambda: [Found("vLLM", "http://127.0.0.1:8000/v1", ["qwen"])],
    )
    MigrationRecorder(connection).record_unapplied("access", "0001_initial")

    def refuse(execute, sql, params, many, context):
        # The plan tells sizes, of the tables that it finds.
        if any(part in sql for part in ("rowid", "qwenproxy_sample", "TABLESAMPLE")):
            return execute(sql, params, many, context)
        for table in ("access_", "sessions_app_", "requests_app_"):
            assert f'"{table}' not in sql
        return execute(sql, params, many, context)

    with connection.execute_wrapper(refuse):
        assert "not applied" in text_of(admin_client, url)


def test_found_upstreams_are_offered(admin_client, monkeypatch):
    make_account("used", base_url="http://127.0.0.1:11434/v1/")
    offers = [
        Found("Ollama", "http://127.0.0.1:11434/v1", ["qwen3:8b"]),
        Found("LM & Studio", "http://127.0.0.1:1234/v1", ["<b>qwen", *"abcdef"]),
    ]
    monkeypatch.setattr("qwenproxy.dashboard.front.found", lambda: offers)
    text = text_of(admin_client, "/admin/")
    assert "11434" not in text
    assert "&lt;b&gt;qwen" in text
    add = re.search(r'href="([^"]*upstreamaccount/add/[^"]*base_url[^"]*)"', text)
    assert add
    url = add[1].replace("&amp;", "&")
    assert "kind=openai_compatible&base_url=http%3A%2F%2F127.0.0.1%3A1234%2Fv1" in url
    assert url.endswith("name=LM%20%26%20Studio")
    form = text_of(admin_client, url)
    assert "http://127.0.0.1:1234/v1" in form
    assert "LM &amp; Studio" in form


class _InlineCode(HTMLParser):
    """Collects what a strict content security policy refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag, attrs):
        names = dict(attrs)
        is_data = names.get("type") == "application/json"
        if tag == "style" or (tag == "script" and "src" not in names and not is_data):
            self.found.append(f"<{tag}>")
        for name, value in attrs:
            if name == "style" or name.startswith("on"):
                self.found.append(f"{tag} {name}")
            if name in ("src", "href") and (value or "").startswith(("http", "//", "javascript:")):
                self.found.append(f"{tag} {name} {value}")


@pytest.mark.parametrize(
    "name",
    [
        "index",
        "migrations",
        "sessions_app_session_changelist",
        "sessions_app_session_change",
        "sessions_app_session_delete",
        "requests_app_request_changelist",
        "requests_app_request_change",
        "access_apikey_changelist",
        "access_apikey_add",
        "access_upstreamaccount_changelist",
        "auth_user_changelist",
        "password_change",
        "login",
    ],
)
def test_pages_hold_no_inline_code_and_nothing_from_elsewhere(admin_client, name):
    row = make_turn(make_session())
    pks = {"sessions_app_session": row.session_id, "requests_app_request": row.request_id}
    is_of_row = name.endswith(("_change", "_delete")) and name != "password_change"
    args = [pks[name.rpartition("_")[0]]] if is_of_row else []
    parser = _InlineCode()
    if name == "login":
        admin_client.logout()
    parser.feed(text_of(admin_client, reverse(f"admin:{name}", args=args)))
    assert parser.found == []


def test_every_page_has_the_policy_and_the_reporting_zone(admin_client, client, settings):
    settings.REPORTING_ZONE = ZoneInfo("Asia/Kolkata")
    response = admin_client.get("/admin/")
    assert response.headers["Content-Security-Policy"] == POLICY
    assert "unsafe" not in POLICY
    assert "Asia/Kolkata" in response.content.decode()
    assert client.get("/admin/nothing/").headers["Content-Security-Policy"] == POLICY


def test_the_current_page_is_marked(admin_client):
    text = text_of(admin_client, "/admin/migrations/")
    assert re.findall(r'aria-current="page">([^<]+)<', text) == ["Migrations"]


def test_what_the_database_cannot_hold_is_a_bad_request(admin_client, caplog):
    """SQLite takes a NUL, and has no such session; PostgreSQL cannot even be asked for it."""
    fields = {"action": "delete_selected", "_selected_action": "\0", "index": "0", "post": "yes"}
    answer = admin_client.post("/admin/sessions_app/session/", fields)
    assert answer.status_code == (302 if connection.vendor == "sqlite" else 400)
    assert "Traceback" not in caplog.text


def test_a_refusal_of_the_database_tells_nothing_of_it(admin_client, monkeypatch):
    def refuse(self, request):
        raise DataError("value out of range in statement 7")

    monkeypatch.setattr(SessionAdmin, "get_queryset", refuse)
    answer = admin_client.get("/admin/sessions_app/session/")
    assert answer.status_code == 400
    assert "cannot be read" in answer.content.decode()
    assert "statement 7" not in answer.content.decode()

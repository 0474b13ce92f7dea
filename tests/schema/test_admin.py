"""The page of the migrations: right in every state of the database, and changing none."""

from __future__ import annotations

import hashlib
import re
import uuid
from html import unescape

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.utils import timezone

from qwenproxy.schema.models import MigrationEvent
from tests.schema.conftest import CREATE

# What columns of SQLite take from hands.
GARBAGE = "run = 'x', at = 7, status = 3, ms = 'long', actor = x'ff', name = 'n' || id"
FAILS = "migrations.RunSQL('INSERT INTO nowhere VALUES (1)', '')"
# What the admin does for a superuser, without the tables of users and sessions.
SHOW = """
from django.contrib import admin
from django.contrib.auth.models import User
from django.test import RequestFactory

request = RequestFactory().get("/")
request.user = User(username="a", is_staff=True, is_superuser=True, is_active=True)
response = admin.site.migrations(request)
response.render()
print(response.content.decode())
"""


def shown(project) -> str:
    """The text of the page, one space between its words."""
    before = project.database.exists() and hashlib.sha256(project.database.read_bytes()).digest()
    ended = project.run("shell", "--no-imports", "-c", SHOW, PYTHONIOENCODING="utf-8")
    assert ended.returncode == 0, ended.stderr
    after = project.database.exists() and hashlib.sha256(project.database.read_bytes()).digest()
    assert after == before
    main = ended.stdout[ended.stdout.index('id="content-main"') :]
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", main)).split())


def test_an_empty_database(project):
    text = shown(project)
    assert "migrations not applied. Restart the gateway, or run manage.py migrate" in text
    assert 'CREATE TABLE "schema_migrationevent"' in text
    assert "○ 0001_initial" in text
    assert not project.database.exists()


def test_a_database_that_is_up_to_date(migrated):
    text = shown(migrated)
    assert "✓ Database is up to date." in text
    assert "What will run" not in text
    assert "Being changed by nobody" in text
    assert re.search(r"✓ 0001_initial [\d-]+ [\d:]+ \d+ ms \S+@\S+ cli", text)
    assert re.search(r"History .* ok \d+ applied ", text)


def test_failed_held_and_edited_migrations(migrated):
    edited = migrated.add_migration("0001_edited", CREATE.format(number=1))
    assert migrated.run("migrate", "-v0").returncode == 0
    migrated.add_migration("0002_held", CREATE.format(number=2))
    assert migrated.run("migrate", "-v0").returncode == 0
    assert migrated.run("rollback", "--yes", "--force").returncode == 0
    migrated.add_migration("0003_bad", FAILS)
    assert migrated.run("migrate", "-v0").returncode == 6
    edited.write_text(edited.read_text().replace("TextField()", "TextField(null=True)"))
    text = shown(migrated)
    assert "≠ 1 migration edited after it was applied: shop.0001_edited" in text
    assert "↺ 1 migration rolled back by hand and held: shop.0002_held" in text
    assert "○ 2 migrations not applied , counting what is held." in text
    told = (
        r"✗ shop.0003_bad failed and was rolled back. [-\d]+ [:\d]+ OperationalError: no such table"
    )
    assert re.search(told, text)
    assert "✗ 1 failed ↺ 1 held ≠ 1 changed" in text
    for line in ("≠ 0001_edited", "↺ 0002_held", "✗ 0003_bad"):
        assert line in text
    assert "shop.0003_bad 1 statement" in text
    assert "INSERT INTO nowhere" in text
    assert "failed 2 to be applied shop.0002_held shop.0003_bad" in text
    assert "ok 1 rolled back shop.0002_held" in text
    assert re.search(r"Backups .* qwen-\S+-shop.0002.sqlite3 [\d.]+.KB", text)


def test_a_database_ahead_of_the_code(migrated):
    later = migrated.add_migration("0001_later", CREATE.format(number=1))
    assert migrated.run("migrate", "-v0").returncode == 0
    later.unlink()
    text = shown(migrated)
    assert "? 1 applied migration unknown to this version. The newer version that made it" in text
    migrated.query("UPDATE schema_migrationevent SET breaking = 1 WHERE app = 'shop'")
    text = shown(migrated)
    assert "? 1 applied migration unknown to this version. A newer version has been" in text
    assert "? 0001_later" in text
    assert "no such file in this version" in text


def test_a_run_that_has_not_ended(migrated):
    migrated.query(
        "UPDATE schema_migrationevent SET status = 'started', pid = 77, host = 'web1' "
        "WHERE id = (SELECT max(id) FROM schema_migrationevent)"
    )
    text = shown(migrated)
    assert "A change of the schema is running since" in text
    assert "by process 77 on web1" in text


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        pytest.param(
            "DROP TABLE schema_migrationevent", "The table of the history is missing", id="missing"
        ),
        pytest.param(
            "ALTER TABLE schema_migrationevent DROP COLUMN actor",
            "The table of the history has no columns actor",
            id="older",
        ),
        pytest.param(
            "ALTER TABLE schema_migrationevent RENAME COLUMN status TO other",
            "The table of the history has no columns status",
            id="of-another-form",
        ),
        pytest.param(f"UPDATE schema_migrationevent SET {GARBAGE}", "up to date", id="garbage"),
    ],
)
def test_a_damaged_history(migrated, damage, told):
    migrated.query(damage)
    text = shown(migrated)
    assert told in text
    assert "✓ 0001_initial" in text
    assert "✓ Database is up to date." in text


# In the admin


@pytest.fixture
def event(db):
    return MigrationEvent.objects.create(
        run=uuid.uuid4(),
        app="shop",
        name="0001_first",
        action="apply",
        status="failed",
        at=timezone.now(),
        actor="deploy",
        host="web1",
        error="IntegrityError: <b>",
    )


LIST = "/admin/schema/migrationevent/"


def test_events_are_listed_filtered_and_searched(admin_client, event):
    text = admin_client.get(LIST).content.decode()
    assert "shop.0001_first" in text
    assert "deploy@web1" in text
    assert f'href="?run={event.run}"' in text
    for query, is_found in {
        f"run={event.run}": True,
        f"run={uuid.uuid4()}": False,
        "app=shop": True,
        "status=failed": True,
        "action=apply&status=interrupted": False,
        "source=cli&q=web1": True,
        "q=IntegrityError": True,
    }.items():
        text = admin_client.get(f"{LIST}?{query}").content.decode()
        assert ("shop.0001_first" in text) == is_found, query
    assert admin_client.get(f"{LIST}?run=x").status_code == 302


def test_an_event_can_be_read_and_nothing_else(admin_client, event):
    page = admin_client.get(f"{LIST}{event.pk}/change/")
    assert "IntegrityError: &lt;b&gt;" in page.content.decode()
    assert admin_client.post(f"{LIST}{event.pk}/change/", {"status": "ok"}).status_code == 403
    assert admin_client.get(f"{LIST}add/").status_code == 403
    assert admin_client.post(f"{LIST}{event.pk}/delete/", {"post": "yes"}).status_code == 403
    event.refresh_from_db()
    assert event.status == "failed"


def test_without_its_table_the_list_refers_to_the_page(admin_client, monkeypatch):
    monkeypatch.setattr("qwenproxy.schema.admin.History.columns", ("id",))
    for url in (LIST, f"{LIST}1/change/"):
        answer = admin_client.get(url)
        assert (answer.status_code, answer.url) == (302, "/admin/migrations/")


def test_events_that_cannot_be_read_refer_to_the_page(admin_client, event):
    if connection.vendor != "sqlite":
        pytest.skip("columns of other engines hold their type alone")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE schema_migrationevent SET run = 'x'")
    assert admin_client.get(LIST).url == "/admin/migrations/"
    assert admin_client.get("/admin/migrations/").status_code == 200


def test_history_and_errors_need_the_permission(client, event):
    user = User.objects.create_user("staff", password="x", is_staff=True)
    client.force_login(user)
    text = client.get("/admin/migrations/").content.decode()
    assert "Every migration" in text
    assert "History" not in text
    assert client.get(LIST).status_code == 403
    user.user_permissions.add(Permission.objects.get(codename="view_migrationevent"))
    text = client.get("/admin/migrations/").content.decode()
    assert f'href="{LIST}?run={event.run}"' in text
    assert client.get(LIST).status_code == 200


def test_nothing_on_the_page_changes_the_schema(admin_client):
    text = admin_client.get("/admin/migrations/").content.decode()
    main = text[text.index('id="content-main"') :]
    assert "<form" not in main
    assert "<button" not in main

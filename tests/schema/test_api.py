"""The schema over REST: the same documents as the commands', for admin keys, and nothing written."""

from __future__ import annotations

import json
import uuid
from io import StringIO

import pytest
from django.core.management import call_command
from django.db import connection
from django.utils import timezone

from qwenproxy.schema.models import MigrationEvent
from tests.schema.conftest import CREATE

PATHS = ["/api/schema/status", "/api/schema/history", "/api/schema/plan"]


@pytest.fixture
def admin(http, admin_key):
    http.headers["authorization"] = f"Bearer {admin_key}"
    return http


def add_event(**values):
    row = {"app": "shop", "name": "0001_first", "action": "apply", "status": "ok", "ms": 40}
    return MigrationEvent.objects.create(
        at=timezone.now(), **{"run": uuid.uuid4(), **row, **values}
    )


def printed(*command, **options):
    out = StringIO()
    call_command(*command, stdout=out, **options)
    return json.loads(out.getvalue())


@pytest.mark.parametrize("path", PATHS)
def test_they_are_for_admins_to_read(http, admin_key, path):
    assert http.get(path).status_code == 403
    del http.headers["authorization"]
    assert http.get(path).status_code == 401
    answer = http.post(path, headers={"Authorization": f"Bearer {admin_key}"})
    assert answer.status_code == 405
    assert http.get("/api/").status_code == http.get("/api/schema/up").status_code == 404


def test_status_is_the_document_of_the_command(admin):
    answer = admin.get("/api/schema/status")
    assert answer.status_code == 200
    assert answer.json() == printed("showmigrations", json=True)
    assert answer.json()["state"] == "ready"


@pytest.fixture
def pending(transactional_db):
    statements = [
        "DELETE FROM django_migrations WHERE app = 'sessions_app' AND name = '0003_retention'",
        "INSERT INTO django_migrations (app, name, applied) "
        "VALUES ('sessions_app', '0003_retention', CURRENT_TIMESTAMP)",
    ]
    with connection.cursor() as cursor:
        cursor.execute(statements[0])
        yield
        cursor.execute(statements[1])


def test_plan_is_the_document_of_the_command(admin):
    answer = admin.get("/api/schema/plan").json()
    assert answer == printed("migrate", json=True)
    assert answer["migrations"] == []


def test_what_is_pending_is_told_and_counted(admin, pending):
    document = admin.get("/api/schema/status").json()
    assert document["state"] == "pending"
    assert [row["name"] for row in document["pending"]] == ["0003_retention"]
    (step,) = admin.get("/api/schema/plan").json()["migrations"]
    assert (step["app"], step["name"]) == ("sessions_app", "0003_retention")
    assert any(found["sql"].startswith("ALTER TABLE") for found in step["statements"])
    assert "schema_pending 1.0" in admin.get("/metrics").text


ASK = """\
import asyncio
from django.test import RequestFactory
from qwenproxy.schema import api

for view in (api.get_status, api.get_plan, api.list_events):
    answer = asyncio.run(view(RequestFactory().get("/")))
    assert answer.status_code == 200
    print(answer.content.decode())
"""


def test_asking_changes_no_byte(migrated):
    migrated.add_migration("0001_step", CREATE.format(number=1))
    before = migrated.database.read_bytes()
    ended = migrated.run("shell", "--no-imports", "-c", ASK)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("0001_step") == 2
    assert migrated.database.read_bytes() == before


def test_history_is_filtered_and_paged(admin):
    MigrationEvent.objects.all().delete()
    run = uuid.uuid4()
    ids = [add_event(run=run, seq=seq).id for seq in range(3)]
    failed = add_event(app="stock", status="failed", error="no such table")
    saved = add_event(app="", name="qwen.sqlite3", action="backup")

    def found(**query):
        answer = admin.get("/api/schema/history", params=query)
        assert answer.status_code == 200
        return [row["id"] for row in answer.json()["data"]]

    assert found() == [saved.id, failed.id, *reversed(ids)]
    assert found(run=run) == ids[::-1]
    assert found(app="stock", status="failed") == [failed.id]
    assert found(app="") == [saved.id]
    first = admin.get("/api/schema/history", params={"limit": 2}).json()
    assert (first["has_more"], first["next_cursor"]) == (True, failed.id)
    assert first["data"][1]["error"] == "no such table"
    assert found(limit=2, cursor=first["next_cursor"]) == ids[:0:-1]
    last = admin.get("/api/schema/history", params={"limit": 5}).json()
    assert (last["has_more"], last["next_cursor"]) == (False, None)


@pytest.mark.parametrize(
    "query",
    [
        pytest.param("limit=0", id="limit"),
        pytest.param("limit=1001", id="limit-too-large"),
        pytest.param("limit=x", id="limit-no-number"),
        pytest.param("status=broken", id="status"),
        pytest.param("run=1234", id="run"),
        pytest.param("cursor=0", id="cursor"),
        pytest.param("cursor=99999999999999999999", id="cursor-too-large"),
        pytest.param("app=%00", id="app-nul"),
        pytest.param("app=a%20b", id="app"),
    ],
)
def test_a_bad_value_names_its_parameter(admin, query):
    answer = admin.get(f"/api/schema/history?{query}")
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == query.partition("=")[0]


def test_a_missing_history_is_an_empty_one(admin):
    with connection.schema_editor() as editor:
        editor.delete_model(MigrationEvent)
    try:
        assert admin.get("/api/schema/history").json()["data"] == []
        assert admin.get("/api/schema/status").json()["last_run"] is None
        assert "schema_last_run_ok NaN" in admin.get("/metrics").text
    finally:
        with connection.schema_editor() as editor:
            editor.create_model(MigrationEvent)


def test_a_damaged_history_is_answered(admin):
    if connection.vendor != "sqlite":
        pytest.skip("columns of other engines hold their type alone")
    kept = add_event()
    add_event(name="0002_second")
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE schema_migrationevent SET run = 'x', at = 7, status = 3, ms = 'long' "
            "WHERE name = '0002_second'"
        )
    rows = admin.get("/api/schema/history").json()["data"]
    assert rows[0]["id"] == kept.id
    assert admin.get("/api/schema/status").json()["state"] == "ready"
    assert admin.get("/metrics").status_code == 200


def test_metrics_of_the_last_change(admin):
    run = uuid.uuid4()
    add_event(run=run, ms=1000)
    add_event(run=run, ms=500, seq=1)
    text = admin.get("/metrics").text
    assert "schema_pending 0.0" in text
    assert "schema_last_run_seconds 1.5" in text
    assert "schema_last_run_ok 1.0" in text
    add_event(status="failed", ms=None)
    add_event(status="started", ms=None)
    assert "schema_last_run_ok 0.0" in admin.get("/metrics").text

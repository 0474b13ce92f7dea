from __future__ import annotations

import re
import shutil
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from django.conf import settings as django_settings
from django.contrib.auth.models import Permission, User
from django.db import OperationalError, connection
from django.db.migrations.recorder import MigrationRecorder
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from qwenproxy import metrics
from qwenproxy.access import staff
from qwenproxy.access.accounts import set_secrets
from qwenproxy.dashboard import health_sections
from qwenproxy.dashboard.health_sections import read_sections
from requests_app.models import Worker
from requests_app.prunings import Removed, measure, note_run
from sessions_app.guard import Stopped
from tests.factories import make_account, make_api_key, make_session, make_turn

pytestmark = pytest.mark.django_db
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def show(client):
    response = client.get(reverse("admin:health"))
    assert response.status_code == 200
    return response


def facts(title, gateway=None):
    (section,) = (one for one in read_sections(gateway, NOW) if one.title == title)
    assert section.problem == ""
    return {fact.label: fact for fact in section.facts}


def rows(title):
    (section,) = (one for one in read_sections(None, NOW) if one.title == title)
    assert section.problem == ""
    return section.rows


def test_it_shows_every_part(admin_client):
    text = show(admin_client).content.decode()
    titles = ["Checks", "Version", "This process", "Database", "Disk", "Record", "Retention"]
    titles += ["Serving processes", "Upstream accounts", "Tables", "Settings", "Diagnostics"]
    places = [text.index(f">{title}") for title in titles]
    assert places
    assert "Cannot be read" not in text
    assert django_settings.VERSION in text


def test_it_is_for_those_who_may_see_it(client):
    url = reverse("admin:health")
    assert client.get(url).status_code == 302
    user = User.objects.create_user("staff", password="x", is_staff=True)
    client.force_login(user)
    assert client.get(url).status_code == 403
    user.user_permissions.add(Permission.objects.get(codename=staff.VIEW_HEALTH.split(".")[1]))
    assert client.get(url).status_code == 200


def test_nothing_of_it_is_a_secret_or_content(admin_client, settings):
    account = make_account("main", "dashscope")
    set_secrets(account, {"api_key": "sk-secret-of-account"})
    account.save()
    make_turn(make_session(title="secret title"), "secret question", "secret answer")
    settings.CONFIGURED = {
        "DATABASE_URL": (None, True),
        "OPENAI_COMPATIBLE_BASE_URL": ("http://user:secret-word@host/v1", True),
        "QWENPROXY_REDACT": ("secret-rule", True),
        "QWENPROXY_PORT": (8100, False),
    }
    text = show(admin_client).content.decode()
    assert "secret" not in re.sub(r"without secrets|secret_key", "", text)
    assert "http://…@host/v1" in text
    assert "8100" in text


def test_a_secret_is_not_even_in_what_settings_keep():
    configured = django_settings.CONFIGURED
    assert configured["QWENPROXY_SECRET_KEY"] == (None, True)
    assert configured["QWENPROXY_ENCRYPTION_KEYS"] == (None, True)
    assert configured["QWENPROXY_MAX_BODY_MB"] == (32, False)
    assert configured["QWENPROXY_DISCOVER"] == ("false", True)
    assert not [name for name in configured if name.endswith("_KEY") and configured[name][0]]


def test_a_part_that_fails_hides_no_other(admin_client, monkeypatch):
    def fail(*args):
        raise OperationalError("no such table: <requests>")

    monkeypatch.setattr(health_sections, "rolled_to", fail)
    text = show(admin_client).content.decode()
    assert "Cannot be read: no such table: &lt;requests&gt;" in text
    assert "Serving processes" in text


def test_while_migrations_wait(admin_client):
    MigrationRecorder(connection).record_unapplied("requests_app", "0001_initial")
    assert facts("Version")["Migrations"].level != "ok"
    assert "not looked at: the tables are not up to date" in show(admin_client).content.decode()


def test_findings_are_counted_and_say_how_to_mend(admin_client):
    make_account("ill", state="expired", state_reason="<b>401")
    make_api_key()
    response = show(admin_client)
    assert response.context["errors"] >= 1
    text = response.content.decode()
    assert "ill (OpenAI-compatible server): expired, &lt;b&gt;401" in text
    assert "put an API key that is valid into the account" in text


def test_what_takes_long_is_left_out(admin_client):
    parts = {finding.part for _, finding in show(admin_client).context["findings"]}
    assert parts.isdisjoint({"integrity", "schema"})
    assert "keys" in parts


def test_this_process_tells_what_its_gateway_knows(settings):
    settings.RECORDER_QUEUE_TURNS = 100
    recorder = SimpleNamespace(queued=70, unrecorded=2)
    gateway = SimpleNamespace(recorder=recorder, running=3, draining=True)
    metrics.DURATION.labels("qwen3-max", "completed").observe(1)
    found = facts("This process", gateway)
    assert found["Serving"].value == "draining"
    assert found["Answers running"].value == "3"
    assert (found["Writes waiting"].value, found["Writes waiting"].level) == (
        "70 of 100",
        "warning",
    )
    assert int(found["Ended completed"].value) >= 1
    assert facts("This process")["Serving"].level == "warning"


def test_statistics_that_are_behind_say_since_when():
    assert facts("Record")["Statistics up to"].value == "all of them"
    make_turn(make_session(), request={"created_at": NOW - timedelta(hours=3)})
    found = facts("Record")
    assert found["Behind by"].level == "warning"
    assert found["Newest request"].value == "2026-11-23 09:00:00"
    assert found["Oldest running"].value == "none runs"


def test_growth_is_told_where_it_was_measured(monkeypatch):
    assert facts("Disk")["Grows by"].value.startswith("too little data")
    free = shutil.disk_usage(django_settings.DATA_DIR).free
    sizes = iter((0, free, free // 10))
    monkeypatch.setattr("requests_app.prunings.bytes_in_use", lambda: next(sizes))
    measure(NOW - timedelta(days=10))
    found = facts("Disk")
    assert found["Grows by"].value.endswith(" a day, measured over 10 days")
    if connection.vendor == "sqlite":
        assert found["Full in"].level == "warning"
        assert "about" in found["Full in"].value
        assert facts("Disk")["Full in"].level == ""


def test_retention_is_told(settings):
    settings.CONTENT_DAYS = 30
    make_api_key(record_days=5)
    found = facts("Retention")
    assert (found["Content is kept"].value, found["Records are kept"].value) == (
        "30 days",
        "for ever",
    )
    assert found["Keys with their own days"].value == "1"
    assert found["Last run"].value == "not yet"
    removed = {"content": Removed(3, 10), "record": Removed(4, 10)}
    note_run(removed, ended_at=NOW - timedelta(hours=2), took=timedelta(seconds=5))
    found = facts("Retention")
    assert (found["Last run"].value, found["It took"].value) == ("2 h ago", "5.0 s")
    assert found["It removed"].value == "content of 3, all of 4 sessions"


def test_processes_without_their_lock_are_gone():
    Worker.objects.create(
        id="0e2b5a0e-0000-4000-8000-000000000001", host="<host>", pid=7, started_at=NOW
    )
    ((name, started, state),) = rows("Serving processes")
    assert (name, started) == ("<host>:7", "2026-11-23 12:00:00")
    assert state.startswith("gone")


def test_tables_are_told_with_their_sizes():
    for _ in range(3):
        make_turn(make_session())
    found = {name: one for name, *one in rows("Tables")}
    count, data, indexes = found["requests_app_request"]
    assert connection.vendor == "postgresql" or int(count) >= 3
    assert data.endswith("B")
    # PostgreSQL's grow with rows that were deleted long ago.
    assert indexes.endswith(("kB", "MB"))


def test_tables_that_take_too_long_are_not_measured(monkeypatch):
    monkeypatch.setattr(health_sections, "stopped_after", late)
    (section,) = (one for one in read_sections(None, NOW) if one.title == "Tables")
    assert section.problem.startswith("Not measured")
    assert section.rows == []


@contextmanager
def late(limit_s):
    yield
    raise Stopped


def test_the_page_costs_the_same_whatever_there_is(admin_client):
    make_turn(make_session())
    show(admin_client)
    with CaptureQueriesContext(connection) as few:
        show(admin_client)
    for _ in range(4):
        make_turn(make_session())
    with CaptureQueriesContext(connection) as many:
        show(admin_client)
    assert len(few) == len(many)


@pytest.mark.parametrize(
    ("head", "refs", "commit"),
    [
        ("a" * 40, {}, "a" * 12),
        ("ref: refs/heads/main\n", {"refs/heads/main": "b" * 40 + "\n"}, "b" * 12),
        ("ref: refs/heads/main\n", {"packed-refs": f"# x\n{'c' * 40} refs/heads/main\n"}, "c" * 12),
        ("ref: refs/heads/main\n", {}, ""),
        ("nonsense", {}, ""),
        (None, {}, ""),
    ],
)
def test_the_commit_of_a_checkout(tmp_path, head, refs, commit):
    for name, text in {**refs, **({} if head is None else {"HEAD": head})}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert health_sections._commit(tmp_path) == commit


def test_browsers_that_ask_for_an_icon_by_name_get_one(client):
    response = client.get("/favicon.ico")
    assert (response.status_code, response.url) == (302, "/static/qwenproxy/icon.svg")

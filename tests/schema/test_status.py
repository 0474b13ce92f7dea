from __future__ import annotations

import pytest
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder

from qwenproxy.schema.status import read_brief, read_overview

pytestmark = pytest.mark.django_db


def status_of(label):
    return next(app for app in read_overview().apps if app.label == label)


def test_an_up_to_date_database(django_assert_num_queries):
    with django_assert_num_queries(1):
        assert read_brief().is_clean
    overview = read_overview()
    assert (overview.state, overview.plan) == ("ready", None)
    assert {"access", "sessions_app", "requests_app", "auth"} <= {
        app.label for app in overview.apps
    }
    sessions = status_of("sessions_app")
    assert [migration.name for migration in sessions.migrations][:2] == [
        "0001_initial",
        "0002_session_user_id",
    ]
    assert sessions.latest is not None
    assert sessions.latest.applied_at is not None
    assert sessions.applied == sessions.known == len(sessions.migrations)
    assert sessions.counts == []


def test_pending_migrations():
    MigrationRecorder(connection).record_unapplied("sessions_app", "0003_retention")
    sessions = status_of("sessions_app")
    assert sessions.counts == [("pending", "○", 1)]
    assert sessions.latest is not None
    assert sessions.latest.name == "0002_session_user_id"
    assert [migration.is_applied for migration in sessions.migrations][:3] == [True, True, False]
    assert not read_brief().is_clean


def test_a_database_ahead_of_the_code():
    MigrationRecorder(connection).record_applied("sessions_app", "0099_later")
    assert read_brief().state == "ahead"
    sessions = status_of("sessions_app")
    assert sessions.counts == [("unknown", "?", 1)]
    assert (sessions.migrations[-1].name, sessions.migrations[-1].is_applied) == (
        "0099_later",
        True,
    )


def test_an_app_that_is_not_installed_any_more():
    MigrationRecorder(connection).record_applied("gone", "0001_initial")
    gone = status_of("gone")
    assert (gone.name, gone.known) == ("gone", 0)
    assert read_brief().is_clean


def test_a_database_without_any_table(monkeypatch):
    monkeypatch.setattr(MigrationRecorder, "has_table", lambda self: False)
    overview = read_overview()
    assert overview.state == "pending"
    assert len(overview.document["pending"]) > 10
    assert all(app.latest is None for app in overview.apps)


def test_nothing_is_written():
    MigrationRecorder(connection).record_unapplied("sessions_app", "0003_retention")
    before = MigrationRecorder(connection).migration_qs.count()
    with connection.execute_wrapper(_refuse_writes):
        read_overview()
    assert MigrationRecorder(connection).migration_qs.count() == before


def _refuse_writes(execute, sql, params, many, context):
    # The sample of a plan is a table of the connection's own.
    if "qwenproxy_sample" not in sql:
        assert sql.lstrip().upper().startswith(("SELECT", "PRAGMA"))
    return execute(sql, params, many, context)

from __future__ import annotations

import pytest
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder

from qwenproxy.schema.status import read_status

pytestmark = pytest.mark.django_db


def status_of(label):
    return next(app for app in read_status().apps if app.label == label)


def test_an_up_to_date_database(django_assert_num_queries):
    with django_assert_num_queries(2):
        status = read_status()
    assert status.is_clean
    assert (status.pending, status.unknown) == (0, 0)
    assert {"access", "sessions_app", "requests_app", "auth"} <= {app.label for app in status.apps}
    sessions = status_of("sessions_app")
    assert [migration.name for migration in sessions.migrations][:2] == [
        "0001_initial",
        "0002_session_user_id",
    ]
    assert sessions.latest is not None
    assert sessions.latest.applied_at is not None
    assert sessions.applied == sessions.known == len(sessions.migrations)


def test_pending_migrations():
    MigrationRecorder(connection).record_unapplied("sessions_app", "0002_session_user_id")
    sessions = status_of("sessions_app")
    assert sessions.pending == 1
    assert sessions.latest is not None
    assert sessions.latest.name == "0001_initial"
    assert [migration.is_applied for migration in sessions.migrations][:2] == [True, False]
    assert not read_status().is_clean


def test_a_database_ahead_of_the_code():
    MigrationRecorder(connection).record_applied("sessions_app", "0099_later")
    status = read_status()
    assert (status.pending, status.unknown) == (0, 1)
    assert not status.is_clean
    last = status_of("sessions_app").migrations[-1]
    assert (last.name, last.is_unknown) == ("0099_later", True)


def test_an_app_that_is_not_installed_any_more():
    MigrationRecorder(connection).record_applied("gone", "0001_initial")
    gone = status_of("gone")
    assert (gone.name, gone.known, gone.unknown) == ("gone", 0, 1)


def test_a_database_without_any_table(monkeypatch):
    monkeypatch.setattr(MigrationRecorder, "has_table", lambda self: False)
    status = read_status()
    assert status.applied == 0
    assert status.pending > 10
    assert all(app.latest is None for app in status.apps)


def test_nothing_is_written():
    before = MigrationRecorder(connection).migration_qs.count()
    with connection.execute_wrapper(_refuse_writes):
        read_status()
    assert MigrationRecorder(connection).migration_qs.count() == before


def _refuse_writes(execute, sql, params, many, context):
    assert sql.lstrip().upper().startswith(("SELECT", "\n            SELECT"))
    return execute(sql, params, many, context)

from __future__ import annotations

from datetime import timedelta

import pytest
from django.apps import apps
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import AnonymousUser, Group, Permission, User
from django.core.exceptions import PermissionDenied
from django.core.management import call_command
from django.core.management.sql import emit_post_migrate_signal
from django.http import HttpResponse
from django.utils import timezone

from qwenproxy.access import staff
from requests_app.models import Request
from tests.factories import make_account, make_session

pytestmark = pytest.mark.django_db


def names(group: str) -> set[str]:
    rows = Group.objects.get(name=group).permissions.select_related("content_type")
    return {f"{row.content_type.app_label}.{row.codename}" for row in rows}


def make_groups() -> None:
    staff._make_groups(apps=apps, using="default")


def test_each_group_may_what_the_one_before_may_and_more():
    make_groups()
    assert names("Viewer") < names("Auditor") < names("Operator")
    assert staff.VIEW_PAYLOAD not in names("Viewer")
    assert staff.USE_PLAYGROUND in names("Operator")
    assert not [name for name in names("Operator") if ".delete_" in name or "user" in name]


def test_the_first_migration_of_a_new_database_makes_them():
    Group.objects.all().delete()
    Permission.objects.all().delete()
    emit_post_migrate_signal(verbosity=0, interactive=False, db="default")
    assert set(Group.objects.values_list("name", flat=True)) == set(staff.GROUPS)


def test_a_group_that_exists_is_never_changed():
    make_groups()
    Group.objects.get(name="Viewer").permissions.clear()
    make_groups()
    assert names("Viewer") == set()


@pytest.mark.django_db(transaction=True)
def test_migrate_makes_them():
    Group.objects.all().delete()
    call_command("migrate", verbosity=0)
    assert set(Group.objects.values_list("name", flat=True)) >= {"Viewer", "Auditor", "Operator"}


@staff.gateway_view(staff.VIEW_PAYLOAD)
def guarded(request):
    return HttpResponse("content")


@pytest.fixture
def request_of(rf):
    def make(user):
        request = rf.get("/admin/x/")
        request.user = user
        return request

    return make


def test_the_guard(request_of):
    make_groups()
    assert guarded(request_of(AnonymousUser())).status_code == 302
    someone = User.objects.create_user("someone", is_staff=True)
    with pytest.raises(PermissionDenied):
        guarded(request_of(someone))
    someone.groups.add(Group.objects.get(name="Auditor"))
    response = guarded(request_of(User.objects.get(pk=someone.pk)))
    assert response.content == b"content"
    assert "no-store" in response.headers["Cache-Control"]


@pytest.mark.parametrize(
    ("shown", "expected"), [("all", (True, True)), ("errors", (False, True)), ("off", (False,) * 2)]
)
def test_content_can_be_hidden_from_everyone(request_of, settings, shown, expected):
    settings.PAYLOADS = shown
    request = request_of(User(username="root", is_superuser=True, is_active=True))
    assert (staff.may_read(request), staff.may_read(request, has_failed=True)) == expected


def test_what_was_seen_and_taken_is_noted(request_of):
    user = User.objects.create_superuser("root")
    session = make_session()
    staff.audit(request_of(user), staff.VIEWED, session)
    staff.audit(request_of(user), staff.EXPORTED, Request, rows=3, filter={"span": "24h"})
    exported, viewed = LogEntry.objects.order_by("-id")
    assert (viewed.object_id, viewed.action_flag) == (str(session.pk), staff.VIEWED)
    assert exported.content_type.model == "request"
    assert exported.change_message == '{"rows": 3, "filter": {"span": "24h"}}'


def test_a_view_is_noted_once_for_each_row_and_user(request_of, django_assert_max_num_queries):
    users = [User.objects.create_superuser(name) for name in ("ann", "ben")]
    session = make_session()
    # Rows of different kinds, with the same primary key.
    rows = (session, Group.objects.create(name="other", id=7), make_account(id=7))
    for user in users:
        for row in rows * 2:
            staff.audit_view(request_of(user), row)
    assert LogEntry.objects.count() == 6
    with django_assert_max_num_queries(1):
        staff.audit_view(request_of(users[0]), session)
    LogEntry.objects.update(action_time=timezone.now() - timedelta(minutes=11))
    staff.audit_view(request_of(users[0]), session)
    assert LogEntry.objects.count() == 7

from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.urls import reverse

from requests_app.retention import Periods, Pruning
from sessions_app.models import Session
from tests.factories import START, make_api_key, make_session
from tests.records_api import RecordsClient

pytestmark = [pytest.mark.django_db]

LIST = "/admin/sessions_app/session/"


@pytest.mark.urls("tests.records_api")
def test_a_pinned_session_does_not_expire_until_it_is_unpinned():
    session = make_session()
    records = RecordsClient(session.api_key)
    url = f"/sessions/{session.pk}/pin"
    assert records.get(f"/sessions/{session.pk}")["pinned_at"] is None
    pinned = records.post(url).json()
    assert pinned["pinned_at"] > pinned["created_at"]
    # Again: the first time stays.
    assert records.post(url).json() == pinned
    later = session.last_accessed + timedelta(days=10)
    assert not any(map(bool, expired(later)))
    assert records.delete(url).json() == {**pinned, "pinned_at": None}
    assert records.delete(url).status_code == 200
    assert expired(later) == [1]


def expired(now):
    pruning = Pruning(now, Periods(record_days=1))
    for _ in pruning.steps():
        pass
    return [pruning.removed["record"].sessions]


@pytest.mark.urls("tests.records_api")
def test_another_keys_session_is_none():
    session = make_session()
    for url in (f"/sessions/{session.pk}/pin", "/sessions/nope/pin", "/sessions/a%00b/pin"):
        for method in ("post", "delete"):
            answer = getattr(RecordsClient(make_api_key()), method)(url)
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "session_not_found"
    assert Session.objects.get().pinned_at is None
    answer = RecordsClient(make_api_key(), "admin").post(f"/sessions/{session.pk}/pin")
    assert answer.status_code == 200


def chosen(action, *sessions):
    return {"action": action, "_selected_action": [session.pk for session in sessions]}


def test_the_admin_pins_and_says_who_did(admin_client):
    first, second = make_session(), make_session(pinned_at=START)
    admin_client.post(f"{LIST}?span=all", chosen("pin", first, second))
    first.refresh_from_db()
    second.refresh_from_db()
    assert first.pinned_at is not None
    assert second.pinned_at == START
    entry = LogEntry.objects.get()
    assert (entry.object_id, entry.change_message) == (first.pk, "Pinned.")
    page = admin_client.get(reverse("admin:sessions_app_session_change", args=[first.pk]))
    assert "<dt>Pinned</dt>" in page.content.decode()
    admin_client.post(f"{LIST}?span=all", chosen("unpin", first, second))
    assert not Session.objects.exclude(pinned_at=None).exists()
    assert LogEntry.objects.filter(change_message="Unpinned.").count() == 2


@pytest.mark.parametrize("may", [False, True])
def test_pinning_needs_its_permission(client, may):
    user = User.objects.create_user("somebody", password="x", is_staff=True)
    names = ["view_session", *(["change_session"] if may else [])]
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    client.force_login(user)
    session = make_session()
    client.post(f"{LIST}?span=all", chosen("pin", session))
    assert (Session.objects.get().pinned_at is not None) == may

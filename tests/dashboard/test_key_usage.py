from __future__ import annotations

import csv
import json
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User

from qwenproxy.access import staff
from qwenproxy.access.models import ApiKey
from requests_app.deletion import delete_session_rows
from tests.factories import make_api_key, make_session, make_turn
from tests.requests_app.ended import make_ended
from tests.requests_app.test_rollups import roll_all

pytestmark = pytest.mark.django_db

KATHMANDU = ZoneInfo("Asia/Kathmandu")


def url_of(key):
    return f"/admin/export/usage/{key.pk}/"


def make_key(created_at):
    key = make_api_key()
    # It is set when a row is made.
    ApiKey.objects.filter(pk=key.pk).update(created_at=created_at)
    return key


def export(client, key):
    answer = client.get(url_of(key))
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    return list(csv.DictReader(answer.content.decode().splitlines())), answer


def test_a_row_for_each_day_since_the_key_was_made(admin_client, settings):
    settings.REPORTING_ZONE = KATHMANDU
    now = datetime.now(UTC)
    key = make_key(now - timedelta(days=3))
    session, gone = make_session(key), make_session(key)
    moments = [now - timedelta(days=2, minutes=n) for n in range(4)]
    make_ended([session] * 4, moments, prompt_tokens=10, completion_tokens=3, status="completed")
    make_ended([gone], [now - timedelta(days=2)], prompt_tokens=5, status="failed")
    make_ended([session], [now - timedelta(seconds=5)], prompt_tokens=7, status="cancelled")
    make_ended([make_session()], [now - timedelta(days=2)], prompt_tokens=1000)
    roll_all(now)
    delete_session_rows(gone.pk, None)
    rows, answer = export(admin_client, key)
    today = now.astimezone(KATHMANDU).date()
    assert [row["day"] for row in rows] == [
        (today - timedelta(days=days)).isoformat() for days in (3, 2, 1, 0)
    ]
    assert [row["is_over"] for row in rows] == ["yes"] * 3 + ["no"]
    sums = {name: sum(int(row[name]) for row in rows) for name in rows[0] if name[0] in "recp"}
    assert sums["requests"] == 6
    assert (sums["errors"], sums["cancelled"]) == (1, 1)
    assert sums["prompt_tokens"] == 4 * 10 + 5 + 7
    assert rows[-1]["prompt_tokens"] == "7"
    assert "attachment" in answer.headers["Content-Disposition"]


def test_days_that_statistics_do_not_know_yet_are_not_over(admin_client):
    now = datetime.now(UTC)
    key = make_key(now - timedelta(days=3))
    make_ended([make_session(key)], [now - timedelta(days=2)])
    rows, _ = export(admin_client, key)
    assert [row["is_over"] for row in rows] == ["yes", "no", "no", "no"]


def test_it_is_noted_for_the_audit(admin_client):
    key = make_api_key("team")
    export(admin_client, key)
    (entry,) = LogEntry.objects.filter(action_flag=staff.EXPORTED)
    assert (entry.object_id, entry.object_repr) == (str(key.pk), str(key))
    assert json.loads(entry.change_message) == {"format": "csv", "rows": 1}


def test_an_old_key_gives_the_newest_years(admin_client):
    key = make_key(datetime(1999, 1, 1, tzinfo=UTC))
    rows, _ = export(admin_client, key)
    assert 2900 < len(rows) <= 3000
    assert rows[-1]["day"] == datetime.now(UTC).date().isoformat()


def test_records_older_than_the_key_are_in_it(admin_client):
    key = make_api_key()
    make_turn(make_session(key), request={"created_at": datetime.now(UTC) - timedelta(days=5)})
    rows, _ = export(admin_client, key)
    assert len(rows) == 6


@pytest.mark.parametrize("pk", ["0", "999999", "9" * 40, "x", "-1", "1.5"])
def test_no_key_is_not_found(admin_client, pk):
    assert admin_client.get(f"/admin/export/usage/{pk}/").status_code == 404
    assert not LogEntry.objects.exists()


def test_it_takes_the_permission_to_see_keys(client):
    user = User.objects.create_user("viewer", password="x", is_staff=True)
    client.force_login(user)
    key = make_api_key()
    assert client.get(url_of(key)).status_code == 403
    user.user_permissions.add(Permission.objects.get(codename="view_apikey"))
    rows, _ = export(client, key)
    assert rows
    page = client.get(f"/admin/access/apikey/{key.pk}/change/").content.decode()
    assert f'href="{url_of(key)}"' in page

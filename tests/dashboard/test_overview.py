from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from html import unescape
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from django.contrib.auth.models import Group, User
from django.db import OperationalError, connection
from django.http import QueryDict
from django.test.utils import CaptureQueriesContext

from qwenproxy.access.models import ApiKey
from qwenproxy.dashboard import front
from requests_app.models import Request, Response
from requests_app.request_filters import read_chips, time_column
from tests.factories import make_account, make_api_key, make_session
from tests.requests_app.ended import make_ended, make_random
from tests.requests_app.test_rollups import roll_all

pytestmark = pytest.mark.django_db


@pytest.fixture
def now():
    return datetime.now(UTC)


@pytest.fixture
def traffic(now):
    make_random(3, 200, now - timedelta(hours=40), timedelta(hours=40))
    roll_all(now)


def page(client, **query):
    response = client.get("/admin/", query)
    assert response.status_code == 200
    return response.content.decode()


def card(text, label):
    found = re.search(rf">{label}</h2>\s*<p class=\"value\"><a href=\"([^\"]+)\">([^<]+)<", text)
    return unescape(found[1]), found[2]


def chart(text):
    return json.loads(re.search(r'id="chart-data"[^>]*>(.*?)</script>', text)[1])


def test_the_cards_count_what_the_lists_behind_them_hold(admin_client, traffic, now):
    text = page(admin_client)
    url, value = card(text, "Requests")
    shown = chart(text)
    since = datetime.fromtimestamp(shown["start"][0] / 1000, UTC)
    ended = Response.objects.filter(completed_at__gte=since, completed_at__lte=now)
    assert value == f"{ended.count():,}"
    assert sum(shown["failed"]) == ended.filter(status__in=["failed", "interrupted"]).count()
    assert sum(shown["completed"]) == ended.filter(status="completed").count()
    assert "by=ended" in url
    assert admin_client.get(url).status_code == 200
    assert admin_client.get(card(text, "Error rate")[0]).status_code == 200


@pytest.mark.parametrize(
    ("name", "points"), [("1h", 4), ("24h", 96), ("7d", 168), ("30d", 30), ("nonsense", 96)]
)
def test_the_range_is_in_the_address(admin_client, traffic, name, points):
    assert len(chart(page(admin_client, range=name))["start"]) in (points, points + 1)


def test_what_is_not_over_is_compared_with_nothing(admin_client, now):
    session = make_session()
    start = now.replace(minute=now.minute // 15 * 15, second=0, microsecond=0)
    make_ended([session], [start - timedelta(hours=1), start - timedelta(hours=25)])
    make_ended([session], [start] * 5)
    roll_all(now)
    text = page(admin_client)
    assert not chart(text)["is_complete"][-1]
    assert card(text, "Requests")[1] == "6"
    delta = re.search(r'class="delta"[^>]*>(.*?)</span> ([^<]+)<', text, re.DOTALL)
    assert delta[2].strip() == "as before"


def test_every_model_key_and_cause_links_to_its_requests(admin_client, traffic):
    text = page(admin_client, range="7d")
    rows = re.findall(r'<th scope="row"><a href="([^"]+)"><bdi>', text)
    kinds = {name for url in rows for name in ("model=", "error=", "key=") if name in url}
    assert kinds == {"model=", "error=", "key="}
    for url in rows[:3]:
        assert admin_client.get(unescape(url)).status_code == 200


def test_hostile_names_stay_text(admin_client, now):
    key = make_api_key(name="<script>alert(1)</script>")
    make_ended([make_session(api_key=key)], [now - timedelta(minutes=20)])
    roll_all(now)
    text = page(admin_client)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_the_number_of_queries_does_not_grow(admin_client, traffic, now):
    page(admin_client)
    with CaptureQueriesContext(
        connection,
    ) as few:
        page(admin_client)
    make_random(4, 300, now - timedelta(hours=20), timedelta(hours=20))
    for _ in range(5):
        make_account()
    roll_all(now)
    with CaptureQueriesContext(connection) as many:
        page(admin_client)
    assert len(many) == len(few) <= 20
    assert not [one for one in many if "upstream_response" in one["sql"]]


def count_behind(client, url):
    """How many requests the list behind a link has."""
    assert client.get(url).status_code == 200
    query = QueryDict(urlsplit(url).query)
    return Request.objects.filter(read_chips(query).condition(time_column(query))).count()


@pytest.mark.parametrize("name", ["1h", "24h", "7d", "30d"])
@pytest.mark.parametrize("seed", [5, 6])
def test_each_number_is_the_length_of_the_list_behind_it(admin_client, now, name, seed):
    # Many end in another range than they came in.
    rows = make_random(seed, 300, now - timedelta(days=9), timedelta(days=9))
    rows += make_random(seed + 10, 60, now - timedelta(minutes=50), timedelta(minutes=50))
    for row in rows[::3]:
        Request.objects.filter(pk=row.request_id).update(created_at=now - timedelta(days=40))
    roll_all(now)
    text = page(admin_client, range=name)
    url, value = card(text, "Requests")
    assert count_behind(admin_client, url) == int(value.replace(",", ""))
    if name == "24h":
        assert f">{value} requests<" in admin_client.get(url).content.decode()
    url, _ = card(text, "Error rate")
    errors = re.search(r"([\d,]+) failed or interrupted", text)[1]
    assert count_behind(admin_client, url) == int(errors.replace(",", ""))
    bars = re.findall(
        r'<th scope="row"><a href="([^"]+from=[^"]+)">.*?<td class="figure">([\d,]+)<',
        text,
        re.DOTALL,
    )
    accounts = re.findall(r'<td class="figure"><a href="([^"]+)">([\d,]+)</a>', text)
    assert len(bars) > 8
    assert accounts
    for url, value in [*bars, *accounts]:
        assert count_behind(admin_client, unescape(url)) == int(value.replace(",", "")), url


def test_who_may_see_less_sees_less(client, traffic):
    user = User.objects.create_user("viewer", is_staff=True)
    client.force_login(user)
    for permission, sees in (("", False), ("Operator", True)):
        if permission:
            user.groups.add(Group.objects.get(name=permission))
        text = page(client)
        for heading in ("API keys</a></h2>", "Upstream accounts</a></h2>", "Latest errors</h2>"):
            assert (heading in text) == sees


def test_statistics_that_are_behind_say_so(admin_client, now):
    make_ended([make_session()], [now - timedelta(hours=5)])
    assert "Statistics as of" in page(admin_client)


def test_accounts_that_need_somebody(admin_client, traffic, now):
    make_account(name="web", kind="qwen_web", state="challenged", state_since=now)
    make_account(name="soon", secrets_expire_at=now + timedelta(hours=3))
    banners = re.findall(r'class="banner[^"]*">(.*?)</p>', page(admin_client), re.DOTALL)
    assert any("Account web is challenged" in banner for banner in banners)
    assert any("Account soon" in banner for banner in banners)


def banners_of(client):
    return re.findall(r'class="banner[^"]*">(?:<a href="([^"]*)">)?(.*?)<', page(client), re.DOTALL)


@pytest.mark.parametrize(("free", "is_told"), [(4.9, True), (5.1, False)])
def test_a_disk_that_is_nearly_full(
    admin_client, traffic, settings, tmp_path, monkeypatch, free, is_told
):
    settings.DATA_DIR = tmp_path
    usage = SimpleNamespace(total=1000, free=free * 10)
    monkeypatch.setattr(front.shutil, "disk_usage", lambda path: usage)
    found = ("/admin/health/", "Little disk is left: 4.9 %.") in banners_of(admin_client)
    assert found == is_told


@pytest.mark.parametrize("is_on", [True, False])
def test_debugging_is_told(admin_client, traffic, settings, is_on):
    settings.DEBUG = is_on
    assert any("QWENPROXY_DEBUG is on" in text for _, text in banners_of(admin_client)) == is_on


@pytest.mark.parametrize(
    ("state", "words"),
    [
        pytest.param({}, "", id="well"),
        pytest.param({"is_working": False}, "The recorder has stopped", id="stopped"),
        pytest.param(
            {"owed": 1}, "The database is busy or away: the ends of 1 answer wait", id="busy"
        ),
        pytest.param({"queued": 500}, "The recorder is behind: 500 writes wait", id="behind"),
    ],
)
def test_a_recorder_that_cannot_write(admin_client, traffic, settings, monkeypatch, state, words):
    settings.RECORDER_QUEUE_TURNS = 1000
    recorder = SimpleNamespace(**{"is_working": True, "owed": 0, "queued": 0, **state})
    monkeypatch.setattr(front, "_recorder", lambda request: recorder)
    texts = [text for _, text in banners_of(admin_client)]
    assert [text.startswith(words) for text in texts] == ([True] if words else [])
    assert f"recorder {recorder.queued} waiting" in page(admin_client)


def test_a_database_that_does_not_answer_is_a_page_to_try_again(admin_client, monkeypatch):
    def fail(request):
        raise OperationalError("database is locked")

    monkeypatch.setattr("qwenproxy.dashboard.front.front_context", fail)
    answer = admin_client.get("/admin/")
    assert (answer.status_code, answer["Retry-After"]) == (503, "5")
    text = answer.content.decode()
    assert "The database is busy" in text
    assert "Try again" in text
    assert "locked" not in text
    assert "Content-Security-Policy" in answer


def test_a_new_gateway_shows_what_is_to_do(admin_client):
    ApiKey.objects.all().delete()
    text = page(admin_client)
    assert "To the first answer" in text
    assert "chart-data" not in text
    assert text.count('<li class="done">') == 2
    make_api_key()
    make_account(kind="demo")
    text = page(admin_client)
    assert text.count('<li class="done">') == 4
    assert "it is no Qwen" in text
    assert "http://testserver/v1/chat/completions" in text

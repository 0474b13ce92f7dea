from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from requests_app.models import Response
from requests_app.windows import SLOT
from sessions_app.paging import milliseconds
from tests.factories import make_api_key, make_session
from tests.records_api import RecordsClient, api
from tests.requests_app.ended import make_ended, make_random
from tests.requests_app.test_rollups import roll_all

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.records_api")]


@pytest.fixture
def now():
    return datetime.now(UTC)


@pytest.fixture
def everything(now):
    make_random(1, 120, now - timedelta(hours=20), timedelta(hours=20))
    roll_all(now)
    return RecordsClient(make_api_key(), "admin")


@pytest.fixture
def nothing():
    return RecordsClient(make_api_key(), "admin")


def test_the_last_day_by_default(everything, now):
    body = everything.get("/stats")
    ended = Response.objects.filter(completed_at__lt=now)
    assert body["total"]["requests"] == ended.count()
    assert body["total"]["failed"] == ended.filter(status="failed").count()
    assert body["end"] - body["start"] == 24 * 3600_000
    assert body["end"] - milliseconds(now) in range(1, 900_001 + 60_000)
    assert body["as_of"] >= milliseconds(now)
    assert (body["group"], body["interval"], body["time_zone"]) == (None, None, "UTC")
    assert "groups" not in body
    assert "series" not in body


@pytest.mark.parametrize("group", ["model", "key", "account", "status", "error"])
def test_broken_down_and_in_time(everything, group):
    body = everything.get("/stats", range="24h", group=group, interval="hour")
    requests = body["total"]["requests"]
    if group == "error":
        requests = body["total"]["failed"] + body["total"]["interrupted"]
    assert sum(one["requests"] for one in body["groups"]) == requests
    assert sum(point["requests"] for point in body["series"]) == body["total"]["requests"]
    within = [one["requests"] for point in body["series"] for one in point["groups"]]
    assert sum(within) == requests
    assert not body["series"][-1]["complete"]
    assert body["series"][5]["complete"]
    named = [one["name"] is not None for one in body["groups"] if one["ref"]]
    assert all(named) == (group in ("key", "account"))
    assert (body["groups"][0]["ttft_ms"]["samples"] is None) == (group != "model")


def test_the_documented_members(everything):
    schemas = api.get_openapi_schema()["components"]["schemas"]
    body = everything.get("/stats", group="model", interval="day")
    # Today may have nothing yet.
    busy = next(point for point in body["series"] if point["groups"])
    for schema, shown in (
        ("Stats", body),
        ("StatsFigures", body["total"]),
        ("Percentiles", body["total"]["ttft_ms"]),
        ("StatsGroup", body["groups"][0]),
        ("StatsPoint", body["series"][0]),
        ("StatsPointGroup", busy["groups"][0]),
    ):
        assert set(shown) == set(schemas[schema]["properties"])


@pytest.mark.parametrize("form", ["ms", "iso"])
def test_from_and_to(now, form):
    start = now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
    make_ended([make_session()], [start - timedelta(seconds=1), start, start + 2 * SLOT])
    roll_all(now)
    times = {"from": start, "to": start + SLOT}
    query = {
        name: milliseconds(time) if form == "ms" else time.isoformat()
        for name, time in times.items()
    }
    client = RecordsClient(make_api_key(), "admin")
    body = client.get("/stats", **query)
    assert (body["start"], body["end"]) == (milliseconds(start), milliseconds(start + SLOT))
    assert body["total"]["requests"] == 1
    del query["to"]
    assert client.get("/stats", **query)["total"]["requests"] == 2


def test_days_of_the_reporting_zone(settings, nothing, now):
    settings.REPORTING_ZONE = ZoneInfo("Asia/Kolkata")
    body = nothing.get("/stats", range="7d", interval="day")
    assert body["time_zone"] == "Asia/Kolkata"
    starts = {point["start"] % 86_400_000 for point in body["series"][1:]}
    assert starts == {(18 * 60 + 30) * 60_000}


def test_nothing_recorded(nothing):
    body = nothing.get("/stats", group="error", interval="slot", range="1h")
    assert body["total"]["requests"] == 0
    assert body["total"]["ttft_ms"] == {"samples": 0, "p50": None, "p95": None}
    assert body["groups"] == []
    assert len(body["series"]) == 4


def test_a_key_sees_its_own(now):
    own, other = make_session(), make_session()
    make_ended([own, other, other], [now - timedelta(minutes=1)] * 3, model=["a", "b", "b"])
    client = RecordsClient(own.api_key)
    body = client.get("/stats", group="model", interval="hour")
    assert body["total"]["requests"] == 1
    assert [(one["ref"], one["requests"]) for one in body["groups"]] == [("a", 1)]
    assert [one["ref"] for one in client.get("/stats", group="key")["groups"]] == [
        str(own.api_key_id)
    ]
    week = client.get("/stats", range="7d", group="status", interval="day")
    assert week["total"]["requests"] == 1
    assert week["total"]["ttft_ms"] == {"samples": None, "p50": None, "p95": None}
    assert client.error("/stats", range="7d", group="model") == (400, "invalid_group")


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        pytest.param({"range": "2h"}, "range", "invalid_range", id="range"),
        pytest.param({"range": ""}, "range", "invalid_range", id="empty range"),
        pytest.param({"group": "models"}, "group", "invalid_group", id="group"),
        pytest.param({"interval": "week"}, "interval", "invalid_interval", id="interval"),
        pytest.param({"from": "yesterday"}, "from", "invalid_from", id="from"),
        pytest.param({"from": "9" * 25}, "from", "invalid_from", id="far from"),
        pytest.param({"from": "0", "to": "\0"}, "to", "invalid_to", id="to"),
        pytest.param({"to": "2026-11-22"}, "to", "invalid_to", id="to alone"),
        pytest.param({"from": "0", "range": "1h"}, "range", "invalid_range", id="both"),
        pytest.param({"from": "5", "to": "5"}, "from", "invalid_date_range", id="empty"),
        pytest.param({"from": "2200-01-01"}, "from", "invalid_date_range", id="future"),
        pytest.param(
            {"from": "0", "interval": "day"}, "interval", "invalid_interval", id="too many points"
        ),
        pytest.param(
            {"range": "30d", "interval": "slot", "from": None}, None, None, id="a month of slots"
        ),
    ],
)
def test_bad_values_are_refused_by_name(nothing, query, param, code):
    query = {name: value for name, value in query.items() if value is not None}
    response = nothing._call("get", "/stats", query)
    if code is None:
        assert response.status_code == 200
        return
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)


def test_a_negative_time_is_the_beginning_of_time(nothing):
    assert nothing.get("/stats", **{"from": "-5000", "to": "900000"})["start"] == 0


def test_few_queries_whatever_is_asked(everything, django_assert_max_num_queries):
    with django_assert_max_num_queries(13):
        everything.get("/stats", range="30d", group="model", interval="day")

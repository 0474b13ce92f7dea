"""`/v1/keys` of a running gateway: who may, what it answers, and what it refuses."""

from __future__ import annotations

import time
from datetime import timedelta

import httpx
import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from qwenproxy.access import keys, keys_api
from qwenproxy.access.models import ApiKey, KeyUsage
from qwenproxy.wire import json
from tests.conftest import NO_TLS
from tests.factories import make_api_key

KEYS = "/v1/keys"


@pytest.fixture
def admin(gateway_url, admin_key):
    """A client with the scope `admin`."""
    headers = {"Authorization": f"Bearer {admin_key}"}
    with httpx.Client(base_url=gateway_url, headers=headers, verify=NO_TLS) as client:
        yield client


def error_of(answer, status=400):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def models_with(client, secret):
    """The status that a key gets."""
    return client.get("/v1/models", headers={"Authorization": f"Bearer {secret}"}).status_code


def test_a_key_is_created_used_changed_rotated_and_revoked(admin):
    answer = admin.post(
        KEYS,
        json={
            "name": "agent",
            "scopes": ["chat"],
            "expires_at": "30d",
            "allowed_models": ["qwen3-*"],
            "requests_per_minute": 60,
            "tokens_per_day": 10**12,
            "recorded": "metadata",
            "content_days": 30,
        },
    )
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    made = answer.json()
    first = made.pop("key")
    assert made == {
        "id": made["id"],
        "name": "agent",
        "prefix": first[:10],
        "state": "active",
        "scopes": ["chat"],
        "created_at": made["created_at"],
        "expires_at": made["expires_at"],
        "revoked_at": None,
        "previous_expires_at": None,
        "allowed_models": ["qwen3-*"],
        "requests_per_minute": 60,
        "tokens_per_minute": None,
        "max_concurrent": None,
        "tokens_per_day": 10**12,
        "tokens_per_month": None,
        "recorded": "metadata",
        "content_days": 30,
        "record_days": None,
        "usage": {
            "minute": {"requests": 0, "tokens": 0},
            "day": {"requests": 0, "tokens": 0},
            "month": {"requests": 0, "tokens": 0},
            "running": 0,
        },
    }
    assert abs(made["created_at"] / 1000 - time.time()) < 60
    assert abs(made["expires_at"] - made["created_at"] - 30 * 86_400_000) < 60_000
    assert models_with(admin, first) == 200

    url = f"{KEYS}/{made['id']}"
    assert admin.get(url).json() == made

    change = {"requests_per_minute": None, "tokens_per_day": None, "name": "renamed"}
    changed = admin.patch(url, json=change).json()
    assert changed == {**made, **change, "usage": None}
    assert admin.get(url).json() == changed

    rotated = admin.post(f"{url}/rotate").json()
    second = rotated.pop("key")
    left_ms = rotated["previous_expires_at"] - time.time() * 1000
    assert 23.9 * 3_600_000 < left_ms < 24.1 * 3_600_000
    assert rotated["prefix"] == second[:10]
    assert models_with(admin, first) == models_with(admin, second) == 200

    third = admin.post(f"{url}/rotate", json={"overlap_seconds": 0}).json()["key"]
    assert [models_with(admin, secret) for secret in (first, second, third)] == [401, 401, 200]

    assert admin.post(f"{url}/rotate").json()["previous_expires_at"] is not None
    revoked = admin.delete(url)
    assert (revoked.status_code, revoked.json()["state"]) == (200, "revoked")
    assert revoked.json()["previous_expires_at"] is None
    assert models_with(admin, third) == 401
    assert admin.delete(url).json() == revoked.json()
    assert error_of(admin.post(f"{url}/rotate"), 409)["code"] == "key_not_in_use"


def test_the_secret_is_in_one_answer_alone(admin):
    secret = admin.post(KEYS, json={"name": "k"}).json()["key"]
    row = ApiKey.objects.get(name="k")
    assert row.scopes == "chat records"
    for url in (KEYS, f"{KEYS}/{row.pk}"):
        text = admin.get(url).text
        assert secret not in text
        assert row.secret_hash not in text


@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("GET", KEYS),
        ("POST", KEYS),
        ("GET", f"{KEYS}/1"),
        ("PATCH", f"{KEYS}/1"),
        ("DELETE", f"{KEYS}/1"),
        ("POST", f"{KEYS}/1/rotate"),
    ],
)
def test_it_needs_the_admin_scope(http, method, url):
    assert error_of(http.request(method, url), 403)["code"] == "insufficient_scope"
    assert error_of(http.request(method, url, headers={"Authorization": ""}), 401)
    assert ApiKey.objects.get().revoked_at is None


def test_bodies_are_refused_by_field_and_nothing_is_changed(admin):
    row = make_api_key("kept", tokens_per_day=5)
    before = admin.get(f"{KEYS}/{row.pk}").json()
    count = ApiKey.objects.count()
    for field, value in {
        "name": "",
        "scopes": [],
        "expires_at": 1,
        "allowed_models": "qwen3-*",
        "requests_per_minute": -1,
        "tokens_per_minute": 1.5,
        "max_concurrent": True,
        "tokens_per_day": 10**30,
        "tokens_per_month": "5",
        "recorded": None,
        "secret": "sk-chosen-by-the-client",
        "key": "sk-chosen-by-the-client",
        "revoked_at": None,
        "usage": {},
        "\ud800": 1,
    }.items():
        body = json.dumps({"name": "x", "tokens_per_day": 7, field: value})
        for answer in (
            admin.post(KEYS, content=body),
            admin.patch(f"{KEYS}/{row.pk}", content=body),
        ):
            error = error_of(answer)
            assert (error["type"], error["param"]) == ("invalid_request_error", field)
            assert "chosen" not in answer.text
    assert error_of(admin.post(KEYS, json={"scopes": ["chat"]}))["param"] == "name"
    assert admin.get(f"{KEYS}/{row.pk}").json() == before
    assert ApiKey.objects.count() == count


def test_what_is_no_object_is_refused(admin):
    row = make_api_key()
    for content in (b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 100_000):
        for method, url in (("POST", KEYS), ("PATCH", f"{KEYS}/{row.pk}")):
            answer = admin.request(method, url, content=content)
            assert error_of(answer)["code"] == "invalid_json"
    assert admin.patch(f"{KEYS}/{row.pk}", json={}).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        pytest.param({"overlap_seconds": -1}, "overlap_seconds", id="negative"),
        pytest.param({"overlap_seconds": 30 * 86400 + 1}, "overlap_seconds", id="long"),
        pytest.param({"overlap_seconds": 1.5}, "overlap_seconds", id="float"),
        pytest.param({"overlap_seconds": True}, "overlap_seconds", id="bool"),
        pytest.param({"overlap_seconds": None}, "overlap_seconds", id="null"),
        pytest.param({"overlap": 5}, "overlap", id="unknown"),
    ],
)
def test_an_overlap_that_cannot_be_is_refused(admin, body, param):
    row = make_api_key()
    assert error_of(admin.post(f"{KEYS}/{row.pk}/rotate", json=body))["param"] == param
    assert ApiKey.objects.get(pk=row.pk).previous_hash is None


def test_an_expired_key_is_extended_before_it_is_rotated(admin):
    row, secret = keys.create_api_key(name="k", scopes=["chat"])
    ApiKey.objects.filter(pk=row.pk).update(expires_at=timezone.now() - timedelta(hours=1))
    url = f"{KEYS}/{row.pk}"
    assert admin.get(url).json()["state"] == "expired"
    assert models_with(admin, secret) == 401
    assert error_of(admin.post(f"{url}/rotate"), 409)["code"] == "key_not_in_use"
    # What is not named stays, an expiry in the past too.
    assert admin.patch(url, json={"name": "late"}).json()["state"] == "expired"
    assert admin.patch(url, json={"expires_at": None}).json()["state"] == "active"
    assert models_with(admin, secret) == 200


@pytest.mark.parametrize(
    ("reference", "status", "code"),
    [
        pytest.param("0", 404, "key_not_found", id="none"),
        pytest.param("9" * 18, 404, "key_not_found", id="beyond the rows"),
        pytest.param("9" * 30, 404, "key_not_found", id="beyond the column"),
        pytest.param("qp-abc", 400, "invalid_id", id="prefix"),
        pytest.param("-1", 400, "invalid_id", id="negative"),
        pytest.param("%D9%A3", 400, "invalid_id", id="other digits"),
    ],
)
def test_keys_that_are_not_there(admin, reference, status, code):
    url = f"{KEYS}/{reference}"
    for answer in (
        admin.get(url),
        admin.patch(url, json={}),
        admin.delete(url),
        admin.post(f"{url}/rotate"),
    ):
        assert error_of(answer, status)["code"] == code


def test_an_admin_key_may_revoke_itself(admin):
    own = ApiKey.objects.get(name="tests-admin")
    assert admin.delete(f"{KEYS}/{own.pk}").json()["state"] == "revoked"
    assert admin.get(KEYS).status_code == 401


def test_the_list_is_cut_into_pages(admin):
    rows = [make_api_key(f"key {n}") for n in range(5)]
    newest_first = [row.pk for row in reversed(rows)]
    everything = admin.get(KEYS).json()
    assert [key["id"] for key in everything["data"]][:5] == newest_first
    assert everything["total"] == len(everything["data"])
    assert (everything["has_more"], everything["next_cursor"]) == (False, None)
    seen, cursor = [], None
    while True:
        query = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        page = admin.get(KEYS, params=query).json()
        seen += page["data"]
        cursor = page["next_cursor"]
        if not page["has_more"]:
            break
    assert seen == everything["data"]
    page = admin.get(KEYS, params={"limit": 2, "offset": 2}).json()
    assert page["data"] == everything["data"][2:4]
    assert (page["object"], page["limit"], page["offset"]) == ("list", 2, 2)
    assert admin.get(KEYS, params={"offset": 2**62}).json()["data"] == []


def test_pages_that_cannot_be_are_refused(admin):
    for name, value in (
        ("limit", "0"),
        ("limit", "1001"),
        ("limit", "x"),
        ("offset", "-1"),
        ("offset", str(2**70)),
        ("cursor", "x"),
        ("cursor", str(2**70)),
    ):
        error = error_of(admin.get(KEYS, params={name: value}))
        assert (error["param"], error["code"]) == (name, f"invalid_{name}")
    error = error_of(admin.get(KEYS, params={"cursor": 5, "offset": 5}))
    assert error["code"] == "invalid_cursor"


@pytest.mark.django_db
def test_the_list_asks_the_database_as_often_for_many_keys_as_for_one():
    def queries(limit):
        with CaptureQueriesContext(
            connection,
        ) as captured:
            keys_api._key_list(limit, 0, None)
        return len(captured)

    for _ in range(5):
        make_api_key(tokens_per_day=5)
    assert queries(1) == queries(5) == 3


def test_usage_is_that_of_now(admin):
    now = timezone.now()
    slot = int(now.timestamp() * 4)
    day, month = int(now.timestamp() // 86400), now.year * 12 + now.month - 1
    limited = make_api_key(requests_per_minute=5)
    daily = make_api_key(tokens_per_day=5)
    for span, at, requests, tokens in (
        ("minute", slot, 1, 10),
        ("minute", slot - 100, 2, 20),
        ("minute", slot - 250, 4, 40),
        ("day", day, 8, 80),
        ("day", day - 1, 16, 160),
        ("month", month, 32, 320),
        ("month", month - 1, 64, 640),
    ):
        for row in (limited, daily):
            KeyUsage.objects.create(
                api_key=row, span=span, slot=at, requests=requests, tokens=tokens
            )
    expected = {
        "minute": {"requests": 3, "tokens": 30},
        "day": {"requests": 8, "tokens": 80},
        "month": {"requests": 32, "tokens": 320},
        "running": 0,
    }
    by_id = {key["id"]: key["usage"] for key in admin.get(KEYS).json()["data"]}
    assert by_id[limited.pk] == expected
    assert by_id[daily.pk] == {**expected, "minute": None}
    assert by_id[ApiKey.objects.get(name="tests-admin").pk] is None


def test_a_browser_elsewhere_may_change_keys(admin):
    headers = {"Origin": "https://a.example", "Access-Control-Request-Method": "PATCH"}
    answer = admin.options(f"{KEYS}/1", headers=headers)
    assert "PATCH" in answer.headers["access-control-allow-methods"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("get", "/v1/keys", 200),
        ("post", "/v1/keys", 201),
        ("get", "/v1/keys/{key_id}", 200),
        ("post", "/v1/keys/{key_id}/rotate", 200),
    ],
)
def test_answers_have_the_documented_members(admin, method, path, status):
    document = admin.get("/v1/openapi.json").json()
    schemas = document["components"]["schemas"]
    row = make_api_key(requests_per_minute=5)
    body = {"name": "k", "requests_per_minute": 5} if path == KEYS else {}
    answer = admin.request(method, path.format(key_id=row.pk), json=body).json()
    content = document["paths"][path][method]["responses"][str(status)]["content"]
    name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert set(answer) == set(schemas[name]["properties"])
    shown = answer["data"][0] if "data" in answer else answer
    assert set(schemas["KeyObject"]["properties"]) == set(shown) - {"key"}
    assert set(schemas["Usage"]["properties"]) == set(shown["usage"])


def test_usage_is_what_turns_have_used(admin, http, make_account, openai_compatible_url):
    make_account("openai_compatible", openai_compatible_url)
    url = f"{KEYS}/{ApiKey.objects.get(name='tests').pk}"
    admin.patch(url, json={"requests_per_minute": 9, "max_concurrent": 2})
    body = {"messages": [{"role": "user", "content": "Hello"}]}
    tokens = 0
    for _ in range(2):
        answer = http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200
        tokens += answer.json()["usage"]["total_tokens"]
    used = {"requests": 2, "tokens": tokens}
    assert admin.get(url).json()["usage"] == {
        "minute": used,
        "day": used,
        "month": used,
        "running": 0,
    }

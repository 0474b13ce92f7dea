"""`/v1/accounts` of a running gateway: who may, what it answers, and what it refuses."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import httpx
import pytest

from qwenproxy.access import accounts
from qwenproxy.access.models import UpstreamAccount
from tests.access.test_browser_request import COOKIES, bash
from tests.access.test_session_tokens import LASTING, SOON_S, jwt
from tests.conftest import NO_TLS

ACCOUNTS = "/v1/accounts"
SERVER = {"name": "server", "kind": "openai_compatible", "base_url": "http://127.0.0.1:9/v1"}
WEB_SECRETS = {
    "cookies": f"token={LASTING}; a=planted-cookie",
    "token": "planted-token",
    "user_agent": "planted-agent",
    "headers": {"bx-ua": "planted-header"},
}


@pytest.fixture
def admin(gateway_url, admin_key):
    """A client with the scope `admin`."""
    headers = {"Authorization": f"Bearer {admin_key}"}
    with httpx.Client(base_url=gateway_url, headers=headers, verify=NO_TLS) as client:
        yield client


def create(client, **fields):
    answer = client.post(ACCOUNTS, json={**SERVER, **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


def error_of(answer, status=400):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def stored():
    return accounts.get_secrets(UpstreamAccount.objects.get())


def rows():
    return list(UpstreamAccount.objects.order_by("pk").values())


def test_an_account_is_created_shown_changed_paused_and_deleted(admin):
    before_ms = time.time_ns() // 1_000_000
    made = create(
        admin, priority=5, weight=3, max_concurrent=2, min_interval_ms=100, secrets={"api_key": "k"}
    )
    assert made.pop("warnings") == []
    assert before_ms <= made["created_at"] <= time.time_ns() // 1_000_000
    url = f"{ACCOUNTS}/{made['id']}"
    assert made == {
        **SERVER,
        "id": made["id"],
        "enabled": True,
        "priority": 5,
        "weight": 3,
        "max_concurrent": 2,
        "min_interval_ms": 100,
        "has_secrets": True,
        "secrets_set": ["api_key"],
        "secrets_expire_at": None,
        "state": "ready",
        "state_reason": "",
        "state_since": made["state_since"],
        "state_until": None,
        "way_out": "",
        "warning": "",
        "failures": 0,
        "last_ok_at": None,
        "last_error_at": None,
        "created_at": made["created_at"],
        "updated_at": made["updated_at"],
    }
    assert admin.get(url).json() == made
    assert admin.get(ACCOUNTS).json() == {
        "object": "list",
        "data": [made],
        "total": 1,
        "limit": 100,
        "offset": 0,
        "has_more": False,
    }
    changed = admin.patch(url, json={"name": "other", "max_concurrent": None, "weight": 0}).json()
    assert (changed["name"], changed["max_concurrent"], changed["weight"]) == ("other", None, 0)
    assert (changed["priority"], changed["secrets_set"]) == (5, ["api_key"])
    paused = admin.post(f"{url}/pause").json()
    assert (paused["state"], paused["enabled"]) == ("paused", False)
    assert paused["way_out"].startswith("switch it on again")
    assert admin.post(f"{url}/resume").json()["state"] == "ready"
    assert admin.delete(url).json() == {"deleted": True, "id": made["id"]}
    assert error_of(admin.get(url), 404)["code"] == "account_not_found"
    assert rows() == []


def test_answers_never_hold_a_secret(admin):
    texts = []
    web = admin.post(ACCOUNTS, json={"name": "web", "kind": "qwen_web", "secrets": WEB_SECRETS})
    url = f"{ACCOUNTS}/{web.json()['id']}"
    texts.append(web.text)
    texts.append(admin.patch(url, json={"secrets": {"token": "planted-again"}}).text)
    texts.append(admin.patch(url, json={"base_url": "http://other.example"}).text)
    texts.append(admin.get(url).text)
    texts.append(admin.get(ACCOUNTS).text)
    bad = {"secrets": {"token": "planted\n"}, "name": "planted" * 50}
    texts.append(admin.patch(url, json=bad).text)
    texts.append(admin.post(ACCOUNTS, json={**SERVER, "browser_request": "planted"}).text)
    assert "planted" not in "".join(texts)
    assert LASTING not in "".join(texts)


def test_a_web_account_says_what_it_has_and_when_that_ends(admin):
    made = create(admin, kind="qwen_web", base_url="", secrets=WEB_SECRETS)
    assert made["base_url"] == "https://chat.qwen.ai"
    assert made["secrets_set"] == ["cookies", "token", "user_agent", "headers"]
    assert made["secrets_expire_at"] == SOON_S * 1000
    assert stored() == WEB_SECRETS


def test_credentials_that_end_soon_are_warned_about(admin):
    token = jwt({"exp": time.time() + 3600})
    made = create(admin, kind="qwen_web", base_url="", secrets={"cookies": f"token={token}"})
    assert made["warning"].startswith("the credentials end at ")


def test_a_pasted_request_is_the_whole_session(admin):
    made = create(admin, kind="qwen_web", base_url="", browser_request=bash())
    assert made["base_url"] == "https://chat.qwen.ai"
    assert stored()["cookies"] == COOKIES
    url = f"{ACCOUNTS}/{made['id']}"
    answer = admin.patch(url, json={"browser_request": bash(cookies="acw_tc=0a03")}).json()
    assert "session of a guest" in answer["warnings"][0]
    assert stored()["cookies"] == "acw_tc=0a03"


def test_named_secrets_change_and_the_others_stay(admin):
    made = create(admin, kind="qwen_web", base_url="", secrets=WEB_SECRETS)
    url = f"{ACCOUNTS}/{made['id']}"
    admin.patch(url, json={"secrets": {"token": "new", "headers": None}})
    assert stored() == {
        "cookies": WEB_SECRETS["cookies"],
        "token": "new",
        "user_agent": "planted-agent",
    }
    assert admin.patch(url, json={"secrets": None}).json()["has_secrets"] is False
    assert stored() == {}


def test_new_secrets_make_the_account_ready(admin):
    url = f"{ACCOUNTS}/{create(admin, secrets={'api_key': 'k'})['id']}"
    UpstreamAccount.objects.update(state="expired", state_reason="401", failures=2)
    assert admin.patch(url, json={"priority": 7}).json()["state"] == "expired"
    changed = admin.patch(url, json={"secrets": {"api_key": "new"}}).json()
    assert (changed["state"], changed["state_reason"], changed["failures"]) == ("ready", "", 0)


def test_a_state_is_told_with_its_way_out(admin):
    url = f"{ACCOUNTS}/{create(admin, secrets={'api_key': 'k'})['id']}"
    until = datetime(2126, 11, 22, 12, tzinfo=UTC)
    UpstreamAccount.objects.update(
        state="cooling", state_reason="upstream_rate_limited: x", state_until=until, failures=4
    )
    shown = admin.get(url).json()
    assert (shown["state"], shown["state_reason"]) == ("cooling", "upstream_rate_limited: x")
    assert (shown["state_until"], shown["failures"]) == (round(until.timestamp() * 1000), 4)
    assert "2126-11-22 12:00:00 UTC" in shown["way_out"]
    # Its operator knows that it may be asked: at once.
    resumed = admin.post(f"{url}/resume").json()
    assert (resumed["state"], resumed["state_until"], resumed["failures"]) == ("ready", None, 0)


def test_stored_secrets_do_not_follow_to_another_address(admin):
    url = f"{ACCOUNTS}/{create(admin, secrets={'api_key': 'planted'})['id']}"
    same = admin.patch(url, json={"base_url": "http://127.0.0.1:9/v2/"}).json()
    assert (same["base_url"], same["secrets_set"]) == ("http://127.0.0.1:9/v2", ["api_key"])
    moved = admin.patch(url, json={"base_url": "http://127.0.0.1:10/v1"}).json()
    assert moved["has_secrets"] is False
    assert "The address changed" in moved["warnings"][0]
    assert stored() == {}


def test_secrets_may_come_with_the_new_address(admin):
    url = f"{ACCOUNTS}/{create(admin, secrets={'api_key': 'old'})['id']}"
    body = {"base_url": "http://other.example/v1", "secrets": {"api_key": "new"}}
    assert admin.patch(url, json=body).json()["secrets_set"] == ["api_key"]
    assert stored() == {"api_key": "new"}


def test_secrets_that_cannot_be_read_are_said_to_be_and_stay(admin, settings):
    url = f"{ACCOUNTS}/{create(admin, secrets={'api_key': 'k'})['id']}"
    keys, settings.ENCRYPTION_KEYS = settings.ENCRYPTION_KEYS, ["other".ljust(32, "-")]
    shown = admin.get(url).json()
    assert (shown["has_secrets"], shown["secrets_set"]) == (True, None)
    assert "enter them anew" in shown["way_out"]
    assert admin.patch(url, json={"priority": 1}).json()["has_secrets"] is True
    settings.ENCRYPTION_KEYS = keys
    assert stored() == {"api_key": "k"}


def test_the_list_is_cut_and_goes_by_priority(admin):
    for number in range(3):
        create(admin, name=f"a{number}", priority=-number)
    page = admin.get(ACCOUNTS, params={"limit": 2}).json()
    assert [account["name"] for account in page["data"]] == ["a2", "a1"]
    assert (page["total"], page["has_more"]) == (3, True)
    page = admin.get(ACCOUNTS, params={"limit": 2, "offset": 2}).json()
    assert [account["name"] for account in page["data"]] == ["a0"]
    assert page["has_more"] is False


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "offset=-1", f"offset={10**30}"])
def test_a_bad_page_is_refused(admin, query):
    assert error_of(admin.get(f"{ACCOUNTS}?{query}"))["param"] == query.partition("=")[0]


BAD = [
    pytest.param({"name": ""}, "name", id="no-name"),
    pytest.param({"name": "x" * 101}, "name", id="long-name"),
    pytest.param({"name": "a\0b"}, "name", id="nul"),
    pytest.param({"name": "a\nb"}, "name", id="line-break-in-name"),
    pytest.param({"name": 5}, "name", id="name-no-text"),
    pytest.param({"name": None}, "name", id="name-null"),
    pytest.param({"name": "taken"}, "name", id="taken"),
    pytest.param({"base_url": "ftp://a"}, "base_url", id="other-protocol"),
    pytest.param({"base_url": "not an address"}, "base_url", id="no-address"),
    pytest.param({"base_url": "http://u:planted@a"}, "base_url", id="user-in-address"),
    pytest.param({"base_url": "http://a:99999"}, "base_url", id="port"),
    pytest.param({"base_url": "http://u:planted@a\u2100/"}, "base_url", id="odd-host"),
    pytest.param({"base_url": "http://" + "a" * 600}, "base_url", id="long-address"),
    pytest.param({"enabled": "yes"}, "enabled", id="enabled-text"),
    pytest.param({"enabled": 1}, "enabled", id="enabled-number"),
    pytest.param({"priority": 2**31}, "priority", id="priority-huge"),
    pytest.param({"priority": 10**4000}, "priority", id="priority-endless"),
    pytest.param({"priority": 1.5}, "priority", id="priority-fraction"),
    pytest.param({"priority": True}, "priority", id="priority-boolean"),
    pytest.param({"weight": -1}, "weight", id="weight-negative"),
    pytest.param({"weight": 10**12}, "weight", id="weight-huge"),
    pytest.param({"weight": None}, "weight", id="weight-null"),
    pytest.param({"max_concurrent": 0}, "max_concurrent", id="no-calls"),
    pytest.param({"max_concurrent": "5"}, "max_concurrent", id="calls-text"),
    pytest.param({"min_interval_ms": 3_600_001}, "min_interval_ms", id="more-than-an-hour"),
    pytest.param({"planted": 1}, "planted", id="unknown-field"),
    pytest.param({"state": "ready"}, "state", id="state"),
    pytest.param({"secrets": "planted"}, "secrets", id="secrets-text"),
    pytest.param({"secrets": {"password": "x"}}, "secrets.password", id="unknown-secret"),
    pytest.param({"secrets": {"api_key": 5}}, "secrets.api_key", id="secret-no-text"),
    pytest.param({"secrets": {"api_key": "planted\u00fc"}}, "secrets.api_key", id="not-ascii"),
    pytest.param({"secrets": {"api_key": "planted\n1"}}, "secrets.api_key", id="line-break"),
    pytest.param({"secrets": {"cookies": "a=planted"}}, "secrets.cookies", id="other-kinds-secret"),
    pytest.param({"secrets": {"api_key": "planted" * 9999}}, "secrets.api_key", id="endless"),
    pytest.param({"secrets": {"headers": "planted"}}, "secrets.headers", id="headers-text"),
    pytest.param({"secrets": {"headers": {"a": 5}}}, "secrets.headers", id="header-number"),
    pytest.param({"secrets": {"headers": {"a b": "c"}}}, "secrets.headers", id="header-name"),
    pytest.param({"browser_request": bash()}, "browser_request", id="paste-for-another-kind"),
]


@pytest.mark.parametrize(("bad", "param"), BAD)
def test_bad_input_changes_nothing(admin, bad, param):
    create(admin, name="taken")
    url = f"{ACCOUNTS}/{create(admin, secrets={'api_key': 'k'})['id']}"
    before = rows()
    for answer in (
        admin.patch(url, json={"weight": 9, **bad}),
        admin.post(ACCOUNTS, json={**SERVER, "name": "new", **bad}),
    ):
        assert error_of(answer)["param"] == param
        assert "planted" not in answer.text.replace("'planted'", "").replace('"planted"', "")
    assert rows() == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("planted", "does not begin with 'curl'", id="no-curl"),
        pytest.param("curl https://chat.qwen.ai/", "no cookies", id="no-cookies"),
        pytest.param("curl 'https://chat.qwen.ai/", "cut off", id="cut"),
        pytest.param("curl -b 'a=planted'", "no http(s) address", id="no-address"),
        pytest.param(5, "must be a text", id="no-text"),
    ],
)
def test_a_pasted_text_with_nothing_useful_is_refused(admin, text, said):
    answer = admin.post(ACCOUNTS, json={"name": "w", "kind": "qwen_web", "browser_request": text})
    error = error_of(answer)
    assert error["param"] == "browser_request"
    assert said in error["message"]
    assert "planted" not in answer.text
    assert rows() == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        pytest.param({"kind": "qwen_web"}, "name", id="no-name"),
        pytest.param({"name": "a"}, "kind", id="no-kind"),
        pytest.param({**SERVER, "kind": "other"}, "kind", id="unknown-kind"),
        pytest.param({**SERVER, "kind": "demo"}, "kind", id="demo"),
        pytest.param({"name": "a", "kind": "openai_compatible"}, "base_url", id="no-address"),
        pytest.param([], None, id="list"),
    ],
)
def test_an_incomplete_account_is_not_made(admin, body, param):
    assert error_of(admin.post(ACCOUNTS, json=body))["param"] == param
    assert rows() == []


@pytest.mark.parametrize("body", [b"", b"{", b'{"name": "\xff"}', b"[" * 100_000])
def test_a_body_that_is_no_json_is_refused(admin, body):
    assert error_of(admin.post(ACCOUNTS, content=body))["code"] == "invalid_json"


def test_a_lone_surrogate_is_refused(admin):
    body = b'{"name": "\\ud800", "kind": "qwen_web"}'
    assert error_of(admin.post(ACCOUNTS, content=body))["param"] == "name"


def test_the_kind_of_an_account_stays(admin):
    url = f"{ACCOUNTS}/{create(admin)['id']}"
    assert error_of(admin.patch(url, json={"kind": "dashscope"}))["param"] == "kind"


def test_the_demo_takes_limits_and_neither_address_nor_secrets(admin, make_account):
    url = f"{ACCOUNTS}/{make_account('demo').pk}"
    assert admin.patch(url, json={"weight": 2}).json()["weight"] == 2
    assert error_of(admin.patch(url, json={"base_url": "http://a"}))["param"] == "base_url"
    body = {"secrets": {"api_key": "k"}}
    assert error_of(admin.patch(url, json=body))["param"] == "secrets.api_key"


@pytest.mark.parametrize(
    ("path", "code", "status"),
    [
        pytest.param("1", "account_not_found", 404, id="none"),
        pytest.param("0", "account_not_found", 404, id="zero"),
        pytest.param("9" * 30, "account_not_found", 404, id="huge"),
        pytest.param("-1", "invalid_id", 400, id="negative"),
        pytest.param("٣", "invalid_id", 400, id="other-digits"),
        pytest.param("a", "invalid_id", 400, id="text"),
    ],
)
def test_an_account_that_is_not_there(admin, path, code, status):
    url = f"{ACCOUNTS}/{path}"
    answers = [
        admin.get(url),
        admin.patch(url, json={}),
        admin.delete(url),
        *(admin.post(f"{url}/{verb}") for verb in ("pause", "resume", "test")),
    ]
    assert [error_of(answer, status)["code"] for answer in answers] == [code] * 6


def test_a_demo_that_ended_says_so(admin, make_account):
    url = f"{ACCOUNTS}/{make_account('demo').pk}"
    create(admin)
    assert admin.post(f"{url}/resume").json()["state"] == "paused"
    assert admin.patch(url, json={"enabled": True}).json()["enabled"] is False


def test_the_scope_admin_is_needed(http, make_account):
    pk = make_account("qwen_web").pk
    for method, path in (
        ("GET", ""),
        ("POST", ""),
        ("GET", f"/{pk}"),
        ("PATCH", f"/{pk}"),
        ("DELETE", f"/{pk}"),
        ("POST", f"/{pk}/test"),
        ("POST", f"/{pk}/pause"),
        ("POST", f"/{pk}/resume"),
    ):
        answer = http.request(method, ACCOUNTS + path)
        assert error_of(answer, 403)["code"] == "insufficient_scope"
    assert UpstreamAccount.objects.get().enabled

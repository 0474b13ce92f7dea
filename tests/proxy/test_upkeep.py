"""Web sessions are renewed in time, by one process, and never past a refusal; ending ones are announced."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import timedelta
from functools import partial

import pytest
from django.db import OperationalError
from django.utils import timezone

from qwenproxy.access import accounts
from qwenproxy.access.models import UpstreamAccount
from qwenproxy.proxy import upkeep
from qwenproxy.proxy.upkeep import Upkeep
from qwenproxy.proxy.upstreams import make_upstream
from qwenproxy.upstream.http import open_client
from tests.access.test_session_tokens import jwt
from tests.doubles.qwen_web import REFRESH, web_error
from tests.doubles.server import Reply
from tests.proxy.conftest import wait_until

pytestmark = pytest.mark.usefixtures("db_pool")


@pytest.fixture
def db_pool(transactional_db):
    from qwenproxy.database import close_pool

    close_pool()
    yield
    close_pool()


def token(seconds):
    return jwt({"exp": time.time() + seconds})


def jar(access, refresh="planted-first"):
    return f"acw_tc=1; token={access}; refresh_token={refresh}; x-ap=eu"


@pytest.fixture
def site(qwen_web, qwen_web_url, make_account):
    """The double knows a session that ends in a minute, and an account has it since an hour."""
    qwen_web.access_token, qwen_web.refresh_token = token(60), "planted-first"
    qwen_web.next_tokens = [(token(900), "planted-second"), (token(901), "planted-third")]
    secrets = {"cookies": jar(qwen_web.access_token), "headers": {"bx-ua": "planted-ua"}}
    make_account("qwen_web", qwen_web_url, secrets=secrets)
    age()
    return qwen_web


def age():
    UpstreamAccount.objects.update(updated_at=timezone.now() - timedelta(hours=1))


def look(*keepers, times=1):
    """Let keepers look at the accounts, at the same time."""

    async def main():
        async with open_client() as client:
            for keeper in keepers or [Upkeep(lambda stored: None)]:
                keeper.make_upstream = partial(make_upstream, client)
            for _ in range(times):
                await asyncio.gather(*(keeper.look() for keeper in keepers))

    asyncio.run(main())


def keeper():
    return Upkeep(lambda stored: None)


def cookies():
    return accounts.get_secrets(UpstreamAccount.objects.get())["cookies"]


def test_a_session_is_renewed_shortly_before_its_token_ends(site):
    look(keeper())
    assert cookies() == jar(site.access_token, "planted-second")
    assert len(site.requests_to(REFRESH)) == 1
    stored = accounts.get_secrets(UpstreamAccount.objects.get())
    assert stored["headers"] == {"bx-ua": "planted-ua"}
    # The new token has its time; nothing is due.
    age()
    look(keeper())
    assert len(site.requests_to(REFRESH)) == 1


def test_two_processes_renew_once(site):
    look(keeper(), keeper())
    assert len(site.requests_to(REFRESH)) == 1
    assert cookies() == jar(site.access_token, "planted-second")


@pytest.mark.parametrize(
    ("make_cookies", "fields"),
    [
        pytest.param(lambda: f"token={token(60)}", {}, id="no-refresh-token"),
        pytest.param(lambda: jar(token(600)), {}, id="time-left"),
        pytest.param(lambda: jar("opaque"), {}, id="no-claim"),
        pytest.param(lambda: jar(token(60)), {"enabled": False}, id="paused"),
    ],
)
def test_what_is_not_due_is_left_alone(qwen_web, qwen_web_url, make_account, make_cookies, fields):
    make_account("qwen_web", qwen_web_url, secrets={"cookies": make_cookies()}, **fields)
    age()
    look(keeper())
    assert qwen_web.requests == []


@pytest.mark.parametrize(
    "make_token",
    [
        pytest.param(lambda: "opaque", id="opaque"),
        pytest.param(lambda: token(-60), id="ended"),
        pytest.param(str, id="none"),
    ],
)
def test_an_expired_account_is_renewed_where_it_can_be(site, make_token):
    account = UpstreamAccount.objects.get()
    accounts.set_secrets(account, {"cookies": jar(make_token())})
    UpstreamAccount.objects.update(state="expired", state_reason="401", failures=1)
    age()
    look(keeper())
    account.refresh_from_db()
    assert (account.state, account.state_reason, account.failures) == ("ready", "", 0)
    assert "planted-second" in cookies()


def test_a_refused_renewal_is_the_accounts_state_and_not_tried_again(site, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("qwenproxy"), "propagate", True)
    site.refresh_token = "revoked"
    one = keeper()
    look(one)
    account = UpstreamAccount.objects.get()
    assert account.state == "expired"
    assert account.state_reason.startswith("upstream_auth_expired: ")
    assert "planted" not in account.state_reason + caplog.text + repr(one)
    age()
    look(one)
    assert len(site.requests_to(REFRESH)) == 1
    # Another session is another chance.
    accounts.set_secrets(account, {"cookies": jar(token(60), "revoked")})
    age()
    look(one)
    assert "planted-second" in cookies()


def test_a_challenge_is_an_end(site):
    site.enqueue(web_error("challenge_html_waf"), path=REFRESH)
    look(keeper())
    assert UpstreamAccount.objects.get().state == "challenged"
    age()
    look(keeper())
    assert len(site.requests_to(REFRESH)) == 1


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Reply(status=500, body={"detail": "no"}), id="500"),
        pytest.param(Reply(body={"success": True, "data": {}}), id="no-token"),
        pytest.param(Reply(silent=True), id="silence"),
    ],
)
def test_another_failure_changes_nothing_and_is_tried_again_a_minute_later(
    site, monkeypatch, reply
):
    monkeypatch.setattr(upkeep, "_RENEWAL_TIMEOUT_S", 0.3)
    before = cookies()
    site.enqueue(reply, path=REFRESH)
    one = keeper()
    look(one, times=3)
    assert len(site.requests_to(REFRESH)) == 1
    assert (cookies(), UpstreamAccount.objects.get().state) == (before, "ready")
    age()
    look(one)
    assert "planted-second" in cookies()


def test_a_session_that_is_refused_right_after_its_renewal_is_not_renewed_in_a_circle(site):
    one = keeper()
    look(one)
    UpstreamAccount.objects.update(state="expired")
    age()
    look(one)
    assert len(site.requests_to(REFRESH)) == 1


def test_a_renewed_session_survives_a_database_that_fails(site, monkeypatch):
    one = keeper()
    store = accounts.store_renewed

    def fail(*args):
        raise OperationalError("locked")

    monkeypatch.setattr(accounts, "store_renewed", fail)
    with pytest.raises(OperationalError):
        look(one)
    monkeypatch.setattr(accounts, "store_renewed", store)
    look(one)
    assert cookies() == jar(site.access_token, "planted-second")
    assert len(site.requests_to(REFRESH)) == 1


def test_a_running_gateway_renews_and_goes_on_with_the_new_session(site, open_gateway):
    gateway = open_gateway()
    wait_until(lambda: "planted-second" in cookies())
    assert gateway.ask("qwen3-max").status_code == 200
    assert f"token={site.access_token}" in site.turns[0].headers["cookie"]


def test_ending_credentials_are_announced_once_a_day(make_account, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("qwenproxy"), "propagate", True)
    for name, days in (("soon", 2), ("later", 20), ("ended", -1)):
        secrets = {"cookies": f"token={token(days * 86_400)}"}
        make_account("qwen_web", "http://127.0.0.1:9", name=name, secrets=secrets)
    make_account("qwen_web", name="paused", secrets=secrets, enabled=False)
    one = keeper()
    look(one, times=2)
    # The root's handlers and the logger's own both see each record.
    said = {id(record): record.getMessage() for record in caplog.records}.values()
    assert sorted(line.split("'")[1] for line in said) == ["ended", "soon"]
    assert all("Copy as cURL" in line for line in said)
    monkeypatch.setattr(one, "_warned_at", time.monotonic() - upkeep._WARN_EVERY_S)
    look(one)
    assert len({id(record) for record in caplog.records}) == 4

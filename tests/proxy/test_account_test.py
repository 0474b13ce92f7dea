"""An account tested on demand, over REST and in the admin: what it says, and what becomes of the state."""

from __future__ import annotations

from datetime import timedelta

import httpx
import pytest
from django.utils import timezone

from qwenproxy.access import accounts
from qwenproxy.access.accounts import AccountState
from qwenproxy.access.models import UpstreamAccount
from qwenproxy.proxy import account_test
from tests.conftest import NO_TLS
from tests.doubles.openai_compatible import MODELS
from tests.doubles.qwen_web import MODELS as WEB_MODELS
from tests.doubles.qwen_web import SESSION, web_error
from tests.doubles.server import Reply, unused_port

LIST = "/admin/access/upstreamaccount/"


@pytest.fixture
def admin(gateway_url, admin_key):
    headers = {"Authorization": f"Bearer {admin_key}"}
    with httpx.Client(base_url=gateway_url, headers=headers, verify=NO_TLS, timeout=30) as client:
        yield client


def ask(client):
    answer = client.post(f"/v1/accounts/{UpstreamAccount.objects.get().pk}/test")
    assert answer.status_code == 200, answer.text
    assert "planted" not in answer.text
    return answer.json()


def put(state, **fields):
    account = UpstreamAccount.objects.get()
    fields = {"since": timezone.now(), "until": timezone.now() + timedelta(hours=1), **fields}
    accounts.record_state(account.pk, AccountState(state, **fields))


def test_a_server_that_answers_is_well(admin, serve_upstream):
    served = serve_upstream("openai_compatible", secrets={"api_key": "planted-key"})
    found = ask(admin)
    assert (found["ok"], found["models"], found["session"]) == (True, 2, None)
    assert (found["code"], found["message"], found["way_out"]) == (None, "", "")
    assert found["ms"] >= 0
    assert found["account"]["id"] == served.account.pk
    assert found["account"]["last_ok_at"] is not None


def test_a_server_without_a_model_list_is_well(admin, serve_upstream):
    served = serve_upstream("openai_compatible")
    served.enqueue(Reply(status=404, body={"detail": "Not Found"}), path=MODELS)
    found = ask(admin)
    assert (found["ok"], found["models"]) == (True, None)


def test_a_web_session_that_the_site_knows_is_signed_in(admin, serve_upstream):
    served = serve_upstream("qwen_web", secrets={"cookies": "token=planted-token"})
    served.double.access_token = "planted-token"
    found = ask(admin)
    assert (found["ok"], found["session"], found["models"]) == (True, "signed_in", 3)


def test_a_guest_is_not_asked_who_it_is(admin, serve_upstream):
    served = serve_upstream("qwen_web", secrets={"cookies": "acw_tc=1"})
    assert ask(admin)["session"] == "guest"
    assert served.double.requests_to(SESSION) == []


def test_a_session_that_ended_makes_the_account_expired(admin, serve_upstream):
    served = serve_upstream("qwen_web", secrets={"cookies": "token=planted-token"})
    served.double.access_token = "another"
    found = ask(admin)
    assert (found["ok"], found["code"]) == (False, "upstream_auth_expired")
    assert "sign in at the site" in found["way_out"]
    assert found["account"]["state"] == "expired"
    assert UpstreamAccount.objects.get().state == "expired"
    # It is known again.
    served.double.access_token = "planted-token"
    assert ask(admin)["account"]["state"] == "ready"


def test_a_challenge_is_the_accounts_state(admin, serve_upstream):
    served = serve_upstream("qwen_web", secrets={"cookies": "token=planted-token"})
    served.enqueue(web_error("challenge_html_waf"), path=SESSION)
    found = ask(admin)
    assert found["code"] == "upstream_challenge"
    assert found["account"]["state"] == "challenged"
    # A list that can be read does not show that the challenge is over.
    again = ask(admin)
    assert (again["ok"], again["account"]["state"]) == (True, "challenged")


def test_a_quota_does_not_end_because_the_list_can_be_read(admin, serve_upstream):
    serve_upstream("openai_compatible")
    put("cooling", reason="upstream_rate_limited: wait")
    found = ask(admin)
    assert (found["ok"], found["account"]["state"]) == (True, "cooling")


def test_a_server_that_is_back_is_ready(admin, serve_upstream):
    serve_upstream("openai_compatible")
    put("cooling", reason="upstream_error: refused", failures=4)
    account = ask(admin)["account"]
    assert (account["state"], account["failures"], account["state_until"]) == ("ready", 0, None)


def test_a_server_that_is_not_there_is_said_to_be(admin, make_account):
    make_account("openai_compatible", f"http://127.0.0.1:{unused_port()}/v1")
    found = ask(admin)
    assert (found["ok"], found["code"]) == (False, "upstream_error")
    assert "connection refused" in found["message"]
    assert "base URL" in found["way_out"]
    assert found["account"]["last_error_at"] is not None


def test_a_silent_server_is_waited_for_no_longer_than_the_limit(admin, serve_upstream, monkeypatch):
    monkeypatch.setattr(account_test, "TIMEOUT_S", 0.2)
    served = serve_upstream("qwen_web")
    served.enqueue(Reply(silent=True), path=WEB_MODELS)
    found = ask(admin)
    assert found["code"] == "upstream_timeout"
    assert 200 <= found["ms"] < 5000


def test_a_secret_that_the_upstream_quotes_is_not_shown(admin, serve_upstream):
    served = serve_upstream("openai_compatible", secrets={"api_key": "planted-key-123"})
    error = {"error": {"message": "bad key planted-key-123"}}
    served.enqueue(Reply(status=401, body=error), path=MODELS)
    found = ask(admin)
    assert found["code"] == "upstream_auth_expired"
    assert "planted" not in UpstreamAccount.objects.get().state_reason


def test_a_paused_account_can_be_tested(admin, serve_upstream):
    serve_upstream("openai_compatible", enabled=False)
    found = ask(admin)
    assert (found["ok"], found["account"]["state"]) == (True, "paused")


def test_unreadable_credentials_go_nowhere(admin, serve_upstream, settings):
    served = serve_upstream("openai_compatible", secrets={"api_key": "planted"})
    settings.ENCRYPTION_KEYS = ["other".ljust(32, "-")]
    found = ask(admin)
    assert (found["ok"], found["code"]) == (False, "credentials_unreadable")
    assert "enter them anew" in found["way_out"]
    assert served.double.requests == []


def test_a_failure_of_old_credentials_does_not_touch_new_ones(admin, serve_upstream, monkeypatch):
    served = serve_upstream("openai_compatible", secrets={"api_key": "old"})
    record = accounts.record_state

    def pasted_meanwhile(*args):
        accounts.set_secrets(UpstreamAccount.objects.get(), {"api_key": "new"})
        record(*args)

    monkeypatch.setattr(accounts, "record_state", pasted_meanwhile)
    served.enqueue(Reply(status=401, body={"error": {"message": "no"}}), path=MODELS)
    found = ask(admin)
    assert (found["ok"], found["account"]["state"]) == (False, "ready")


class TestInTheAdmin:
    def test_chosen_accounts_are_tested_and_the_outcome_is_told(
        self, admin_client, serve_upstream, make_account
    ):
        served = serve_upstream("openai_compatible", name="well")
        gone = make_account(
            "openai_compatible", f"http://127.0.0.1:{unused_port()}/v1", name="gone"
        )
        form = {"action": "test_now", "_selected_action": [served.account.pk, gone.pk]}
        page = admin_client.post(LIST, form, follow=True).content.decode()
        assert "Account well: answered in" in page
        assert "models: 2" in page
        assert "Account gone: upstream_error after" in page
        assert "Way out: see whether its server runs" in page
        gone.refresh_from_db()
        assert gone.last_error_at is not None

    def test_an_accounts_page_has_the_button(self, admin_client, serve_upstream):
        served = serve_upstream("qwen_web", secrets={"cookies": "token=planted"})
        page = admin_client.get(f"{LIST}{served.account.pk}/change/").content.decode()
        assert 'action="/admin/test-accounts/"' in page
        form = {"_selected_action": served.account.pk}
        page = admin_client.post("/admin/test-accounts/", form, follow=True).content.decode()
        assert "session: signed in" in page
        assert "planted" not in page

    @pytest.mark.parametrize("chosen", ["", "x", "0", "9" * 40])
    def test_nothing_chosen_is_no_fault(self, admin_client, chosen):
        form = {"_selected_action": chosen}
        assert admin_client.post("/admin/test-accounts/", form).status_code == 302

    def test_a_link_tests_nothing(self, admin_client):
        assert admin_client.get("/admin/test-accounts/").status_code == 405

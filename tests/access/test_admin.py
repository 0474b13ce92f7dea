"""Accounts in the browser: what is shown, what never is, and what is refused."""

from __future__ import annotations

import html
import re
from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import resolve, reverse
from django.utils import timezone

from qwenproxy.access import accounts
from qwenproxy.access.models import UpstreamAccount
from tests.access.test_accounts import all_rows, make_account
from tests.access.test_browser_request import COOKIES, HEADERS, bash
from tests.access.test_session_tokens import jwt
from tests.factories import make_api_key, make_session
from tests.requests_app.ended import make_ended

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("encryption_keys")]

KEYS = "/admin/access/apikey/"
ACCOUNTS = "/admin/access/upstreamaccount/"
SECRETS = {
    "cookies": "token=planted-cookie",
    "token": "planted-token",
    "user_agent": "planted-agent",
    "headers": {"bx-ua": "planted-header"},
}


def account_form(**changes):
    form = {"name": "web", "kind": "qwen_web", "base_url": "", "enabled": "on", "priority": "100"}
    return {**form, "weight": "1", "min_interval_ms": "0", **changes}


def change_url(row):
    return reverse(f"admin:access_{row._meta.model_name}_change", args=[row.pk])


def switch_url(row, verb):
    return reverse(f"admin:access_upstreamaccount_{verb}", args=[row.pk])


def stored(account):
    return accounts.get_secrets(UpstreamAccount.objects.get(pk=account.pk))


def act(client, action, *rows, url=KEYS):
    form = {"action": action, "_selected_action": [row.pk for row in rows]}
    return client.post(url, form, follow=True)


def viewer(model):
    user = get_user_model().objects.create_user("viewer", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename=f"view_{model}"))
    return user


class TestUpstreamAccounts:
    def test_a_pasted_request_fills_in_everything(self, admin_client):
        answer = admin_client.post(ACCOUNTS + "add/", account_form(browser_request=bash()))
        assert answer.status_code == 302
        account = UpstreamAccount.objects.get()
        assert account.base_url == "https://chat.qwen.ai"
        assert stored(account)["cookies"] == COOKIES
        assert stored(account)["headers"]["bx-v"] == "2.5.31"
        assert COOKIES not in all_rows()

    @pytest.mark.parametrize(
        ("kind", "base_url"),
        [
            ("qwen_web", "https://chat.qwen.ai"),
            ("dashscope", accounts.DEFAULT_BASE_URLS["dashscope"]),
        ],
    )
    def test_a_known_service_has_a_default_address(self, admin_client, kind, base_url):
        admin_client.post(ACCOUNTS + "add/", account_form(kind=kind))
        assert UpstreamAccount.objects.get().base_url == base_url

    @pytest.mark.parametrize(
        ("form", "named"),
        [
            pytest.param({"kind": "openai_compatible"}, "11434", id="no address"),
            pytest.param({"base_url": "ftp://a"}, "http://", id="other protocol"),
            pytest.param({"base_url": "http://u:p@a"}, "user name", id="user in address"),
            pytest.param({"kind": "demo"}, "not one of the available choices", id="demo"),
            pytest.param({"browser_request": "planted-text"}, "begin with", id="no cURL"),
            pytest.param(
                {"kind": "dashscope", "browser_request": bash()}, "belongs", id="other kind"
            ),
            pytest.param({"api_key": "planted"}, "does not take it", id="other kind's secret"),
            pytest.param({"headers": "planted"}, "a colon", id="no header"),
            pytest.param({"headers": "plan ted: x"}, "letters, digits", id="bad header name"),
            pytest.param({"weight": "-1"}, "greater than or equal to 0", id="negative weight"),
            pytest.param({"priority": "9" * 30}, "less than or equal to", id="huge number"),
            pytest.param({"max_concurrent": "0"}, "greater than or equal to 1", id="no calls"),
            pytest.param({"cookies": "planted\u00fc"}, "cannot be sent", id="not ASCII"),
            pytest.param({"cookies": "planted\nx"}, "line break", id="line break"),
        ],
    )
    def test_what_cannot_be_used_is_explained_and_not_shown_again(self, admin_client, form, named):
        answer = admin_client.post(ACCOUNTS + "add/", account_form(token="planted-token", **form))
        page = answer.content.decode()
        assert named in page
        assert "planted" not in page
        assert COOKIES not in page
        assert not UpstreamAccount.objects.exists()

    def test_no_page_shows_a_secret(self, admin_client):
        account = make_account(secrets=SECRETS, base_url="https://chat.qwen.ai")
        for url in (
            ACCOUNTS,
            change_url(account),
            change_url(account).replace("change", "history"),
        ):
            page = admin_client.get(url).content.decode()
            assert "planted" not in page
            assert account.secrets not in page
        page = admin_client.get(change_url(account)).content.decode()
        assert "Set; leave empty to keep it." in page
        assert "cookies, token, user agent, headers" in page

    def test_saving_logs_no_secret(self, admin_client):
        account = make_account(base_url="https://chat.qwen.ai")
        admin_client.post(change_url(account), account_form(cookies="a=planted", token="planted"))
        assert stored(account) == {"cookies": "a=planted", "token": "planted"}
        assert "planted" not in all_rows()

    def test_empty_fields_keep_what_is_stored(self, admin_client):
        account = make_account(secrets=SECRETS, base_url="https://chat.qwen.ai")
        form = account_form(name="new", base_url="https://chat.qwen.ai", token="other")
        admin_client.post(change_url(account), form)
        assert stored(account) == {**SECRETS, "token": "other"}
        assert UpstreamAccount.objects.get().name == "new"

    def test_what_is_ticked_is_removed(self, admin_client):
        account = make_account(secrets=SECRETS, base_url="https://chat.qwen.ai")
        form = account_form(
            base_url="https://chat.qwen.ai", forget=["headers", "token"], token="t2"
        )
        admin_client.post(change_url(account), form)
        assert stored(account) == {
            "cookies": SECRETS["cookies"],
            "user_agent": SECRETS["user_agent"],
            "token": "t2",
        }

    def test_a_pasted_request_replaces_the_whole_session(self, admin_client):
        account = make_account(secrets=SECRETS, base_url="https://chat.qwen.ai")
        form = account_form(base_url="https://chat.qwen.ai", browser_request=bash())
        admin_client.post(change_url(account), form)
        assert "planted" not in repr(stored(account))
        assert stored(account)["cookies"] == COOKIES

    def test_stored_secrets_do_not_follow_to_another_address(self, admin_client):
        account = make_account(secrets=SECRETS, base_url="https://chat.qwen.ai")
        form = account_form(base_url="http://attacker.example", token="new")
        answer = admin_client.post(change_url(account), form, follow=True)
        assert stored(account) == {"token": "new"}
        assert "The address changed" in answer.content.decode()

    def test_warnings_of_a_pasted_request_are_shown(self, admin_client):
        text = bash(cookies="acw_tc=0a03")
        answer = admin_client.post(
            ACCOUNTS + "add/", account_form(browser_request=text), follow=True
        )
        assert "session of a guest" in answer.content.decode()

    def test_secrets_are_cleaned_of_what_is_copied_with_them(self, admin_client):
        form = account_form(
            cookies="Cookie: a=b ", token=" bx-umidtoken: T2gA ", user_agent="User-Agent: X"
        )
        admin_client.post(ACCOUNTS + "add/", form)
        account = UpstreamAccount.objects.get()
        assert stored(account) == {"cookies": "a=b", "token": "T2gA", "user_agent": "X"}

    def test_the_kind_of_an_account_stays(self, admin_client):
        account = make_account(base_url="https://chat.qwen.ai")
        admin_client.post(change_url(account), account_form(kind="dashscope"))
        assert UpstreamAccount.objects.get().kind == "qwen_web"

    def test_an_account_that_cannot_be_read_can_be_given_new_secrets(
        self, admin_client, encryption_keys
    ):
        account = make_account(secrets=SECRETS, base_url="https://chat.qwen.ai")
        encryption_keys("other")
        assert "unreadable" in admin_client.get(ACCOUNTS).content.decode()
        admin_client.post(change_url(account), account_form(base_url="https://chat.qwen.ai"))
        assert UpstreamAccount.objects.get().secrets == account.secrets
        admin_client.post(
            change_url(account), account_form(base_url="https://chat.qwen.ai", cookies="a=b")
        )
        assert stored(account) == {"cookies": "a=b"}

    def test_a_prefilled_link_takes_no_secret(self, admin_client):
        page = admin_client.get(
            ACCOUNTS + "add/?kind=openai_compatible&name=Ollama&base_url=http://127.0.0.1:11434/v1"
            "&api_key=planted&cookies=planted&browser_request=planted"
        ).content.decode()
        assert 'value="Ollama"' in page
        assert 'value="http://127.0.0.1:11434/v1"' in page
        assert re.search(r'value="openai_compatible" selected', page)
        assert "planted" not in page

    def test_the_demo_account_has_a_page_without_credentials(self, admin_client):
        account = make_account("demo", kind="demo")
        page = admin_client.get(change_url(account)).content.decode()
        assert 'name="cookies"' not in page
        form = {"name": "demo", "priority": "5", "weight": "1", "min_interval_ms": "0"}
        admin_client.post(change_url(account), form)
        account.refresh_from_db()
        assert (account.enabled, account.priority) == (False, 5)

    def test_secrets_that_cannot_be_read_do_not_follow_to_another_address(
        self, admin_client, encryption_keys
    ):
        account = make_account(secrets=SECRETS, base_url="https://chat.qwen.ai")
        encryption_keys("other")
        form = account_form(base_url="http://attacker.example")
        admin_client.post(change_url(account), form)
        assert UpstreamAccount.objects.get().secrets == ""

    def test_headers_are_entered_one_a_line(self, admin_client):
        form = account_form(headers="bx-ua: 231!a: b\r\n\r\nX-Other:1\n")
        admin_client.post(ACCOUNTS + "add/", form)
        assert stored(UpstreamAccount.objects.get()) == {
            "headers": {"bx-ua": "231!a: b", "x-other": "1"}
        }

    def test_an_edit_without_new_secrets_leaves_the_state_alone(self, admin_client):
        account = make_account(secrets=SECRETS, base_url="https://chat.qwen.ai")
        UpstreamAccount.objects.update(state="challenged", state_reason="asked")
        form = account_form(base_url="https://chat.qwen.ai", weight="7", max_concurrent="2")
        admin_client.post(change_url(account), form)
        account.refresh_from_db()
        assert (account.state, account.weight, account.max_concurrent) == ("challenged", 7, 2)
        admin_client.post(change_url(account), {**form, "token": "new"})
        account.refresh_from_db()
        assert account.state == "ready"

    def test_the_list_says_what_is_wrong_and_what_to_do(self, admin_client):
        until = timezone.now() + timedelta(hours=1)
        make_account("asked", secrets=SECRETS)
        UpstreamAccount.objects.update(
            state="challenged", state_reason="upstream_challenge: <b>", state_until=until
        )
        make_account("by-hand", kind="openai_compatible", enabled=False)
        page = admin_client.get(ACCOUNTS).content.decode()
        assert "pill-challenged" in page
        assert "upstream_challenge: &lt;b&gt;" in page
        assert "pass the check" in page
        assert f"{until:%Y-%m-%d %H:%M:%S} UTC" in page
        assert "pill-paused" in page
        assert "Paused by hand" in page

    @pytest.mark.parametrize(
        ("days", "shown"),
        [pytest.param(2, True, id="soon"), pytest.param(20, False, id="not-soon")],
    )
    def test_credentials_that_end_soon_are_marked(self, admin_client, days, shown):
        expires = timezone.now() + timedelta(days=days)
        token = jwt({"exp": expires.timestamp()})
        account = make_account(secrets={"cookies": f"token={token}"})
        page = admin_client.get(ACCOUNTS).content.decode()
        assert f'title="{expires:%Y-%m-%dT%H:%M}' in page
        assert f">in {days - 1} day" in page
        assert (">soon<" in page) == shown
        own_page = admin_client.get(change_url(account)).content.decode()
        assert ("credentials end at" in own_page) == shown
        assert token not in page + own_page

    def test_accounts_are_paused_and_resumed(self, admin_client):
        account = make_account(secrets=SECRETS)
        act(admin_client, "pause", account, url=ACCOUNTS)
        assert not UpstreamAccount.objects.get().enabled
        UpstreamAccount.objects.update(state="expired", failures=3)
        act(admin_client, "resume", account, url=ACCOUNTS)
        resumed = UpstreamAccount.objects.get()
        assert (resumed.enabled, resumed.state, resumed.failures) == (True, "ready", 0)
        assert stored(resumed) == SECRETS

    def test_who_may_only_look_changes_no_account(self, client):
        account = make_account(secrets=SECRETS)
        client.force_login(viewer("upstreamaccount"))
        act(client, "pause", account, url=ACCOUNTS)
        assert UpstreamAccount.objects.get().enabled
        answer = client.post("/admin/test-accounts/", {"_selected_action": [account.pk]})
        assert answer.status_code == 403
        assert "Test now" not in client.get(change_url(account)).content.decode()

    def test_who_may_only_look_sees_no_secret(self, client):
        account = make_account(secrets=SECRETS, base_url="https://chat.qwen.ai")
        client.force_login(viewer("upstreamaccount"))
        answer = client.get(change_url(account))
        assert answer.status_code == 200
        assert "planted" not in answer.content.decode()

    def test_the_buttons_of_a_row_pause_and_resume_it(self, admin_client):
        account = make_account(secrets=SECRETS)
        for verb, enabled in (("pause", False), ("resume", True)):
            url = switch_url(account, verb)
            assert url in admin_client.get(ACCOUNTS).content.decode()
            assert admin_client.get(url).status_code == 405
            answer = admin_client.post(url)
            assert answer.url == ACCOUNTS
            assert UpstreamAccount.objects.get().enabled == enabled
        assert admin_client.post(url, {"back": "account"}).url == change_url(account)
        said = list(LogEntry.objects.values_list("change_message", flat=True).order_by("id"))
        assert said == ["Paused.", "Resumed.", "Resumed."]

    @pytest.mark.parametrize("object_id", ["0", "x", "9" * 30, "%00"])
    def test_no_account_is_not_found(self, admin_client, object_id):
        for verb in ("pause", "resume"):
            assert admin_client.post(f"{ACCOUNTS}{object_id}/{verb}/").status_code == 404

    def test_who_may_only_look_has_no_buttons(self, client):
        account = make_account(secrets=SECRETS)
        client.force_login(viewer("upstreamaccount"))
        for url in (ACCOUNTS, change_url(account)):
            page = client.get(url).content.decode()
            assert "/pause/" not in page
            assert "requests_app/request" not in page
        assert client.post(switch_url(account, "pause")).status_code == 403

    def test_the_list_is_filtered_by_state(self, admin_client):
        make_account("all-well")
        make_account("by-hand", enabled=False)
        make_account("asked", state="challenged")
        UpstreamAccount.objects.filter(name="asked").update(state="challenged")
        shown = {
            state: {
                name
                for name in ("all-well", "by-hand", "asked")
                if f">{name}</a>" in admin_client.get(ACCOUNTS, {"state": state}).content.decode()
            }
            for state in ("ready", "paused", "challenged", "forged")
        }
        assert shown == {
            "ready": {"all-well"},
            "paused": {"by-hand"},
            "challenged": {"asked"},
            "forged": {"all-well", "by-hand", "asked"},
        }
        assert (
            "No account is in this state"
            in admin_client.get(ACCOUNTS, {"state": "cooling"}).content.decode()
        )

    def test_what_was_pasted_is_told_without_values(self, admin_client):
        page = admin_client.post(
            ACCOUNTS + "add/", account_form(browser_request=bash()), follow=True
        ).content.decode()
        assert re.search(
            r"Found in the pasted request: \d+ cookies, the device token, the user agent, \d+ other "
            r"headers. It goes to https://chat.qwen.ai.",
            page,
        )
        for secret in (
            COOKIES,
            *(HEADERS[name] for name in ("bx-ua", "bx-umidtoken", "user-agent")),
        ):
            assert secret not in html.unescape(page)

    def test_each_kind_has_its_own_fields(self, admin_client):
        page = admin_client.get(ACCOUNTS + "add/?kind=dashscope").content.decode()
        assert re.search(r'<fieldset class="module aligned [^"]*kind-qwen_web', page)
        assert re.search(r'<fieldset class="module aligned [^"]*kind-dashscope', page)
        account = make_account("d", kind="dashscope", base_url="https://d.example")
        page = admin_client.get(change_url(account)).content.decode()
        assert 'name="api_key"' in page
        assert 'name="cookies"' not in page

    def test_an_account_shows_what_it_did_of_late(self, admin_client):
        account, idle = make_account("busy"), make_account("idle")
        now, session = timezone.now(), make_session()
        ended = [now - timedelta(minutes=1)] * 3
        make_ended([session], ended, account_id=account.pk)
        make_ended(
            [session],
            ended[:1],
            account_id=account.pk,
            status="failed",
            error_code="upstream_error",
        )
        page = admin_client.get(ACCOUNTS).content.decode()
        assert "75.0 %" in page
        assert f'?account={account.pk}&amp;span=24h">4</a>' in page
        assert "no requests" in page
        page = admin_client.get(change_url(account)).content.decode()
        assert f"?account={account.pk}&amp;status=failed&amp;span=7d" in page
        assert "1 failed" in page
        assert "no requests" in admin_client.get(change_url(idle)).content.decode()

    def test_the_list_asks_the_database_as_often_for_many_as_for_one(self, admin_client):
        def queries():
            with CaptureQueriesContext(connection) as captured:
                assert admin_client.get(ACCOUNTS).status_code == 200
            return len(captured)

        make_account("first", secrets=SECRETS)
        few = queries()
        for number in range(10):
            make_account(f"number {number}", secrets=SECRETS)
        assert queries() == few <= 12

    def test_hostile_text_stays_inert(self, admin_client):
        text = "<script>alert(1)</script>\u202e" + "x" * 70
        account = make_account(text, state_reason=text * 9, state="expired", secrets=SECRETS)
        UpstreamAccount.objects.update(state="expired", state_reason=text * 9)
        for url in (ACCOUNTS, change_url(account)):
            page = admin_client.get(url).content.decode()
            assert "<script>alert" not in page
            assert "&lt;script&gt;alert" in page

    def test_changes_are_in_the_audit_log_without_secrets(self, admin_client):
        form = account_form(
            cookies="a=planted-one", token="planted-two", headers="x-y: planted-three"
        )
        admin_client.post(ACCOUNTS + "add/", form)
        account = UpstreamAccount.objects.get()
        admin_client.post(
            change_url(account),
            account_form(base_url="https://chat.qwen.ai", token="planted-four", weight="7"),
        )
        admin_client.post(
            change_url(account),
            account_form(base_url="https://chat.qwen.ai", weight="7", browser_request=bash()),
        )
        entries = list(LogEntry.objects.order_by("id"))
        said = [entry.get_change_message() for entry in entries]
        assert said == [
            "Added.",
            "Changed Device token (bx-umidtoken) and weight.",
            "Changed Browser request.",
        ]
        told = "".join(f"{entry.object_repr}{entry.change_message}" for entry in entries)
        assert "planted" not in told
        assert COOKIES not in told


@pytest.mark.parametrize("url", [KEYS, ACCOUNTS])
@pytest.mark.parametrize(
    "query",
    [
        {"secret_hash__startswith": "a"},
        {"secrets__startswith": "a"},
        {"state": "\0"},
        {"q": "\0"},
        {"p": "x"},
        {"p": "999"},
        {"o": "9.x"},
        {"all": ""},
        {"e": "1"},
    ],
    ids=lambda query: next(iter(query)),
)
def test_a_forged_address_of_a_list_is_its_first_page(admin_client, url, query):
    make_account("the-account", secrets=SECRETS)
    make_api_key("the-key")
    page = admin_client.get(url, query, follow=True)
    assert page.status_code == 200
    assert ("the-key" if url == KEYS else "the-account") in page.content.decode()


def test_the_canary_is_not_in_the_admin(admin_client):
    assert "canary" not in admin_client.get("/admin/").content.decode().lower()


def test_calls_that_run_now_are_counted_by_account(admin_client):
    busy, idle = make_account("busy", max_concurrent=8), make_account("idle", enabled=False)
    running = {busy.pk: 3, idle.pk: 1, 999: 5}
    scope = {"gateway": SimpleNamespace(routing=SimpleNamespace(running=lambda: running))}

    def page(url, **known):
        # The server's scope, which the test's client has no way to give.
        request = RequestFactory().get(url)
        request.user = get_user_model().objects.get()
        request.session = {}
        if known:
            request.scope = known["scope"]
        view, args, kwargs = resolve(url)
        return view(request, *args, **kwargs).render().content.decode()

    cells = re.findall(r'field-in-flight">(.*?)</td>', page(ACCOUNTS, scope=scope), re.DOTALL)
    shown = [" ".join(re.sub("<[^>]*>", " ", cell).split()) for cell in cells]
    assert sorted(shown) == ["1", "3 of 8"]
    assert "In flight" not in page(ACCOUNTS)
    text = re.sub("<[^>]*>", " ", page(change_url(busy), scope=scope))
    assert re.search(r"In flight\s+3 of 8", text)
    assert "In flight" not in page(change_url(busy))

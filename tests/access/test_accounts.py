"""Account secrets in and out, and the end of the demo account."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.db.models.signals import post_save
from django.utils import timezone

from qwenproxy.access import accounts, encryption, rotation
from qwenproxy.access.accounts import AccountState
from qwenproxy.access.models import UpstreamAccount
from tests.access.test_session_tokens import LASTING, SOON

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("encryption_keys")]

SECRETS = {
    "cookies": "token=planted-cookie; a=中",
    "token": "planted-token",
    "headers": {"bx-ua": "planted-header"},
}


def make_account(name="web", kind="qwen_web", secrets=None, **fields):
    account = UpstreamAccount(name=name, kind=kind, **fields)
    accounts.set_secrets(account, secrets or {})
    account.save()
    return account


def all_rows():
    with connection.cursor() as cursor:
        text = ""
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f"SELECT * FROM {connection.ops.quote_name(table)}")
            text += repr(cursor.fetchall())
    return text


def test_secrets_come_back_from_the_database():
    make_account(secrets=SECRETS)
    assert accounts.get_secrets(UpstreamAccount.objects.get()) == SECRETS


def test_no_secret_stands_in_the_database():
    make_account(secrets=SECRETS)
    assert "planted" not in all_rows()


def test_a_stored_account_is_updated_at_once():
    account = make_account(secrets=SECRETS)
    accounts.set_secrets(account, {"token": "other", "cookies": ""})
    assert accounts.get_secrets(UpstreamAccount.objects.get()) == {"token": "other"}


def test_no_secrets_leave_the_column_empty():
    make_account(secrets={"api_key": ""})
    account = UpstreamAccount.objects.get()
    assert account.secrets == ""
    assert accounts.get_secrets(account) == {}


def test_an_unknown_secret_is_a_mistake_in_the_code():
    with pytest.raises(ValueError, match="password"):
        accounts.set_secrets(UpstreamAccount(), {"password": "x"})


def test_accounts_are_loaded_enabled_ones_by_priority_and_show_no_secret():
    make_account("last", priority=200)
    make_account("off", enabled=False)
    make_account("first", priority=1, base_url="http://first", secrets=SECRETS)
    loaded = accounts.load_accounts()
    assert [account.name for account in loaded] == ["first", "last"]
    assert loaded[0].secrets == SECRETS
    assert (loaded[0].kind, loaded[0].base_url, loaded[0].priority) == (
        "qwen_web",
        "http://first",
        1,
    )
    assert "planted" not in repr(loaded)


@pytest.mark.parametrize("ciphertext", ["v1:00000000:gAAA", "rubbish"])
def test_an_unreadable_account_is_left_out_and_logged(caplog, monkeypatch, ciphertext):
    monkeypatch.setattr(logging.getLogger("qwenproxy"), "propagate", True)
    make_account("good", secrets=SECRETS)
    make_account("bad")
    UpstreamAccount.objects.filter(name="bad").update(secrets=ciphertext)
    assert [account.name for account in accounts.load_accounts()] == ["good"]
    assert "'bad'" in caplog.text
    assert "planted" not in caplog.text


@pytest.mark.parametrize("stored", ["not json", "[]"])
def test_secrets_that_are_no_object_are_damaged(stored):
    account = UpstreamAccount(secrets=encryption.encrypt(stored))
    with pytest.raises(encryption.DamagedSecret):
        accounts.get_secrets(account)


def test_forgetting_credentials_is_the_way_out_of_a_lost_key(encryption_keys):
    encryption.check_canary()
    make_account(secrets=SECRETS)
    encryption_keys("other")
    assert accounts.forget_credentials() == 1
    assert encryption.check_canary() is False
    assert accounts.load_accounts()[0].secrets == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" https://chat.qwen.ai/ ", "https://chat.qwen.ai"),
        ("http://127.0.0.1:11434/v1/", "http://127.0.0.1:11434/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
    ],
)
def test_a_base_url_is_brought_into_form(text, expected):
    assert accounts.clean_base_url(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "chat.qwen.ai",
        "ftp://a",
        "http://",
        "http://a:port",
        "http://a:99999",
        "http://[",
        "http://a b",
        "http://u:p@a",
        "http://a/?key=1",
        "http://a/#x",
        "javascript:alert(1)",
        "http://a\nb",
    ],
)
def test_what_is_no_base_url_is_refused(text):
    with pytest.raises(ValueError, match="address"):
        accounts.clean_base_url(text)


def test_the_first_real_account_ends_the_demo_for_good():
    demo = make_account("demo", kind="demo")
    real = make_account("real")
    demo.refresh_from_db()
    assert not demo.enabled
    real.delete()
    demo.refresh_from_db()
    assert not demo.enabled


def test_the_demo_cannot_be_switched_on_beside_a_real_account():
    make_account("real")
    demo = make_account("demo", kind="demo")
    demo.refresh_from_db()
    assert not demo.enabled


# Later than any account of a test was made.
NOON = datetime(2126, 11, 22, 12, tzinfo=UTC)


def recorded_state():
    account = UpstreamAccount.objects.get()
    return AccountState(
        account.state,
        account.state_reason,
        account.state_since,
        account.state_until,
        account.failures,
        account.last_ok_at,
        account.last_error_at,
    )


def test_a_recorded_state_is_what_the_next_load_gives():
    account = make_account()
    state = AccountState("cooling", "429", NOON, NOON + timedelta(minutes=1), 3, None, NOON)
    accounts.record_state(account.pk, state)
    assert recorded_state() == state
    (loaded,) = accounts.load_accounts()
    assert (loaded.state, loaded.state_reason, loaded.failures) == ("cooling", "429", 3)
    assert (loaded.state_since, loaded.state_until) == (NOON, NOON + timedelta(minutes=1))


@pytest.mark.parametrize(
    ("since", "is_taken"),
    [
        pytest.param(NOON + timedelta(seconds=1), True, id="newer"),
        pytest.param(NOON, True, id="same"),
        pytest.param(NOON - timedelta(seconds=1), False, id="older"),
        pytest.param(None, False, id="without-a-time"),
    ],
)
def test_an_older_state_never_overwrites_a_newer_one(since, is_taken):
    account = make_account()
    accounts.record_state(account.pk, AccountState("challenged", since=NOON))
    accounts.record_state(account.pk, AccountState("ready", since=since))
    assert recorded_state().state == ("ready" if is_taken else "challenged")


def test_recording_a_state_is_no_change_of_the_account():
    account = make_account()
    before = UpstreamAccount.objects.get().updated_at
    saved = []

    def note(**kwargs):
        saved.append(kwargs)

    post_save.connect(note, sender=UpstreamAccount)
    try:
        accounts.record_state(account.pk, AccountState("cooling", since=NOON))
    finally:
        post_save.disconnect(note, sender=UpstreamAccount)
    assert saved == []
    assert UpstreamAccount.objects.get().updated_at == before


def test_a_state_keeps_the_times_that_it_does_not_know():
    account = make_account(last_ok_at=NOON)
    accounts.record_state(account.pk, AccountState("cooling", "a\0b", NOON, last_error_at=NOON))
    assert recorded_state().last_ok_at == NOON
    assert recorded_state().last_error_at == NOON
    assert recorded_state().reason == "a\ufffdb"


def test_health_is_no_part_of_what_makes_accounts_equal():
    account = make_account()
    before = accounts.load_accounts()
    accounts.record_state(account.pk, AccountState("cooling", since=NOON, failures=1))
    assert accounts.load_accounts() == before
    UpstreamAccount.objects.update(weight=3)
    assert accounts.load_accounts() != before


def test_new_secrets_make_an_account_ready_and_say_when_they_end():
    account = make_account()
    a_minute_ago = timezone.now() - timedelta(minutes=1)
    UpstreamAccount.objects.update(
        state="expired", state_reason="401", failures=7, state_until=NOON, state_since=a_minute_ago
    )
    accounts.set_secrets(account, {"cookies": f"token={LASTING}"})
    account = UpstreamAccount.objects.get()
    assert (account.state, account.state_reason, account.failures) == ("ready", "", 0)
    assert (account.state_until, account.secrets_expire_at) == (None, SOON)
    # What a call with the former secrets ended in comes too late.
    accounts.record_state(account.pk, AccountState("expired", since=a_minute_ago))
    assert recorded_state().state == "ready"


def test_an_api_key_has_no_end():
    make_account(kind="openai_compatible", secrets={"api_key": LASTING})
    assert UpstreamAccount.objects.get().secrets_expire_at is None


def test_one_account_is_loaded_also_where_it_is_paused():
    account = make_account(secrets=SECRETS, enabled=False)
    assert accounts.load_account(account.pk).secrets == SECRETS
    assert accounts.load_account(account.pk + 1) is None


def long_ago():
    """An account that nothing has touched for an hour."""
    account = make_account(secrets={"cookies": "token=old; refresh_token=r"})
    UpstreamAccount.objects.update(updated_at=timezone.now() - timedelta(hours=1))
    return account


def test_a_renewal_is_claimed_once():
    account = long_ago()
    a_minute_ago = timezone.now() - timedelta(minutes=1)
    assert accounts.claim_renewal(account.pk, unchanged_since=a_minute_ago) is True
    assert accounts.claim_renewal(account.pk, unchanged_since=a_minute_ago) is False
    # The first claim has ended without a result.
    assert accounts.claim_renewal(account.pk, unchanged_since=timezone.now()) is True


def test_a_paused_account_is_not_renewed():
    account = long_ago()
    UpstreamAccount.objects.update(enabled=False)
    assert accounts.claim_renewal(account.pk, unchanged_since=timezone.now()) is False


def test_a_renewed_session_is_stored_under_another_encryption_key_too(encryption_keys):
    account = long_ago()
    before = accounts.load_account(account.pk).secrets
    encryption_keys("second", "first")
    list(rotation.renew_encryption())
    assert accounts.store_renewed(account.pk, before, {"token": "new"}) is True
    assert accounts.load_account(account.pk).secrets == {"cookies": "token=new; refresh_token=r"}


def test_a_renewed_session_never_replaces_one_that_was_pasted_meanwhile():
    account = long_ago()
    before = accounts.load_account(account.pk).secrets
    accounts.set_secrets(account, {"cookies": "token=pasted; refresh_token=p"})
    assert accounts.store_renewed(account.pk, before, {"token": "new"}) is False
    assert "pasted" in accounts.load_account(account.pk).secrets["cookies"]


def test_a_renewed_session_is_not_lost_where_the_rest_was_edited_meanwhile():
    account = long_ago()
    before = accounts.load_account(account.pk).secrets
    accounts.set_secrets(account, {**before, "user_agent": "edited"})
    new = {"token": "new", "refresh_token": "next"}
    assert accounts.store_renewed(account.pk, before, new) is True
    assert accounts.load_account(account.pk).secrets == {
        "cookies": "token=new; refresh_token=next",
        "user_agent": "edited",
    }


@pytest.mark.parametrize(
    ("state", "after"), [("expired", "ready"), ("cooling", "cooling"), ("challenged", "challenged")]
)
def test_a_renewed_session_ends_no_quota_and_no_challenge(state, after):
    account = long_ago()
    UpstreamAccount.objects.update(state=state, state_until=NOON)
    accounts.store_renewed(account.pk, accounts.load_account(account.pk).secrets, {"token": "n"})
    assert recorded_state().state == after
    assert (recorded_state().until is None) == (after == "ready")

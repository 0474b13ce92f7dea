"""Account secrets in and out, and the end of the demo account."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.db.models.signals import post_save

from qwenproxy.access import accounts, encryption
from qwenproxy.access.accounts import AccountState
from qwenproxy.access.models import UpstreamAccount

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


def test_after_renewal_the_old_key_is_not_needed(encryption_keys):
    encryption.check_canary()
    make_account("a", secrets=SECRETS)
    make_account("b")
    encryption_keys("second", "first")
    assert accounts.renew_encryption() == 1
    assert accounts.renew_encryption() == 0
    encryption_keys("second")
    assert encryption.check_canary() is False
    assert accounts.get_secrets(UpstreamAccount.objects.get(name="a")) == SECRETS


def test_renewal_passes_over_what_is_lost(encryption_keys):
    make_account("lost", secrets=SECRETS)
    encryption_keys("second")
    assert accounts.renew_encryption() == 0


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


NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


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
    account = make_account(state="challenged", state_since=NOON)
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

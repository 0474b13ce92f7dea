"""Account secrets in and out, and the end of the demo account."""

from __future__ import annotations

import logging

import pytest
from django.db import connection

from qwenproxy.access import accounts, encryption
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

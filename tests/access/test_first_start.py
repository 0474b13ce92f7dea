"""What a start creates, once, and what it leaves alone afterwards."""

from __future__ import annotations

import threading

import pytest
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.db import connection

from qwenproxy.access import accounts, encryption, keys
from qwenproxy.access.first_start import prepare
from qwenproxy.access.models import ApiKey, UpstreamAccount
from tests.access.test_accounts import all_rows

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("encryption_keys")]

NO_QWEN = {"base_url": "", "cookies": "", "token": "", "user_agent": ""}


@pytest.fixture(autouse=True)
def _clean_seeds(settings):
    settings.FIRST_API_KEY = settings.ADMIN_PASSWORD = ""
    settings.ADMIN_USER = "admin"
    settings.SEED_QWEN = dict(NO_QWEN)
    settings.SEED_DASHSCOPE = {"base_url": "", "api_key": ""}
    settings.SEED_OPENAI_COMPATIBLE = {"base_url": "", "api_key": ""}


def seeded_account():
    return UpstreamAccount.objects.exclude(seed_digest="").get()


def test_an_empty_database_gets_admin_key_and_demo():
    first = prepare()
    user = get_user_model().objects.get()
    assert (user.username, user.is_superuser, user.is_staff) == ("admin", True, True)
    assert user.check_password(first.admin_password)
    api_key = ApiKey.objects.get()
    assert api_key.secret_hash == keys.hash_api_key(first.api_key)
    assert api_key.scope_set == {"chat", "records", "admin"}
    assert first.api_key_is_new
    assert [account.kind for account in accounts.load_accounts()] == ["demo"]
    assert first.demo
    assert first.seeded == []


def test_secrets_are_shown_once_and_stored_nowhere():
    first = prepare()
    assert first.admin_password not in all_rows()
    assert first.api_key not in all_rows()
    assert first.api_key not in repr(first)
    assert first.admin_password not in repr(first)
    again = prepare()
    assert (again.admin_password, again.api_key, again.seeded) == (None, None, [])
    assert again.demo
    assert get_user_model().objects.count() == ApiKey.objects.count() == 1


def test_given_secrets_are_taken_and_the_password_not_repeated(settings):
    settings.FIRST_API_KEY, settings.ADMIN_PASSWORD = "sk-mine", "chosen"
    settings.ADMIN_USER = "root"
    first = prepare()
    assert (first.api_key, first.api_key_is_new) == ("sk-mine", False)
    assert first.admin_password is None
    assert get_user_model().objects.get(username="root").check_password("chosen")
    assert ApiKey.objects.get().scopes == "chat records admin"


def test_a_given_key_that_cannot_be_sent_is_refused_by_name(settings):
    settings.FIRST_API_KEY = "zwei wörter"
    with pytest.raises(ImproperlyConfigured, match="QWENPROXY_API_KEY") as error:
        prepare()
    assert "zwei" not in str(error.value)
    assert not get_user_model().objects.exists()


def test_an_existing_user_and_key_are_left_alone():
    get_user_model().objects.create_user("someone")
    keys.create_api_key(name="mine", scopes=["chat"])
    first = prepare()
    assert (first.admin_password, first.api_key) == (None, None)
    assert first.demo


def test_accounts_are_seeded_from_the_environment(settings):
    settings.SEED_QWEN = {**NO_QWEN, "cookies": "token=planted-c", "token": "planted-t"}
    settings.SEED_DASHSCOPE = {"base_url": "", "api_key": "planted-d"}
    settings.SEED_OPENAI_COMPATIBLE = {"base_url": "http://127.0.0.1:11434/v1", "api_key": ""}
    first = prepare()
    assert first.seeded == [
        "qwen-web (environment)",
        "dashscope (environment)",
        "openai-compatible (environment)",
    ]
    assert not first.demo
    loaded = {account.kind: account for account in accounts.load_accounts()}
    assert set(loaded) == {"qwen_web", "dashscope", "openai_compatible"}
    assert loaded["qwen_web"].base_url == "https://chat.qwen.ai"
    assert loaded["qwen_web"].secrets == {"cookies": "token=planted-c", "token": "planted-t"}
    assert loaded["dashscope"].base_url == accounts.DEFAULT_BASE_URLS["dashscope"]
    assert loaded["dashscope"].secrets == {"api_key": "planted-d"}
    assert loaded["openai_compatible"].base_url == "http://127.0.0.1:11434/v1"
    assert "planted" not in all_rows()


@pytest.mark.parametrize(
    ("seed", "count"),
    [
        pytest.param({"base_url": "http://double"}, 1, id="base URL alone"),
        pytest.param({"cookies": "a=b"}, 1, id="cookies alone"),
        pytest.param({"token": "t"}, 1, id="token alone"),
        pytest.param({"user_agent": "Browser"}, 0, id="a user agent is no account"),
    ],
)
def test_what_makes_a_web_account(settings, seed, count):
    settings.SEED_QWEN = {**NO_QWEN, **seed}
    prepare()
    assert UpstreamAccount.objects.filter(kind="qwen_web").count() == count


def test_an_unchanged_environment_leaves_the_operators_edits_alone(settings):
    settings.SEED_QWEN = {**NO_QWEN, "cookies": "a=b"}
    prepare()
    account = seeded_account()
    account.name, account.base_url, account.enabled = "renamed", "http://elsewhere", False
    account.save()
    accounts.set_secrets(account, {"cookies": "mine=1"})
    assert prepare().seeded == []
    account = seeded_account()
    assert (account.name, account.base_url, account.enabled) == (
        "renamed",
        "http://elsewhere",
        False,
    )
    assert accounts.get_secrets(account) == {"cookies": "mine=1"}


def test_a_changed_environment_is_taken_over(settings):
    settings.SEED_QWEN = {**NO_QWEN, "cookies": "a=old"}
    prepare()
    account = seeded_account()
    account.name, account.priority = "renamed", 7
    account.save()
    accounts.set_secrets(account, {"cookies": "a=pasted", "headers": {"bx-ua": "x"}})
    settings.SEED_QWEN = {**NO_QWEN, "cookies": "a=new"}
    assert prepare().seeded == ["renamed"]
    account = seeded_account()
    assert (account.name, account.priority) == ("renamed", 7)
    assert accounts.get_secrets(account) == {"cookies": "a=new", "headers": {"bx-ua": "x"}}


def test_secrets_for_one_address_never_go_to_another(settings):
    settings.SEED_OPENAI_COMPATIBLE = {"base_url": "https://cloud.example/v1", "api_key": "k"}
    prepare()
    settings.SEED_OPENAI_COMPATIBLE = {"base_url": "http://127.0.0.1:8000/v1", "api_key": ""}
    prepare()
    account = seeded_account()
    assert account.base_url == "http://127.0.0.1:8000/v1"
    assert accounts.get_secrets(account) == {}


def test_the_digest_is_no_oracle_for_the_secret(settings):
    settings.SEED_DASHSCOPE = {"base_url": "", "api_key": "k"}
    prepare()
    with_this_key = seeded_account().seed_digest
    UpstreamAccount.objects.all().delete()
    settings.ENCRYPTION_KEYS = ["another".ljust(32, "-"), *settings.ENCRYPTION_KEYS]
    prepare()
    assert seeded_account().seed_digest != with_this_key


def test_a_new_encryption_key_is_taken_into_use_without_seeding_again(settings, encryption_keys):
    settings.SEED_QWEN = {**NO_QWEN, "cookies": "a=b"}
    prepare()
    accounts.set_secrets(seeded_account(), {"cookies": "edited=1"})
    encryption_keys("second", "first")
    assert prepare().seeded == []
    encryption_keys("second")
    assert prepare().seeded == []
    assert accounts.get_secrets(seeded_account()) == {"cookies": "edited=1"}


def test_wrong_encryption_keys_stop_the_start(encryption_keys):
    prepare()
    encryption_keys("other")
    with pytest.raises(encryption.WrongKey):
        prepare()


def test_forgotten_credentials_come_back_from_the_environment(settings, encryption_keys):
    settings.SEED_QWEN = {**NO_QWEN, "cookies": "a=b"}
    prepare()
    encryption_keys("other")
    accounts.forget_credentials()
    assert prepare().seeded == ["qwen-web (environment)"]
    assert accounts.load_accounts()[0].secrets == {"cookies": "a=b"}


def test_a_name_that_is_taken_is_not_taken_over(settings):
    UpstreamAccount.objects.create(name="qwen-web (environment)", kind="openai_compatible")
    settings.SEED_QWEN = {**NO_QWEN, "cookies": "a=b"}
    assert prepare().seeded == ["qwen-web (environment) 2"]


def test_an_account_seeded_later_ends_the_demo_and_its_deletion_brings_none_back(settings):
    assert prepare().demo
    settings.SEED_QWEN = {**NO_QWEN, "cookies": "a=b"}
    assert not prepare().demo
    UpstreamAccount.objects.filter(kind="qwen_web").delete()
    settings.SEED_QWEN = dict(NO_QWEN)
    assert not prepare().demo
    assert accounts.load_accounts() == []


def test_deleting_every_account_later_makes_no_demo(settings):
    settings.SEED_QWEN = {**NO_QWEN, "cookies": "a=b"}
    prepare()
    UpstreamAccount.objects.all().delete()
    settings.SEED_QWEN = dict(NO_QWEN)
    assert not prepare().demo
    assert not UpstreamAccount.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_two_starts_at_once_do_it_once(settings):
    settings.SEED_QWEN = {**NO_QWEN, "cookies": "a=b"}
    barrier, results = threading.Barrier(2), []

    def start():
        try:
            barrier.wait(30)
            results.append(prepare())
        finally:
            connection.close()

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(first.api_key is None for first in results) == [False, True]
    assert get_user_model().objects.count() == ApiKey.objects.count() == 1
    assert UpstreamAccount.objects.count() == 1

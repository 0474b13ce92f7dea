"""Another encryption key: nothing is lost, and the old one is not needed afterwards."""

from __future__ import annotations

import io

import pytest
from django.core.management import CommandError, call_command

from qwenproxy.access import accounts, encryption, first_start, rotation
from qwenproxy.access.models import UpstreamAccount
from qwenproxy.access.rotation import Step
from tests.access.test_accounts import SECRETS, make_account

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("encryption_keys")]


def rotate():
    out, err = io.StringIO(), io.StringIO()
    try:
        call_command("rotateencryption", stdout=out, stderr=err)
    except CommandError as exc:
        return out.getvalue(), f"{err.getvalue()}{exc}"
    return out.getvalue(), err.getvalue()


def test_after_a_rotation_the_old_key_is_not_needed(encryption_keys):
    encryption.check_canary()
    make_account("a", secrets=SECRETS)
    make_account("b")
    encryption_keys("second", "first")
    assert list(rotation.renew_encryption()) == [Step("a")]
    assert list(rotation.renew_encryption()) == []
    encryption_keys("second")
    assert encryption.check_canary() is False
    assert accounts.get_secrets(UpstreamAccount.objects.get(name="a")) == SECRETS


def test_a_rotation_goes_on_where_it_was_stopped(encryption_keys):
    encryption.check_canary()
    make_account("a", secrets=SECRETS)
    make_account("b", secrets=SECRETS)
    encryption_keys("second", "first")
    stopped = rotation.renew_encryption()
    assert next(stopped) == Step("a")
    stopped.close()
    # Until its end the old key cannot be taken away by mistake.
    encryption_keys("second")
    with pytest.raises(encryption.WrongKey):
        encryption.check_canary()
    encryption_keys("second", "first")
    assert list(rotation.renew_encryption()) == [Step("b")]


def test_a_rotation_passes_over_what_is_lost(encryption_keys):
    make_account("lost", secrets=SECRETS)
    make_account("well")
    encryption_keys("second")
    accounts.set_secrets(UpstreamAccount.objects.get(name="well"), SECRETS)
    (step,) = rotation.renew_encryption()
    assert step.account == "lost"
    assert "manage.py forgetcredentials" in step.problem


def test_a_rotation_is_no_change_of_an_account(encryption_keys):
    make_account(secrets=SECRETS)
    before = UpstreamAccount.objects.get().updated_at
    encryption_keys("second", "first")
    list(rotation.renew_encryption())
    account = UpstreamAccount.objects.get()
    assert account.updated_at == before


def test_the_command_says_which_keys_may_go(encryption_keys):
    encryption.check_canary()
    make_account("a", secrets=SECRETS)
    (old,) = encryption.key_ids()
    encryption_keys("second", "first")
    out, err = rotate()
    assert "a: encrypted under the first key." in out
    assert f"The other keys ({old}) are not needed any more" in out
    assert "planted" not in out + err
    out, err = rotate()
    assert "Accounts: 0 renewed." in out
    assert err == ""


def test_the_command_fails_where_secrets_cannot_be_read(encryption_keys):
    encryption.check_canary()
    make_account("lost", secrets=SECRETS)
    UpstreamAccount.objects.update(secrets="v1:00000000:cut")
    out, err = rotate()
    assert "Not readable with any of the keys: lost." in err
    assert "Accounts: 0 renewed." in out


def test_the_command_refuses_keys_of_another_database(encryption_keys):
    encryption.check_canary()
    encryption_keys("other")
    assert "does not hold" in rotate()[1]


def test_after_the_command_the_environment_does_not_look_changed(encryption_keys, settings):
    settings.SEED_DASHSCOPE = {"api_key": "sk-planted", "base_url": ""}
    first_start.prepare()
    account = UpstreamAccount.objects.get(kind="dashscope")
    accounts.set_secrets(account, {"api_key": "edited"})
    encryption_keys("second", "first")
    rotate()
    encryption_keys("second")
    assert first_start.prepare().seeded == []
    assert accounts.get_secrets(UpstreamAccount.objects.get(kind="dashscope")) == {
        "api_key": "edited"
    }

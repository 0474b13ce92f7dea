"""Secrets at rest: which keys read what, and how a wrong one is refused."""

from __future__ import annotations

import pytest
from django.core.exceptions import ImproperlyConfigured
from hypothesis import given
from hypothesis import strategies as st

from qwenproxy.access import encryption
from qwenproxy.access.encryption import DamagedSecret, WrongKey, decrypt, encrypt
from qwenproxy.access.models import EncryptionCanary

pytestmark = pytest.mark.usefixtures("encryption_keys")


@given(st.text(st.characters()))
def test_every_text_comes_back(text):
    assert decrypt(encrypt(text)) == text


def test_a_lone_surrogate_and_a_long_text_come_back():
    text = "\ud800" + "中" * 100_000
    assert decrypt(encrypt(text)) == text


def test_the_ciphertext_names_version_and_key_and_hides_the_text():
    version, key_id, token = encrypt("planted-secret").split(":")
    assert version == "v1"
    assert len(bytes.fromhex(key_id)) == 4
    assert [key_id] == encryption.key_ids()
    assert "planted" not in token


def test_the_same_text_is_never_encrypted_the_same():
    assert encrypt("text") != encrypt("text")


def test_the_first_key_encrypts_and_all_decrypt(encryption_keys):
    old = encrypt("text")
    encryption_keys("second", "first")
    assert decrypt(old) == "text"
    assert not encryption.is_current(old)
    new = encrypt("text")
    encryption_keys("second")
    assert decrypt(new) == "text"
    assert encryption.is_current(new)


def test_a_missing_key_is_named_with_the_ways_out(encryption_keys):
    [old_id] = encryption.key_ids()
    ciphertext = encrypt("planted-secret")
    encryption_keys("other")
    with pytest.raises(WrongKey) as error:
        decrypt(ciphertext)
    message = str(error.value)
    for word in (old_id, "QWENPROXY_ENCRYPTION_KEYS", "backup", "forgetcredentials"):
        assert word in message
    assert "planted" not in message
    assert "other" not in message


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda text: text[:-8], id="cut"),
        pytest.param(
            lambda text: text[:40] + ("A" if text[40] != "A" else "B") + text[41:], id="bit"
        ),
        pytest.param(lambda text: "", id="empty"),
        pytest.param(lambda text: "hello", id="plain"),
        pytest.param(lambda text: "v2" + text[2:], id="version"),
        pytest.param(lambda text: text[:12] + "ü", id="not base64"),
    ],
)
def test_damage_is_told_from_a_wrong_key(damage):
    with pytest.raises(DamagedSecret):
        decrypt(damage(encrypt("text")))


def test_without_keys_nothing_is_encrypted(settings):
    settings.ENCRYPTION_KEYS = []
    with pytest.raises(ImproperlyConfigured, match="QWENPROXY_ENCRYPTION_KEYS"):
        encrypt("text")


def test_digests_compare_and_depend_on_the_key(encryption_keys):
    [first] = encryption.keyed_digests("value")
    assert [first] == encryption.keyed_digests("value")
    assert [first] != encryption.keyed_digests("another")
    encryption_keys("second", "first")
    assert encryption.keyed_digests("value")[1] == first


@pytest.mark.django_db
class TestCanary:
    def test_the_first_check_writes_it_and_later_ones_read_it(self):
        assert encryption.check_canary() is True
        assert encryption.check_canary() is False
        assert EncryptionCanary.objects.count() == 1

    def test_a_wrong_key_is_refused(self, encryption_keys):
        encryption.check_canary()
        encryption_keys("other")
        with pytest.raises(WrongKey):
            encryption.check_canary()

    def test_a_new_first_key_beside_the_old_one_is_accepted(self, encryption_keys):
        encryption.check_canary()
        encryption_keys("second", "first")
        assert encryption.check_canary() is False
        assert not encryption.canary_is_current()
        encryption.renew_canary()
        assert encryption.canary_is_current()

    def test_a_changed_canary_is_refused(self):
        EncryptionCanary.objects.create(pk=1, ciphertext=encrypt("something else"))
        with pytest.raises(DamagedSecret):
            encryption.check_canary()

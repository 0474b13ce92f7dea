"""API keys: what is stored of them, rotation, revocation."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection
from django.utils import timezone

from qwenproxy.access import keys
from qwenproxy.access.models import ApiKey

pytestmark = pytest.mark.django_db


def stored_text():
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM access_apikey")
        return repr(cursor.fetchall())


def test_a_new_key_holds_256_random_bits_and_fits_a_header():
    made = {keys.new_api_key() for _ in range(50)}
    assert len(made) == 50
    assert all(key.startswith("qp-") and len(key) == 46 and keys.is_sendable(key) for key in made)


def test_only_the_hash_and_a_prefix_are_stored():
    api_key, secret = keys.create_api_key(name="agent", scopes=["chat"])
    assert secret not in stored_text()
    assert secret[11:] not in stored_text()
    assert api_key.secret_hash == keys.hash_api_key(secret)
    assert api_key.prefix == secret[:10]


def test_a_short_given_secret_is_not_told_by_its_prefix():
    api_key, secret = keys.create_api_key(name="given", scopes=["chat"], secret="sk-test")
    assert secret == "sk-test"
    assert api_key.prefix == "sk"


def test_scopes_are_stored_once_in_one_order():
    api_key, _ = keys.create_api_key(name="k", scopes=["admin", "chat", "chat"])
    assert api_key.scopes == "chat admin"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        pytest.param({"name": " ", "scopes": ["chat"]}, "name", id="no name"),
        pytest.param({"name": "x" * 101, "scopes": ["chat"]}, "100", id="long name"),
        pytest.param({"name": "a\x00b", "scopes": ["chat"]}, "printable", id="NUL in name"),
        pytest.param({"name": "k", "scopes": []}, "scope", id="no scope"),
        pytest.param({"name": "k", "scopes": ["root"]}, "root", id="unknown scope"),
        pytest.param({"name": "k", "scopes": ["chat"], "secret": ""}, "ASCII", id="empty secret"),
        pytest.param({"name": "k", "scopes": ["chat"], "secret": "a b"}, "spaces", id="space"),
        pytest.param(
            {"name": "k", "scopes": ["chat"], "secret": "schlüssel"}, "ASCII", id="umlaut"
        ),
    ],
)
def test_a_wish_that_cannot_be_met_is_explained(arguments, named):
    with pytest.raises(keys.InvalidKey, match=named):
        keys.create_api_key(**arguments)
    assert not ApiKey.objects.exists()


def test_a_given_secret_exists_once():
    keys.create_api_key(name="one", scopes=["chat"], secret="the-same-secret")
    with pytest.raises(keys.InvalidKey, match="exists already") as error:
        keys.create_api_key(name="two", scopes=["chat"], secret="the-same-secret")
    assert "the-same-secret" not in str(error.value)


def test_a_given_secret_is_not_one_that_another_key_had():
    api_key, _ = keys.create_api_key(name="one", secret="the-same-secret")
    keys.rotate_api_key(api_key)
    with pytest.raises(keys.InvalidKey, match="exists already"):
        keys.create_api_key(name="two", secret="the-same-secret")


def test_rotation_keeps_the_row_and_the_old_secret_for_a_while():
    api_key, old = keys.create_api_key(name="k", scopes=["chat"])
    new = keys.rotate_api_key(api_key)
    row = ApiKey.objects.get()
    assert new != old
    assert row.pk == api_key.pk
    assert row.secret_hash == api_key.secret_hash == keys.hash_api_key(new)
    assert row.previous_hash == keys.hash_api_key(old)
    left = row.previous_expires_at - timezone.now()
    assert keys.ROTATION_OVERLAP * 0.9 < left <= keys.ROTATION_OVERLAP


def test_a_revoked_key_keeps_its_first_date_and_cannot_be_rotated():
    api_key, _ = keys.create_api_key(name="k", scopes=["chat"])
    keys.revoke_api_key(api_key)
    first = ApiKey.objects.get().revoked_at
    keys.revoke_api_key(ApiKey.objects.get())
    assert ApiKey.objects.get().revoked_at == first is not None
    with pytest.raises(keys.InvalidKey, match="revoked"):
        keys.rotate_api_key(api_key)


def test_an_expired_key_is_not_rotated():
    api_key, _ = keys.create_api_key(name="k")
    ApiKey.objects.update(expires_at=timezone.now())
    with pytest.raises(keys.KeyNotInUse, match="expired"):
        keys.rotate_api_key(api_key)


def test_two_rotations_leave_two_secrets():
    api_key, first = keys.create_api_key(name="k")
    second = keys.rotate_api_key(api_key)
    third = keys.rotate_api_key(api_key)
    row = ApiKey.objects.get()
    assert (row.previous_hash, row.secret_hash) == (
        keys.hash_api_key(second),
        keys.hash_api_key(third),
    )


@pytest.mark.parametrize("overlap", [timedelta(seconds=-1), timedelta(days=31)])
def test_another_overlap_is_refused(overlap):
    api_key, _ = keys.create_api_key(name="k")
    with pytest.raises(keys.InvalidKey, match="30 days") as error:
        keys.rotate_api_key(api_key, overlap=overlap)
    assert error.value.field == "overlap_seconds"
    assert ApiKey.objects.get().previous_hash is None


def test_a_change_leaves_what_others_changed_meanwhile():
    api_key, _ = keys.create_api_key(name="k", tokens_per_day=5)
    ApiKey.objects.update(tokens_per_day=7, revoked_at=timezone.now())
    keys.change_api_key(api_key, {"name": "new", "expires_at": None})
    row = ApiKey.objects.get()
    assert (row.name, row.tokens_per_day) == ("new", 7)
    assert row.revoked_at is not None


def test_any_text_can_be_hashed():
    assert len({keys.hash_api_key(text) for text in ("", "ü", "\ud800", "\x00")}) == 4

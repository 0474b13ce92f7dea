"""The commands for API keys: what they print, store and refuse."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from qwenproxy.access import keys
from qwenproxy.access.models import ApiKey, Limits
from tests.factories import make_api_key

pytestmark = pytest.mark.django_db


def run(*arguments):
    out, err = io.StringIO(), io.StringIO()
    call_command(*arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


class TestCreateApiKey:
    def test_the_secret_stands_alone_on_stdout(self):
        out, err = run("createapikey", "agent")
        assert out.count("\n") == 1
        row = ApiKey.objects.get()
        assert row.secret_hash == keys.hash_api_key(out.strip())
        assert (row.name, row.scopes, row.limits) == ("agent", "chat records", None)
        assert (row.expires_at, row.allowed_models, row.recorded) == (None, "", "everything")
        assert out.strip() not in err

    def test_everything_that_a_key_has_can_be_given(self):
        run(
            *("createapikey", "k", "--scopes", "admin, chat", "--models", "qwen3-*, qwq"),
            *("--expires", "2999-01-31", "--requests-per-minute", "0", "--max-concurrent", "4"),
            *("--tokens-per-minute", "5", "--tokens-per-day", "6", "--tokens-per-month", "7"),
            *("--recorded", "metadata", "--content-days", "30", "--record-days", "90"),
        )
        row = ApiKey.objects.get()
        assert row.scopes == "chat admin"
        assert row.allowed_models == "qwen3-*\nqwq"
        assert row.expires_at == datetime(2999, 1, 31, tzinfo=UTC)
        assert row.limits == Limits(0, 5, 4, 6, 7)
        assert (row.recorded, row.content_days, row.record_days) == ("metadata", 30, 90)

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            pytest.param(("k", "--scopes", "root"), "no such scope", id="unknown scope"),
            pytest.param(("k", "--scopes", ","), "needs a scope", id="no scope"),
            pytest.param(("",), "name", id="no name"),
            pytest.param(("x" * 101,), "name", id="long name"),
            pytest.param(("k", "--expires", "yesterday"), "expires_at", id="no date"),
            pytest.param(("k", "--expires", "2020-01-01"), "future", id="past date"),
            pytest.param(("k", "--tokens-per-day=-1"), "tokens_per_day", id="negative"),
            pytest.param(("k", "--tokens-per-day", "1.5"), "tokens-per-day", id="float"),
            pytest.param(("k", "--tokens-per-day", "9" * 30), "tokens_per_day", id="huge"),
            pytest.param(("k", "--content-days", "0"), "content_days", id="no days"),
            pytest.param(("k", "--recorded", "nothing"), "recorded", id="unknown recording"),
        ],
    )
    def test_what_cannot_be_is_refused_in_one_line(self, arguments, named):
        with pytest.raises(CommandError, match=named) as error:
            run("createapikey", *arguments)
        assert "\n" not in str(error.value)
        assert not ApiKey.objects.exists()


class TestRotateApiKey:
    @pytest.mark.parametrize("by", ["id", "prefix", "prefix as shown", "name"])
    def test_a_key_is_named_as_lists_show_it(self, by):
        row, old = keys.create_api_key(name="agent")
        reference = {
            "id": str(row.pk),
            "prefix": row.prefix,
            "prefix as shown": f"{row.prefix}…",
            "name": "agent",
        }[by]
        out, err = run("rotateapikey", reference, "--overlap", "1h")
        row.refresh_from_db()
        assert row.secret_hash == keys.hash_api_key(out.strip())
        assert row.previous_hash == keys.hash_api_key(old)
        left = row.previous_expires_at - timezone.now()
        assert timedelta(minutes=59) < left <= timedelta(hours=1)
        assert f"{row.previous_expires_at:%Y-%m-%d %H:%M} UTC" in err
        assert out.strip() not in err

    def test_an_id_goes_before_a_name_of_digits(self):
        row, other = make_api_key("first"), make_api_key()
        ApiKey.objects.filter(pk=other.pk).update(name=str(row.pk))
        assert keys.find_api_key(str(row.pk)).pk == row.pk

    def test_of_equal_names_the_one_in_use_is_meant(self):
        make_api_key("agent", revoked_at=timezone.now())
        row = make_api_key("agent")
        assert keys.find_api_key("agent").pk == row.pk

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            pytest.param(("nobody",), "listapikeys", id="none"),
            pytest.param(("",), "listapikeys", id="empty"),
            pytest.param(("a\0b",), "listapikeys", id="NUL"),
            pytest.param(("9" * 40,), "listapikeys", id="beyond the column"),
            pytest.param(("twice",), "id of one", id="several"),
            pytest.param(("gone",), "revoked", id="revoked"),
            pytest.param(("late",), "expired", id="expired"),
            pytest.param(("agent", "--overlap", "1 day"), "--overlap", id="no span"),
            pytest.param(("agent", "--overlap", "31d"), "at most 30 days", id="long"),
        ],
    )
    def test_what_cannot_be_is_refused_in_one_line(self, arguments, named):
        for name in ("agent", "twice", "twice"):
            make_api_key(name)
        make_api_key("gone", revoked_at=timezone.now())
        make_api_key("late", expires_at=timezone.now())
        with pytest.raises(CommandError, match=named) as error:
            run("rotateapikey", *arguments)
        assert "\n" not in str(error.value)
        assert not ApiKey.objects.exclude(previous_hash=None).exists()


class TestRevokeApiKey:
    def test_it_is_for_good_and_says_so_once_more(self):
        row = make_api_key("agent")
        assert f"id {row.pk}: revoked." in run("revokeapikey", "agent")[0]
        row.refresh_from_db()
        first = row.revoked_at
        assert "revoked before, at" in run("revokeapikey", "agent")[0]
        row.refresh_from_db()
        assert row.revoked_at == first is not None

    def test_a_key_that_is_not_there_is_refused(self):
        with pytest.raises(CommandError, match="listapikeys"):
            run("revokeapikey", "agent")


class TestListApiKeys:
    def test_it_shows_what_each_key_may(self):
        make_api_key("gone", revoked_at=timezone.now())
        make_api_key("plain")
        make_api_key(
            "limited",
            scopes="chat admin",
            expires_at=timezone.now() + timedelta(days=3, minutes=1),
            allowed_models="qwen3-*\nqwq",
            requests_per_minute=60,
            tokens_per_day=2_000_000,
            content_days=30,
            record_days=1000,
        )
        out = run("listapikeys")[0]
        header, limited, plain = out.splitlines()
        assert header.split()[-3:] == ["MODELS", "LIMITS", "KEPT"]
        limits = "60 requests/minute, 2,000,000 tokens/day"
        for text in ("expires in 3 days", "chat,admin", "qwen3-* qwq", limits):
            assert text in limited
        assert limited.endswith("content 30 days, record 1,000 days")
        assert plain.split()[1] == "plain"
        assert plain.split()[-5:] == ["active", "chat,records", "*", "-", "-"]
        assert header.index("LIMITS") == plain.index("-", plain.index("*"))
        assert "revoked" in run("listapikeys", "--all")[0]

    def test_json_is_what_rest_shows_and_never_a_hash(self):
        row, secret = keys.create_api_key(name="k", tokens_per_day=5)
        out = run("listapikeys", "--json")[0]
        [shown] = json.loads(out)
        assert (shown["id"], shown["name"], shown["tokens_per_day"]) == (row.pk, "k", 5)
        assert shown["usage"]["day"] == {"requests": 0, "tokens": 0}
        assert row.secret_hash not in out
        assert secret not in out

    @pytest.mark.parametrize(
        ("left", "text"),
        [
            (timedelta(days=40, minutes=1), "expires in 40 days"),
            (timedelta(hours=47, minutes=1), "expires in 47 hours"),
            (timedelta(minutes=90, seconds=30), "expires in 90 minutes"),
            (timedelta(seconds=-1), "expired"),
        ],
    )
    def test_the_end_is_told_in_what_is_left(self, left, text):
        make_api_key("k", expires_at=timezone.now() + left)
        assert text in run("listapikeys")[0]

    def test_without_keys_there_is_a_heading(self):
        assert run("listapikeys")[0].startswith("ID")
        assert run("listapikeys", "--json")[0] == "[]\n"

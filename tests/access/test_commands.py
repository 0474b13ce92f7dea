"""The commands for accounts: what they print, store and refuse."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from django.core.management import CommandError, call_command

from qwenproxy.access import accounts, encryption
from qwenproxy.access.models import UpstreamAccount
from tests.access.test_accounts import make_account
from tests.access.test_browser_request import COOKIES, bash
from tests.access.test_session_tokens import jwt

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("encryption_keys")]


def run(*arguments):
    out, err = io.StringIO(), io.StringIO()
    call_command(*arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


@pytest.fixture
def paste(monkeypatch):
    def put(content):
        content = content if isinstance(content, bytes) else content.encode()
        stdin = SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: False)
        monkeypatch.setattr("sys.stdin", stdin)

    return put


class TestImportBrowserRequest:
    def test_it_creates_the_web_account_from_stdin_and_shows_nothing_of_it(self, paste):
        paste(bash(cookies=COOKIES.replace("eyJ.x.y", jwt({"exp": 1_800_000_000}))))
        out, err = run("importbrowserrequest")
        account = UpstreamAccount.objects.get()
        assert (account.name, account.kind, account.base_url) == (
            "qwen-web",
            "qwen_web",
            "https://chat.qwen.ai",
        )
        assert accounts.get_secrets(account)["token"] == "T2gAxyz="
        assert "created" in out
        assert "2027-01-15" in out
        assert "T2gA" not in out + err
        assert "acw_tc" not in out + err

    @pytest.mark.parametrize(
        "encoding", [pytest.param("utf-16", id="PowerShell's"), "utf-8", "utf-8-sig"]
    )
    def test_it_reads_a_file(self, tmp_path, encoding):
        path = tmp_path / "request.txt"
        path.write_bytes(bash().encode(encoding))
        run("importbrowserrequest", "--name", "mine", str(path))
        assert UpstreamAccount.objects.get().name == "mine"

    def test_the_only_web_account_is_updated(self, paste):
        make_account(
            "seeded", secrets={"cookies": "old=1", "headers": {"x-old": "1"}}, enabled=False
        )
        paste(bash())
        out, err = run("importbrowserrequest", "-")
        account = UpstreamAccount.objects.get()
        assert accounts.get_secrets(account)["cookies"] == COOKIES
        assert "x-old" not in accounts.get_secrets(account)["headers"]
        assert "updated" in out
        assert "disabled" in err

    def test_several_web_accounts_need_a_name(self, paste):
        make_account("one")
        make_account("two")
        paste(bash())
        with pytest.raises(CommandError, match="--name"):
            run("importbrowserrequest")
        paste(bash())
        run("importbrowserrequest", "--name", "two")
        assert accounts.get_secrets(UpstreamAccount.objects.get(name="one")) == {}

    def test_it_ends_the_demo(self, paste):
        make_account("demo", kind="demo")
        paste(bash())
        run("importbrowserrequest")
        assert [account.kind for account in accounts.load_accounts()] == ["qwen_web"]

    def test_warnings_go_to_stderr(self, paste):
        paste(bash(cookies="acw_tc=0a03"))
        out, err = run("importbrowserrequest")
        assert "guest" in err
        assert "does not say" in out

    @pytest.mark.parametrize(
        ("content", "named"),
        [("hello", "curl"), ("", "curl"), (b"\xff\x00\x81", "not text")],
    )
    def test_what_cannot_be_used_is_explained(self, paste, content, named):
        paste(content)
        with pytest.raises(CommandError, match=named):
            run("importbrowserrequest")
        assert not UpstreamAccount.objects.exists()

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(CommandError, match=r"none\.txt"):
            run("importbrowserrequest", str(tmp_path / "none.txt"))

    @pytest.mark.parametrize(
        ("existing", "arguments"),
        [
            pytest.param("other", ("--name", "other"), id="another kind's name"),
            pytest.param("qwen-web", (), id="the default name is another kind's"),
            pytest.param("other", ("--name", " "), id="blank name"),
            pytest.param("other", ("--name", "x" * 101), id="long name"),
        ],
    )
    def test_an_account_of_another_kind_is_not_overwritten(self, paste, existing, arguments):
        make_account(existing, kind="dashscope", secrets={"api_key": "k"})
        paste(bash())
        with pytest.raises(CommandError):
            run("importbrowserrequest", *arguments)
        assert accounts.get_secrets(UpstreamAccount.objects.get()) == {"api_key": "k"}


class TestForgetCredentials:
    def test_it_asks_first(self):
        make_account(secrets={"token": "t"})
        with pytest.raises(CommandError, match="--yes"):
            run("forgetcredentials")
        assert UpstreamAccount.objects.get().secrets

    def test_it_makes_a_lost_key_harmless(self, encryption_keys):
        encryption.check_canary()
        make_account(secrets={"token": "t"})
        encryption_keys("other")
        out, _ = run("forgetcredentials", "--yes")
        assert "accounts: 1" in out
        assert encryption.check_canary() is False

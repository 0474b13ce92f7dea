"""`manage.py doctor` on installations that are well, and on ones with one thing wrong."""

from __future__ import annotations

import io
import json
from datetime import timedelta

import pytest
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.utils import timezone

from qwenproxy.access import encryption
from qwenproxy.access.keys import create_api_key
from qwenproxy.access.models import ApiKey, EncryptionCanary, UpstreamAccount
from requests_app.models import Request
from tests.factories import make_api_key, make_session, make_turn

pytestmark = pytest.mark.django_db


@pytest.fixture
def well(tmp_path, settings, make_account):
    """An installation with nothing wrong."""
    settings.DATA_DIR = tmp_path / "data"
    settings.DATA_DIR.mkdir(mode=0o700)
    encryption.check_canary()
    get_user_model().objects.create_superuser("admin")
    create_api_key(name="first", scopes=["chat"])
    return make_account("openai_compatible", "http://127.0.0.1:1", name="local")


def doctor(*arguments):
    """The exit code, and each part's findings as (level, what, mend)."""
    out = io.StringIO()
    code = 0
    try:
        call_command("doctor", "--json", *arguments, stdout=out)
    except SystemExit as exc:
        code = exc.code
    document = json.loads(out.getvalue())
    assert document["well"] == (code == 0)
    parts: dict[str, list[tuple[str, str, str]]] = {}
    for finding in document["findings"]:
        found = (finding["level"], finding["what"], finding["mend"])
        parts.setdefault(finding["part"], []).append(found)
    return code, parts


def test_all_is_well(well):
    code, parts = doctor()
    assert code == 0
    assert {level for found in parts.values() for level, _, _ in found} == {"ok"}
    assert list(parts) == [
        "configuration", "files", "disk", "database", "integrity", "schema", "clock", "encryption",
        "keys", "accounts", "retention",
    ]  # fmt: skip


def in_the_future(well, settings):
    make_turn(make_session(make_api_key("k")))
    Request.objects.update(created_at=timezone.now() + timedelta(hours=1))


def set_key(**fields):
    return lambda well, settings: ApiKey.objects.update(**fields)


def set_account(**fields):
    return lambda well, settings: UpstreamAccount.objects.update(**fields)


def set_setting(name, value):
    return lambda well, settings: setattr(settings, name, value)


def add_account(kind, **fields):
    return lambda well, settings: UpstreamAccount.objects.create(name="new", kind=kind, **fields)


@pytest.mark.parametrize(
    ("spoil", "part", "level", "says", "mend"),
    [
        pytest.param(
            set_setting("DEBUG", True), "configuration", "warning", "DEBUG is on", "unset", id="debug"
        ),
        pytest.param(
            set_setting("PUBLIC_URL", "http://qwen.example.org"),
            "configuration", "warning", "without TLS", "TLS proxy", id="no TLS",
        ),
        pytest.param(
            set_setting("ENCRYPTION_KEYS", []),
            "configuration", "error", "No encryption key", "QWENPROXY_ENCRYPTION_KEYS", id="no key",
        ),
        pytest.param(
            lambda well, settings: settings.DATA_DIR.chmod(0o755),
            "files", "warning", "open to other users", "chmod 700", id="open directory",
        ),
        pytest.param(
            lambda well, settings: (settings.DATA_DIR / "secret_key").write_text("x"),
            "files", "error", "secret_key can be read", "chmod 600", id="open secret",
        ),
        pytest.param(
            set_key(content_days=30), "retention", "warning", "has not run yet", "prune", id="not pruned"
        ),
        pytest.param(in_the_future, "clock", "error", "from the future", "clock", id="clock"),
        pytest.param(
            set_setting("ENCRYPTION_KEYS", ["another key that is long enough to be one"]),
            "encryption", "error", "encrypted with the key", "", id="wrong encryption key",
        ),
        pytest.param(
            lambda well, settings: settings.ENCRYPTION_KEYS.insert(0, "a new key, at least 32 characters long"),
            "encryption", "warning", "older key", "rotateencryption", id="old encryption key",
        ),
        pytest.param(
            lambda well, settings: EncryptionCanary.objects.all().delete(),
            "encryption", "warning", "nothing was encrypted", "serve", id="never started",
        ),
        pytest.param(
            set_key(revoked_at=timezone.now()),
            "keys", "error", "no API key can chat", "createapikey", id="no key can chat",
        ),
        pytest.param(
            set_key(expires_at=timezone.now() + timedelta(days=2)),
            "keys", "warning", "expires at", "PATCH /v1/keys/", id="key expires",
        ),
        pytest.param(
            set_key(tokens_per_day=0), "keys", "warning", "limit of 0", "raise", id="limit 0"
        ),
        pytest.param(
            lambda well, settings: get_user_model().objects.update(is_active=False),
            "keys", "warning", "nobody can manage", "createsuperuser", id="no admin",
        ),
        pytest.param(
            set_account(enabled=False), "accounts", "error", "no upstream account", "add", id="none"
        ),
        pytest.param(
            set_account(kind="demo"), "accounts", "warning", "imitations", "upstream", id="demo"
        ),
        pytest.param(
            add_account("qwen_web"), "accounts", "error", "no credentials (cookies)", "paste", id="bare"
        ),
        pytest.param(
            add_account("dashscope", secrets="v1:00000000:gAAA"),
            "accounts", "error", "cannot be read", "QWENPROXY_ENCRYPTION_KEYS", id="unreadable",
        ),
        pytest.param(
            set_account(state="challenged", state_reason="a check"),
            "accounts", "error", "challenged, a check", "tried again", id="challenged",
        ),
        pytest.param(
            set_account(state="cooling", state_reason="429"),
            "accounts", "warning", "cooling, 429", "nothing to do", id="cooling",
        ),
        pytest.param(
            set_account(secrets_expire_at=timezone.now() + timedelta(days=1)),
            "accounts", "warning", "credentials end at", "API key", id="credentials end",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_how_to_mend_it(well, settings, spoil, part, level, says, mend):
    settings.ENCRYPTION_KEYS = list(settings.ENCRYPTION_KEYS)
    spoil(well, settings)
    code, parts = doctor()
    assert code == (1 if level == "error" else 0)
    assert [one for one in parts[part] if one[0] == level and says in one[1] and mend in one[2]]
    # Nothing hides another part.
    assert len(parts) == 11


def test_people_read_it_part_by_part(well, capsys):
    out = io.StringIO()
    call_command("doctor", stdout=out, no_color=True)
    text = out.getvalue()
    assert text.startswith("configuration\n  [ok] version ")
    assert "\naccounts\n  [ok] local (OpenAI-compatible server): ready\n" in text
    assert text.endswith("All is well.\n")


def test_upstreams_are_asked_when_told_to(well, make_account, openai_compatible_url):
    make_account("openai_compatible", openai_compatible_url, name="up")
    code, parts = doctor("--online")
    assert code == 1
    by_level = {level: (what, mend) for level, what, mend in parts["upstreams"]}
    assert by_level["error"][0].startswith("local: upstream_")
    assert "server runs" in by_level["error"][1]
    UpstreamAccount.objects.filter(name="local").delete()
    code, parts = doctor("--online")
    assert code == 0
    [(level, what, _)] = parts["upstreams"]
    assert (level, what.split(" in ")[0]) == ("ok", "up: answered")

"""`check --deploy` with the settings that the documentation tells for a public address, and with others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qwenproxy import checks

ROOT = Path(__file__).resolve().parents[1]


DOCUMENTED = {
    "QWENPROXY_HOST": "0.0.0.0",
    "QWENPROXY_PUBLIC_URL": "https://llm.example.org",
    "QWENPROXY_ADMIN_BIND": "127.0.0.1:8101",
}


def ids(messages):
    return [message.id for message in messages]


def test_a_public_https_address_deploys_without_a_warning(tmp_path):
    guide = (ROOT / "docs" / "operating.md").read_text()
    assert all(f"{name}={value}\n" in guide for name, value in DOCUMENTED.items())
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("QWEN", "DASHSCOPE_", "OPENAI_", "DJANGO_", "DATABASE_"))
    }
    environ |= {**DOCUMENTED, "QWENPROXY_DATA_DIR": str(tmp_path / "data")}
    # As docs/install.md makes them.
    environ |= {
        name: os.urandom(32).hex() for name in ("QWENPROXY_API_KEY", "QWENPROXY_ADMIN_PASSWORD")
    }
    checked = subprocess.run(
        [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr


@pytest.mark.parametrize(
    "key",
    [
        pytest.param("sk-1234", id="short"),
        pytest.param("qp-" + "abcabcab" * 6, id="few characters"),
        pytest.param("Change-Me-0f8aZk2LqT7vB3xR", id="a word"),
        pytest.param("our-Pass_word-0f8aZk2LqT7vB", id="a word in parts"),
        *(
            pytest.param(key, id=f"printed: {key[:8]}")
            for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
            for key in re.findall(r"\bqp-[\w-]{8,}", page.read_text())
        ),
    ],
)
def test_a_first_key_that_can_be_guessed_is_warned_of_and_not_told(settings, key):
    settings.FIRST_API_KEY = key
    [warning] = checks.check_first_api_key(None)
    assert warning.id == "qwenproxy.W002"
    assert key not in f"{warning.msg} {warning.hint}"


def test_a_random_key_is_not(settings):
    for key in ("", "qp-Zk2LqT7vB3xR0f8aYw9mNc4hGd6jSe1u", os.urandom(32).hex()):
        settings.FIRST_API_KEY = key
        assert checks.check_first_api_key(None) == []


def test_a_first_password_is_held_to_the_rules_of_the_admin_s_own_form(settings):
    found = []
    for password in ("admin", "12345678901", "password123", "", "correct horse battery"):
        settings.ADMIN_PASSWORD = password
        found.append(ids(checks.check_admin_password(None)))
    assert found == [["qwenproxy.W003"]] * 3 + [[], []]


@pytest.mark.parametrize(
    ("host", "admin", "url", "expected"),
    [
        pytest.param("127.0.0.1", None, "", [], id="this machine"),
        pytest.param("localhost", None, "http://localhost:8100", [], id="by name"),
        pytest.param("0.0.0.0", None, "", ["W004", "W005"], id="everywhere"),
        pytest.param("::", None, "http://llm.example.org", ["W004", "W005"], id="by http"),
        pytest.param("10.0.0.11", None, "", ["W004", "W005"], id="a network"),
        pytest.param("0.0.0.0", ("127.0.0.1", 8101), "", ["W005"], id="admin apart"),
        pytest.param("0.0.0.0", ("10.0.0.11", 8101), "", ["W005"], id="admin in a network"),
        pytest.param("0.0.0.0", ("0.0.0.0", 8101), "", ["W004", "W005"], id="admin everywhere"),
        pytest.param(
            "127.0.0.1", None, "http://llm.example.org", ["W004", "W005"], id="a proxy, no TLS"
        ),
        pytest.param("0.0.0.0", None, "https://llm.example.org", [], id="TLS"),
        pytest.param("10.0.0.11", ("0.0.0.0", 8101), "https://llm.example.org", [], id="TLS, both"),
    ],
)
def test_what_others_reach_has_tls_or_an_address_of_its_own(settings, host, admin, url, expected):
    settings.HOST, settings.ADMIN_BIND, settings.PUBLIC_URL = host, admin, url
    found = [*checks.check_admin_address(None), *checks.check_tls(None)]
    assert ids(found) == [f"qwenproxy.{name}" for name in expected]
    assert all(warning.hint for warning in found)

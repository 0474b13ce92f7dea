"""The system checks of the configuration."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from qwenproxy import checks


def ids(messages):
    return [message.id for message in messages]


def test_the_tests_own_settings_have_nothing_to_say():
    found = [checks.check_encryption_keys, checks.check_secret_key, checks.check_reachable]
    assert [ids(check(None)) for check in found] == [[], [], []]


def test_a_missing_encryption_key_is_an_error(settings):
    settings.ENCRYPTION_KEYS = []
    assert ids(checks.check_encryption_keys(None)) == ["qwenproxy.E001"]


def test_postgresql_without_a_secret_key_is_refused_before_it_is_asked(tmp_path):
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "qwenproxy.settings",
        "DATABASE_URL": "postgres://nobody@127.0.0.1:1/none",
        "QWENPROXY_DATA_DIR": str(tmp_path),
        "QWENPROXY_SECRET_KEY": "",
        "QWENPROXY_ENCRYPTION_KEYS": "k" * 32,
    }
    ended = subprocess.run(
        [sys.executable, "manage.py", "check"], env=environment, capture_output=True, text=True
    )
    assert ended.returncode != 0
    assert "qwenproxy.E002" in ended.stderr
    assert "QWENPROXY_SECRET_KEY" in ended.stderr


@pytest.mark.parametrize(
    ("host", "public_url", "hosts", "expected"),
    [
        pytest.param("127.0.0.1", "", [], [], id="loopback"),
        pytest.param("0.0.0.0", "", [], ["qwenproxy.W001"], id="everywhere, nobody named"),
        pytest.param("0.0.0.0", "https://qwen.example.org", [], [], id="public url"),
        pytest.param("0.0.0.0", "", ["qwen.example.org"], [], id="host names"),
    ],
)
def test_listening_everywhere_needs_a_name(settings, host, public_url, hosts, expected):
    settings.HOST, settings.PUBLIC_URL = host, public_url
    settings.ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]", *hosts]
    assert ids(checks.check_reachable(None)) == expected

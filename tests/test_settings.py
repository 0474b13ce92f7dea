"""Secrets that an installation makes for itself."""

from __future__ import annotations

import pytest
from django.core.exceptions import ImproperlyConfigured

from qwenproxy import settings


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "DATA_DIR", tmp_path)
    return tmp_path


def test_a_secret_is_made_once(directory):
    value = settings._generated("QWENPROXY_SECRET_KEY", "secret_key")
    assert settings._generated("QWENPROXY_SECRET_KEY", "secret_key") == value
    assert (directory / "secret_key").stat().st_mode & 0o777 == 0o600


def test_a_secret_that_another_process_is_writing_is_waited_for(directory, monkeypatch):
    (directory / "secret_key").touch()
    monkeypatch.setattr(
        settings.time, "sleep", lambda s: (directory / "secret_key").write_text("its secret\n")
    )
    assert settings._generated("QWENPROXY_SECRET_KEY", "secret_key") == "its secret"


def test_a_secret_that_stays_empty_is_refused(directory):
    (directory / "secret_key").touch()
    with pytest.raises(ImproperlyConfigured, match="is empty"):
        settings._generated("QWENPROXY_SECRET_KEY", "secret_key")

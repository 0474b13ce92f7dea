"""Fixtures of the access tests."""

from __future__ import annotations

import pytest

from qwenproxy.access import auth
from qwenproxy.database import close_pool


@pytest.fixture
def db_pool(transactional_db):
    """The database as threads see it; what the process remembers of other tests is forgotten."""
    close_pool()
    auth.invalidate()
    yield
    close_pool()
    auth.invalidate()


@pytest.fixture
def encryption_keys(settings):
    def use(*keys):
        settings.ENCRYPTION_KEYS = [key.ljust(32, "-") for key in keys]

    use("first")
    return use

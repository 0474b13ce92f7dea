"""Opening a database that another process is just making."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from django.db import connection
from django.db.backends.sqlite3.base import DatabaseWrapper

from qwenproxy.schema import engine
from qwenproxy.schema.refusals import Refused

pytestmark = pytest.mark.django_db


@pytest.fixture
def new_file(tmp_path):
    """A connection to a file that there is not yet, as it is configured."""
    options = {"init_command": "PRAGMA journal_mode=WAL", "timeout": 0}
    path = tmp_path / "new.sqlite3"
    wrapper = DatabaseWrapper({**connection.settings_dict, "NAME": path, "OPTIONS": options})
    yield wrapper
    wrapper.close()


def test_another_process_that_makes_the_file_is_waited_for(new_file, monkeypatch):
    with closing(sqlite3.connect(new_file.settings_dict["NAME"], isolation_level=None)) as other:
        other.execute("CREATE TABLE t (i)")
        other.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(
            engine.time, "sleep", lambda s: other.in_transaction and other.rollback()
        )
        engine.ensure_open(new_file)
    assert new_file.is_usable()


def test_one_that_never_ends_is_told(new_file, monkeypatch):
    monkeypatch.setattr(engine, "_BUSY_S", 0)
    with closing(sqlite3.connect(new_file.settings_dict["NAME"], isolation_level=None)) as other:
        other.execute("CREATE TABLE t (i)")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Refused, match="locked"):
            engine.ensure_open(new_file)

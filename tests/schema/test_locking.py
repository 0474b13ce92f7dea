"""The lock is refused where it would not hold, with a way out that exists."""

from __future__ import annotations

import re
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from qwenproxy.schema import locking
from qwenproxy.schema.refusals import Refused

ROOT = Path(__file__).resolve().parents[2]


class PooledCursor:
    """Each statement may reach another server process, as behind PgBouncer in transaction mode."""

    def __init__(self) -> None:
        self.pids = count(100)
        self.statements: list[str] = []

    def execute(self, sql, params=None):
        self.statements.append(sql)

    def fetchone(self):
        return (next(self.pids),)


def test_a_pool_that_changes_servers_is_refused():
    cursor = PooledCursor()
    pooled = SimpleNamespace(vendor="postgresql", cursor=lambda: nullcontext(cursor))
    with pytest.raises(Refused) as refused, locking.migration_lock(pooled, 1, str):
        raise AssertionError("it migrates without a lock")
    assert refused.value.returncode == 9
    assert not [sql for sql in cursor.statements if "lock" in sql]
    named = re.findall(r"QWENPROXY_\w+|DATABASE_URL", str(refused.value))
    settings = (ROOT / "qwenproxy" / "settings.py").read_text()
    assert named
    assert all(f'"{name}"' in settings for name in named)

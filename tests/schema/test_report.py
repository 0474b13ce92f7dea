"""`showmigrations` with our flags tells every state, and writes nothing."""

from __future__ import annotations

import hashlib
import json

import pytest

from tests.schema.conftest import CREATE

FAILS = "migrations.RunSQL('INSERT INTO nowhere VALUES (1)', '')"


def names(document: dict, key: str) -> list[str]:
    return [f"{row['app']}.{row['name']}" for row in document[key]]


def test_each_state_is_told(migrated):
    edited = migrated.add_migration("0001_edited", CREATE.format(number=1))
    assert migrated.run("migrate", "-v0").returncode == 0
    edited.write_text(edited.read_text().replace("TextField()", "TextField(null=True)"))
    migrated.add_migration("0002_held", CREATE.format(number=2))
    assert migrated.run("migrate", "-v0").returncode == 0
    assert migrated.run("rollback", "--yes", "--force").returncode == 0
    migrated.add_migration("0003_bad", FAILS)
    assert migrated.run("migrate", "-v0").returncode == 6
    before = hashlib.sha256(migrated.database.read_bytes()).digest()
    document = json.loads(migrated.run("showmigrations", "--json").stdout)
    assert document["version"] == 1
    assert document["state"] == "drift"
    assert names(document, "changed") == ["shop.0001_edited"]
    assert names(document, "pending") == ["shop.0002_held", "shop.0003_bad"]
    assert names(document, "held") == ["shop.0002_held"]
    assert names(document, "failed") == ["shop.0003_bad"]
    assert document["backup"]["bytes"] > 0
    shown = migrated.run("showmigrations", "--status", "shop", PYTHONIOENCODING="utf-8").stdout
    assert "≠ 0001_edited" in shown
    assert "↺ 0002_held" in shown
    assert "✗ 0003_bad" in shown
    assert "no such table: nowhere" in shown
    plain = migrated.run("showmigrations", "--status", "shop", PYTHONIOENCODING="ascii").stdout
    assert "[!] 0003_bad" in plain
    assert "failed" in migrated.run("showmigrations", "--history", "5").stdout
    assert hashlib.sha256(migrated.database.read_bytes()).digest() == before


@pytest.mark.parametrize(
    ("rows", "code"), [pytest.param("", 0, id="ready"), pytest.param("pending", 3, id="pending")]
)
def test_checking_by_exit_code(migrated, rows, code):
    if rows:
        migrated.add_migration("0001_step", CREATE.format(number=1))
    assert migrated.run("showmigrations", "--check").returncode == code


def test_a_database_that_is_not_there_is_not_made(project):
    ended = project.run("showmigrations", "--status", PYTHONIOENCODING="utf-8")
    assert ended.returncode == 0
    assert "state: PENDING" in ended.stdout
    assert not project.database.exists()

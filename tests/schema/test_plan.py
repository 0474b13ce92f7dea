"""The plan tells what will run and who waits for it, and runs nothing."""

from __future__ import annotations

import hashlib
import json

from tests.schema.conftest import CREATE


def test_a_rewrite_and_a_drop_are_told(migrated):
    migrated.add_migration("0001_step", CREATE.format(number=1))
    assert migrated.run("migrate", "-v0").returncode == 0
    migrated.query(
        "INSERT INTO shop_item1 (name) WITH RECURSIVE n(i) AS "
        "(SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 2000) SELECT 'name' || i FROM n"
    )
    migrated.add_migration(
        "0002_rewrite", "migrations.AlterField('item1', 'name', models.CharField(max_length=9))"
    )
    migrated.add_migration("0003_drop", "migrations.DeleteModel('Item1')")
    before = hashlib.sha256(migrated.database.read_bytes()).digest()
    document = json.loads(migrated.run("migrate", "--plan", "--json").stdout)
    rewrite, drop = document["migrations"]
    assert rewrite["breaking"]
    assert not rewrite["destructive"]
    assert [found["effect"] for found in rewrite["statements"]].count("rewrite") == 1
    found = next(found for found in rewrite["statements"] if found["effect"] == "rewrite")
    assert (found["table"], found["rows"]) == ("shop_item1", 2000)
    assert rewrite["disk_bytes"] > found["bytes"] > 20_000
    assert drop["destructive"]
    shown = migrated.run("migrate", "--sql").stdout
    assert "-- shop.0002_rewrite" in shown
    assert "rewrites the table: all writers wait" in shown
    assert 'DROP TABLE "shop_item1"' in shown
    assert hashlib.sha256(migrated.database.read_bytes()).digest() == before


def test_an_empty_plan_is_a_document_too(migrated):
    document = json.loads(migrated.run("migrate", "--plan", "--json").stdout)
    assert document["migrations"] == []

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


def test_pending_migrations_build_on_each_other(any_project):
    any_project.add_migration("0001_first", CREATE.format(number=1))
    assert any_project.run("migrate", "-v0").returncode == 0
    condition = "models.CheckConstraint(condition=models.Q(id__gt=0), name='positive')"
    any_project.add_migration(
        "0002_unique", "migrations.AlterField('item1', 'name', models.TextField(unique=True))"
    )
    # Looks the constraint up that the one before makes.
    any_project.add_migration(
        "0003_plain", "migrations.AlterField('item1', 'name', models.TextField())"
    )
    any_project.add_migration("0004_add", f"migrations.AddConstraint('item1', {condition})")
    any_project.add_migration("0005_remove", "migrations.RemoveConstraint('item1', 'positive')")
    any_project.add_migration("0006_rename", "migrations.RenameModel('Item1', 'Thing')")
    any_project.add_migration("0007_drop", "migrations.DeleteModel('Thing')")
    ended = any_project.run("migrate", "--plan", "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    steps = {step["name"]: step for step in json.loads(ended.stdout)["migrations"]}
    assert len(steps) == 6
    assert 'DROP TABLE "shop_thing"' in steps["0007_drop"]["statements"][-1]["sql"]
    plain = steps["0003_plain"]
    assert plain["at_least"] == bool(plain["unknown"])
    assert bool(plain["unknown"]) == bool(any_project.environ["DATABASE_URL"])
    shown = any_project.run("showmigrations", "--status", "shop").stdout
    assert "0003_plain" in shown
    assert any_project.run("migrate", "-v0").returncode == 0


def test_what_python_does_is_told_as_unknown(migrated):
    migrated.add_migration("0001_code", "migrations.RunPython(print, migrations.RunPython.noop)")
    document = json.loads(migrated.run("migrate", "--plan", "--json").stdout)
    assert document["at_least"]
    assert document["migrations"][0]["python"] == [
        "Prints the values to a stream, or to sys.stdout by default."
    ]


def test_a_column_that_goes_with_a_remade_table_is_data_that_goes(migrated):
    migrated.add_migration(
        "0001_first",
        "migrations.CreateModel('Item', [('id', models.BigAutoField(primary_key=True)), "
        "('name', models.TextField(db_index=True))])",
    )
    assert migrated.run("migrate", "-v0").returncode == 0
    migrated.add_migration("0002_drop", "migrations.RemoveField('item', 'name')")
    assert not json.loads(migrated.run("migrate", "--plan", "--json").stdout)["destructive"]
    migrated.query("INSERT INTO shop_item (name) VALUES ('a')")
    assert json.loads(migrated.run("migrate", "--plan", "--json").stdout)["destructive"]

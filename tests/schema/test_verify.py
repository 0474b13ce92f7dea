"""`showmigrations --verify` finds what hands have done to the tables, and what would mend it."""

from __future__ import annotations

import json
import os

import pytest

from tests.schema.conftest import Project

FILL = """\
migrations.CreateModel("Shelf", [
    ("id", models.BigAutoField(primary_key=True)),
    ("code", models.CharField(max_length=20, unique=True)),
]), migrations.CreateModel("Item", [
    ("id", models.BigAutoField(primary_key=True)),
    ("name", models.CharField(max_length=20)),
    ("kind", models.CharField(max_length=20, null=True)),
    ("shelf", models.ForeignKey("shop.Shelf", models.CASCADE)),
], options={"indexes": [models.Index(fields=["name"], name="shop_item_name")],
    "constraints": [models.CheckConstraint(condition=models.Q(id__gt=0), name="shop_item_id")]}),
migrations.CreateModel("Spare", [("id", models.BigAutoField(primary_key=True))])
"""


def execute(project: Project, *statements: str) -> None:
    url = os.environ.get("QWENPROXY_TEST_DATABASE_URL", "")
    if not url:
        for statement in statements:
            project.query(statement)
        return
    # Only where there is a server.
    import psycopg

    with psycopg.connect(project.environ["DATABASE_URL"], autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.mark.slow
def test_what_hands_have_done_is_found_and_mended(any_project):
    any_project.add_migration("0001_fill", FILL)
    assert any_project.run("migrate", "-v0").returncode == 0
    clean = any_project.run("showmigrations", "--verify")
    assert (clean.returncode, clean.stderr) == (0, "")
    execute(
        any_project,
        "DROP INDEX shop_item_name",
        "ALTER TABLE shop_item ADD COLUMN extra integer",
        "ALTER TABLE shop_item DROP COLUMN kind",
        "DROP TABLE shop_spare",
    )
    ended = any_project.run("showmigrations", "--verify", "--json")
    assert ended.returncode == 5
    found = json.loads(ended.stdout)["differences"]
    assert sorted((one["table"], one["what"]) for one in found) == [
        ("shop_item", "column extra is not of this version"),
        ("shop_item", "column kind is missing"),
        ("shop_item", "index shop_item_name is missing"),
        ("shop_spare", "the table is missing"),
    ]
    shown = any_project.run("showmigrations", "--verify").stdout
    assert 'CREATE INDEX "shop_item_name"' in shown
    execute(any_project, *(statement for one in found for statement in one["mend"]))
    assert any_project.run("showmigrations", "--verify").returncode == 0


def test_what_a_remade_table_has_lost_is_found_and_mended(migrated):
    migrated.add_migration("0001_fill", FILL)
    assert migrated.run("migrate", "-v0").returncode == 0
    migrated.query("DROP TABLE shop_item")
    migrated.query(
        "CREATE TABLE shop_item (id integer NOT NULL PRIMARY KEY AUTOINCREMENT, "
        "name varchar(20) NULL, kind varchar(20) NULL, shelf_id bigint NOT NULL)"
    )
    ended = migrated.run("showmigrations", "--verify", "--json")
    assert ended.returncode == 5
    found = json.loads(ended.stdout)["differences"]
    assert [one["what"] for one in found] == [
        "column name takes NULL",
        "column shelf_id has no index",
        "column shelf_id has no foreign key to shop_shelf.id",
        "index shop_item_name is missing",
        "constraint shop_item_id is missing",
    ]
    assert all(one["mend"] for one in found)


def test_a_damaged_file_is_told(migrated):
    content = bytearray(migrated.database.read_bytes())
    [(page,)] = migrated.query(
        "SELECT rootpage FROM sqlite_master WHERE name = 'django_admin_log'"
        " UNION SELECT rootpage FROM sqlite_master WHERE name = 'auth_group' LIMIT 1"
    )
    [(size,)] = migrated.query("PRAGMA page_size")
    content[(page - 1) * size : (page - 1) * size + 8] = b"\x0d\x00\x00\xff\xff\x00\x00\x00"
    migrated.database.write_bytes(content)
    ended = migrated.run("showmigrations", "--verify")
    assert ended.returncode == 5
    assert "the file is damaged" in ended.stdout
    assert "dbrestore" in ended.stdout


@pytest.mark.parametrize(
    "flags", [pytest.param([], id="text"), pytest.param(["--json"], id="json")]
)
def test_verifying_changes_nothing(migrated, flags):
    before = migrated.database.read_bytes()
    assert migrated.run("showmigrations", "--verify", *flags).returncode == 0
    assert migrated.database.read_bytes() == before

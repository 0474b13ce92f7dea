"""`showmigrations` with our flags tells every state, and writes nothing."""

from __future__ import annotations

import hashlib
import json

import pytest

from tests.schema.conftest import CREATE
from tests.schema.test_admin import GARBAGE

FAILS = "migrations.RunSQL('INSERT INTO nowhere VALUES (1)', '')"


def names(document: dict, key: str) -> list[str]:
    return [f"{row['app']}.{row['name']}" for row in document[key]]


@pytest.mark.slow
def test_each_state_is_told(migrated):
    edited = migrated.add_migration("0001_edited", CREATE.format(number=1))
    assert migrated.run("migrate", "-v0").returncode == 0
    migrated.add_migration("0002_held", CREATE.format(number=2))
    assert migrated.run("migrate", "-v0").returncode == 0
    assert migrated.run("rollback", "--yes", "--force").returncode == 0
    migrated.add_migration("0003_bad", FAILS)
    assert migrated.run("migrate", "-v0").returncode == 6
    edited.write_text(edited.read_text().replace("TextField()", "TextField(null=True)"))
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
    ended = migrated.run("showmigrations", "--check")
    assert ended.returncode == code
    assert ("shop.0001_step" in ended.stderr) == bool(rows)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["--status", "nothing"], "There is no app nothing", id="unknown app"),
        pytest.param(["--history", "0"], "at least 1", id="no events"),
    ],
)
def test_what_cannot_be_shown_is_told(migrated, arguments, said):
    ended = migrated.run("showmigrations", *arguments)
    assert ended.returncode == 2
    assert said in ended.stderr


def test_a_database_that_is_not_there_is_not_made(project):
    ended = project.run("showmigrations", "--status", PYTHONIOENCODING="utf-8")
    assert ended.returncode == 0
    assert "state: PENDING" in ended.stdout
    assert not project.database.exists()


def test_a_squashed_migration_is_applied_where_its_parts_are(migrated):
    migrated.add_migration("0001_first", CREATE.format(number=1))
    migrated.add_migration("0002_second", CREATE.format(number=2))
    assert migrated.run("migrate", "-v0").returncode == 0
    squashed = migrated.migrations / "0001_squashed_0002_second.py"
    squashed.write_text(
        "from django.db import migrations, models\n\n\n"
        "class Migration(migrations.Migration):\n"
        "    replaces = [('shop', '0001_first'), ('shop', '0002_second')]\n"
        f"    operations = [{CREATE.format(number=1)}, {CREATE.format(number=2)}]\n"
    )
    document = json.loads(migrated.run("showmigrations", "--json").stdout)
    assert document["state"] == "ready"
    assert [name for name in names(document, "applied") if name.startswith("shop")] == [
        "shop.0001_squashed_0002_second"
    ]
    assert names(document, "unknown") == names(document, "pending") == []
    shown = migrated.run("showmigrations", "--status", "shop").stdout
    assert "0001_squashed_0002_second  as its parts" in shown
    migrated.query("DELETE FROM django_migrations WHERE name = '0002_second'")
    document = json.loads(migrated.run("showmigrations", "--json").stdout)
    assert names(document, "pending") == ["shop.0002_second"]


def test_a_line_says_what_a_pending_migration_does_to_whom(migrated):
    migrated.add_migration("0001_first", CREATE.format(number=1))
    assert migrated.run("migrate", "-v0").returncode == 0
    migrated.query("INSERT INTO shop_item1 (name) VALUES ('a'), ('b')")
    migrated.add_migration(
        "0002_flag", "migrations.AddField('item1', 'flag', models.BooleanField(null=True))"
    )
    migrated.add_migration(
        "0003_short", "migrations.AlterField('item1', 'name', models.CharField(max_length=9))"
    )
    migrated.add_migration("0004_drop", "migrations.RemoveField('item1', 'name')")
    shown = migrated.run("showmigrations", "--status", "shop", PYTHONIOENCODING="utf-8").stdout
    assert [line.rstrip() for line in shown.splitlines() if "needs" in line] == [
        "  ○ 0002_flag   needs shop.0001_first  adds column, no rewrite",
        "  ○ 0003_short  needs shop.0002_flag  rewrites 2 rows",
        "  ○ 0004_drop   needs shop.0003_short  ! drops column, deletes data",
    ]
    assert "4 pending" not in shown
    assert "3 pending  0 failed" in shown


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param("ALTER TABLE schema_migrationevent DROP COLUMN actor", id="no-actor"),
        pytest.param("ALTER TABLE schema_migrationevent DROP COLUMN error", id="no-error"),
        pytest.param("ALTER TABLE schema_migrationevent DROP COLUMN checksum", id="no-checksum"),
        pytest.param(f"UPDATE schema_migrationevent SET {GARBAGE}", id="garbage"),
        pytest.param(
            "CREATE TABLE other AS SELECT * FROM schema_migrationevent; "
            "DROP TABLE schema_migrationevent; "
            "ALTER TABLE other RENAME TO schema_migrationevent; "
            "UPDATE schema_migrationevent SET app = NULL, run = NULL, at = NULL, status = NULL",
            id="nulls",
        ),
    ],
)
def test_a_damaged_history_degrades(migrated, damage):
    for statement in damage.split("; "):
        migrated.query(statement)
    migrated.add_migration("0001_first", CREATE.format(number=1))
    for flags in (["--status"], ["--json"], ["--history"], ["--deps"]):
        ended = migrated.run("showmigrations", *flags)
        assert (ended.returncode, ended.stderr) == (0, ""), flags
    assert migrated.run("showmigrations", "--check").returncode == 3


def test_colours_are_for_terminals_that_want_them(migrated):
    migrated.add_migration("0001_first", CREATE.format(number=1))
    assert "\x1b[" in migrated.run("showmigrations", "--status", "--force-color").stdout
    assert "\x1b[" not in migrated.run("showmigrations", "--status").stdout

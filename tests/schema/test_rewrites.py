"""Tables that are written anew keep their rows, or the run is rolled back."""

from __future__ import annotations

import json

import pytest

from tests.schema.conftest import CREATE

# SQLite copies the table for it, PostgreSQL rewrites it.
REWRITE = "migrations.AlterField('item1', 'name', models.BinaryField())"
SHRINK = "migrations.AlterField('item1', 'name', models.CharField(max_length=9))"
DELETE = (
    "migrations.RunPython(lambda apps, editor: "
    "apps.get_model('shop', 'Item1').objects.filter(id=1).delete())"
)
LOSING = """

class Losing(migrations.AlterField):
    def database_forwards(self, app_label, schema_editor, from_state, to_state):
        super().database_forwards(app_label, schema_editor, from_state, to_state)
        schema_editor.execute("{sql}")


Migration.operations = [Losing("item1", "name", models.CharField(max_length=9))]
"""


FILL = (
    """migrations.RunSQL("INSERT INTO shop_item1 (name) VALUES ('one'), ('two'), ('three')", "")"""
)


def begin(project) -> None:
    """Three rows, made by the same run."""
    project.add_migration("0001_item", CREATE.format(number=1))
    project.add_migration("0002_fill", FILL)


def rows_of(project, name):
    [(rows,)] = project.events("rows", where=f"name = '{name}' AND status = 'ok'")
    return json.loads(rows) if isinstance(rows, str) else rows


def test_what_is_written_anew_is_counted(any_project):
    begin(any_project)
    any_project.add_migration("0003_shrink", SHRINK)
    ended = any_project.run("migrate", "-v0")
    assert ended.returncode == 0, ended.stderr
    assert rows_of(any_project, "0003_shrink") == {"shop_item1": 3}
    assert rows_of(any_project, "0002_fill") is None
    assert any_project.run("rollback", "--yes", "--force").returncode == 0
    [(rows,)] = any_project.events("rows", where="action = 'unapply'")
    # To PostgreSQL a longer text is the same.
    assert (rows is None) == any_project.is_postgresql


@pytest.mark.parametrize(
    ("sql", "left"),
    [
        pytest.param("DELETE FROM shop_item1 WHERE id < 3", 1, id="lost"),
        pytest.param("INSERT INTO shop_item1 (id, name) VALUES (9, 'nine')", 4, id="won"),
    ],
)
def test_other_rows_than_before_roll_the_run_back(migrated, sql, left):
    migrated.add_migration("0001_item", CREATE.format(number=1))
    assert migrated.run("migrate", "-v0").returncode == 0
    migrated.query("INSERT INTO shop_item1 (name) VALUES ('one'), ('two'), ('three')")
    before = migrated.schema()
    path = migrated.add_migration("0002_losing")
    path.write_text(path.read_text() + LOSING.format(sql=sql))
    ended = migrated.run("migrate", "-v0")
    assert ended.returncode == 6
    assert f"shop_item1 had 3 rows and was left with {left}" in ended.stderr
    assert "The database is unchanged" in ended.stderr
    assert migrated.schema() == before
    assert migrated.query("SELECT count(*) FROM shop_item1") == [(3,)]


def test_rows_lost_by_the_copy_are_noticed_beside_code_of_the_migration(migrated):
    begin(migrated)
    path = migrated.add_migration("0003_losing")
    lossy = (
        "from django.db.backends.sqlite3.schema import DatabaseSchemaEditor as Editor\n"
        "def rename(self, *args, **kwargs):\n"
        "    self.execute('DELETE FROM new__shop_item1 WHERE id = 2')\n"
        "    alter(self, *args, **kwargs)\n"
        "alter, Editor.alter_db_table = Editor.alter_db_table, rename\n"
        f"Migration.operations = [{DELETE}, {SHRINK}]\n"
    )
    path.write_text(path.read_text() + lossy)
    ended = migrated.run("migrate", "-v0")
    assert ended.returncode == 6, ended.stderr
    assert "shop_item1 had 2 rows and was left with 1" in ended.stderr


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([[DELETE, SHRINK]], id="before it in one migration"),
        pytest.param([[SHRINK, DELETE]], id="behind it in one migration"),
        pytest.param([[SHRINK], [DELETE]], id="by a later migration"),
        pytest.param([[SHRINK, "migrations.DeleteModel('Item1')"]], id="with their table"),
        pytest.param(
            [
                [SHRINK, "migrations.RenameModel('Item1', 'Thing')"],
                [REWRITE.replace("item1", "thing")],
            ],
            id="under another name",
        ),
    ],
)
def test_what_migrations_do_to_rows_themselves_is_let_be(migrated, steps):
    begin(migrated)
    for number, operations in enumerate(steps, 3):
        migrated.add_migration(f"000{number}_step", *operations)
    ended = migrated.run("migrate", "-v0", "--allow-unsafe")
    assert ended.returncode == 0, ended.stderr

"""An upgrade for which the disk has no room does not begin."""

from __future__ import annotations

import hashlib

import pytest

from tests.schema.conftest import CREATE

REMAKE = "migrations.AlterField('item1', 'name', models.CharField(max_length=9))"
FREE = """
import shutil
shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**12, 10**12, {free})
"""


@pytest.mark.parametrize(
    ("rewrites", "code"),
    [pytest.param(1.0, 9, id="short"), pytest.param(2.5, 0, id="enough")],
)
def test_room_is_needed_for_the_backup_and_what_is_rewritten(migrated, rewrites, code):
    migrated.add_migration("0001_step", CREATE.format(number=1))
    assert migrated.run("migrate", "-v0").returncode == 0
    migrated.query(
        "INSERT INTO shop_item1 (name) WITH RECURSIVE n(i) AS "
        "(SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 20000) SELECT 'name' || i FROM n"
    )
    migrated.add_migration("0002_remake", REMAKE)
    [(table,)] = migrated.query(
        "SELECT pgsize FROM dbstat WHERE name = 'shop_item1' AND aggregate = TRUE"
    )
    size = migrated.database.stat().st_size
    free = size + round(table * rewrites)
    settings = migrated.directory / "project_settings.py"
    settings.write_text(settings.read_text() + FREE.format(free=free))
    before = hashlib.sha256(migrated.database.read_bytes()).digest()
    backups = sorted((migrated.database.parent / "backups").iterdir())
    ended = migrated.run("migrate")
    assert ended.returncode == code, ended.stderr
    if code:
        assert "Nothing was changed. Make room" in ended.stderr
        assert hashlib.sha256(migrated.database.read_bytes()).digest() == before
        assert sorted((migrated.database.parent / "backups").iterdir()) == backups

"""What Django's own command does in the same places: the tests of ours would fail on it."""

from __future__ import annotations

import pytest

from tests.schema.conftest import CREATE, Project

PLAIN = """\
from django.core.management import call_command
from django.core.management.commands import migrate
call_command(migrate.Command(), {arguments} interactive=False)
"""
FAILS = "migrations.RunSQL('INSERT INTO nowhere VALUES (1)', '')"
AFTER = """\
from django.apps import AppConfig
from django.db.models.signals import post_migrate

def fail(**kwargs):
    raise RuntimeError("after")

class ShopConfig(AppConfig):
    name = "shop"

    def ready(self):
        post_migrate.connect(fail)
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def migrate(project: Project, *arguments: str) -> tuple[int, str]:
    named = "".join(f"{argument!r}, " for argument in arguments)
    ended = project.run("shell", "-v0", "-c", PLAIN.format(arguments=named))
    return ended.returncode, ended.stdout + ended.stderr


def applied(project: Project) -> list[str]:
    found = project.query("SELECT name FROM django_migrations WHERE app = 'shop' ORDER BY id")
    return [name for (name,) in found]


def test_a_failure_leaves_what_ran_before_it(migrated):
    before = migrated.schema()
    for number in range(1, 6):
        operation = FAILS if number == 3 else CREATE.format(number=number)
        migrated.add_migration(f"000{number}_step", operation)
    code, _ = migrate(migrated)
    assert code == 1
    assert applied(migrated) == ["0001_step", "0002_step"]
    assert migrated.schema() != before


def test_a_failing_post_migrate_leaves_everything(migrated):
    migrated.add_migration("0001_step", CREATE.format(number=1))
    (migrated.directory / "shop" / "apps.py").write_text(AFTER)
    code, text = migrate(migrated)
    assert (code, "RuntimeError: after" in text) == (1, True)
    assert applied(migrated) == ["0001_step"]


def test_a_database_ahead_and_an_edited_file_are_not_noticed(migrated):
    newer = migrated.add_migration("0001_newer", CREATE.format(number=1), head="breaking = True")
    assert migrate(migrated)[0] == 0
    kept = newer.read_text()
    newer.unlink()
    code, text = migrate(migrated)
    assert (code, "No migrations to apply." in text) == (0, True)
    newer.write_text(kept.replace("TextField()", "IntegerField()"))
    code, text = migrate(migrated)
    assert (code, "No migrations to apply." in text) == (0, True)


def test_what_was_rolled_back_is_applied_again(migrated):
    migrated.add_migration("0001_step", CREATE.format(number=1))
    assert migrate(migrated)[0] == 0
    assert migrate(migrated, "shop", "zero")[0] == 0
    assert applied(migrated) == []
    assert migrate(migrated)[0] == 0
    assert applied(migrated) == ["0001_step"]

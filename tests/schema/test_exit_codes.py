"""Each exit code, by the command that ends with it; and what is not a database ahead of the code."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing

import pytest

from tests.schema.conftest import CREATE, Project

FAILS = "migrations.RunSQL('INSERT INTO nowhere VALUES (1)', '')"
UNDOABLE = "migrations.RunSQL('SELECT 1', 'SELECT 1')"
Ended = tuple[int, str]


def run(project: Project, *command: str, **environ: str) -> Ended:
    ended = project.run(*command, **environ)
    return ended.returncode, ended.stderr


def step(project: Project, *operations: str, name: str = "0001_step", head: str = "") -> None:
    project.add_migration(name, *(operations or [CREATE.format(number=1)]), head=head)


def up(project: Project) -> None:
    assert project.run("migrate", "-v0").returncode == 0


def done(project: Project) -> Ended:
    step(project)
    return run(project, "migrate")


def nothing_to_do(project: Project) -> Ended:
    return run(project, "migrate")


def unknown_app(project: Project) -> Ended:
    return run(project, "migrate", "nothing")


def unknown_migration(project: Project) -> Ended:
    step(project)
    return run(project, "migrate", "shop", "0009")


def pending_for_django(project: Project) -> Ended:
    step(project)
    return run(project, "migrate", "--check")


def wrong_usage(project: Project) -> Ended:
    return run(project, "rollback", "shop")


def wrong_file(project: Project) -> Ended:
    return run(project, "dbrestore", "nothing.sqlite3", "--yes")


def pending(project: Project) -> Ended:
    step(project)
    return run(project, "showmigrations", "--check")


def ahead(project: Project) -> Ended:
    step(project, UNDOABLE)
    up(project)
    (project.migrations / "0001_step.py").unlink()
    return run(project, "serve", "--port", "0")


def edited(project: Project) -> Ended:
    step(project)
    up(project)
    step(project, UNDOABLE)
    return run(project, "showmigrations", "--check")


def differing(project: Project) -> Ended:
    project.query("ALTER TABLE auth_group ADD COLUMN extra integer")
    return run(project, "showmigrations", "--verify")


def failed(project: Project) -> Ended:
    step(project, FAILS)
    return run(project, "migrate")


def failed_part_way(project: Project) -> Ended:
    step(project, head="atomic = False")
    step(project, FAILS, name="0002_bad")
    return run(project, "migrate")


def locked(project: Project) -> Ended:
    step(project)
    path = f"{project.database}.migrate.lock"
    with closing(sqlite3.connect(path, isolation_level=None)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        return run(project, "migrate", "--lock-wait", "0.1")


def refused(project: Project) -> Ended:
    step(project)
    up(project)
    project.query("INSERT INTO shop_item1 (name) VALUES ('kept')")
    step(project, "migrations.DeleteModel('Item1')", name="0002_drop")
    return run(project, "migrate")


def irreversible(project: Project) -> Ended:
    step(project, "migrations.RunSQL('SELECT 1')")
    up(project)
    return run(project, "rollback", "--yes", "--force")


def no_database(project: Project) -> Ended:
    project.database.write_bytes(b"It was a letter once. " * 100)
    return run(project, "showmigrations", "--status")


def held(project: Project) -> Ended:
    step(project)
    up(project)
    assert project.run("rollback", "--yes", "--force").returncode == 0
    return run(project, "serve", "--port", "0")


CASES = [
    (done, 0),
    (nothing_to_do, 0),
    (unknown_app, 2),
    (unknown_migration, 2),
    (pending_for_django, 1),
    (wrong_usage, 2),
    (wrong_file, 2),
    (pending, 3),
    (ahead, 4),
    (edited, 5),
    (differing, 5),
    (failed, 6),
    (failed_part_way, 7),
    (locked, 8),
    (refused, 9),
    (irreversible, 9),
    (no_database, 9),
    (held, 10),
]


@pytest.mark.parametrize(
    ("meet", "code"), [pytest.param(meet, code, id=meet.__name__) for meet, code in CASES]
)
def test_a_command_ends_with_the_code_of_what_happened(
    migrated: Project, meet: Callable[[Project], Ended], code: int
) -> None:
    found, errors = meet(migrated)
    assert found == code, errors
    assert "Traceback" not in errors
    told = [line for line in errors.splitlines() if not line.startswith("Backed up: ")]
    assert bool(told) == (meet not in (done, nothing_to_do, pending_for_django))


@pytest.mark.parametrize(
    "removes",
    [
        pytest.param(False, id="with what it replaces"),
        pytest.param(True, id="after what it replaces is gone"),
    ],
)
def test_a_squashed_migration_is_not_ahead(migrated, removes):
    step(migrated)
    step(migrated, CREATE.format(number=2), name="0002_step")
    up(migrated)
    replaces = "replaces = [('shop', '0001_step'), ('shop', '0002_step')]"
    path = migrated.migrations / "0001_squashed.py"
    path.write_text(
        "from django.db import migrations, models\n\n\n"
        f"class Migration(migrations.Migration):\n    {replaces}\n    dependencies = []\n"
        f"    operations = [{CREATE.format(number=1)}, {CREATE.format(number=2)}]\n"
    )
    if removes:
        for name in ("0001_step", "0002_step"):
            (migrated.migrations / f"{name}.py").unlink()
    up(migrated)
    assert run(migrated, "showmigrations", "--check") == (0, "")
    assert run(migrated, "showmigrations", "--verify") == (0, "")
    assert run(migrated, "migrate", "--check") == (0, "")

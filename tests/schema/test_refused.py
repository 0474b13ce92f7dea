"""What cannot be undone, or is not known, is refused and changes no byte; what does no harm is told."""

from __future__ import annotations

import signal
import urllib.request

import pytest

from tests.schema.conftest import CREATE, Project


@pytest.fixture
def stood(migrated) -> Project:
    """Something applied that can be undone, and on top something that cannot."""
    migrated.add_migration("0001_step", CREATE.format(number=1))
    migrated.add_migration("0002_oneway", "migrations.RunSQL('SELECT 1')")
    assert migrated.run("migrate", "-v0").returncode == 0
    return migrated


@pytest.mark.parametrize(
    ("target", "code"),
    [
        pytest.param(["shop", "0009"], 2, id="unknown migration"),
        pytest.param(["nothing", "zero"], 2, id="unknown app"),
        pytest.param(["--run", "00000000"], 2, id="unknown run"),
        pytest.param(["shop", "0002"], 2, id="nothing to undo"),
        pytest.param([], 9, id="irreversible"),
        pytest.param(["shop", "zero"], 9, id="irreversible in the way"),
    ],
)
def test_a_rollback_that_cannot_be_done(stood, target, code):
    before = stood.database.read_bytes()
    backups = sorted((stood.database.parent / "backups").iterdir())
    ended = stood.run("rollback", *target, "--yes", "--force")
    assert ended.returncode == code, ended.stderr
    assert "othing was changed" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert stood.database.read_bytes() == before
    assert sorted((stood.database.parent / "backups").iterdir()) == backups


@pytest.mark.parametrize(
    ("head", "code"),
    [pytest.param("breaking = True", 4, id="breaking"), pytest.param("", 0, id="harmless")],
)
def test_a_database_ahead_of_the_code(migrated, head, code):
    path = migrated.add_migration("0001_newer", CREATE.format(number=1), head=head)
    assert migrated.run("migrate", "-v0").returncode == 0
    path.unlink()
    before = migrated.schema(), migrated.events("name", "status")
    process = migrated.start("serve", "--port", "0")
    assert process.stdout is not None
    told = []
    for line in process.stdout:
        told.append(line)
        if line.startswith("Serving on "):
            urllib.request.urlopen(f"{line.split()[2]}/readyz", timeout=20).close()
            process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "shop.0001_newer" in ("".join(told) if code == 0 else errors)
    assert (migrated.schema(), migrated.events("name", "status")) == before

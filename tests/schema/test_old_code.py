"""After an upgrade that failed, the version before runs on the file as if nobody had tried."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime

import pytest

from tests.schema.conftest import CREATE, ROOT, Project
from tests.schema.test_killed import THOROUGH

FAILS = "migrations.RunSQL('INSERT INTO nowhere VALUES (1)', '')"
# The tests of the version before, on a database that is there: they bring along their own rows. A third of
# them each day, all with QWENPROXY_TESTS_THOROUGH=1.
SUITE = ["tests/sessions_app", "tests/requests_app", "tests/access"]
if not THOROUGH:
    SUITE = [SUITE[datetime.now(UTC).toordinal() % len(SUITE)]]
ON_FILE = """\
from tests.settings import *
DATABASES["default"]["TEST"] = {{"NAME": {path!r}}}
"""


@pytest.fixture
def failed_upgrade(migrated) -> Project:
    """The third of five migrations fails; then their code is taken away."""
    for number in range(1, 6):
        operation = FAILS if number == 3 else CREATE.format(number=number)
        migrated.add_migration(f"000{number}_step", operation)
    assert migrated.run("migrate", "-v0").returncode == 6
    assert migrated.events("name", where="status = 'failed'") == [("0003_step",)]
    for path in migrated.migrations.glob("0*.py"):
        path.unlink()
    return migrated


def test_it_starts_and_answers(failed_upgrade):
    process = failed_upgrade.start("serve", "--port", "0")
    assert process.stdout is not None
    url = next(line.split()[2] for line in process.stdout if line.startswith("Serving on "))
    with urllib.request.urlopen(f"{url}/readyz", timeout=20) as answer:
        assert json.load(answer)["status"] == "ready"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_its_tests_pass(failed_upgrade, tmp_path):
    before = failed_upgrade.schema()
    (tmp_path / "on_file.py").write_text(ON_FILE.format(path=str(failed_upgrade.database)))
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--reuse-db", "--ds=on_file", *SUITE],
        cwd=ROOT,
        env={
            **failed_upgrade.environ,
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
            "DATABASE_URL": "",
        },
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    # It was that file: they have emptied its tables, and changed no other thing.
    assert failed_upgrade.events("name") == []
    assert failed_upgrade.schema() == before

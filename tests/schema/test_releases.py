"""The data of every release: this version upgrades it to what a fresh install has, and serves it.

`tests/fixtures/releases/` has one dump of SQLite per release; a new one is added when a version is released.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import urllib.request
from contextlib import closing

import pytest

from tests.schema.conftest import ROOT, Project

RELEASES = sorted((ROOT / "tests" / "fixtures" / "releases").glob("*.sql"))
# In all of them, by name: a key, an account of a house model, a turn with the demo.
API_KEY = "qp-QwzfPcspQmncLFDPYvf55jDJpM01hSeg0GZh_j-mpGQ"
SESSION = "a3e5c157-3ed0-47fb-9a9a-81e312427041"
SECRET = """\
from qwenproxy.access.accounts import get_secrets
from qwenproxy.access.models import UpstreamAccount
print(get_secrets(UpstreamAccount.objects.get(name="house model"))["api_key"])
"""


def serve(project: Project) -> tuple[object, str]:
    process = project.start("serve", "--port", "0")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Serving on "):
            return process, line.split()[2]
    raise AssertionError(process.communicate()[1])


def get(url: str, path: str) -> dict:
    request = urllib.request.Request(url + path, headers={"Authorization": f"Bearer {API_KEY}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def dump(project: Project) -> list[tuple[str, ...]]:
    return sorted(project.schema())


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.stem)
def test_its_data_is_upgraded_and_served(project, migrated_file, release):
    project.database.parent.mkdir()
    with closing(sqlite3.connect(project.database)) as connection:
        connection.executescript(release.read_text("utf-8"))
    process, url = serve(project)
    try:
        session = get(url, f"/v1/sessions/{SESSION}")
        requests = get(url, f"/v1/sessions/{SESSION}/requests")["data"]
        request = get(url, f"/v1/requests/{requests[0]['id']}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert session["title"] == "Guten Tag, 你好!"
    assert "Be short." in json.dumps(request)
    assert "This is the built-in demo" in json.dumps(request)
    assert project.run("shell", "-v0", "--no-imports", "-c", SECRET).stdout == "sk-of-the-house\n"
    verified = project.run("showmigrations", "--verify")
    assert (verified.returncode, verified.stderr) == (0, "")
    upgraded = dump(project)
    project.database.write_bytes(migrated_file.read_bytes())
    assert upgraded == dump(project)


def test_there_is_one_to_upgrade():
    assert RELEASES

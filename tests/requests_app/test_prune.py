"""`manage.py prune`, and that what it removes is gone from the files."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connection
from django.utils import timezone

from qwenproxy.database import close_pool
from requests_app import erasure
from requests_app.deletion import delete_session_rows
from requests_app.prunings import last_run
from requests_app.retention import _ADVISORY_KEY
from requests_app.retention_task import Retention
from sessions_app.models import Message, Session
from tests.factories import make_api_key, make_line, make_session, make_turn

ROOT = Path(__file__).resolve().parents[2]
SECRET = "the planted secret"
on_sqlite = pytest.mark.skipif("connection.vendor != 'sqlite'")


@pytest.fixture
def pool():
    yield
    close_pool()


def prune(*arguments):
    out, err = io.StringIO(), io.StringIO()
    call_command("prune", *arguments, stdout=out, stderr=err)
    return out.getvalue()


def aged(days, texts=1, api_key=None, has_turn=True):
    session = make_session(api_key)
    if has_turn:
        make_turn(session, SECRET)
    make_line(session, *({"role": "user", "content": SECRET * 500 + str(n)} for n in range(texts)))
    Session.objects.filter(pk=session.pk).update(
        last_accessed=timezone.now() - timedelta(days=days)
    )
    return session


@pytest.mark.django_db
class TestPrune:
    def test_nothing_is_removed_unless_asked(self):
        aged(1000)
        assert "Nothing is set to expire" in prune()
        assert "Nothing is set to expire" in prune("--dry-run")
        assert not Message.objects.filter(content="{}").exists()

    def test_a_dry_run_tells_what_would_go_and_changes_nothing(self):
        api_key = make_api_key("agent", content_days=10, record_days=100)
        aged(50, api_key=api_key)
        aged(500, api_key=api_key)
        told = prune("--dry-run")
        assert "agent: content of 1 session last used before" in told
        assert "agent: all of 1 session last used before" in told
        document = json.loads(prune("--dry-run", "--json"))
        assert {(row["kind"], row["sessions"]) for row in document["keys"]} == {
            ("content", 1), ("record", 1),
        }  # fmt: skip
        assert all(row["bytes"] > len(SECRET) for row in document["keys"])
        assert Session.objects.count() == 2
        assert not Message.objects.filter(content="{}").exists()
        assert last_run() is None

    def test_days_hold_this_once_for_every_key(self):
        aged(50, api_key=make_api_key(content_days=1000))
        document = json.loads(prune("--content-days", "10", "--json"))
        assert document["content"]["sessions"] == 1
        assert document["record"] == {"sessions": 0, "bytes": 0}
        assert json.loads(prune("--record-days=10", "--json"))["record"]["sessions"] == 1
        run = last_run()
        assert run is not None
        assert (run.content_sessions, run.record_sessions) == (0, 1)

    @pytest.mark.parametrize("value", ["0", "-1", "36501", "1.5", "many", "9" * 30, ""])
    def test_other_days_are_refused(self, value):
        with pytest.raises(CommandError, match=r"not a whole number|expected one argument"):
            prune(f"--content-days={value}")

    @pytest.mark.parametrize(
        ("error", "code", "says"),
        [
            pytest.param(KeyboardInterrupt(), 130, "Interrupted; what is done stays", id="Ctrl-C"),
            pytest.param(DatabaseError("away"), 1, "The database: away", id="database"),
        ],
    )
    def test_what_ends_it_is_one_line_and_an_exit_status(self, monkeypatch, error, code, says):
        def fail(*_):
            raise error

        aged(50)
        monkeypatch.setattr("requests_app.retention.read_pieces", fail)
        with pytest.raises(CommandError, match=says) as caught:
            prune("--content-days=1")
        assert caught.value.returncode == code
        assert last_run() is None


@pytest.mark.django_db(transaction=True)
def test_the_serving_process_removes_by_itself(settings, pool):
    settings.CONTENT_DAYS = 10
    aged(50)
    retention = Retention()
    asyncio.run(retention.prune())
    assert retention.removed["content"].sessions == 1
    assert retention.last_run > 0
    run = last_run()
    assert run is not None
    assert run.content_sessions == 1
    assert not Message.objects.exclude(content="{}").exists()
    asyncio.run(retention.prune())
    assert retention.removed["content"].sessions == 1


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif("connection.vendor != 'postgresql'")
def test_one_process_at_a_time_removes(settings, pool):
    settings.CONTENT_DAYS = 10
    aged(50)
    other = connection.copy()
    with other.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [_ADVISORY_KEY])
        retention = Retention()
        asyncio.run(retention.prune())
        assert retention.removed["content"].sessions == 0
        assert last_run() is None
    other.close()
    asyncio.run(retention.prune())
    assert retention.removed["content"].sessions == 1


@on_sqlite
@pytest.mark.django_db(transaction=True)
class TestErasure:
    def test_the_log_is_emptied(self):
        log = Path(f"{connection.settings_dict['NAME']}-wal")
        aged(50)
        assert log.stat().st_size > 0
        assert erasure.empty_log()
        assert log.stat().st_size == 0

    def test_a_deleted_session_empties_it_where_that_is_set(self, settings):
        log = Path(f"{connection.settings_dict['NAME']}-wal")
        for is_set in (False, True):
            settings.SECURE_DELETE = is_set
            delete_session_rows(aged(50).pk, None)
            assert (log.stat().st_size == 0) == is_set

    def test_a_reader_keeps_it_and_is_told(self, settings):
        settings.SECURE_DELETE = True
        aged(50)
        other = connection.copy()
        with other.cursor() as cursor:
            cursor.execute("BEGIN DEFERRED")
            cursor.execute("SELECT COUNT(*) FROM sessions_app_session")
            cursor.fetchall()
            make_session()
            assert json.loads(prune("--content-days=1", "--json"))["log_emptied"] is False
            cursor.execute("ROLLBACK")
        other.close()
        assert json.loads(prune("--content-days=1", "--json"))["log_emptied"] is True


OPERATE = """
import json, sys
from io import StringIO
from pathlib import Path
from django.core.management import call_command
from django.db import connection
from qwenproxy.access.keys import create_api_key
from tests.requests_app.test_prune import SECRET, aged

file, option = Path(connection.settings_dict["NAME"]), sys.argv[1]

def call(*arguments):
    out = StringIO()
    call_command(*arguments, stdout=out)
    return out.getvalue()

def looked_at():
    files = [path for path in file.parent.glob("qwenproxy.sqlite3*") if path.is_file()]
    holds = any(SECRET.encode() in path.read_bytes() for path in files)
    return holds, sum(path.stat().st_size for path in files)

call("migrate")
api_key, _ = create_api_key(name="filled")
seen = []
for has_turn in (True, False):
    for n in range(40):
        aged(50, texts=20, api_key=api_key, has_turn=has_turn)
    seen.append(looked_at())
    document = json.loads(call("prune", option, "10", "--json"))
    assert document["log_emptied"]
    assert document["content"]["sessions"] + document["record"]["sessions"] == 40
    # Before space is given back: no page of the file is made anew by that.
    assert not looked_at()[0]
    assert json.loads(call("prune", option, "10", "--json", "--vacuum"))["given_back_bytes"] > 0
    seen.append(looked_at())
pragmas = []
for name in ("auto_vacuum", "secure_delete", "integrity_check"):
    with connection.cursor() as cursor:
        pragmas.append(cursor.execute(f"PRAGMA {name}").fetchone()[0])
sys.stdout.write(json.dumps([seen, pragmas]))
"""


@on_sqlite
@pytest.mark.slow
@pytest.mark.parametrize("option", ["--content-days", "--record-days"])
def test_a_secret_is_gone_from_the_files_and_the_space_is_given_back(tmp_path, option):
    """In a process and with a file of its own: the setting is that of its connections."""
    script = "import django; django.setup()\n" + OPERATE
    environ = {
        **os.environ,
        "QWENPROXY_DATA_DIR": str(tmp_path / "data"),
        "QWENPROXY_SECURE_DELETE": "true",
        "DJANGO_SETTINGS_MODULE": "qwenproxy.settings",
        "DATABASE_URL": "",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, option],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen, pragmas = json.loads(done.stdout)
    assert [holds for holds, _ in seen] == [True, False, True, False]
    sizes = [size for _, size in seen]
    assert sizes[1] < sizes[0]
    assert sizes[3] < sizes[2]
    # The second time in steps.
    assert pragmas == [2, 1, "ok"]

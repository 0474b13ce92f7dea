"""`serve` brings the database up to date, or says why not with an exit code of its own."""

from __future__ import annotations

import json
import signal
import socket
import time
import urllib.error
import urllib.request

import pytest

from tests.schema.conftest import CREATE

FAILS = "migrations.RunSQL('INSERT INTO nowhere VALUES (1)', '')"
# SQLite counts to a number that takes seconds.
SLOW = (
    "migrations.RunSQL('CREATE TABLE slow AS WITH RECURSIVE n(i) AS "
    "(SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {rows}) SELECT i FROM n WHERE i < 3', '')"
)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def get(port: int, path: str) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def serve(project, **environ):
    return project.run("serve", "--port", "0", **environ)


def test_a_database_ahead_of_the_code_is_refused(migrated):
    path = migrated.add_migration("0001_step", "migrations.RunSQL('SELECT 1', 'SELECT 1')")
    assert migrated.run("migrate", "-v0").returncode == 0
    path.unlink()
    before = migrated.database.read_bytes()
    ended = serve(migrated)
    assert ended.returncode == 4
    assert "shop.0001_step" in ended.stderr
    assert "by version" in ended.stderr
    assert "dbrestore" in ended.stderr
    assert migrated.database.read_bytes() == before


@pytest.mark.slow
def test_a_rolled_back_migration_is_not_applied_again(migrated):
    migrated.add_migration("0001_step", CREATE.format(number=1))
    assert migrated.run("migrate", "-v0").returncode == 0
    assert migrated.run("rollback", "--yes", "--force").returncode == 0
    ended = serve(migrated)
    assert ended.returncode == 10
    assert "shop.0001_step" in ended.stderr
    assert migrated.query("SELECT * FROM django_migrations WHERE app = 'shop'") == []
    assert migrated.run("migrate", "-v0").returncode == 0


def test_an_edited_migration_stops_the_next_upgrade_but_a_reformatted_one_does_not(migrated):
    path = migrated.add_migration("0001_step", CREATE.format(number=1))
    assert migrated.run("migrate", "-v0").returncode == 0
    migrated.add_migration("0002_bad", FAILS)
    path.write_text(path.read_text().replace("[(", "[\n   # reformatted\n(") + "\n\n# end\n")
    assert serve(migrated).returncode == 6
    path.write_text(path.read_text().replace("TextField()", "TextField(null=True)"))
    ended = serve(migrated)
    assert ended.returncode == 5
    assert "shop.0001_step" in ended.stderr


def test_a_failing_upgrade_is_not_tried_and_backed_up_for_ever(migrated):
    migrated.add_migration("0001_bad", FAILS)
    assert [serve(migrated).returncode for _ in range(3)] == [6, 6, 6]
    backups = list((migrated.database.parent / "backups").glob("*.sqlite3"))
    assert len(backups) == 2
    assert len(migrated.events("id", where="status = 'failed'")) == 2


def test_checking_waits_for_another_process(migrated):
    migrated.add_migration("0001_step", CREATE.format(number=1))
    ended = serve(migrated, QWENPROXY_MIGRATE_ON_START="check", QWENPROXY_MIGRATE_LOCK_WAIT_S="0.1")
    assert ended.returncode == 8


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.01)
        else:
            return
    raise AssertionError("nobody listens")


def test_it_is_alive_and_tells_its_progress_while_it_migrates(migrated):
    migrated.add_migration("0001_slow", SLOW.format(rows=8_000_000))
    port = free_port()
    process = migrated.start("serve", "--port", str(port))
    try:
        wait_for_port(port)
        states, alive, deadline = [], set(), time.monotonic() + 60
        # A connection that is refused or reset ends the test.
        while not states or states[-1][0] != 200:
            assert time.monotonic() < deadline, states[-1]
            alive.add(get(port, "/healthz")[0])
            states.append(get(port, "/readyz"))
        assert alive == {200}
        told = [state for status, state in states if state["status"] == "migrating"]
        assert {status for status, state in states if state["status"] != "ready"} == {503}
        assert told[0]["of"] == 1
        assert any("CREATE TABLE slow" in state["statement"] for state in told)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_signal_ends_a_running_statement_and_rolls_back(migrated):
    migrated.add_migration("0001_slow", SLOW.format(rows=2_000_000_000))
    before = migrated.schema()
    port = free_port()
    process = migrated.start("serve", "--port", str(port))
    wait_for_port(port)
    deadline = time.monotonic() + 30
    while "slow" not in get(port, "/readyz")[1].get("statement", ""):
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert migrated.schema() == before
    assert migrated.events("status") == [("interrupted",)]


def test_a_request_with_a_body_is_answered_not_reset(migrated):
    migrated.add_migration("0001_slow", SLOW.format(rows=4_000_000))
    port = free_port()
    process = migrated.start("serve", "--port", str(port))
    try:
        wait_for_port(port)
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions", data=b"x" * 2_000_000, method="POST"
        )
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=20)
        with caught.value:
            assert caught.value.code == 503
            assert caught.value.headers["Retry-After"] == "2"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def test_reading_the_state_costs_one_query(django_assert_num_queries, db):
    from qwenproxy.schema.state import read_state

    with django_assert_num_queries(1):
        state = read_state()
    assert state.is_clean

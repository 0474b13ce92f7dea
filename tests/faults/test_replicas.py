"""Two serving processes on one PostgreSQL: conversations that hop between them, restarts, upgrades, kills.

`python -m tests.faults.replicas` does the first of these at full size.
"""

from __future__ import annotations

import asyncio
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import NO_TLS
from tests.doubles.server import serve_in_thread
from tests.doubles.servers import documented, pgbouncer
from tests.faults.agents import Agents, Script
from tests.faults.gateway import ROOT
from tests.faults.load import EchoDouble, Load, check, read_rows
from tests.faults.replicas import Replicas, upstreams, wait_until
from tests.faults.torture import SERVER, new_database

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not SERVER, reason="several processes share a PostgreSQL"),
]
_CONVERSATIONS = 24
_RUNNING = "SELECT COUNT(*) FROM requests_app_response WHERE status = 'in_progress'"
_CONNECTIONS = (
    "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name = 'qwenproxy'"
)
_UPGRADES = "SELECT COUNT(*) FROM schema_migrationevent WHERE app = 'later' AND status = 'ok'"
_NEW_SETTINGS = """\
from qwenproxy.settings import *
INSTALLED_APPS = [*INSTALLED_APPS, "later"]
"""
_NEW_MIGRATION = """\
from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("requests_app", "0001_initial")]
    operations = [
        migrations.RunSQL(
            f"ALTER TABLE {table} ADD COLUMN later integer DEFAULT 0 NOT NULL",
            f"ALTER TABLE {table} DROP COLUMN later",
        )
        for table in ("requests_app_request", "requests_app_response", "sessions_app_message")
    ]
"""


@pytest.fixture
def double() -> EchoDouble:
    return EchoDouble()


@pytest.fixture
def replicas(tmp_path, double) -> Iterator[Replicas]:
    with new_database("postgresql") as database_url, serve_in_thread(double) as upstream_url:
        replicas = Replicas(tmp_path, upstream_url, database_url, is_warm=True)
        yield replicas
        replicas.close()


def new_version(directory: Path) -> dict[str, str]:
    """The environment of a version that adds columns to the three large tables."""
    migrations = directory / "later" / "migrations"
    migrations.mkdir(parents=True)
    for package in (migrations.parent, migrations):
        (package / "__init__.py").touch()
    (migrations / "0001_columns.py").write_text(_NEW_MIGRATION)
    (directory / "new_settings.py").write_text(_NEW_SETTINGS)
    return {"PYTHONPATH": f"{directory}:{ROOT}", "DJANGO_SETTINGS_MODULE": "new_settings"}


def test_conversations_survive_an_upgrade_under_load_and_a_kill(replicas, double, tmp_path):
    new = new_version(tmp_path)

    async def scenario() -> Load:
        key = await replicas.start()
        load = Load(replicas.urls, key, conversations=_CONVERSATIONS)
        running = asyncio.create_task(load.run())
        await wait_until(lambda: len(load.answers) > _CONVERSATIONS)
        # docs/scaling.md says so.
        assert replicas.count(_CONNECTIONS) <= 2 * 4
        for gateway in replicas.gateways:
            gateway.signal(signal.SIGTERM)
            assert await gateway.wait() == 0, gateway.tail()
            gateway.environ.update(new)
            await gateway.start(is_cold=True)
            await load.more(_CONVERSATIONS)
        one = replicas.gateways[0]
        load.note_kill(one.url)
        one.signal(signal.SIGKILL)
        load.stop()
        await running
        # The other one finds its lock free.
        await wait_until(lambda: replicas.count(_RUNNING) == 0)
        return load

    load = asyncio.run(scenario())
    found = check(replicas.database_url, load.answers)
    assert found.differences == []
    assert load.complaints == []
    assert double.mixed == []
    assert found.whole > 2 * _CONVERSATIONS
    assert replicas.count("SELECT COUNT(*) FROM requests_app_worker") == 1
    assert replicas.count(_UPGRADES) == 1


def test_agents_converse_through_both_and_a_limit_holds_over_both(tmp_path):
    script, limit, asked = Script(pace_s=0.01), 20, 60

    async def converse(replicas: Replicas) -> Agents:
        key = await replicas.start()
        agents = Agents(replicas.urls, key, conversations=20, turns=2)
        await agents.run()
        return agents

    async def exceed(replicas: Replicas, key: str) -> Counter[int]:
        body = {
            "model": "qwen3-8b",
            "messages": [{"role": "user", "content": "secret-0123456789abcdef question 0"}],
        }
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(headers=headers, verify=NO_TLS, timeout=60) as client:
            answers = await asyncio.gather(
                *(
                    client.post(f"{replicas.urls[number % 2]}/v1/chat/completions", json=body)
                    for number in range(asked)
                )
            )
        return Counter(answer.status_code for answer in answers)

    with new_database("postgresql") as database_url, upstreams(script) as (url, settings, web):
        replicas = Replicas(tmp_path, url, database_url, settings=settings, is_warm=True)
        try:
            agents = asyncio.run(converse(replicas))
            found = check(database_url, agents.calls)
            assert found.differences + agents.differences(database_url) == []
            assert agents.complaints + script.mixed == []
            assert found.whole == len(agents.calls) == 20 * 2 * 2
            # None of the web upstream's conversations was sent anew.
            assert len(web.chats) == 10
            made = replicas.gateways[0].manage(
                "createapikey", "limited", "--requests-per-minute", str(limit)
            )
            assert made.returncode == 0, made.stderr
            answers = asyncio.run(exceed(replicas, made.stdout.strip()))
            assert answers == {200: limit, 429: asked - limit}
        finally:
            replicas.close()


def test_the_script_notices_what_is_mixed_and_what_is_missing():
    """Otherwise the tests above would prove nothing."""
    one, other = (f"secret-{number:016x}" for number in range(2))
    script = Script(pace_s=0)
    assert script.next(f"{one} question 0") == (one, 0, True)
    assert script.next(f"{one} question 0 {one} result 0 {one} question 1") == (one, 1, True)
    assert script.mixed == []
    for history in (
        f"{one} question 1",
        f"{one} question 0 {one} question 1",
        f"{other} question 0 {one} question 0",
    ):
        script.next(history)
    assert len(script.mixed) == 3


def documented_pool() -> str:
    block = documented("ini")
    assert re.search(r"^qwenproxy = .*pool_mode=session", block, re.MULTILINE)
    (line,) = re.findall(r"^ignore_startup_parameters = .*$", block, re.MULTILINE)
    return line


def test_behind_a_pool_of_sessions_a_killed_process_is_noticed(tmp_path, double):
    async def scenario(replicas: Replicas) -> Load:
        key = await replicas.start()
        load = Load(replicas.urls, key, conversations=8)
        running = asyncio.create_task(load.run())
        await load.more(8)
        one = replicas.gateways[0]
        load.note_kill(one.url)
        one.signal(signal.SIGKILL)
        await load.more(8)
        load.stop()
        await running
        await wait_until(lambda: replicas.count(_RUNNING) == 0)
        return load

    with (
        new_database("postgresql") as database_url,
        pgbouncer(database_url, "session", documented_pool()) as pooled,
        serve_in_thread(double) as upstream_url,
    ):
        replicas = Replicas(tmp_path, upstream_url, pooled, is_warm=True)
        try:
            load = asyncio.run(scenario(replicas))
            found = check(database_url, load.answers)
            assert found.differences + load.complaints + double.mixed == []
            assert read_rows(database_url, "SELECT COUNT(*) FROM requests_app_worker") == [(1,)]
            told = replicas.gateways[1].manage("showmigrations", "--check")
            assert told.returncode == 0, told.stderr
        finally:
            replicas.close()

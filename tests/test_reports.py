"""The process that makes long statistics, and what becomes of it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import UTC
from pathlib import Path

import httpx
import pytest
from django.db import OperationalError
from django.http import QueryDict
from django.utils import timezone

from qwenproxy import reports
from qwenproxy.database import close_pool
from qwenproxy.errors import InvalidRequest
from qwenproxy.reports import close_reports, report
from requests_app.stats import read_stats_query
from tests.conftest import NO_TLS
from tests.test_serve import database_url, serve  # noqa: F401  # fixtures


@pytest.fixture(autouse=True, scope="module")
def _process():
    """One for all tests that leave it alive: a start takes seconds."""
    yield
    close_reports()


@pytest.fixture(autouse=True)
def _pool():
    yield
    close_pool()


def run(function, *args):
    return asyncio.run(report(function, *args))


def test_reports_are_made_in_one_other_process_below_the_servers_priority():
    pid = run(os.getpid)
    assert pid != os.getpid()
    assert run(os.getpid) == pid
    assert os.getpriority(os.PRIO_PROCESS, pid) > os.getpriority(os.PRIO_PROCESS, 0) or (
        os.getpriority(os.PRIO_PROCESS, pid) == 19
    )


def test_what_it_refuses_is_refused_here():
    with pytest.raises(InvalidRequest) as caught:
        run(read_stats_query, QueryDict("range=2y"), timezone.now(), UTC)
    assert (caught.value.param, caught.value.http_status) == ("range", 400)


def test_a_process_that_was_killed_is_replaced():
    pid = run(os.getpid)
    os.kill(pid, signal.SIGKILL)
    assert run(os.getpid) not in (pid, os.getpid())


def test_one_that_dies_again_is_an_error_of_the_database():
    with pytest.raises(OperationalError):
        run(os._exit, 1)
    assert reports._process._popen is None


def test_it_ends_with_the_servers_end_of_the_pipe():
    run(os.getpid)
    popen = reports._process._popen
    popen.stdin.close()
    assert popen.wait(120) == 0
    close_reports()


def test_what_is_written_to_its_output_does_not_come_between_answers(capfd):
    # One that another test started writes to what was standard error then.
    close_reports()
    assert run(os.system, "echo text") == 0
    assert capfd.readouterr().err == "text\n"
    assert run(sys.getswitchinterval) > 0


@pytest.mark.slow
def test_a_server_gives_long_statistics_of_its_own_database_and_ends_their_process(serve):  # noqa: F811
    served = serve().wait_until_ready()
    with httpx.Client(
        base_url=f"{served.url}/v1",
        headers={"Authorization": f"Bearer {served.key}"},
        timeout=300,
        verify=NO_TLS,
    ) as client:
        for text in ("one", "two"):
            body = {"messages": [{"role": "user", "content": text}]}
            assert client.post("/chat/completions", json=body).status_code == 200
        query = {"range": "30d", "interval": "slot", "group": "model"}
        long = client.get("/stats", params=query).json()
        short = client.get("/stats", params={"range": "24h", "interval": "hour"}).json()
    assert len(long["series"]) == 30 * 96
    assert sum(point["requests"] for point in long["series"]) == 2
    assert long["total"]["requests"] == short["total"]["requests"] == 2
    tasks = Path(f"/proc/{served.process.pid}/task")
    children = " ".join(one.read_text() for one in tasks.glob("*/children")).split()
    # Linux alone tells of children.
    assert len(children) == (1 if tasks.exists() else 0)
    assert served.end(signal.SIGTERM) == 0
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(int(child), 0)

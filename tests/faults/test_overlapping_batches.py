"""Two processes write 10,000 batches into one database at once: nothing is lost, doubled or mixed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.faults.gateway import Gateway
from tests.faults.load import read_rows
from tests.faults.torture import SERVER, new_database
from tests.faults.warm import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
BATCHES = 10_000
PROCESSES = 2

_ROWS = "SELECT COUNT(*) FROM requests_app_response WHERE status = 'completed'"
_REQUESTS = "SELECT COUNT(*) FROM requests_app_request"
_APART = """
SELECT r.response_id FROM requests_app_response r
JOIN requests_app_request q ON q.id = r.request_id
JOIN sessions_app_message m ON m.id = r.reply_id
WHERE m.parent_id <> q.prompt_id OR m.session_id <> r.session_id OR r.session_id <> q.session_id"""
# A reply says whose it is, and so does the question that follows it.
_MIXED = """
SELECT p.content, m.content FROM sessions_app_message m
JOIN sessions_app_message p ON p.id = m.parent_id
WHERE m.role = 'user' AND p.role = 'assistant' AND m.content <> '"on ' || SUBSTR(p.content, 2)"""
_COUNTS = """
SELECT s.id FROM sessions_app_session s WHERE s.request_count <>
 (SELECT COUNT(*) FROM requests_app_request q WHERE q.session_id = s.id)"""


def test_10000_overlapping_batches_of_two_processes(tmp_path):
    with new_database("postgresql" if SERVER else "sqlite") as database_url:
        gateway = Gateway(
            tmp_path / "data", upstream_url="http://127.0.0.1:9", database_url=database_url
        )
        assert gateway.manage("migrate").returncode == 0
        assert gateway.manage("createapikey", "batches").returncode == 0
        writers = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.faults.batches",
                    str(part),
                    str(BATCHES // PROCESSES),
                ],
                cwd=ROOT,
                env=gateway.environ,
                stdout=subprocess.PIPE,
                text=True,
            )
            for part in range(PROCESSES)
        ]
        told = [json.loads(writer.communicate()[0]) for writer in writers]
        turns = sum(one["turns"] for one in told)
        assert sum(one["batches"] for one in told) >= BATCHES
        for sql in (_ROWS, _REQUESTS):
            assert read_rows(gateway.database_url, sql) == [(turns,)]
        for sql in (_APART, _MIXED, _COUNTS):
            assert read_rows(gateway.database_url, sql) == []
        verified = gateway.manage("verifyrecords")
    assert verified.returncode == 0, verified.stdout

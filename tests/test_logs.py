from __future__ import annotations

import json
import logging
import sys

import pytest

from qwenproxy.logs import JSONFormatter, TextFormatter
from qwenproxy.wire.redaction import compile_rules


@pytest.fixture
def record():
    record = logging.makeLogRecord(
        {"name": "qwenproxy.proxy", "levelname": "WARNING", "msg": "turn failed: %s"}
    )
    record.args = ("upstream_error",)
    record.request_id = "req_1"
    record.status = 502
    return record


def test_text_lines_name_the_request(record):
    line = TextFormatter().format(record)
    assert line.endswith(
        "WARNING qwenproxy.proxy turn failed: upstream_error request_id=req_1 status=502"
    )


def test_json_lines_are_one_object_each(record):
    try:
        raise ValueError("bad\nvalue")
    except ValueError:
        record.exc_info = sys.exc_info()
    text = JSONFormatter().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert line["message"] == "turn failed: upstream_error"
    assert (line["request_id"], line["status"], line["level"]) == ("req_1", 502, "WARNING")
    assert "ValueError: bad" in line["exception"]


def test_nobody_s_text_makes_a_line_of_its_own_or_speaks_to_a_terminal(record):
    record.args = ("a\n2026-11-23 ERROR qwenproxy forged\x1b[2J\x9b\u2028",)
    record.path = "/\r\nforged"
    line = TextFormatter().format(record)
    assert line.isprintable()
    assert r"a\n2026-11-23 ERROR qwenproxy forged\x1b[2J\x9b\u2028" in line
    try:
        raise ValueError("bad\x1b[2J")
    except ValueError:
        record.exc_info = sys.exc_info()
    lines = TextFormatter().format(record).splitlines()
    assert len(lines) > 3
    assert lines[-1] == r"ValueError: bad\x1b[2J"


def test_rules_hold_for_log_lines(record, settings):
    settings.REDACTION = compile_rules(["@email"])
    record.args = ("no mailbox ann@example.org",)
    record.path = "/?q=ann@example.org"
    assert "no mailbox [redacted]" in TextFormatter().format(record)
    try:
        raise ValueError("ann@example.org")
    except ValueError:
        record.exc_info = sys.exc_info()
    for formatter in (TextFormatter(), JSONFormatter()):
        assert "ann@" not in formatter.format(record)

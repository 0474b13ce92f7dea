"""Log lines for people and for machines; both show what was given as `extra` (request, session ids).

What the redaction rules match is replaced here too: errors quote what somebody sent. For the same reason
control characters become escapes: nobody's text makes a line of its own, or speaks to a terminal.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

from django.conf import settings

from qwenproxy.wire import json

_STANDARD = set(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "color_message",
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# The lines of a traceback are its form.
_CONTROL_BUT_LINES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def _extras(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    for name, value in vars(record).items():
        if name not in _STANDARD:
            yield name, value if isinstance(value, int | float | None) else str(value)


def _escape(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


class TextFormatter(logging.Formatter):
    """Writes time, level, logger and message, then `name=value` of each extra."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        return settings.REDACTION.text(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        extras = "".join(f" {name}={value}" for name, value in _extras(record))
        return _CONTROL.sub(_escape, (super().formatMessage(record) + extras).rstrip("\n"))

    def formatException(self, ei: Any) -> str:
        return _CONTROL_BUT_LINES.sub(_escape, super().formatException(ei))


class JSONFormatter(logging.Formatter):
    """Writes one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": settings.REDACTION.text(record.getMessage()),
            **{
                name: settings.REDACTION.text(value) if isinstance(value, str) else value
                for name, value in _extras(record)
            },
        }
        if record.exc_info:
            line["exception"] = settings.REDACTION.text(self.formatException(record.exc_info))
        return json.dumps_text(line)

"""Log lines as JSON objects, one a line, for machines that collect them."""

from __future__ import annotations

import logging

from qwenproxy.wire import json

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JSONFormatter(logging.Formatter):
    """Writes time, level, logger, message and whatever was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(
            (name, value if isinstance(value, int | float | None) else str(value))
            for name, value in vars(record).items()
            if name not in _STANDARD
        )
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps_text(line)

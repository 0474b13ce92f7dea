#!/usr/bin/env python
"""Django's command line for Qwen Proxy."""

from __future__ import annotations

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "qwenproxy.settings")
    try:
        from django.core.management import execute_from_command_line  # late: name the cure below
    except ImportError as exc:
        raise SystemExit(
            "Django is not installed for this Python. Run `make run`, or use .venv/bin/python."
        ) from exc
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Django's command line for Qwen Proxy."""

from __future__ import annotations

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "qwenproxy.settings")
    try:
        # Here, so that a missing Django is named with its cure.
        from django.core.exceptions import ImproperlyConfigured
        from django.core.management import execute_from_command_line
    except ImportError as exc:
        raise SystemExit(
            "Django is not installed for this Python. Run `make run`, or use .venv/bin/python."
        ) from exc
    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as exc:
        raise SystemExit(f"Configuration: {exc}") from exc


if __name__ == "__main__":
    main()

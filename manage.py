#!/usr/bin/env python
"""Django's command line for Qwen Proxy."""

from __future__ import annotations

import io
import os
import signal
import sys


def main() -> None:
    # Conversations, backups, secrets and locks are this user's alone, whichever command makes them first.
    os.umask(0o077)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "qwenproxy.settings")
    if os.environ.get("NO_COLOR"):
        # Django has a name of its own for what others call so.
        os.environ.setdefault("DJANGO_COLORS", "nocolor")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A C locale cannot show every name; that is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
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
        sys.stdout.flush()
    except ImproperlyConfigured as exc:
        raise SystemExit(f"Configuration: {exc}") from exc
    except BrokenPipeError:
        # Whoever read along has enough (`| head`); nothing is left to be flushed at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None


if __name__ == "__main__":
    main()

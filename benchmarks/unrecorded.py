"""Serves the gateway with a recorder that records nothing: what recording costs is the difference.

Only for measuring: the product has no such setting. What a turn prepares for its record on the loop
(digests, texts) is still prepared.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

import django


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "qwenproxy.settings")
    django.setup()
    # Models may be imported from here on only.
    from django.core.management import execute_from_command_line

    import qwenproxy.asgi

    qwenproxy.asgi.Recorder = make_null_recorder()  # type: ignore[attr-defined]  # the swap is the point
    execute_from_command_line(["manage.py", "serve", *sys.argv[1:]])


def make_null_recorder() -> Any:
    # Models may be imported after `django.setup()` only.
    from requests_app.writes import Opened, Opening
    from sessions_app.resolver import Resolution

    class NullRecorder:
        worker_id = "none"
        unrecorded = 0
        queued = 0

        def __init__(self, *, session_ttl: timedelta, **_: object) -> None:
            self.session_ttl = session_ttl

        async def start(self) -> None:
            return

        async def stop(self) -> None:
            return

        async def open(self, opening: Opening) -> Opened:
            session_id = str(uuid4())
            return Opened(session_id, Resolution(session_id, "new", stored=0))

        def append(self, response_id: str, events: Sequence[object]) -> None:
            return

        async def commit(self, closing: object) -> None:
            return

    return NullRecorder


if __name__ == "__main__":
    main()

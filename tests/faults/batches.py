"""`python -m tests.faults.batches PART BATCHES`: one of several processes that record into one database.

Some conversations at a time, each of which begins as those of all processes do, so that two processes
resolve, share and grow the same sessions. Every batch of the recorder is counted; what was recorded is
told at the end as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any
from uuid import uuid4

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "qwenproxy.settings")
django.setup()

from django.conf import settings  # noqa: E402  # after setup

from qwenproxy.access.models import ApiKey  # noqa: E402
from requests_app.recorder import Recorder  # noqa: E402
from tests.turns import TTL, assistant, make_closing, make_opening, user  # noqa: E402

_AT_A_TIME = 4
_TURNS = 4


class _Counting(Recorder):
    batches = 0

    def _try(self, attempt: Any, deadline: float) -> list[Any]:
        outcomes = super()._try(attempt, deadline)
        self.batches += 1
        return outcomes


async def _converse(recorder: Recorder, key: ApiKey, part: str, number: int) -> None:
    """Every third conversation is in a session with a name, which all processes use."""
    named = {"external_id": f"shared {number % 50}"} if number % 3 == 0 else {}
    word = f"{part}.{number}"
    history = [user(f"hi from {word}" if named else "hi")]
    system = {"role": "system", "content": f"system {number % 5}"}
    for turn in range(_TURNS):
        ids = {"request_id": f"req_{uuid4().hex}", "response_id": f"chatcmpl-{uuid4().hex}"}
        opening = make_opening(key, system, *history, **named, **ids)
        opened = await recorder.open(opening)
        await recorder.commit(make_closing(opening, opened, f"{word}.{turn}"))
        history += [assistant(f"{word}.{turn}"), user(f"on {word}.{turn}")]


async def _record(part: str, batches: int) -> dict[str, int]:
    key = await ApiKey.objects.aget(name="batches")
    recorder = _Counting(
        lock_directory=settings.DATA_DIR / "workers",
        queue_turns=1000,
        deadline_s=60,
        session_ttl=TTL,
    )
    await recorder.start()
    conversations = 0
    while recorder.batches < batches:
        numbers = range(conversations, conversations + _AT_A_TIME)
        await asyncio.gather(*(_converse(recorder, key, part, number) for number in numbers))
        conversations += _AT_A_TIME
    await recorder.stop()
    return {"turns": conversations * _TURNS, "batches": recorder.batches}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(_record(sys.argv[1], int(sys.argv[2])))) + "\n")

"""What running answers have brought so far, to be shown: read from their `Partial` rows.

Of a long answer only the newest rows are read: what came last is what somebody wants to see.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from qwenproxy.wire import json
from qwenproxy.wire.events import Accumulator, unpack
from requests_app.models import Partial

# Of all answers together; each is what came in about a second.
MAX_ROWS = 100
MAX_CHARS = 64_000


@dataclass(frozen=True, slots=True)
class Arrived:
    text: str
    reasoning: str
    # More came before it.
    is_end_only: bool


def load_arrived(response_pks: Collection[int]) -> dict[int, Arrived]:
    """What is stored of these running answers, without those that brought no text; one query, or none."""
    if not response_pks:
        return {}
    newest = Partial.objects.filter(response__in=response_pks).order_by("-id")
    rows: dict[int, list[tuple[int, str]]] = {}
    for pk, seq, events in newest.values_list("response_id", "seq", "events")[:MAX_ROWS]:
        rows.setdefault(pk, []).append((seq, events))
    found = {pk: _add_up(sorted(parts)) for pk, parts in rows.items()}
    return {pk: arrived for pk, arrived in found.items() if arrived.text or arrived.reasoning}


def _add_up(parts: list[tuple[int, str]]) -> Arrived:
    answer = Accumulator()
    for _, events in parts:
        for event in unpack(events):
            answer.add(event)
    calls = [f"{call.name}({call.arguments})" for call in answer.tool_calls.values()]
    text, reasoning = "\n".join(filter(None, (answer.text, *calls))), answer.reasoning
    return Arrived(
        json.plain(text[-MAX_CHARS:]),
        json.plain(reasoning[-MAX_CHARS:]),
        is_end_only=parts[0][0] > 0 or max(len(text), len(reasoning)) > MAX_CHARS,
    )

"""Fixture streams of the codec tests, and how they are fed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwenproxy.wire.events import Event
from qwenproxy.wire.sse import SSEDecoder

SYNTHETIC = Path(__file__).resolve().parents[1] / "fixtures" / "synthetic"
# Captured traffic is not part of the project; tests that read it skip without it.
CAPTURES = Path(__file__).resolve().parents[2].parent / "shared" / "reference" / "fixtures"


def payloads(data: bytes, *, cut: int | None = None) -> list[bytes]:
    decoder = SSEDecoder()
    pieces = [data] if cut is None else [data[:cut], data[cut:]]
    found = [payload for piece in pieces for payload in decoder.feed(piece)]
    return found + decoder.finish()


def decode(data: bytes, decoder: Any, *, piece_bytes: int = 1 << 20) -> list[Event]:
    """Feed a stream in pieces; all events, those of the end included."""
    sse = SSEDecoder()
    events: list[Event] = []
    for start in range(0, len(data), piece_bytes):
        for payload in sse.feed(data[start : start + piece_bytes]):
            events += decoder.feed(payload)
    for payload in sse.finish():
        events += decoder.feed(payload)
    return events + decoder.finish()


def counting_ids() -> Callable[[], str]:
    count = 0

    def new_id() -> str:
        nonlocal count
        count += 1
        return f"call_new_{count}"

    return new_id

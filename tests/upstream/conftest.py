from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from qwenproxy.errors import GatewayError
from qwenproxy.upstream import http
from qwenproxy.upstream.protocol import Account, Credentials, Kind, Upstream, UpstreamCall
from qwenproxy.wire.events import Accumulator, Event
from tests.doubles.openai_compatible import OpenAICompatibleDouble
from tests.doubles.qwen_web import QwenWebDouble
from tests.doubles.server import serve_in_thread


@dataclass
class Served:
    """A double and where it listens."""

    double: OpenAICompatibleDouble | QwenWebDouble
    url: str


@dataclass
class Outcome:
    """What one call gave: the batches, and the error after them."""

    batches: list[Sequence[Event]] = field(default_factory=list)
    error: GatewayError | None = None

    @property
    def events(self) -> list[Event]:
        return [event for batch in self.batches for event in batch]

    @property
    def answer(self) -> Accumulator:
        accumulator = Accumulator()
        for event in self.events:
            accumulator.add(event)
        return accumulator


def make_account(
    url: str, *, kind: Kind = "openai_compatible", credentials: Credentials | None = None
) -> Account:
    return Account(7, "house", kind, url, credentials or Credentials())


async def read_outcome(upstream: Upstream, call: UpstreamCall) -> Outcome:
    outcome = Outcome()
    try:
        async for batch in upstream.stream(call):
            outcome.batches.append(batch)
    except GatewayError as error:
        outcome.error = error
    return outcome


def ask(make_upstream: Callable[..., Upstream], account: Account, *calls: UpstreamCall) -> Outcome:
    """Make the calls one after the other on one client; the last one's outcome."""

    async def main() -> Outcome:
        async with http.open_client() as client:
            upstream = make_upstream(client, account)
            for call in calls:
                outcome = await read_outcome(upstream, call)
            return outcome

    return asyncio.run(main())


@pytest.fixture(autouse=True)
def short_timeouts(settings):
    settings.UPSTREAM_IDLE_TIMEOUT_S = 1
    settings.CONNECT_TIMEOUT_S = 2


@pytest.fixture
def openai_compatible() -> Iterator[Served]:
    double = OpenAICompatibleDouble()
    with serve_in_thread(double) as url:
        yield Served(double, url)


@pytest.fixture
def qwen_web() -> Iterator[Served]:
    double = QwenWebDouble()
    with serve_in_thread(double) as url:
        yield Served(double, url)

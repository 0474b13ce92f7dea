"""What a turn leaves behind in memory: nothing that waits for the collector of circles."""

from __future__ import annotations

import gc

import pytest

from qwenproxy.access import auth
from qwenproxy.access.models import ApiKey
from qwenproxy.proxy.streaming import ClientStream
from qwenproxy.proxy.turn import Turn
from qwenproxy.wire.history import Node
from tests.doubles.server import Reply
from tests.proxy.conftest import HELLO, ended_response, wait_until

# Each has the request's whole text, or leads to it.
HEAVY = (Turn, ClientStream, Node)


@pytest.fixture(autouse=True)
def _no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


def in_circles(gateway):
    """What only the collector would have found. The last turns may still be held by those that work."""
    wait_until(lambda: not gateway.gateway._turns)
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    return [type(one).__name__ for one in gc.garbage if type(one) in HEAVY]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_turn_is_gone_with_its_end(open_gateway, upstream, stream):
    gateway = open_gateway()
    upstream.enqueue(Reply(text="one two"), Reply(text="three"))
    answer = gateway.ask(upstream.model, stream=stream)
    assert answer.status_code == 200
    ended_response()
    # Its history is looked for.
    again = [*HELLO, {"role": "assistant", "content": "one two"}, *HELLO]
    assert gateway.ask(upstream.model, stream=stream, messages=again).status_code == 200
    assert in_circles(gateway) == []


def test_a_turn_whose_upstream_fails_is_gone_with_its_end(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible")
    upstream.enqueue(Reply(status=400, body={"error": {"message": "no"}}))
    gateway = open_gateway()
    assert gateway.ask(upstream.model).status_code == 400
    assert in_circles(gateway) == []


def test_a_turn_that_a_limit_refuses_is_gone(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible")
    gateway = open_gateway()
    ApiKey.objects.update(requests_per_minute=1)
    auth.invalidate()
    upstream.enqueue(Reply(text="one"))
    assert [gateway.ask(upstream.model).status_code for _ in range(2)] == [200, 429]
    assert in_circles(gateway) == []

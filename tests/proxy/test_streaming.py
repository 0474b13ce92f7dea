"""`ClientStream` alone, driven by a server that the test plays."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from qwenproxy.errors import RateLimited
from qwenproxy.proxy.streaming import ClientStream

EVENT = b'data: {"error": {}}\n\n'
COMMENT = b": keep-alive\n\n"


class Server:
    """The other side of `drive`: keeps what is sent; `gone` is the client's leaving."""

    def __init__(self):
        self.sent = []
        self.gone = asyncio.Event()
        # While cleared, `send` waits, as for a client that reads nothing.
        self.reads = asyncio.Event()
        self.reads.set()
        self.error = None
        self.has_new = asyncio.Event()

    async def receive(self):
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)
        self.has_new.set()
        await self.reads.wait()
        if self.error is not None:
            raise self.error

    async def next(self):
        await asyncio.wait_for(self.has_new.wait(), 5)
        self.has_new.clear()

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def headers(self):
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self):
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def is_whole(self):
        return self.sent[-1].get("more_body", True) is False


class Case:
    def __init__(self, **options):
        self.server = Server()
        self.times_left = 0
        options = {
            "sse": True,
            "buffer_bytes": 1000,
            "send_timeout_s": 5.0,
            "keep_alive_s": 5.0,
            **options,
        }
        self.stream = ClientStream(**options, on_left=self.on_left)

    def on_left(self):
        self.times_left += 1

    @contextlib.asynccontextmanager
    async def driven(self, **headers):
        server = self.server
        driving = asyncio.create_task(
            self.stream.drive(server.receive, server.send, extra_headers=headers)
        )
        yield driving
        await asyncio.wait_for(asyncio.wait([driving]), 5)
        if not driving.cancelled():
            driving.result()


def check(test, **options):
    """Run a test's coroutine on a loop of its own."""

    async def main():
        await test(Case(**options))

    asyncio.run(main())


def test_an_answer_that_its_turn_leaves_is_an_error_before_its_head():
    async def test(case):
        async with case.driven():
            case.stream.break_off()
        assert case.server.status == 500
        assert json.loads(case.server.body)["error"]["message"] == "internal error"
        assert case.server.is_whole

    check(test)


def test_an_answer_that_its_turn_leaves_is_broken_off_after_its_head():
    async def test(case):
        async with case.driven():
            case.stream.append(b"data: 1\n\n")
            case.stream.break_off()
        assert (case.server.status, case.server.body) == (200, b"data: 1\n\n")
        assert not case.server.is_whole

    check(test)


def test_what_has_ended_is_not_broken_off():
    async def test(case):
        async with case.driven():
            case.stream.append(b"data: 1\n\n")
            case.stream.end()
            case.stream.break_off()
        assert case.server.is_whole

    check(test)


def test_headers_wait_for_the_first_bytes():
    async def test(case):
        stream, server = case.stream, case.server
        async with case.driven(Vary="Origin"):
            await asyncio.sleep(0)
            assert server.sent == []
            assert not stream.has_head
            stream.append(b"data: 1\n\n")
            assert stream.has_head
            await server.next()
            assert server.status == 200
            assert server.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert server.headers["vary"] == "Origin"
            assert "content-length" not in server.headers
            stream.append(b"data: 2\n\n")
            stream.end()
        assert server.body == b"data: 1\n\ndata: 2\n\n"
        assert server.is_whole
        assert case.times_left == 0

    check(test)


def test_what_has_gathered_goes_out_at_once():
    async def test(case):
        for number in range(100):
            case.stream.append(b"%d," % number)
        case.stream.end()
        async with case.driven():
            pass
        assert len(case.server.sent) == 2
        assert case.server.body.startswith(b"0,1,2,")

    check(test)


def test_a_whole_answer_has_its_length():
    async def test(case):
        async with case.driven():
            await asyncio.sleep(0)
            case.stream.append(b'{"a":1}')
            case.stream.end()
        assert case.server.headers["content-type"] == "application/json"
        assert case.server.headers["content-length"] == "7"

    check(test, sse=False)


@pytest.mark.parametrize("sse", [False, True])
def test_failing_before_the_head_is_a_status(sse):
    async def test(case):
        async with case.driven():
            case.stream.fail(RateLimited("too fast", retry_after_s=2.4), EVENT)
        server = case.server
        assert server.status == 429
        assert server.headers["content-type"] == "application/json"
        assert server.headers["retry-after"] == "3"
        assert server.headers["retry-after-ms"] == "2400"
        assert json.loads(server.body)["error"]["code"] == "rate_limit_exceeded"
        assert server.is_whole

    check(test, sse=sse)


def test_failing_after_the_head_is_an_event():
    async def test(case):
        async with case.driven():
            case.stream.append(b"data: 1\n\n")
            await case.server.next()
            case.stream.fail(RateLimited("too fast"), EVENT)
        assert case.server.status == 200
        assert case.server.body == b"data: 1\n\n" + EVENT
        assert case.server.is_whole
        assert case.times_left == 0

    check(test)


def test_a_client_that_leaves_before_the_head_is_noticed():
    async def test(case):
        async with case.driven():
            case.server.gone.set()
        assert (case.stream.left, case.times_left) == (True, 1)
        assert case.server.sent == []
        case.stream.append(b"late")
        case.stream.fail(RateLimited("late"), EVENT)
        assert case.times_left == 1

    check(test)


def test_a_client_that_leaves_in_the_middle_is_noticed_once():
    async def test(case):
        async with case.driven():
            case.stream.append(b"data: 1\n\n")
            await case.server.next()
            case.server.gone.set()
        assert (case.stream.left, case.times_left) == (True, 1)
        assert not case.server.is_whole

    check(test)


def test_a_client_that_leaves_after_the_end_has_not_left():
    async def test(case):
        case.stream.append(b"data: 1\n\n")
        case.stream.end()
        async with case.driven():
            pass
        case.server.gone.set()
        await asyncio.sleep(0)
        assert (case.stream.left, case.times_left) == (False, 0)

    check(test)


def test_a_turn_that_has_ended_is_not_told_of_a_client_that_misses_the_end():
    async def test(case):
        case.server.reads.clear()
        async with case.driven():
            case.stream.append(b"data: 1\n\n")
            await case.server.next()
            case.stream.end()
            case.server.gone.set()
            await asyncio.sleep(0)
            case.server.reads.set()
        assert (case.stream.left, case.times_left) == (True, 0)

    check(test)


def test_a_full_buffer_counts_as_having_left():
    async def test(case):
        case.server.reads.clear()
        async with case.driven():
            case.stream.append(b"x")
            await case.server.next()
            for _ in range(9):
                case.stream.append(b"x" * 111)
            assert case.times_left == 0
            case.stream.append(b"x")
            assert (case.stream.left, case.times_left) == (True, 1)
            case.stream.append(b"x" * 5000)
            case.server.reads.set()
        assert case.times_left == 1
        assert not case.server.is_whole

    check(test)


def test_no_progress_counts_as_having_left():
    async def test(case):
        case.server.reads.clear()
        async with case.driven():
            case.stream.append(b"x")
        assert (case.stream.left, case.times_left) == (True, 1)

    check(test, send_timeout_s=0.05)


def test_a_model_that_is_slow_is_not_a_client_that_is():
    async def test(case):
        async with case.driven():
            await asyncio.sleep(0.2)
            assert not case.stream.left
            case.stream.append(b"x")
            case.stream.end()
        assert case.server.body == b"x"

    check(test, send_timeout_s=0.05)


def test_a_connection_that_breaks_counts_as_having_left():
    async def test(case):
        case.server.error = ConnectionResetError()
        async with case.driven():
            case.stream.append(b"x")
        assert (case.stream.left, case.times_left) == (True, 1)

    check(test)


def test_a_server_that_gives_up_counts_as_the_client_having_left():
    async def test(case):
        async with case.driven() as driving:
            case.stream.append(b"x")
            await case.server.next()
            driving.cancel()
        assert driving.cancelled()
        assert (case.stream.left, case.times_left) == (True, 1)

    check(test)


def test_comments_fill_the_silence_and_only_the_silence():
    async def test(case):
        loop = asyncio.get_running_loop()
        async with case.driven():
            await asyncio.sleep(0.02)
            case.stream.append(b"data: 1\n\n")
            began = loop.time()
            while COMMENT not in case.server.body:
                await case.server.next()
            waited_s = loop.time() - began
            case.stream.append(b"data: 2\n\n")
            case.stream.end()
        assert 0.09 < waited_s < 0.15
        assert case.server.body == b"data: 1\n\n" + COMMENT + b"data: 2\n\n"

    check(test, keep_alive_s=0.1)


def test_whole_answers_have_no_comments():
    async def test(case):
        async with case.driven():
            await asyncio.sleep(0.1)
            case.stream.append(b"{}")
            case.stream.end()
        assert case.server.body == b"{}"

    check(test, sse=False, keep_alive_s=0.02)

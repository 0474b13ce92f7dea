"""Answers without measure: bounded, on record, and no burden to other turns."""

from __future__ import annotations

import json

import pytest

from qwenproxy.wire.events import TextDelta, pack
from requests_app.models import Request, Response
from sessions_app.models import UpstreamChat
from tests.doubles.server import Reply
from tests.proxy.conftest import HELLO, ended_response, reply_text


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_over_the_limit_ends_with_what_there_is(upstream, open_gateway, stream):
    upstream.enqueue(Reply(text="many words " * 500))
    running = open_gateway(MAX_ANSWER_CHARS=1000)
    answer = running.ask(upstream.model, stream=stream)
    assert "answer_too_long" in answer.text
    assert answer.status_code == (200 if stream else 502)
    row = ended_response()
    assert (row.status, row.error_code) == ("failed", "answer_too_long")
    assert 1000 < len(reply_text(row)) < 6000
    if upstream.kind == "qwen_web":
        assert upstream.double.requests_to("/api/v2/chat/completions/stop")


def test_a_whole_answer_larger_than_the_streams_buffer_arrives(upstream, open_gateway):
    upstream.enqueue(Reply(text="x " * 5000))
    running = open_gateway(SEND_BUFFER_BYTES=1000)
    answer = running.ask(upstream.model)
    assert answer.status_code == 200
    assert len(answer.json()["choices"][0]["message"]["content"]) == 10_000
    assert ended_response().client_left is False


def test_packing_many_pieces_takes_them_once():
    class Counted(str):
        joined = 0

        def __add__(self, other):
            Counted.joined += 1
            return Counted(super().__add__(other))

        def __format__(self, spec):
            Counted.joined += 1
            return str(self)

    pieces = [TextDelta(Counted("x" * 50)) for _ in range(5000)]
    assert json.loads(pack(pieces)) == [["t", "x" * 250_000]]
    assert Counted.joined == 0


def test_a_chat_does_not_go_on_below_an_answer_that_was_cut(serve_upstream, open_gateway):
    upstream = serve_upstream("qwen_web")
    running = open_gateway()
    upstream.enqueue(Reply(text="one two three four", cut_after=4))
    with pytest.raises(Exception, match=r".*"):
        for _ in running.sdk.chat.completions.create(
            model=upstream.model, messages=HELLO, stream=True
        ):
            pass
    part = reply_text(ended_response())
    assert part
    history = [
        *HELLO,
        {"role": "assistant", "content": part},
        {"role": "user", "content": "go on"},
    ]
    assert running.ask(upstream.model, messages=history).status_code == 200
    request = Request.objects.order_by("-id").first()
    assert (request.match, request.upstream) == ("continued", "rebuilt:unknown")
    assert UpstreamChat.objects.count() == 2


def test_a_turn_keeps_its_parent_id_when_the_same_answer_comes_again(serve_upstream, open_gateway):
    upstream = serve_upstream("qwen_web")
    running = open_gateway()
    upstream.enqueue("same", "same")
    headers = {"X-Session-Id": "one"}
    for _ in range(2):
        running.http.post(
            "/v1/chat/completions",
            json={"model": upstream.model, "messages": HELLO},
            headers=headers,
        )
    first, second = Response.objects.order_by("id")
    assert first.reply_id == second.reply_id
    assert first.upstream_parent_id != second.upstream_parent_id
    assert json.loads(first.upstream_response)["parent_id"] == first.upstream_parent_id

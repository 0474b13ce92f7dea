"""Comments keep a connection alive while a model is silent."""

from __future__ import annotations

import httpx
import openai
import pytest

from tests.conftest import sse_bodies
from tests.doubles.server import Reply
from tests.proxy.conftest import HELLO, ended_response

COMMENT = ": keep-alive\n\n"


@pytest.fixture
def gateway(open_gateway):
    return open_gateway(KEEP_ALIVE_S=0.1)


def read_to_comments(response, count, received=""):
    pieces = response.iter_text()
    while received.count(COMMENT) < count:
        received += next(pieces)
    return received, pieces


def test_comments_come_while_the_model_is_silent(gateway, upstream):
    held = Reply(text="late", pause_after=0)
    upstream.enqueue(held)
    with gateway.open_stream(upstream.model) as response:
        # The headers are out before the model said anything.
        assert response.status_code == 200
        assert response.headers["x-request-id"]
        received, rest = read_to_comments(response, 3)
        held.resume.set()
        received += "".join(rest)
    assert received.startswith(COMMENT * 3)
    assert received.endswith("data: [DONE]\n\n")
    assert sse_bodies(received)[-1]["choices"][0]["finish_reason"] == "stop"
    assert ended_response().status == "completed"


def test_comments_come_in_the_middle_as_well_and_between_whole_events(gateway, upstream):
    held = Reply(text="one two three", pause_after=3)
    upstream.enqueue(held)
    with gateway.open_stream(upstream.model) as response:
        received, rest = read_to_comments(response, 2)
        assert "one" in received
        held.resume.set()
        received += "".join(rest)
    blocks = received.split("\n\n")
    assert all(b.startswith(("data: ", ": keep-alive")) for b in blocks if b)
    content = [c["choices"][0]["delta"].get("content") or "" for c in sse_bodies(received)]
    assert "".join(content) == "one two three"


def test_the_sdk_does_not_see_them(gateway, upstream):
    held = Reply(text="late", first_delay_s=0.35)
    upstream.enqueue(held)
    stream = gateway.sdk.chat.completions.create(model=upstream.model, messages=HELLO, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in stream) == "late"


def test_an_error_after_a_comment_is_an_event(gateway, upstream):
    upstream.enqueue(Reply(body={"error": {"message": "no"}}, status=401, first_delay_s=0.3))
    answer = gateway.ask(upstream.model, stream=True)
    assert answer.status_code == 200
    assert answer.text.startswith(COMMENT)
    assert "[DONE]" not in answer.text
    (body,) = sse_bodies(answer.text)
    assert body["error"]["code"] == "upstream_auth_expired"
    row = ended_response()
    # What the client got, not what it would have got.
    assert (row.status, row.finish_reason, row.http_status) == ("failed", "error", 200)


def test_the_sdk_raises_such_an_error(gateway, upstream):
    upstream.enqueue(Reply(body={"error": {"message": "no"}}, status=401, first_delay_s=0.3))
    stream = gateway.sdk.chat.completions.create(model=upstream.model, messages=HELLO, stream=True)
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    assert caught.value.code == "upstream_auth_expired"


def test_another_account_may_still_answer_after_a_comment(gateway, serve_upstream):
    first = serve_upstream("openai_compatible", name="first", priority=1)
    second = serve_upstream("openai_compatible", name="second", priority=2)
    first.enqueue(Reply(body="no", status=500, first_delay_s=0.3))
    second.enqueue("fine")
    answer = gateway.ask(first.model, stream=True)
    assert answer.text.startswith(COMMENT)
    assert "fine" in answer.text
    assert ended_response().status == "completed"


def test_a_json_answer_has_none(gateway, upstream):
    upstream.enqueue(Reply(text="late", first_delay_s=0.3))
    answer = gateway.ask(upstream.model)
    assert answer.json()["choices"][0]["message"]["content"] == "late"


def test_a_client_that_leaves_during_the_silence_is_noticed(gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible")
    upstream.enqueue(Reply(silent=True))
    with gateway.open_stream(upstream.model) as response:
        assert isinstance(response, httpx.Response)
        read_to_comments(response, 1)
    row = ended_response()
    assert (row.status, row.client_left, row.http_status) == ("cancelled", True, 200)

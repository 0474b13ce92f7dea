"""Every way in which an upstream fails, through the running gateway and the official SDK."""

from __future__ import annotations

import json
from pathlib import Path

import openai
import pytest

from requests_app.models import Request, Response
from tests.conftest import sse_bodies
from tests.doubles.openai_compatible import error
from tests.doubles.qwen_web import NEW_CHAT, WEB_ERRORS, web_error
from tests.doubles.server import Reply, unused_port
from tests.proxy.conftest import HELLO, attempts_of, ended_response, reply_text

SYNTHETIC = Path(__file__).resolve().parents[1] / "fixtures" / "synthetic"
CLASSES = {
    400: openai.BadRequestError,
    404: openai.NotFoundError,
    409: openai.ConflictError,
    429: openai.RateLimitError,
}


def raw(name: str) -> Reply:
    return Reply(raw=(SYNTHETIC / name).read_bytes())


def plain(body, status=200, **headers) -> Reply:
    return Reply(body=body, status=status, headers=headers)


def openai_error(message="no", status=400, **fields) -> Reply:
    return plain({"error": {"message": message, "type": "t", "code": None, **fields}}, status)


both_ways = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


def check_refused(gateway, model, stream, status, code) -> Response:
    """Ask, and check what the client and the record say; the upstream never began to answer."""
    with pytest.raises(openai.APIStatusError) as caught:
        list(gateway.sdk.chat.completions.create(model=model, messages=HELLO, stream=stream))
    exc = caught.value
    assert type(exc) is CLASSES.get(status, openai.InternalServerError)
    assert (exc.status_code, exc.code) == (status, code)
    row = ended_response(request__request_id=exc.response.headers["x-request-id"])
    assert (row.status, row.finish_reason, row.http_status) == ("failed", "error", status)
    assert (row.error_code, row.error_type) == (code, exc.type)
    assert exc.body["message"] == row.error_message != ""
    assert exc.response.headers["content-type"] == "application/json"
    assert exc.response.headers["x-session-id"] == row.session_id
    assert (row.reply, row.usage_source, row.client_left) == (None, "", False)
    assert row.duration_ms is not None
    assert row.ttft_ms is None
    for attempt in attempts_of(row):
        assert attempt["cause"].startswith(f"{code}: ")
        assert attempt["ms"] >= 0
    return row


REFUSALS = [
    pytest.param(openai_error(status=401), 503, "upstream_auth_expired", id="401"),
    pytest.param(openai_error(status=403), 503, "upstream_auth_expired", id="403"),
    pytest.param(openai_error(status=429), 429, "upstream_rate_limited", id="429"),
    pytest.param(error("dashscope_throttle"), 429, "upstream_rate_limited", id="throttled"),
    pytest.param(openai_error(status=500), 502, "upstream_error", id="500"),
    pytest.param(error("plain_text"), 502, "upstream_error", id="502"),
    pytest.param(plain("<html>503</html>", 503), 502, "upstream_error", id="503-page"),
    pytest.param(plain({"detail": "Not Found"}, 404), 502, "upstream_error", id="404-path"),
    pytest.param(
        openai_error("The model does not exist", 404, code="model_not_found"),
        404,
        "model_not_found",
        id="404-model",
    ),
    pytest.param(error("openai_object"), 400, "invalid_parameter_error", id="400"),
    pytest.param(error("vllm_old"), 400, "upstream_refused", id="400-vllm"),
    pytest.param(error("fastapi_detail"), 400, "upstream_refused", id="422"),
    pytest.param(error("llamacpp_ctx"), 400, "context_length_exceeded", id="too-long"),
    pytest.param(plain("<html>hi</html>"), 502, "upstream_protocol_error", id="page-with-200"),
    pytest.param(web_error("challenge_json"), 502, "upstream_error", id="json-challenge-with-200"),
    pytest.param(openai_error("boom", 200), 502, "upstream_error", id="error-with-200"),
    pytest.param(plain("not an answer"), 502, "upstream_error", id="text-with-200"),
    pytest.param(plain(""), 502, "upstream_error", id="empty-body"),
    pytest.param(Reply(raw=b"data: [DONE]\n\n"), 502, "upstream_error", id="empty-stream"),
    pytest.param(Reply(raw=b"data: {nonsense\n\n"), 502, "upstream_protocol_error", id="malformed"),
    pytest.param(
        Reply(raw=b'data: {"error": {"message": "slow down", "code": 429}}\n\n'),
        429,
        "upstream_rate_limited",
        id="error-in-stream",
    ),
    pytest.param(Reply(refused=True), 502, "upstream_error", id="closed"),
    pytest.param(Reply(text="x", cut_after=0), 502, "upstream_error", id="cut-after-headers"),
]


def check_refused_both_ways(open_gateway, upstream, reply, status, code) -> Response:
    upstream.enqueue(reply, reply)
    gateway = open_gateway(UPSTREAM_RETRIES=0)
    for stream in (False, True):
        row = check_refused(gateway, upstream.model, stream, status, code)
        assert len(attempts_of(row)) == 1
        gateway.heal()
    assert Response.objects.count() == Request.objects.count() == len(upstream.turns) == 2
    return row


@pytest.mark.parametrize(("reply", "status", "code"), REFUSALS)
def test_a_server_that_fails_before_its_answer(open_gateway, serve_upstream, reply, status, code):
    upstream = serve_upstream("openai_compatible")
    row = check_refused_both_ways(open_gateway, upstream, reply, status, code)
    assert row.request.upstream == "whole"


WEB_REFUSALS = {
    "rate_limited_daily": (429, "upstream_rate_limited"),
    "localized": (429, "upstream_rate_limited"),
    "chat_in_progress": (409, "upstream_chat_busy"),
    "bad_parent": (409, "upstream_chat_gone"),
    "parent_not_found": (409, "upstream_chat_gone"),
    "chat_not_found": (409, "upstream_chat_gone"),
    "not_found": (409, "upstream_chat_gone"),
    "too_many_messages": (502, "upstream_protocol_error"),
    "validation": (502, "upstream_protocol_error"),
    "unauthorized": (503, "upstream_auth_expired"),
    "context_too_long": (400, "context_length_exceeded"),
    "file_invalid": (400, "upstream_refused"),
    "internal": (502, "upstream_error"),
    "empty_body": (502, "upstream_error"),
    "challenge_json": (503, "upstream_challenge"),
    "challenge_html_waf": (503, "upstream_challenge"),
    "challenge_html_punish": (503, "upstream_challenge"),
    "gateway_html_504": (504, "upstream_timeout"),
}


def test_every_known_failure_of_the_web_upstream_is_expected_here():
    assert set(WEB_REFUSALS) == set(WEB_ERRORS)


@pytest.mark.parametrize("name", WEB_REFUSALS)
def test_the_web_upstream_refuses_a_turn(open_gateway, serve_upstream, name):
    upstream = serve_upstream("qwen_web")
    row = check_refused_both_ways(open_gateway, upstream, web_error(name), *WEB_REFUSALS[name])
    assert row.request.upstream == "new"


@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        pytest.param(openai_error(status=401), 503, "upstream_auth_expired", id="401"),
        pytest.param(plain("", 429), 429, "upstream_rate_limited", id="429"),
        pytest.param(plain("oops", 500), 502, "upstream_error", id="500"),
        pytest.param(plain("<html>hi</html>"), 502, "upstream_protocol_error", id="page-with-200"),
        pytest.param(Reply(raw=b""), 502, "upstream_error", id="empty-stream"),
        pytest.param(raw("created_only.sse"), 502, "upstream_error", id="created-only"),
        pytest.param(
            Reply(raw=b"data: {nonsense\n\n"), 502, "upstream_protocol_error", id="malformed"
        ),
        pytest.param(Reply(refused=True), 502, "upstream_error", id="closed"),
        pytest.param(Reply(text="x", cut_after=0), 502, "upstream_error", id="cut-after-headers"),
        pytest.param(Reply(text="x", cut_after=1), 502, "upstream_error", id="cut-after-created"),
    ],
)
def test_the_web_upstream_fails_before_its_answer(
    open_gateway, serve_upstream, reply, status, code
):
    check_refused_both_ways(open_gateway, serve_upstream("qwen_web"), reply, status, code)


@pytest.mark.parametrize(
    ("reply", "status", "code"),
    [
        pytest.param(web_error("unauthorized"), 503, "upstream_auth_expired", id="unauthorized"),
        pytest.param(web_error("challenge_html_waf"), 503, "upstream_challenge", id="challenge"),
        pytest.param(
            plain({"success": True, "data": {}}), 502, "upstream_protocol_error", id="no-id"
        ),
        pytest.param(Reply(refused=True), 502, "upstream_error", id="closed"),
    ],
)
def test_the_web_upstream_opens_no_chat(open_gateway, serve_upstream, reply, status, code):
    upstream = serve_upstream("qwen_web")
    upstream.double.enqueue(reply, path=NEW_CHAT)
    gateway = open_gateway(UPSTREAM_RETRIES=0)
    check_refused(gateway, upstream.model, True, status, code)
    assert upstream.turns == []


@both_ways
def test_nobody_listens_at_the_upstream(open_gateway, make_account, stream):
    make_account("openai_compatible", f"http://127.0.0.1:{unused_port()}")
    gateway = open_gateway(UPSTREAM_RETRIES=0)
    row = check_refused(gateway, "qwen3-8b", stream, 502, "upstream_error")
    assert "connection refused" in row.error_message
    assert "127.0.0.1" not in row.error_message


@pytest.mark.parametrize(
    ("kind", "reply", "expected"),
    [
        pytest.param(
            "openai_compatible",
            plain({"error": {"message": "slow"}}, 429, **{"retry-after": "7"}),
            "7",
            id="server",
        ),
        pytest.param("qwen_web", web_error("rate_limited_daily"), "25200", id="web-hours"),
        # What no clock holds is told as a year.
        pytest.param(
            "openai_compatible",
            plain({"error": {"message": "slow"}}, 429, **{"retry-after": "1e308"}),
            "31536000",
            id="server-too-long",
        ),
        pytest.param(
            "qwen_web",
            plain({"success": False}, 429, **{"retry-after": "9" * 400}),
            "31536000",
            id="web-too-long",
        ),
    ],
)
@both_ways
def test_a_limit_says_when_to_come_back(
    open_gateway, serve_upstream, kind, reply, expected, stream
):
    upstream = serve_upstream(kind)
    upstream.enqueue(reply)
    answer = open_gateway().ask(upstream.model, stream=stream)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == expected
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    # A limit is not a reason to ask the same account again.
    assert len(upstream.turns) == 1


@both_ways
def test_silence_before_the_first_byte(open_gateway, upstream, stream):
    upstream.enqueue(Reply(silent=True))
    gateway = open_gateway(UPSTREAM_IDLE_TIMEOUT_S=0.3)
    row = check_refused(gateway, upstream.model, stream, 504, "upstream_timeout")
    assert len(attempts_of(row)) == 1
    assert upstream.double.left.get(timeout=5)


@both_ways
def test_the_time_of_the_whole_turn_ends_before_the_first_byte(open_gateway, upstream, stream):
    upstream.enqueue(Reply(silent=True))
    gateway = open_gateway(TURN_TIMEOUT_S=0.3)
    with pytest.raises(openai.InternalServerError) as caught:
        list(
            gateway.sdk.chat.completions.create(model=upstream.model, messages=HELLO, stream=stream)
        )
    assert (caught.value.status_code, caught.value.code) == (504, "upstream_timeout")
    assert "0.3 seconds" in caught.value.body["message"]
    row = ended_response()
    assert (row.status, row.finish_reason, row.http_status) == ("failed", "error", 504)
    assert [a["cause"] for a in attempts_of(row)] == ["timeout"]
    assert upstream.double.left.get(timeout=5)


@pytest.mark.parametrize("failure", ["closed", "500"])
def test_tries_at_one_account_are_bounded_and_each_is_kept(open_gateway, upstream, failure):
    replies = [Reply(refused=True) if failure == "closed" else plain("oops", 500)] * 5
    upstream.enqueue(*replies)
    gateway = open_gateway(UPSTREAM_RETRIES=1)
    row = check_refused(gateway, upstream.model, True, 502, "upstream_error")
    assert len(attempts_of(row)) == len(upstream.turns) == 2
    assert [a["account"] for a in attempts_of(row)] == [upstream.account.name] * 2


def test_another_try_that_succeeds_is_an_answer_like_any_other(open_gateway, upstream):
    upstream.enqueue(Reply(refused=True), "fine")
    assert open_gateway().ask(upstream.model).json()["choices"][0]["message"]["content"] == "fine"
    row = ended_response()
    assert (row.status, row.error_code, row.http_status) == ("completed", None, 200)
    causes = [a["cause"] for a in attempts_of(row)]
    assert causes[0].startswith("upstream_error: ")
    assert causes[1:] == [None]


# From here on the answer has begun.


def check_broken_off(gateway, model, stream, status, code, text) -> Response:
    """Ask, and check that what arrived is kept; the error comes as an event or as a status."""
    if stream:
        with gateway.open_stream(model) as response:
            received = response.read().decode()
        assert response.status_code == 200
        assert "[DONE]" not in received
        *chunks, last = sse_bodies(received)
        assert set(last["error"]) == {"message", "type", "param", "code"}
        assert last["error"]["code"] == code
        assert not any(c["choices"][0]["finish_reason"] for c in chunks)
        given = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
        assert given.startswith(text)
    else:
        answer = gateway.ask(model)
        assert answer.status_code == status
        assert answer.json()["error"]["code"] == code
    row = ended_response()
    assert Request.objects.count() == 1
    assert (row.status, row.finish_reason) == ("failed", "error")
    assert row.http_status == (200 if stream else status)
    assert row.error_code == code
    assert reply_text(row).startswith(text)
    if stream:
        assert reply_text(row) == given
    assert row.usage_source == "partial"
    assert row.completion_tokens > 0
    assert row.ttft_ms is not None
    # Never asked again: the answer had begun.
    (attempt,) = attempts_of(row)
    assert attempt["cause"].startswith(f"{code}: ") or attempt["cause"] == "timeout"
    return row


BROKEN_OFF = [
    pytest.param(Reply(text="one two three four", cut_after=3), 502, "upstream_error", id="cut"),
    pytest.param(
        Reply(text="one two three four", silent_after=3), 504, "upstream_timeout", id="silence"
    ),
    pytest.param(
        Reply(text="one two three four", malformed_line=b"data: {nonsense\n\n"),
        502,
        "upstream_protocol_error",
        id="malformed",
    ),
]


@both_ways
@pytest.mark.parametrize(("reply", "status", "code"), BROKEN_OFF)
def test_an_answer_that_breaks_off(open_gateway, upstream, reply, status, code, stream):
    upstream.enqueue(reply)
    gateway = open_gateway(UPSTREAM_IDLE_TIMEOUT_S=0.3)
    check_broken_off(gateway, upstream.model, stream, status, code, "one")
    assert len(upstream.turns) == 1


# Beginnings without an end; the doubles go on from here for ever.
BEGINNINGS = {
    "openai_compatible": b'data: {"choices":[{"index":0,"delta":{"content":"one "}}]}\n\n',
    "qwen_web": (SYNTHETIC / "created_only.sse").read_bytes(),
}


@both_ways
def test_an_endless_answer_ends_with_the_time_of_the_turn(open_gateway, upstream, stream):
    upstream.enqueue(Reply(raw=BEGINNINGS[upstream.kind], endless=True, delay_s=0.01))
    gateway = open_gateway(TURN_TIMEOUT_S=0.5)
    check_broken_off(gateway, upstream.model, stream, 504, "upstream_timeout", "")
    # The upstream was left, or told to stop: it does not go on for nobody.
    if upstream.kind == "qwen_web":
        assert upstream.double.requests_to("/api/v2/chat/completions/stop")
    else:
        assert upstream.double.left.get(timeout=5)


@pytest.mark.parametrize(
    ("kind", "name", "status", "code"),
    [
        pytest.param(
            "openai_compatible",
            "openai_compat/error_in_stream.sse",
            502,
            "upstream_error",
            id="server",
        ),
        pytest.param(
            "qwen_web", "midstream_error_object.sse", 400, "upstream_refused", id="web-object"
        ),
        pytest.param(
            "qwen_web", "midstream_error_string.sse", 502, "upstream_error", id="web-string"
        ),
        pytest.param(
            "qwen_web", "midstream_status_error.sse", 502, "upstream_error", id="web-status"
        ),
        pytest.param("qwen_web", "eof_without_finished.sse", 502, "upstream_error", id="web-eof"),
    ],
)
@both_ways
def test_an_error_inside_the_answer(open_gateway, serve_upstream, kind, name, status, code, stream):
    upstream = serve_upstream(kind)
    upstream.enqueue(raw(name))
    check_broken_off(open_gateway(), upstream.model, stream, status, code, "")


def test_the_sdk_raises_what_comes_in_the_middle_of_a_stream(open_gateway, upstream):
    upstream.enqueue(Reply(text="one two three four", cut_after=3))
    stream = open_gateway().sdk.chat.completions.create(
        model=upstream.model, messages=HELLO, stream=True
    )
    first = next(stream)
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    assert first.choices[0].delta.role == "assistant"
    assert type(caught.value) is openai.APIError
    assert caught.value.code == "upstream_error"
    assert caught.value.body["message"] == ended_response().error_message


def test_what_the_upstream_said_is_kept_for_the_record_only(open_gateway, serve_upstream):
    upstream = serve_upstream("openai_compatible")
    upstream.enqueue(plain("<html>internal host db-7</html>", 500))
    answer = open_gateway(UPSTREAM_RETRIES=0).ask(upstream.model)
    assert "db-7" not in answer.text
    kept = json.loads(ended_response().upstream_response)
    assert (kept["status"], kept["error_body"]) == (500, "<html>internal host db-7</html>")


def test_a_failed_turn_can_simply_be_asked_again(open_gateway, upstream):
    gateway = open_gateway()
    first = gateway.ask(upstream.model)
    messages = [*HELLO, first.json()["choices"][0]["message"], *HELLO]
    upstream.enqueue(Reply(text="one two three four", cut_after=3))
    assert gateway.ask(upstream.model, messages=messages).status_code == 502
    assert gateway.ask(upstream.model, messages=messages).status_code == 200
    _, failed, completed = Response.objects.order_by("id")
    assert (failed.status, completed.status) == ("failed", "completed")
    assert failed.session_id == completed.session_id == first.headers["x-session-id"]
    assert failed.reply.parent_id == completed.reply.parent_id

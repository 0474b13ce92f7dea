"""Telling the web API's failures apart."""

from __future__ import annotations

import json

import pytest

from qwenproxy.wire.qwen_web import WebFailure, classify
from tests.wire.streams import SYNTHETIC

ERRORS = json.loads((SYNTHETIC / "web_errors.json").read_bytes())
CHALLENGE = "The upstream asks for a check that only a person can pass."
EXPECTED = {
    "rate_limited_daily": WebFailure(
        "rate_limited",
        "You've reached the upper limit for today's usage.",
        "RateLimited",
        7 * 3600.0,
        429,
    ),
    "localized": WebFailure("rate_limited", "今日使用已达上限", "RateLimited", 3 * 3600.0, 429),
    "chat_in_progress": WebFailure("busy", "The chat is in progress!", "Bad_Request", None, 400),
    "bad_parent": WebFailure(
        "parent_gone",
        "Invalid input chat parent_id 22222222-2222-4222-8222-222222222222 is not exist.",
        "Bad_Request",
        None,
        400,
    ),
    "parent_not_found": WebFailure(
        "parent_gone", "parent not found", "PARENT_NOT_FOUND", None, 404
    ),
    "too_many_messages": WebFailure(
        "too_many_messages", "Invalid input too many messages.", "Bad_Request", None, 400
    ),
    "chat_not_found": WebFailure(
        "chat_gone", "This chat has been deleted", "CHAT_NOT_FOUND", None, 404
    ),
    "not_found": WebFailure("chat_gone", "not found", "Not_Found", None, 404),
    "validation": WebFailure(
        "malformed_request",
        "[{'type': 'missing', 'loc': ('body', 'chat_id'), 'msg': 'Field required'}]",
        "RequestValidationError",
        None,
        422,
    ),
    "unauthorized": WebFailure("unauthorized", "Unauthorized", "Unauthorized", None, 401),
    "context_too_long": WebFailure(
        "context_too_long",
        "InternalError.Algo.InvalidParameter: Range of input length should be [1, 983616]",
        "invalid_input",
        None,
        400,
    ),
    "file_invalid": WebFailure("invalid", "Invalid file information!", "Bad_Request", None, 400),
    "internal": WebFailure(
        "internal",
        "Internal error...please try again later.",
        "Internal_Server_Error",
        None,
        500,
    ),
    "empty_body": WebFailure("empty", "The upstream gave no answer.", None, None, 200),
    "challenge_json": WebFailure("challenge", CHALLENGE, None, None, 200),
    "challenge_html_waf": WebFailure("challenge", CHALLENGE, None, None, 200),
    "challenge_html_punish": WebFailure("challenge", CHALLENGE, None, None, 200),
    "gateway_html_504": WebFailure("http", "HTTP 504: a web page", None, None, 504),
}


def test_every_fixture_answer_is_expected():
    assert set(ERRORS) == set(EXPECTED)


@pytest.mark.parametrize("name", ERRORS)
def test_a_fixture_answer_is_told_apart(name):
    answer = ERRORS[name]
    body = answer["body"]
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()

    assert classify(answer["status"], answer["headers"], data) == EXPECTED[name]


def make_envelope(code, details="", **members):
    return {"success": False, "data": {"code": code, "details": details, **members}}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        pytest.param(make_envelope("Bad_Request", "Internal error..."), "rejected", id="internal"),
        pytest.param(
            make_envelope("Bad_Request", "Something wrong with request!"), "rejected", id="wrong"
        ),
        pytest.param(make_envelope("Bad_Request"), "rejected", id="no-details"),
        pytest.param({"success": False}, "rejected", id="nothing-said"),
        pytest.param({"success": False, "data": {}}, "rejected", id="empty-data"),
        pytest.param(make_envelope("Too_Many_Requests"), "parallel", id="too-many-requests"),
        pytest.param(make_envelope("ParallelLimited"), "parallel", id="parallel"),
        pytest.param(
            make_envelope("Too_Many_Requests", "The chat is in progress!"), "busy", id="busy-429"
        ),
        pytest.param(make_envelope("quotaLimited"), "rate_limited", id="quota-limited"),
        pytest.param(make_envelope("ExceedLimit"), "rate_limited", id="exceed-limit"),
        pytest.param(make_envelope("quota_exhausted"), "rate_limited", id="quota-exhausted"),
        pytest.param(make_envelope("X", "Token has expired"), "unauthorized", id="expired"),
        pytest.param({"detail": "Your account pending activation"}, "unauthorized", id="pending"),
        pytest.param({"detail": "Unauthorized"}, "unauthorized", id="detail-only"),
        pytest.param({"code": "RateLimited", "detail": "wait"}, "rate_limited", id="bare-code"),
        pytest.param(
            {"success": False, "code": "internal_error", "message": "x"}, "internal", id="flat"
        ),
        pytest.param({"error": "Internal error!"}, "internal", id="error-text"),
        pytest.param(
            {"error": {"code": "invalid_input", "details": "no"}}, "invalid", id="error-object"
        ),
        pytest.param(
            {"error": {"message": "Allocated quota exceeded, please raise it."}},
            "rate_limited",
            id="allocated-quota",
        ),
        pytest.param({"error": {"code": 40014, "details": ["a"]}}, "rejected", id="number-code"),
    ],
)
def test_envelopes_of_every_form_are_told_apart(body, kind):
    failure = classify(200, {"content-type": "application/json"}, json.dumps(body).encode())

    assert failure is not None
    assert failure.kind == kind
    assert failure.message


def test_a_limit_without_a_waiting_time_is_not_called_a_quota():
    body = json.dumps(make_envelope("RateLimited", "Limited.")).encode()

    failure = classify(200, {}, body)

    assert failure is not None
    assert (failure.kind, failure.retry_after_s) == ("rate_limited", None)
    assert "cookies may be incomplete" in failure.message


def test_a_limit_that_speaks_of_authorization_is_no_limit():
    body = json.dumps(make_envelope("RateLimited", "401/Unauthorized")).encode()

    failure = classify(200, {}, body)

    assert failure is not None
    assert failure.kind == "unauthorized"


def test_a_template_alone_makes_a_quota():
    body = json.dumps(make_envelope("RateLimited", "Limited.", template="wait")).encode()

    assert classify(200, {}, body) == WebFailure(
        "rate_limited", "Limited.", "RateLimited", None, 200
    )


@pytest.mark.parametrize(
    ("status", "headers", "body", "expected"),
    [
        pytest.param(
            429,
            {"retry-after": "30"},
            b"slow down",
            WebFailure("rate_limited", "slow down", None, 30.0, 429),
            id="429",
        ),
        pytest.param(
            401, {}, b"", WebFailure("unauthorized", "HTTP 401", None, None, 401), id="401"
        ),
        pytest.param(
            401,
            {},
            b'{"detail": "nope"}',
            WebFailure("unauthorized", "nope", None, None, 401),
            id="401-json",
        ),
        pytest.param(500, {}, b"oops", WebFailure("internal", "oops", None, None, 500), id="500"),
        pytest.param(502, {}, b"", WebFailure("http", "HTTP 502", None, None, 502), id="502"),
        pytest.param(
            503,
            {"content-type": "text/html"},
            b"\n <html><script src='/baxia.js'>",
            WebFailure("challenge", CHALLENGE, None, None, 503),
            id="challenge-503",
        ),
        pytest.param(
            200,
            {"content-type": "text/event-stream"},
            b"<!doctypehtml><title>Access Verification</title>",
            WebFailure("challenge", CHALLENGE, None, None, 200),
            id="page-that-calls-itself-a-stream",
        ),
        pytest.param(
            200,
            {"content-type": "text/html"},
            b"<html>Maintenance",
            WebFailure("http", "The upstream answered with a web page.", None, None, 200),
            id="other-page",
        ),
        pytest.param(
            200,
            {"content-type": "application/json"},
            b'{"success": fal',
            WebFailure("malformed", "The upstream sent a body that is not JSON.", None, None, 200),
            id="cut-json",
        ),
    ],
)
def test_statuses_and_pages_are_told_apart(status, headers, body, expected):
    assert classify(status, headers, body) == expected


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param({"content-type": "text/event-stream"}, b"", id="stream-not-read-yet"),
        pytest.param({"content-type": "text/event-stream"}, b'data: {"a":1}\n', id="stream"),
        pytest.param({"content-type": "text/plain"}, b'data: {"a":1}\n', id="stream-as-text"),
        pytest.param(
            {"content-type": "application/json"}, b'{"success": true, "data": {"id": "c"}}', id="ok"
        ),
        pytest.param({"content-type": "application/json"}, b'{"data": []}', id="models"),
        pytest.param({"content-type": "application/json"}, b"[]", id="list"),
    ],
)
def test_answers_are_no_failures(headers, body):
    assert classify(200, headers, body) is None

"""Every error the gateway names, and the forms in which clients see it: OpenAI's and Anthropic's.

    GatewayError
     +- InvalidRequest 400 . AuthenticationFailed 401 . PermissionDenied 403 . NotFound 404
     |    . BodyTooLarge 413 . RateLimited 429
     +- UpstreamError 502
     |   +- UpstreamTimeout 504 . UpstreamRateLimited 429 . UpstreamChallenged 503
     |   +- UpstreamAuthExpired 503 . UpstreamRefused 400/403 . ContextLengthExceeded 400
     |   +- UpstreamProtocolError 502 . AnswerTooLong 502 . InvalidJSONAnswer 502
     |   . UpstreamChatBusy 409 . UpstreamChatGone 409
     +- NoUpstream 503 . UpstreamBusy 503 . NoAccountReady 503 (AllRateLimited 429)
     +- RecorderUnavailable 503 . SchemaNotReady 503 . ShuttingDown 503

`UpstreamChatBusy` and `UpstreamChatGone` are answered by opening another upstream chat; a client sees
one only where that failed as well. Lower layers' errors are mapped to these once, at the border.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

from qwenproxy.wire.json import JSONObject

ANTHROPIC_PATH = "/v1/messages"
_LONGEST_WAIT_S = 365 * 86_400.0


class GatewayError(Exception):
    """Base of all errors that have an answer for the client.

    `message` is shown to the client; it holds no secrets and no content of other requests. `param`
    names the offending field of the request body, in OpenAI's spelling (`messages.0.role`).
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "api_error"
    code: ClassVar[str | None] = None
    retryable: ClassVar[bool] = False
    log_level: ClassVar[int] = logging.ERROR
    # Of the answer, besides `Retry-After`.
    headers: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.error_code = code or self.code
        self.http_status = status or self.status
        self.retry_after_s = retry_after_s


class InvalidRequest(GatewayError):
    status = 400
    type = "invalid_request_error"
    log_level = logging.INFO


class AuthenticationFailed(GatewayError):
    status = 401
    type = "authentication_error"
    code = "invalid_api_key"
    log_level = logging.INFO


class PermissionDenied(GatewayError):
    status = 403
    type = "permission_error"
    code = "insufficient_scope"
    log_level = logging.INFO


class NotFound(GatewayError):
    status = 404
    type = "not_found_error"
    log_level = logging.INFO


class BodyTooLarge(GatewayError):
    status = 413
    type = "invalid_request_error"
    code = "body_too_large"
    log_level = logging.INFO


class RateLimited(GatewayError):
    """A limit of the client's key; `reason` names it in metrics."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    log_level = logging.INFO

    def __init__(
        self,
        message: str,
        *,
        reason: str = "requests",
        code: str | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(message, code=code, retry_after_s=retry_after_s)
        self.reason = reason
        self.headers = headers


class UpstreamError(GatewayError):
    """The upstream failed; `body` keeps the first 2 kB of what it said, for the record only."""

    status = 502
    type = "upstream_error"
    code = "upstream_error"
    retryable = True
    log_level = logging.WARNING

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int | None = None,
        retry_after_s: float | None = None,
        body: str = "",
        upstream_status: int | None = None,
    ) -> None:
        super().__init__(
            message, param=param, code=code, status=status, retry_after_s=retry_after_s
        )
        self.body = body[:2048]
        self.upstream_status = upstream_status


class UpstreamTimeout(UpstreamError):
    status = 504
    code = "upstream_timeout"


class UpstreamRateLimited(UpstreamError):
    status = 429
    type = "rate_limit_error"
    code = "upstream_rate_limited"


class UpstreamChallenged(UpstreamError):
    status = 503
    code = "upstream_challenge"


class UpstreamAuthExpired(UpstreamError):
    status = 503
    code = "upstream_auth_expired"


class UpstreamRefused(UpstreamError):
    """The upstream understood the request and will not do it; another try gives the same."""

    status = 400
    type = "invalid_request_error"
    code = "upstream_refused"
    retryable = False
    log_level = logging.INFO


class ContextLengthExceeded(UpstreamRefused):
    code = "context_length_exceeded"


class UpstreamProtocolError(UpstreamError):
    code = "upstream_protocol_error"


class AnswerTooLong(UpstreamError):
    """The answer passed QWENPROXY_MAX_ANSWER_MB; what came before is on record."""

    code = "answer_too_long"
    retryable = False


class InvalidJSONAnswer(UpstreamError):
    """The model's answer does not fit `response_format`, also when asked again."""

    code = "invalid_json_answer"
    retryable = False
    # OpenAI's clients would ask twice more by themselves, each time for two answers.
    headers = MappingProxyType({"x-should-retry": "false"})


class UpstreamChatBusy(UpstreamError):
    status = 409
    code = "upstream_chat_busy"


class UpstreamChatGone(UpstreamError):
    status = 409
    code = "upstream_chat_gone"


class NoUpstream(GatewayError):
    status = 503
    type = "upstream_error"
    code = "no_upstream"
    log_level = logging.WARNING


class UpstreamBusy(GatewayError):
    """Every account has as many calls as it may, and none ended in time."""

    status = 503
    type = "upstream_error"
    code = "upstream_busy"
    retryable = True
    log_level = logging.WARNING


class NoAccountReady(GatewayError):
    """Every account that serves the model is kept out; the message names states and ways out."""

    status = 503
    type = "upstream_error"
    code = "no_account_ready"
    retryable = True
    log_level = logging.WARNING


class AllRateLimited(NoAccountReady):
    status = 429
    type = "rate_limit_error"


class RecorderUnavailable(GatewayError):
    status = 503
    type = "recorder_error"
    code = "recorder_unavailable"
    retryable = True


class SchemaNotReady(GatewayError):
    status = 503
    type = "schema_error"
    code = "schema_not_ready"


class ShuttingDown(GatewayError):
    status = 503
    type = "server_error"
    code = "shutting_down"
    retryable = True
    log_level = logging.INFO


def to_openai_error(error: GatewayError) -> JSONObject:
    """Build OpenAI's error body, used for HTTP answers and for `data: {"error": ...}` in a stream."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.error_code,
        }
    }


# Types that Anthropic's API has as well.
_ANTHROPIC_TYPES = (
    "api_error",
    "authentication_error",
    "invalid_request_error",
    "not_found_error",
    "permission_error",
    "rate_limit_error",
)


def to_anthropic_error(error: GatewayError) -> JSONObject:
    """Build Anthropic's error body, used for HTTP answers and for the `error` event in a stream."""
    message, type_ = error.message, error.type
    if error.http_status == 413:
        type_ = "request_too_large"
    elif error.http_status == 504:
        type_ = "timeout_error"
    elif isinstance(error, UpstreamBusy | RecorderUnavailable | ShuttingDown):
        type_ = "overloaded_error"
    elif type_ not in _ANTHROPIC_TYPES:
        type_ = "api_error"
    if isinstance(error, ContextLengthExceeded):
        # Claude Code compacts a conversation when it reads these words.
        message = f"prompt is too long: {message}"
    return {"type": "error", "error": {"type": type_, "message": message}}


def error_body(error: GatewayError, path: str) -> JSONObject:
    """The error in the form of the protocol that the path belongs to."""
    if path == ANTHROPIC_PATH or path.startswith(f"{ANTHROPIC_PATH}/"):
        return to_anthropic_error(error)
    return to_openai_error(error)


def error_headers(error: GatewayError) -> dict[str, str]:
    """Headers that belong to an error answer: `Retry-After` where it is known, never too short.

    An upstream may have named a wait that no clock holds: a year is told instead.
    """
    headers = dict(error.headers)
    if error.retry_after_s is not None:
        wait_s = min(error.retry_after_s, _LONGEST_WAIT_S)
        headers["Retry-After"] = str(max(1, math.ceil(wait_s)))
        # OpenAI's clients read it first.
        headers["retry-after-ms"] = str(max(1, math.ceil(wait_s * 1000)))
    return headers

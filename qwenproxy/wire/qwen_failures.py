"""How the chat.qwen.ai web API fails: envelopes, plain errors, challenge pages, silence.

The HTTP status is 200 nearly always, so bodies decide. Texts follow the account's language: codes come
first wherever the upstream has one that says enough. Nothing here decides what to do about a failure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from qwenproxy.wire import json
from qwenproxy.wire.json import JSONObject

FailureKind: TypeAlias = Literal[
    # The daily quota, or too many requests; `retry_after_s` only where the upstream named it.
    "rate_limited",
    # Too many chats of the account at once.
    "parallel",
    # The chat's previous turn still runs.
    "busy",
    # The parent node, or the whole chat, is not there (any more).
    "parent_gone",
    "chat_gone",
    # Our body was wrong: more than one message, or it did not validate.
    "too_many_messages",
    "malformed_request",
    # The upstream understood the request and refuses its content.
    "invalid",
    "context_too_long",
    "unauthorized",
    # A refusal without a reason: cookies or the `version` header are missing, or a gated feature.
    "rejected",
    "internal",
    # A page or body that wants a human.
    "challenge",
    # Status 200 and no answer.
    "empty",
    # The stream ended within the answer.
    "cut",
    # A line of the stream, or a body, is not JSON.
    "malformed",
    # Any other HTTP error.
    "http",
]


@dataclass(frozen=True, slots=True)
class WebFailure:
    kind: FailureKind
    message: str
    # The upstream's own code.
    code: str | None = None
    retry_after_s: float | None = None
    # What `x-actual-status-code` says, else the HTTP status; null inside a stream.
    upstream_status: int | None = None


_CHALLENGE_MARKERS = (
    "FAIL_SYS_USER_VALIDATE",
    "RGV587",
    "_____tmd_____",
    "punish",
    "x5secdata",
    "aliyun_waf",
    "aliyunCaptcha",
    "baxia",
    "AWSC",
)
_KIND_BY_CODE: dict[str, FailureKind] = {
    "ratelimited": "rate_limited",
    "quotalimited": "rate_limited",
    "exceedlimit": "rate_limited",
    "quota_exhausted": "rate_limited",
    "too_many_requests": "parallel",
    "parallellimited": "parallel",
    "parent_not_found": "parent_gone",
    "chat_not_found": "chat_gone",
    "not_found": "chat_gone",
    "requestvalidationerror": "malformed_request",
    "unauthorized": "unauthorized",
    "internal_server_error": "internal",
    "internal_error": "internal",
    "contextlengthexceeded": "context_too_long",
    "invalid_input": "invalid",
    "bad_request": "rejected",
}
# Codes that say several things; their texts tell which, in English at least.
_VAGUE_CODES: frozenset[FailureKind | None] = frozenset({None, "rejected", "invalid"})
_BUSY = "chat is in progress"
_KIND_BY_TEXT: tuple[tuple[str, FailureKind], ...] = (
    ("too many messages", "too_many_messages"),
    ("invalid file", "invalid"),
    ("range of input length", "context_too_long"),
    ("quota exceeded", "rate_limited"),
    ("token has expired", "unauthorized"),
    ("account pending activation", "unauthorized"),
    ("field required", "malformed_request"),
)
_KIND_BY_STATUS: dict[int, FailureKind] = {
    401: "unauthorized",
    429: "rate_limited",
    500: "internal",
}
# Kinds that say so little that the status knows better.
_VAGUE: frozenset[FailureKind] = frozenset({"rejected", "http"})
_CHALLENGE = "The upstream asks for a check that only a person can pass."
_SHORT_WAIT_S = 4.0
_HTML = "The upstream answered with a web page."
EMPTY_MESSAGE = "The upstream gave no answer."


def classify(status: int, headers: Mapping[str, str], body: bytes) -> WebFailure | None:
    """Tell whether a whole answer is a failure; null where it is none.

    Args:
        headers: names in lower case, or a mapping that does not care.
        body: the whole body; of an event stream it may be empty or the beginning.
    """
    content_type = headers.get("content-type", "")
    failure = _classify_body(status, body.strip(), is_stream="event-stream" in content_type)
    if failure is None:
        return None
    actual = headers.get("x-actual-status-code", "")
    actual_status = int(actual) if actual.isdecimal() else status
    failure = replace(failure, upstream_status=actual_status)
    if failure.kind in _VAGUE:
        failure = replace(failure, kind=_KIND_BY_STATUS.get(actual_status, failure.kind))
    retry_after = headers.get("retry-after", "")
    if failure.retry_after_s is None and retry_after.isdecimal():
        return replace(failure, retry_after_s=float(retry_after))
    return failure


def _classify_body(status: int, body: bytes, *, is_stream: bool) -> WebFailure | None:
    is_error = status >= 400
    if body.startswith(b"<"):
        return _classify_page(status, body.decode("utf-8", "replace"))
    if body.startswith(b"{"):
        try:
            parsed = json.refuse_deep(json.loads(body), body)
        except json.JSONError:
            return WebFailure("malformed", "The upstream sent a body that is not JSON.")
        if isinstance(parsed, dict) and (failure := read_failure(parsed)):
            return failure
    elif not body and not is_stream and not is_error:
        return WebFailure("empty", EMPTY_MESSAGE)
    if not is_error:
        return None
    text = body[:500].decode("utf-8", "replace")
    return WebFailure("http", text or f"HTTP {status}")


def read_error_text(text: str | None) -> WebFailure:
    """Read what an upstream says in free words; without a reason its own failure is assumed."""
    kind = _kind(None, text or "")
    return WebFailure(
        "internal" if kind == "rejected" else kind, text or "The upstream's answer failed."
    )


def _classify_page(status: int, page: str) -> WebFailure:
    if any(marker in page for marker in _CHALLENGE_MARKERS) or "Access Verification" in page:
        return WebFailure("challenge", _CHALLENGE)
    return WebFailure("http", _HTML if status < 400 else f"HTTP {status}: a web page")


def read_failure(body: JSONObject) -> WebFailure | None:
    """Read a failure from a JSON body or a stream record; null where it is none."""
    if "ret" in body:
        return WebFailure("challenge", _CHALLENGE)
    data = body.get("data")
    error = body.get("error")
    if isinstance(error, str) and error:
        detail: JSONObject = {"details": error}
    elif isinstance(error, dict) and error:
        detail = error
    elif body.get("success") is False:
        detail = data if isinstance(data, dict) and data else body
    elif "success" not in body and data is None and ("detail" in body or "code" in body):
        detail = body
    else:
        return None
    code = detail.get("code")
    text = detail.get("details") or detail.get("detail") or detail.get("message") or ""
    return _named_failure(
        str(code) if code else None,
        text if isinstance(text, str) else json.dumps_text(text),
        detail,
    )


def _named_failure(code: str | None, text: str, detail: JSONObject) -> WebFailure:
    kind = _kind(code, text)
    message = text or code or "The upstream refused without a reason."
    if kind == "parallel":
        return WebFailure(kind, message, code, _SHORT_WAIT_S)
    if kind != "rate_limited":
        return WebFailure(kind, message, code)
    hours = detail.get("num")
    if isinstance(hours, int | float) and hours > 0:
        return WebFailure(kind, message, code, hours * 3600.0)
    if (code or "").lower() == "ratelimited" and not detail.get("template"):
        # The same code comes for a missing `token` cookie and for refused uploads.
        if "401" in text or "unauthorized" in text.lower():
            return WebFailure("unauthorized", message, code)
        message += " (No waiting time was named: the session's cookies may be incomplete.)"
    return WebFailure(kind, message, code)


def _kind(code: str | None, text: str) -> FailureKind:
    lowered = text.lower()
    # Sources name several codes for a running turn, but one text.
    if _BUSY in lowered:
        return "busy"
    by_code = _KIND_BY_CODE.get((code or "").lower().replace(" ", "_"))
    if by_code is not None and by_code not in _VAGUE_CODES:
        return by_code
    for part, kind in _KIND_BY_TEXT:
        if part in lowered:
            return kind
    if "parent_id" in lowered and "not exist" in lowered:
        return "parent_gone"
    if by_code is not None:
        return by_code
    if lowered in ("unauthorized", "not authenticated"):
        return "unauthorized"
    return "internal" if "internal error" in lowered else "rejected"

"""The shapes of requests, responses and statistics as the API's documentation shows them.

Like `sessions_app.schemas`, for documentation alone.
"""

from __future__ import annotations

from typing import Any, Literal

from ninja import Field, Schema

from sessions_app.schemas import ListPage, Milliseconds

Status = Literal["in_progress", "completed", "failed", "cancelled", "interrupted"]


class ResponseSummary(Schema):
    response_id: str
    status: Status
    finish_reason: str | None
    total_tokens: int
    duration_ms: int | None = Field(description="Null while it runs.")
    error: str | None


class RequestObject(Schema):
    id: int
    session_id: str
    request_id: str
    timestamp: Milliseconds
    method: str
    path: str
    model: str = Field(description="As the client named it.")
    stream: bool
    created_at: Milliseconds
    api_key: int
    dialect: str = Field(description="The client's protocol.")
    match: str = Field(
        description="How the session was found: explicit, continued, forked, imported, new."
    )
    upstream: str = Field(
        description="What was done upstream: whole (it keeps no chats), new, continued, or rebuilt and why."
    )
    recorded: str = Field(
        description="What is on record: everything, metadata (the key let no content be recorded), or removed "
        "(the content's time is over)."
    )
    response_summary: ResponseSummary | None


class ResponseDeleted(Schema):
    id: str
    object: Literal["response"]
    deleted: bool


class InputItems(Schema):
    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class RequestList(ListPage):
    data: list[RequestObject]


class SessionRequestList(RequestList):
    session_id: str


class ResponseObject(Schema):
    id: int
    request_id: int = Field(description="The request's integer id.")
    session_id: str
    response_id: str
    timestamp: Milliseconds
    parent_id: str | None = Field(description="The web upstream's user node of this turn.")
    completion_tokens: int
    prompt_tokens: int
    total_tokens: int
    reasoning_tokens: int | None
    cached_tokens: int | None
    usage_source: str = Field(description="Whose counts: reported, estimated, partial.")
    status: Status
    finish_reason: str | None = Field(description="`error` where the call failed.")
    error: str | None
    error_type: str | None
    error_code: str | None
    http_status: int | None = Field(description="Of the answer to the client.")
    client_left: bool
    ttft_ms: int | None = Field(description="Until the first token.")
    duration_ms: int | None
    created_at: Milliseconds
    completed_at: Milliseconds | None


class ResponseList(ListPage):
    data: list[ResponseObject]


class ResponseBodies(ResponseObject):
    qwen_response: dict[str, Any] | None = Field(description="The upstream's ids, usage, raw text.")
    openai_response: dict[str, Any] | None = Field(
        description="The answer in OpenAI's form, or the part of it that arrived."
    )


class RequestReference(Schema):
    id: int
    request_id: str
    model: str
    stream: bool
    timestamp: Milliseconds


class ResponseDetail(ResponseBodies):
    request: RequestReference


class RequestDetail(RequestObject):
    openai_request: dict[str, Any] | None = Field(
        description="The body, rebuilt: equal to the one sent up to the form of repeated messages; null "
        "where no content is recorded, or where it was removed."
    )
    qwen_request: dict[str, Any] | None = Field(description="What went upstream, rebuilt.")
    qwen_request_exact: bool | None = Field(
        description="The rebuilt text is, by its digest, the one that was sent."
    )
    attempts: list[dict[str, Any]] = Field(description="The accounts asked, in their order.")
    user_agent: str
    content_removed_at: Milliseconds | None = Field(
        description="Of a removed one, when its content went."
    )
    headers: dict[str, str] = Field(description="Those that QWENPROXY_RECORD_HEADERS names.")
    account: str | None
    response: ResponseBodies | None


class Totals(Schema):
    total_responses: int
    total_completion_tokens: int
    total_prompt_tokens: int
    total_tokens: int
    avg_duration_ms: int


class SessionStats(Schema):
    session_id: str
    message_count: int
    created_at: Milliseconds
    last_accessed: Milliseconds
    usage: Totals


class ResponseStats(Schema):
    session_id: str = Field(description="The session's id, or `all`.")
    statistics: Totals


class Percentiles(Schema):
    samples: int | None = Field(description="Null where it is not known by this.")
    p50: float | None = Field(description="Milliseconds, to within 5 %; null below 20 samples.")
    p95: float | None


class StatsCounts(Schema):
    requests: int = Field(description="That ended; the sum of the next four.")
    completed: int
    failed: int
    cancelled: int = Field(description="The client left.")
    interrupted: int = Field(description="The gateway's process ended.")
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class StatsFigures(StatsCounts):
    ttft_ms: Percentiles = Field(description="Until the first token, of all answers with one.")
    duration_ms: Percentiles = Field(description="Of completed answers.")


class StatsGroup(StatsFigures):
    ref: str = Field(description="The model, status or error code; the id of the key or account.")
    name: str | None = Field(description="Of the key or account.")


class StatsPointGroup(StatsCounts):
    ref: str


class StatsPoint(StatsFigures):
    start: Milliseconds
    end: Milliseconds
    complete: bool = Field(description="False where it is not over, or only a part is asked for.")
    groups: list[StatsPointGroup] | None = Field(
        None, description="With `group`: those that have something here."
    )


class Stats(Schema):
    object: Literal["stats"]
    start: Milliseconds = Field(description="Rounded down to a quarter of an hour.")
    end: Milliseconds = Field(description="Not included; rounded up to a quarter of an hour.")
    time_zone: str = Field(description="Whose hours and days: QWENPROXY_TIME_ZONE.")
    as_of: Milliseconds = Field(description="All that ended before is counted.")
    group: Literal["model", "key", "account", "status", "error"] | None
    interval: Literal["slot", "hour", "day"] | None
    total: StatsFigures
    groups: list[StatsGroup] | None = Field(None, description="With `group`: most requests first.")
    series: list[StatsPoint] | None = Field(None, description="With `interval`: without gaps.")


class SessionDeleted(Schema):
    deleted: Literal[True]
    session_id: str

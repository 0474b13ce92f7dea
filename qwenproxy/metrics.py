"""Prometheus metrics, under OpenTelemetry's GenAI names where they have one."""

from __future__ import annotations

from functools import lru_cache

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

from qwenproxy.wire import json

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

DURATION = Histogram(
    "gen_ai_server_request_duration_seconds",
    "From a request's arrival to the end of its answer.",
    ["gen_ai_request_model", "status"],
    buckets=_SECONDS,
)
TIME_TO_FIRST_TOKEN = Histogram(
    "gen_ai_server_time_to_first_token_seconds",
    "From a request's arrival to the first piece of its answer.",
    ["gen_ai_request_model"],
    buckets=_SECONDS,
)
TOKENS = Counter(
    "gen_ai_client_token_usage",
    "Tokens, as the upstreams report them.",
    ["gen_ai_request_model", "gen_ai_token_type"],
)
RUNNING = Gauge("qwenproxy_turns_running", "Answers that are being given now.")
RECORDER_QUEUE = Gauge("qwenproxy_recorder_queue", "Writes that wait for the recorder.")
REFUSED = Counter(
    "qwenproxy_turns_refused",
    "Turns that a limit of their key kept from beginning.",
    ["reason"],
)
FAILOVERS = Counter(
    "qwenproxy_failovers",
    "Turns that went on to another account after this one failed.",
    ["account"],
)
ACCOUNT_STATE = Gauge(
    "qwenproxy_account_state",
    "1 for the state that an upstream account is in, as this process knows it.",
    ["account", "state"],
)
UNRECORDED = Gauge(
    "qwenproxy_unrecorded_answers", "Answers whose session was deleted while they ran."
)
RETENTION_SESSIONS = Gauge(
    "qwenproxy_retention_sessions",
    "Sessions whose content (content), or all of which (record), this process has removed.",
    ["kind"],
)
RETENTION_BYTES = Gauge(
    "qwenproxy_retention_bytes", "Bytes of texts and files that this process has removed.", ["kind"]
)
RETENTION_LAST_RUN = Gauge(
    "qwenproxy_retention_last_run_timestamp_seconds",
    "When this process last came to the end of a run; 0: not yet.",
)
SCHEMA_PENDING = Gauge("schema_pending", "Migrations that are not applied.")
SCHEMA_LAST_RUN_SECONDS = Gauge(
    "schema_last_run_seconds", "How long the last change of the schema took."
)
SCHEMA_LAST_RUN_OK = Gauge("schema_last_run_ok", "1 where the last change of the schema was made.")


def observe_turn(
    *,
    model: str,
    status: str,
    duration_s: float,
    ttft_s: float | None,
    prompt_tokens: int,
    completion_tokens: int,
) -> None:
    """Count a turn that ended."""
    _duration(model, status).observe(duration_s)
    if ttft_s is not None:
        _time_to_first_token(model).observe(ttft_s)
    if prompt_tokens:
        _tokens(model, "input").inc(prompt_tokens)
    if completion_tokens:
        _tokens(model, "output").inc(completion_tokens)


# Finding a metric's child by its labels costs more than counting does. A model's name is what clients
# say, and one with a lone surrogate could never be written out again.
@lru_cache(maxsize=256)
def _duration(model: str, status: str) -> Histogram:
    return DURATION.labels(json.plain(model), status)


@lru_cache(maxsize=256)
def _time_to_first_token(model: str) -> Histogram:
    return TIME_TO_FIRST_TOKEN.labels(json.plain(model))


@lru_cache(maxsize=256)
def _tokens(model: str, kind: str) -> Counter:
    return TOKENS.labels(json.plain(model), kind)


def exposition() -> bytes:
    return generate_latest(REGISTRY)

"""Prometheus metrics, under OpenTelemetry's GenAI names where they have one.

A label's values are kept for as long as the process runs, and whoever has a key may call a model whatever they
like. So a name is a label of its own only where an upstream lists it, or has answered by it: of the first
`MAX_LISTED`, of the others `MAX_ANSWERED`. All else is counted under `other`.
"""

from __future__ import annotations

from functools import lru_cache

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

from qwenproxy.wire import json

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# The label of models that have none of their own, and how many have.
OTHER = "other"
MAX_LISTED, MAX_ANSWERED = 300, 50
# Ids of models are shorter; so what is kept is bounded.
MAX_NAME_CHARS = 200

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
    is_listed: bool,
    status: str,
    duration_s: float,
    ttft_s: float | None,
    prompt_tokens: int,
    completion_tokens: int,
) -> None:
    """Count a turn that ended; `is_listed`: an upstream's list has the model."""
    label = _label(model, is_listed=is_listed, status=status)
    _duration(label, status).observe(duration_s)
    if ttft_s is not None:
        _time_to_first_token(label).observe(ttft_s)
    if prompt_tokens:
        _tokens(label, "input").inc(prompt_tokens)
    if completion_tokens:
        _tokens(label, "output").inc(completion_tokens)


# Models that have a label of their own, by what gave it to them.
_listed: dict[str, str] = {}
_answered: dict[str, str] = {}


def _label(model: str, *, is_listed: bool, status: str) -> str:
    known = _listed.get(model) or _answered.get(model)
    if known is not None:
        return known
    names, most = (_listed, MAX_LISTED) if is_listed else (_answered, MAX_ANSWERED)
    is_served = is_listed or status == "completed"
    if not is_served or len(names) >= most or len(model) > MAX_NAME_CHARS:
        return OTHER
    # One with a lone surrogate could never be written out again.
    return names.setdefault(model, json.plain(model))


# Finding a metric's child by its labels costs more than counting does.
@lru_cache(maxsize=2048)
def _duration(model: str, status: str) -> Histogram:
    return DURATION.labels(model, status)


@lru_cache(maxsize=512)
def _time_to_first_token(model: str) -> Histogram:
    return TIME_TO_FIRST_TOKEN.labels(model)


@lru_cache(maxsize=1024)
def _tokens(model: str, kind: str) -> Counter:
    return TOKENS.labels(model, kind)


def exposition() -> bytes:
    return generate_latest(REGISTRY)

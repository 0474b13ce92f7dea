"""What to do about a request that failed, in a line: the advice of the errors' page and of transcripts."""

from __future__ import annotations

_CREDENTIALS = "Sign in again, or replace the credentials of the account."
# What to do, by the code of `qwenproxy.errors` and of the upkeep of the record.
WAYS_OUT = {
    "upstream_rate_limited": "The upstream limits this account. Wait, or add another account.",
    "rate_limit_exceeded": "A client is over the limit of its API key. Raise the limit, or slow it down.",
    "upstream_auth_expired": _CREDENTIALS,
    "upstream_challenge": "The upstream asks for a captcha. Solve it in the browser that is signed in, then"
    " paste a new request into the account.",
    "upstream_timeout": "The upstream did not answer in time. Look at its load; a longer timeout helps only"
    " where answers are slow.",
    "upstream_protocol_error": "The upstream answered in a form that is not known. Open a request and look"
    " at its upstream body; an update may be needed.",
    "upstream_error": "The upstream failed. Open a request: its attempts say what the upstream said.",
    "upstream_refused": "The upstream will not do this request; the same one fails again. Change it.",
    "context_length_exceeded": "The conversation is too long for the model. Begin a new one, or use a model"
    " with a larger context.",
    "invalid_json_answer": "The model did not write the JSON that was asked for. Use a stronger model, or a"
    " simpler schema.",
    "answer_too_long": "The answer passed QWENPROXY_MAX_ANSWER_MB.",
    "upstream_chat_busy": "The upstream's chat was in use, and another could not be opened. Try again.",
    "upstream_chat_gone": "The upstream's chat is gone, and another could not be opened. Try again.",
    "no_upstream": "No account serves this model. Add one, or correct the model's name.",
    "upstream_busy": "All accounts had as many calls as they may. Add one, or raise its limit.",
    "no_account_ready": "All accounts of the model are kept out. Look at their states.",
    "recorder_unavailable": "The database could not be written. Look at Health.",
    "schema_not_ready": "Migrations wait. Look at Migrations.",
    "shutting_down": "The gateway was shutting down. The client may try again.",
    "interrupted": "The process that answered ended before the answer did. Look at its log for the cause.",
}

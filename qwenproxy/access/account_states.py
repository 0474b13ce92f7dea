"""What an account's state asks of its operator: the way out, in words.

One home of these texts: REST, admin, doctor and the error of a client that no account answers.
"""

from __future__ import annotations

from datetime import UTC, datetime

# By hand, beside the states that `UpstreamAccount.STATES` has from traffic.
PAUSED = "paused"

_EXPIRED = {
    "qwen_web": "sign in at the site, send a message there, then paste that request (Copy as cURL) into"
    " the account",
}
_CHALLENGED = {
    "qwen_web": "open the site in the browser, pass the check, send a message there, then paste that"
    " request (Copy as cURL) into the account",
}


def way_out(kind: str, state: str, until: datetime | None = None) -> str:
    """Say what ends a state, as half a sentence without a full stop; empty where nothing is wrong.

    Args:
        kind: the account's, because credentials differ.
        state: one of `UpstreamAccount.STATES`, or `PAUSED`.
        until: when it is tried again by itself; null: not known.
    """
    again = f"tried again by itself {_at(until)}"
    match state:
        case "cooling":
            return f"nothing to do: {again}; a second account would answer meanwhile"
        case "challenged":
            todo = _CHALLENGED.get(kind, "see in a browser what its server asks for")
            return f"{todo}; otherwise {again}"
        case "expired":
            return f"{_EXPIRED.get(kind, 'put an API key that is valid into the account')}; otherwise {again}"
        case "paused":
            return "switch it on again: Upstream accounts in the admin, or PATCH /v1/accounts/<id>"
    return ""


def _at(until: datetime | None) -> str:
    if until is None:
        return "with the next request"
    return f"at {until.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"

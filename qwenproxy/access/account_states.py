"""What an account's state asks of its operator: the way out, in words.

One home of these texts: REST, admin, doctor and the error of a client that no account answers.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

# By hand, beside the states that `UpstreamAccount.STATES` has from traffic.
PAUSED = "paused"

WARN_BEFORE = timedelta(days=3)

_NEW_KEY = "put an API key that is valid into the account"
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
            return f"{_EXPIRED.get(kind, _NEW_KEY)}; otherwise {again}"
        case "paused":
            return "switch it on again: Upstream accounts in the admin, or POST /v1/accounts/<id>/resume"
    return ""


def expiry_warning(kind: str, expires_at: datetime | None, now: datetime) -> str:
    """Say that credentials end soon, or did, and what to do; empty where that is far or not known."""
    if expires_at is None or expires_at - now >= WARN_BEFORE:
        return ""
    verb = "ended" if expires_at <= now else "end"
    return f"the credentials {verb} at {expires_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC: {_EXPIRED.get(kind, _NEW_KEY)}"


def _at(until: datetime | None) -> str:
    if until is None:
        return "with the next request"
    return f"at {until.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"

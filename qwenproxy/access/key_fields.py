"""What can be set on an API key: one rule per field, for REST, the commands and the admin alike.

Values come as JSON has them and go to the columns in the form that `ApiKey` describes. A value that
cannot be kept is refused with its field's name, and then nothing at all is set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from django.utils import timezone

from qwenproxy.access.models import SCOPES, ApiKey, Recorded
from qwenproxy.access.rest import milliseconds
from qwenproxy.wire.json import JSONObject

# Of the columns; budgets stay within what a JSON number keeps exactly everywhere.
MAX_LIMITS: Mapping[str, int] = {
    "requests_per_minute": 2**31 - 1,
    "tokens_per_minute": 2**31 - 1,
    "max_concurrent": 2**31 - 1,
    "tokens_per_day": 2**53 - 1,
    "tokens_per_month": 2**53 - 1,
}
# How long sessions are kept after their last use: not a limit, and 0 would be `recorded: metadata`.
DAYS = ("content_days", "record_days")
MAX_DAYS = 36_500
_LIMIT_UNITS: Mapping[str, str] = {
    "requests_per_minute": "requests/minute",
    "tokens_per_minute": "tokens/minute",
    "max_concurrent": "at once",
    "tokens_per_day": "tokens/day",
    "tokens_per_month": "tokens/month",
}
MAX_NAME_CHARS = ApiKey._meta.get_field("name").max_length or 0
MAX_PATTERNS = 100
MAX_PATTERN_CHARS = 200

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SPAN = re.compile(r"([0-9]{1,7})([mhdw])")
_SPAN_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class InvalidKey(ValueError):
    """The wish for a key cannot be met; the message says why and never holds the secret."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        # In REST's spelling.
        self.field = field


def clean_name(value: object) -> str:
    name = value.strip() if isinstance(value, str) else ""
    if not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable():
        raise InvalidKey(
            f"a key's name has 1 to {MAX_NAME_CHARS} printable characters", field="name"
        )
    return name


def clean_scopes(value: object) -> str:
    """Bring scopes into the form and order in which they are stored."""
    wanted = set(_texts(value, "scopes"))
    unknown = sorted(wanted - set(SCOPES))
    if unknown or not wanted:
        named = f"{unknown[0][:50]!r}: no such scope" if unknown else "a key needs a scope"
        raise InvalidKey(f"{named}; choose from {', '.join(SCOPES)}", field="scopes")
    return " ".join(scope for scope in SCOPES if scope in wanted)


def clean_models(value: object) -> str:
    """Bring patterns of model ids into the form in which they are stored; none: every model."""
    patterns = [] if value is None else [text.strip() for text in _texts(value, "allowed_models")]
    for pattern in patterns:
        if not 0 < len(pattern) <= MAX_PATTERN_CHARS or not pattern.isprintable():
            raise InvalidKey(
                f"a model pattern has 1 to {MAX_PATTERN_CHARS} printable characters, such as qwen3-*",
                field="allowed_models",
            )
    if len(patterns) > MAX_PATTERNS:
        raise InvalidKey(f"a key has at most {MAX_PATTERNS} model patterns", field="allowed_models")
    return "\n".join(dict.fromkeys(patterns))


def clean_expiry(value: object) -> datetime | None:
    """Read milliseconds since 1970, ISO 8601 (UTC where it names no zone) or a span from now."""
    if value is None:
        return None
    try:
        moment = value if isinstance(value, datetime) else _read_moment(value)
    except (ValueError, OverflowError) as exc:
        raise InvalidKey(
            "expires_at is milliseconds since 1970, a date such as 2027-01-31, "
            "2027-01-31T12:00:00Z, or a span from now such as 30d",
            field="expires_at",
        ) from exc
    if moment <= timezone.now():
        raise InvalidKey(
            f"expires_at is not in the future: {moment:%Y-%m-%d %H:%M:%S} UTC", field="expires_at"
        )
    return moment


def read_span(text: str) -> timedelta:
    """Read a span such as 90m, 24h, 30d or 2w.

    Raises:
        ValueError: it is none.
    """
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        raise ValueError("a span is a number with m, h, d or w, such as 24h")
    return timedelta(**{_SPAN_UNITS[found[2]]: int(found[1])})


def clean_limit(name: str, value: object) -> int | None:
    """Check one limit; null is none, 0 lets nothing through."""
    if value is None:
        return None
    largest = MAX_LIMITS[name]
    # A bool is an int to Python.
    if type(value) is not int or not 0 <= value <= largest:
        raise InvalidKey(f"{name} is a whole number from 0 to {largest}, or null", field=name)
    return value


def clean_days(name: str, value: object) -> int | None:
    """Check a time that sessions are kept; null is as the settings have it."""
    if value is None:
        return None
    # A bool is an int to Python.
    if type(value) is not int or not 1 <= value <= MAX_DAYS:
        raise InvalidKey(f"{name} is a whole number from 1 to {MAX_DAYS}, or null", field=name)
    return value


def clean_recorded(value: object) -> str:
    if not isinstance(value, str) or value not in Recorded.values:
        raise InvalidKey(f"recorded is one of {', '.join(Recorded.values)}", field="recorded")
    return value


_CLEANERS: Mapping[str, Callable[[object], Any]] = {
    "name": clean_name,
    "scopes": clean_scopes,
    "expires_at": clean_expiry,
    "allowed_models": clean_models,
    **{name: partial(clean_limit, name) for name in MAX_LIMITS},
    "recorded": clean_recorded,
    **{name: partial(clean_days, name) for name in DAYS},
}
FIELDS = tuple(_CLEANERS)


def clean_field(name: str, value: object) -> Any:
    """Bring one of `FIELDS` into the form of its column, or raise `InvalidKey`."""
    return _CLEANERS[name](value)


def check_names(values: Iterable[str]) -> None:
    """Raise `InvalidKey` for the first name that is no field to set."""
    for name in values:
        if name not in _CLEANERS:
            raise InvalidKey(
                f"a key has no field {name[:50]!r} to set; there are {', '.join(FIELDS)}",
                field=name[:50],
            )


def set_fields(api_key: ApiKey, values: Mapping[str, object]) -> None:
    """Put the values on the row, without saving it.

    Raises:
        InvalidKey: naming the first field that is unknown, or whose value cannot be kept.
    """
    check_names(values)
    cleaned = {name: _CLEANERS[name](value) for name, value in values.items()}
    for name, value in cleaned.items():
        setattr(api_key, name, value)


def is_expired(api_key: ApiKey, now: datetime) -> bool:
    return api_key.expires_at is not None and api_key.expires_at <= now


def state_of(api_key: ApiKey, now: datetime) -> str:
    """Name whether the key is accepted: `active`, `expired` or `revoked`."""
    if api_key.revoked_at is not None:
        return "revoked"
    return "expired" if is_expired(api_key, now) else "active"


def state_text(api_key: ApiKey, now: datetime) -> str:
    """The state for a person's eyes: `active`, `expires in 3 days`, `revoked`."""
    state = state_of(api_key, now)
    if state != "active" or api_key.expires_at is None:
        return state
    left = api_key.expires_at - now
    if left < timedelta(hours=2):
        return f"expires in {left // timedelta(minutes=1)} minutes"
    if left < timedelta(days=2):
        return f"expires in {round(left / timedelta(hours=1))} hours"
    return f"expires in {round(left / timedelta(days=1))} days"


def limits_text(api_key: ApiKey) -> str:
    """The limits for a person's eyes, such as `60 requests/minute, 4 at once`; none: empty."""
    return ", ".join(
        f"{limit:,} {unit}"
        for name, unit in _LIMIT_UNITS.items()
        if (limit := getattr(api_key, name)) is not None
    )


def kept_text(api_key: ApiKey) -> str:
    """How long its sessions are kept where it says so itself, for a person's eyes; else empty."""
    days = {"content": api_key.content_days, "record": api_key.record_days}
    return ", ".join(f"{what} {count:,} days" for what, count in days.items() if count is not None)


def describe(api_key: ApiKey) -> JSONObject:
    """The key as JSON: everything but its secret's hashes."""
    now = timezone.now()
    state, overlap = state_of(api_key, now), api_key.previous_expires_at
    is_accepted = state == "active" and overlap is not None and overlap > now
    return {
        "id": api_key.pk,
        "name": api_key.name,
        "prefix": api_key.prefix,
        "state": state,
        "scopes": [*api_key.scopes.split()],
        "created_at": milliseconds(api_key.created_at),
        "expires_at": milliseconds(api_key.expires_at),
        "revoked_at": milliseconds(api_key.revoked_at),
        # Null where the secret before the last rotation is not accepted any more.
        "previous_expires_at": milliseconds(overlap) if is_accepted else None,
        "allowed_models": [*api_key.allowed_models.splitlines()],
        **{name: getattr(api_key, name) for name in MAX_LIMITS},
        "recorded": api_key.recorded,
        **{name: getattr(api_key, name) for name in DAYS},
    }


def _texts(value: object, field: str) -> list[str]:
    if isinstance(value, Iterable) and not isinstance(value, str | Mapping):
        items = list(value)
        texts = [item for item in items if isinstance(item, str)]
        if len(texts) == len(items):
            return texts
    raise InvalidKey(f"{field} is a list of texts", field=field)


def _read_moment(value: object) -> datetime:
    if type(value) is int:
        return _EPOCH + timedelta(milliseconds=value)
    if not isinstance(value, str):
        raise ValueError(value)
    if _SPAN.fullmatch(value.strip()):
        return timezone.now() + read_span(value)
    moment = datetime.fromisoformat(value.strip())
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)

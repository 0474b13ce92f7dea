"""A key as the admin's pages show it: its state, how much of its limits is used, what it did of late."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.contrib.admin import AdminSite
from django.utils import timezone

from qwenproxy.access.key_fields import kept_text, state_of
from qwenproxy.access.models import ApiKey
from qwenproxy.access.traffic import Ended, Span, read_traffic
from qwenproxy.access.usage import read_usage

EXPIRING = timedelta(days=7)
_WARN_FROM = 0.8

# Limit -> its unit, and where `read_usage` has what is used of it.
_LIMITS: Mapping[str, tuple[str, str, str]] = {
    "requests_per_minute": ("requests/min", "minute", "requests"),
    "tokens_per_minute": ("tokens/min", "minute", "tokens"),
    "max_concurrent": ("at once", "running", ""),
    "tokens_per_day": ("tokens/day", "day", "tokens"),
    "tokens_per_month": ("tokens/month", "month", "tokens"),
}


@dataclass(frozen=True, slots=True)
class LimitBar:
    unit: str
    used: int
    limit: int

    @property
    def share(self) -> float:
        """0 to 1, or beyond: a limit may have been lowered. Of a limit of 0 all is used."""
        return self.used / self.limit if self.limit else 1.0

    @property
    def width(self) -> int:
        """In percent; what is not nothing can be seen."""
        return min(max(round(self.share * 100), 1 if self.used else 0), 100)

    @property
    def level(self) -> str:
        if self.share >= 1:
            return "full"
        return "high" if self.share >= _WARN_FROM else "some"


@dataclass(frozen=True, slots=True)
class KeyRow:
    key: ApiKey
    # active, expiring, expired or revoked.
    state: str
    limits: list[LimitBar]
    # Null: no request of it is on record.
    last_at: datetime | None
    # By span.
    ended: Mapping[Span, Ended]
    # Up to when the figures go; null: up to now.
    as_of: datetime | None

    @property
    def scopes(self) -> list[str]:
        return self.key.scopes.split()

    @property
    def models(self) -> list[str]:
        return self.key.allowed_models.splitlines()

    @property
    def kept(self) -> str:
        return kept_text(self.key)

    @property
    def day(self) -> Ended:
        return self.ended["24h"]

    @property
    def week(self) -> Ended:
        return self.ended["7d"]

    @property
    def has_previous(self) -> bool:
        """Whether the secret before the last rotation is accepted, too."""
        until = self.key.previous_expires_at
        return until is not None and until > timezone.now() and is_in_use(self.state)


def is_in_use(state: str) -> bool:
    return state in ("active", "expiring")


def shown_state(key: ApiKey, now: datetime) -> str:
    state = state_of(key, now)
    is_ending = key.expires_at is not None and key.expires_at - now <= EXPIRING
    return "expiring" if state == "active" and is_ending else state


def read_rows(
    site: AdminSite, api_keys: Sequence[ApiKey], spans: Sequence[Span] = ("24h",)
) -> list[KeyRow]:
    """Read what belongs to the keys; the same number of queries for any of them."""
    now = timezone.now()
    usage = read_usage(api_keys, now)
    traffic = read_traffic(site, "key", [key.pk for key in api_keys], spans)
    return [
        KeyRow(
            key=key,
            state=shown_state(key, now),
            limits=list(_bars(key, usage.get(key.pk))),
            last_at=traffic.last_at.get(key.pk),
            ended={span: traffic.of(span, key.pk) for span in spans},
            as_of=traffic.as_of,
        )
        for key in api_keys
    ]


def _bars(key: ApiKey, usage: Any) -> Iterator[LimitBar]:
    for name, (unit, span, counted) in _LIMITS.items():
        limit = getattr(key, name)
        if limit is not None:
            found = usage[span]
            yield LimitBar(unit, found[counted] if counted else found, limit)

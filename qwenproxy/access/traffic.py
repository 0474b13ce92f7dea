"""What keys and accounts did of late, for their pages: figures of a record that this package does not know.

The admin site reads them; `TrafficSite` is what the pages here ask of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol, cast

from django.contrib.admin import AdminSite
from django.http import HttpRequest

Group = Literal["key", "account"]
# Today is the reporting zone's.
Span = Literal["24h", "7d", "today"]


@dataclass(frozen=True, slots=True)
class Ended:
    """Requests that ended in a span of time."""

    requests: int = 0
    # Failed or interrupted; those that their client left are none.
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def success(self) -> float | None:
        """0 to 1; null where there were no requests."""
        return 1 - self.errors / self.requests if self.requests else None


_NOTHING = Ended()


@dataclass(frozen=True, slots=True)
class Traffic:
    """Figures by span and id; the newest request of each key."""

    spans: Mapping[Span, Mapping[int, Ended]] = field(default_factory=dict)
    last_at: Mapping[int, datetime] = field(default_factory=dict)
    # Up to when the figures go; null: up to now.
    as_of: datetime | None = None

    def of(self, span: Span, pk: int) -> Ended:
        return self.spans[span].get(pk, _NOTHING)


class TrafficSite(Protocol):
    def in_flight(self, request: HttpRequest) -> Mapping[int, int] | None:
        """Calls of this process that run now, by account; null where no gateway runs in it."""
        ...

    def traffic(self, group: Group, ids: Sequence[int], spans: Sequence[Span]) -> Traffic:
        """Read figures of these keys or accounts; blocks, the same number of queries for any ids."""
        ...


def read_in_flight(site: AdminSite, request: HttpRequest) -> Mapping[int, int] | None:
    """As `read_traffic`."""
    return cast(TrafficSite, site).in_flight(request)


def read_traffic(
    site: AdminSite, group: Group, ids: Sequence[int], spans: Sequence[Span]
) -> Traffic:
    """Ask the site that the pages are registered on."""
    # Django types it as its own class; the project has one site, and that one knows.
    return cast(TrafficSite, site).traffic(group, ids, spans)

"""How figures, sizes and times are written for people; templates use it through `templatetags.gateway`.

Times are stored in UTC and shown in the reporting zone (QWENPROXY_TIME_ZONE).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from django.conf import settings
from django.utils.html import format_html
from django.utils.safestring import SafeString

NONE = "–"
_STEPS = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
_SPANS = (("day", 86_400), ("h", 3600), ("min", 60))


def duration(ms: float | None) -> str:
    """ms below a second, seconds to two minutes, minutes to two hours, hours from there."""
    if ms is None:
        return NONE
    if ms < 999.5:
        return f"{ms:.0f} ms"
    if ms < 120_000:
        return f"{ms / 1000:.1f} s"
    if ms < 7_200_000:
        return f"{ms / 60_000:.1f} min"
    return f"{ms / 3_600_000:,.1f} h"


def number(value: int | None) -> str:
    """1,234: every digit."""
    return NONE if value is None else f"{value:,}"


def short(value: float | None) -> str:
    """1,234, but 12.3k and 4.5M."""
    if value is None:
        return NONE
    if abs(value) < 10_000:
        return f"{value:,.0f}"
    return _scaled(value, "")


def size(count: int | None) -> str:
    """Bytes in units of 1,000."""
    if count is None:
        return NONE
    return f"{count} B" if count < 1000 else _scaled(count, " ") + "B"


def _scaled(value: float, space: str) -> str:
    # What rounds to 1000 of a unit is 1 of the next.
    name, unit = next((step for step in _STEPS if abs(value) >= step[1] * 0.99995), _STEPS[-1])
    return f"{value / unit:,.1f}{space}{name}"


def percent(share: float | None) -> str:
    """Of 0 to 1, with one decimal; what is not nothing is not shown as 0."""
    if share is None:
        return NONE
    return "<0.1 %" if 0 < share < 0.0005 else f"{share * 100:.1f} %"


def span(time: timedelta) -> str:
    """A stretch of time in its largest unit: "2 h", "3 days"."""
    seconds = abs(time.total_seconds())
    for name, unit in _SPANS:
        if seconds >= unit:
            count = int(seconds // unit)
            return f"{count} {name}{'s' if name == 'day' and count > 1 else ''}"
    return f"{seconds:.0f} s"


def relative(at: datetime | None, now: datetime) -> str:
    """ "2 h ago", "in 3 days"."""
    if at is None:
        return NONE
    return f"in {span(at - now)}" if at > now else f"{span(now - at)} ago"


def local_text(at: datetime | None, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    return NONE if at is None else at.astimezone(settings.REPORTING_ZONE).strftime(form)


def local(at: datetime | None) -> SafeString:
    """A time in the reporting zone; the exact one, in UTC, on hover and for programs."""
    return _time(at, local_text(at))


def ago(at: datetime | None, now: datetime | None = None) -> SafeString:
    return _time(at, relative(at, now or datetime.now(UTC)))


def _time(at: datetime | None, text: str) -> SafeString:
    if at is None:
        return SafeString(NONE)
    exact = at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return format_html('<time datetime="{0}" title="{0}">{1}</time>', exact, text)

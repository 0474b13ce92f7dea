"""What a key used, day by day, as a CSV file: counts alone, from the roll-ups, so also of deleted sessions."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import datetime, timedelta

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.utils import timezone

from qwenproxy.access import staff
from qwenproxy.access.models import ApiKey
from qwenproxy.access.staff import EXPORTED, VIEW_KEYS, gateway_view
from requests_app.figures import Point, Reader
from requests_app.models import Request
from requests_app.windows import Window

# Some eight years, which is what one reading gives.
_MAX_DAYS = 2990
_COLUMNS = (
    "day",
    "requests",
    "errors",
    "cancelled",
    "prompt_tokens",
    "completion_tokens",
    "is_over",
)


@gateway_view(VIEW_KEYS)
def export_usage(request: HttpRequest, key_id: int) -> HttpResponse:
    """One row for each day of the reporting zone since the key was made, oldest first."""
    api_key = get_object_or_404(ApiKey, pk=key_id)
    now = timezone.now()
    rows = list(_rows(api_key, now))
    staff.audit(request, EXPORTED, api_key, format="csv", rows=len(rows))
    name = f"usage-key-{key_id}-{now.astimezone(settings.REPORTING_ZONE):%Y%m%d}.csv"
    answer = HttpResponse(
        content_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )
    csv.writer(answer).writerows([_COLUMNS, *rows])
    return answer


def _rows(api_key: ApiKey, now: datetime) -> Iterator[tuple[str | int, ...]]:
    first = max(_first_at(api_key), now - timedelta(days=_MAX_DAYS))
    midnight = first.astimezone(settings.REPORTING_ZONE).replace(
        hour=0, minute=0, second=0, microsecond=0
    )
    reader = Reader(now, api_key_id=api_key.pk)
    for point in reader.series(Window.between(midnight, now), "day", settings.REPORTING_ZONE):
        yield _row(point, reader)


def _first_at(api_key: ApiKey) -> datetime:
    """When the key was made; or of its first request, where records are older."""
    oldest = Request.objects.filter(api_key=api_key).order_by("created_at", "id")
    at = oldest.values_list("created_at", flat=True).first()
    return api_key.created_at if at is None else min(at, api_key.created_at)


def _row(point: Point, reader: Reader) -> tuple[str | int, ...]:
    counts = point.counts
    # Figures of a day that is not over, or that statistics do not know all of, still grow.
    is_over = point.is_complete and point.end <= reader.as_of
    return (
        point.start.astimezone(settings.REPORTING_ZONE).date().isoformat(),
        counts.requests,
        counts.errors,
        counts.cancelled,
        counts.prompt_tokens,
        counts.completion_tokens,
        "yes" if is_over else "no",
    )

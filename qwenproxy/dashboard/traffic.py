"""What keys and accounts did of late, read for their pages: sums from the roll-ups, last use from the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from django.conf import settings
from django.db.models import OuterRef, Subquery
from django.utils import timezone

from qwenproxy.access.models import ApiKey
from qwenproxy.access.traffic import Ended, Group, Span, Traffic
from requests_app.figures import RANGES, Reader
from requests_app.models import Request
from requests_app.windows import Window


def read_traffic(group: Group, ids: Sequence[int], spans: Sequence[Span]) -> Traffic:
    """Figures of these keys or accounts; blocks."""
    now = timezone.now()
    reader = Reader(now)
    sums = {span: _sums(reader, group, ids, _window(span, now)) for span in spans}
    last_at = _last_at(ids) if group == "key" else {}
    return Traffic(sums, last_at, reader.as_of if reader.is_behind else None)


def _window(span: Span, now: datetime) -> Window:
    if span != "today":
        return Window.last(RANGES[span], now)
    midnight = now.astimezone(settings.REPORTING_ZONE).replace(
        hour=0, minute=0, second=0, microsecond=0
    )
    return Window.between(midnight, now)


def _sums(reader: Reader, group: Group, ids: Sequence[int], window: Window) -> Mapping[int, Ended]:
    found = reader.groups(window, group)
    return {
        pk: Ended(counts.requests, counts.errors, counts.prompt_tokens, counts.completion_tokens)
        for pk in ids
        if (counts := found.get(str(pk))) is not None
    }


def _last_at(ids: Sequence[int]) -> dict[int, datetime]:
    """When each key was used last: one seek of its index each, in one query."""
    newest = Request.objects.filter(api_key=OuterRef("pk")).order_by("-created_at", "-id")
    rows = ApiKey.objects.filter(pk__in=ids).annotate(
        last_at=Subquery(newest.values("created_at")[:1])
    )
    return {pk: at for pk, at in rows.values_list("pk", "last_at") if at is not None}

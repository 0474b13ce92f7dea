"""Sums over responses, for REST: of one session, of what a key may see, or of everything."""

from __future__ import annotations

from django.db.models import Avg, Count, QuerySet, Sum

from qwenproxy.wire.json import JSONObject
from requests_app.models import Response


def usage_totals(responses: QuerySet[Response]) -> JSONObject:
    """Count responses and add up their tokens; all integers, 0 where there is nothing.

    The average is over the answers that have a duration: running ones have none yet.
    """
    sums = responses.aggregate(
        total_responses=Count("id"),
        total_completion_tokens=Sum("completion_tokens"),
        total_prompt_tokens=Sum("prompt_tokens"),
        total_tokens=Sum("total_tokens"),
        avg_duration_ms=Avg("duration_ms"),
    )
    return {name: round(value or 0) for name, value in sums.items()}

"""What limited keys have used of their limits by now, as `KeyUsage` counts it; reads only.

The recorder counts (`requests_app.usage`), in the slots that `KeyUsage` describes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

from django.db.models import Q, Sum
from django.utils import timezone

from qwenproxy.access.key_fields import describe
from qwenproxy.access.models import ApiKey, KeyUsage
from qwenproxy.wire.json import JSONObject

_SLOT = timedelta(milliseconds=250)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def describe_keys(api_keys: Sequence[ApiKey]) -> list[JSONObject]:
    """The keys with their usage (null: not counted), as REST and `listapikeys --json` show them."""
    usage = read_usage(api_keys, timezone.now())
    return [{**describe(api_key), "usage": usage.get(api_key.pk)} for api_key in api_keys]


def read_usage(api_keys: Iterable[ApiKey], now: datetime) -> dict[int, JSONObject]:
    """What each limited key has used, by its id; keys without limits are not counted, and not in it.

    Tokens are those of ended turns and what running ones have reserved. One query.
    """
    usage = {api_key.pk: _nothing(api_key) for api_key in api_keys if api_key.limits is not None}
    if not usage:
        return {}
    counted = (
        KeyUsage.objects.filter(_current(now), api_key__in=usage)
        .values_list("api_key_id", "span")
        .annotate(Sum("requests"), Sum("tokens"))
        .order_by()
    )
    for api_key_id, span, requests, tokens in counted:
        if span == "live":
            usage[api_key_id]["running"] = requests
        elif usage[api_key_id][span] is not None:
            usage[api_key_id][span] = {"requests": requests, "tokens": tokens}
    return usage


def _nothing(api_key: ApiKey) -> JSONObject:
    none: JSONObject = {"requests": 0, "tokens": 0}
    # Minutes are counted where a limit asks for it.
    has_minute = (api_key.requests_per_minute, api_key.tokens_per_minute) != (None, None)
    return {"minute": none if has_minute else None, "day": none, "month": none, "running": 0}


def _current(now: datetime) -> Q:
    slot = (now - _EPOCH) // _SLOT
    return (
        # The oldest slot is counted whole: it began a minute ago, or up to a slot before.
        Q(span="minute", slot__gte=slot - timedelta(minutes=1) // _SLOT)
        | Q(span="day", slot=(now - _EPOCH).days)
        | Q(span="month", slot=now.year * 12 + now.month - 1)
        | Q(span="live")
    )

"""Which requests a list, an export or a link means: the filters of requests, and the order they ask for.

Filters by what the answer tells (status, duration, error) go by the answer's own time, whose indexes hold
them; the others by the request's. With `by=ended` all go by when the answer ended, as statistics count.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from django.db.models import Q
from django.http import QueryDict
from django.utils import timezone

from requests_app import figures
from requests_app.models import Response
from requests_app.rollups import ERRORS, Dimension
from requests_app.windows import Window, slot_of, slot_start
from sessions_app.chips import (
    MAX_CHOICES,
    NOTHING,
    Chips,
    Filter,
    Menu,
    key_filter,
    named_menu,
    row_id,
)
from sessions_app.paging import Sort

DEFAULT_SPAN = "24h"
_OF_RESPONSE = ("status", "slower", "error")
# Failed or interrupted: what statistics call an error.
ANY_ERROR = "errors"
_STATUSES = {name: name.replace("_", " ") for name, _ in Response.STATUSES} | {
    ANY_ERROR: "failed or interrupted"
}
BY, ENDED = "by", "ended"
# Filters by what statistics know; keys and accounts as links name them, by their ids.
_DIMENSIONS: Mapping[str, Dimension] = {
    "model": "model",
    "key": "key",
    "account": "account",
    "error": "error",
}
_SECONDS = {"5": "over 5 s", "15": "over 15 s", "60": "over 60 s"}
_STREAMED = {"1": "streamed", "0": "whole"}
_PATHS = ("/v1/chat/completions", "/v1/completions")
# The models used in the last 30 days, most used first: days of UTC, and quarters of an hour of the last day,
# which is not added up yet.
_USED_MODELS = """
SELECT ref, ref, ROW_NUMBER() OVER (ORDER BY used DESC, ref) FROM (
    SELECT ref, SUM(n) AS used FROM requests_app_usageslot
    WHERE (dim = 'dmodel' AND slot >= %s) OR (dim = 'model' AND slot >= %s)
    GROUP BY ref ORDER BY 2 DESC, ref LIMIT %s
) models
"""


def read_chips(query: QueryDict) -> Chips:
    return Chips(query, request_filters(), DEFAULT_SPAN)


def sort_of(query: QueryDict) -> Sort:
    """The order, newest first, that an index holds together with the filters."""
    if query.get(BY) == ENDED:
        return Sort("response__completed_at", "response__id")
    if query.get("session"):
        return Sort(None)
    if any(query.get(name) for name in _OF_RESPONSE):
        return Sort("response__created_at", "response__id")
    return Sort("created_at")


def time_column(query: QueryDict) -> str:
    return sort_of(query).value or "created_at"


def model_filter(*, condition_path: str = "model", is_indexed: bool = True) -> Filter:
    return Filter(
        "model",
        "Model",
        Menu(_USED_MODELS, _used_lately),
        lambda value: Q((condition_path, value)),
        is_indexed=is_indexed,
        placeholder="Name of a model",
    )


def request_filters() -> list[Filter]:
    return [
        Filter(
            "status",
            "Status",
            lambda value: _STATUSES.items(),
            _of_status,
            is_indexed=True,
        ),
        model_filter(),
        key_filter(),
        Filter(
            "account",
            "Account",
            named_menu("access_upstreamaccount"),
            _of_account,
            placeholder="Name of an account",
        ),
        Filter("stream", "Stream", lambda value: _STREAMED.items(), _streamed),
        Filter("slower", "Duration", lambda value: _SECONDS.items(), _slower),
        Filter(
            "path", "Endpoint", lambda value: zip(_PATHS, _PATHS, strict=True), lambda v: Q(path=v)
        ),
        Filter("error", "Error", lambda value: (), error_condition, is_only_linked=True),
        Filter(
            BY,
            "Time of",
            lambda value: ((ENDED, "the end"),),
            _by,
            is_indexed=True,
            is_only_linked=True,
        ),
        Filter(
            "session",
            "Session",
            lambda value: ((value, value[:8]),),
            lambda value: Q(session=value),
            is_indexed=True,
            is_only_linked=True,
            is_narrow=True,
        ),
    ]


def count_deleted(chips: Chips) -> int | None:
    """Requests of a list that were in sessions deleted since; null: statistics do not know such a list.

    They are known by when they ended and by one dimension, with the status.
    """
    filters = {name: value for name, value in chips.values.items() if name != BY}
    status = filters.pop("status", "")
    if chips.search or len(filters) > 1 or filters.keys() - _DIMENSIONS.keys():
        return None
    dim: Dimension = "total"
    ref = ""
    for name, value in filters.items():
        dim, ref = _DIMENSIONS[name], value
    window = chips.window
    slots = None
    if window.start is not None or window.end is not None:
        start, end = window.start or slot_start(0), window.end or chips.now
        slots = Window(slot_of(start), slot_of(end) + 1)
    statuses = ERRORS if status == ANY_ERROR else (status,) if status else ()
    if "\0" in ref + status:
        return None
    return figures.count_deleted(dim, ref, statuses, slots)


def error_condition(code: str) -> Q:
    """Requests that ended in an error of this code, as the statistics name it."""
    return Q(response__error_code=code) | Q(response__error_code=None, response__error_type=code)


def _of_status(value: str) -> Q:
    return Q(response__status__in=ERRORS) if value == ANY_ERROR else Q(response__status=value)


def _by(value: str) -> Q:
    # Said again for the index, which holds no others.
    return Q(response__completed_at__isnull=False) if value == ENDED else NOTHING


def _streamed(value: str) -> Q:
    return Q(stream=value == "1") if value in _STREAMED else NOTHING


def _slower(value: str) -> Q:
    return Q(response__duration_ms__gt=int(value) * 1000) if value in _SECONDS else NOTHING


def _of_account(value: str) -> Q:
    pk = row_id(value)
    return Q(account__name=value) if pk is None else Q(account=pk)


def _used_lately(value: str) -> list[int]:
    now = timezone.now()
    return [*(slot_of(now - timedelta(days=days)) for days in (30, 1)), MAX_CHOICES]

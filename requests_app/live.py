"""The live tail: requests as they come and as they end, for a page that asks every two seconds.

The cursor is the id that was newest a while ago, as the page remembers it: ids are given when a request is
recorded, so no clock is trusted, and whoever commits late is still found. What comes twice has the same id.
Running requests that the page knows are read again by their ids. Nothing that was said is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.db.models import Q
from django.http import HttpRequest, HttpResponse, JsonResponse, QueryDict
from django.template.response import TemplateResponse
from django.urls import reverse

from qwenproxy import display
from qwenproxy.access.models import ApiKey
from qwenproxy.access.staff import VIEW_REQUESTS, gateway_view
from requests_app.figures import Reader
from requests_app.models import Request, Response
from requests_app.windows import Window

MAX_ROWS = 200
FIRST_ROWS = 50
# A filter that hardly matches looks at no more requests than these, newest first.
_SEARCHED = 10_000
_INTERVAL_MS = 2_000
# Beside the recorder's deadline: what was stamped may take so long until it is committed.
_LATE_S = 5
_MODELS_OF = timedelta(hours=24)
_MAX_KEYS = 500
# In the place of an id in addresses.
_ANY = "ID"

_ID = re.compile("[0-9]{1,18}")
_STATUSES = tuple(name for name, _ in Response.STATUSES)
_COLUMNS = (
    "pk",
    "request_id",
    "session_id",
    "api_key__name",
    "model",
    "created_at",
    "response__status",
    "response__error_code",
    "response__ttft_ms",
    "response__duration_ms",
    "response__prompt_tokens",
    "response__completion_tokens",
)


@dataclass(frozen=True, slots=True)
class Filter:
    """As in the list of requests; what cannot be meant filters nothing."""

    status: str = ""
    key: int | None = None
    model: str = ""

    @classmethod
    def read(cls, query: QueryDict) -> Filter:
        status = query.get("status", "")
        key = query.get("key", "")
        return cls(
            status if status in _STATUSES else "",
            int(key) if _ID.fullmatch(key) else None,
            # PostgreSQL cannot even be asked for a NUL.
            query.get("model", "").strip().replace("\0", "\ufffd"),
        )

    @property
    def condition(self) -> Q:
        found = Q()
        if self.status:
            # What runs may still end so: the page waits for it without showing it.
            found &= Q(response__status__in={self.status, "in_progress"})
        if self.key is not None:
            found &= Q(api_key=self.key)
        if self.model:
            found &= Q(model=self.model)
        return found

    def params(self) -> dict[str, str]:
        values = {"status": self.status, "key": self.key, "model": self.model}
        return {name: str(value) for name, value in values.items() if value not in ("", None)}


@gateway_view(VIEW_REQUESTS)
def live(request: HttpRequest) -> HttpResponse:
    """The page; it asks `live_rows` for what it shows."""
    chosen = Filter.read(request.GET)
    now = datetime.now(UTC)
    models = Reader(now).groups(Window.last(_MODELS_OF, now), "model")
    keys = ApiKey.objects.filter(revoked_at=None).order_by("name", "pk").values_list("pk", "name")
    context = {
        **admin.site.each_context(request),
        "title": "Live tail",
        "filter": chosen,
        "statuses": [(name, name.replace("_", " ")) for name in _STATUSES],
        "keys": list(keys[:_MAX_KEYS]),
        "models": sorted(models),
        "config": {
            "url": reverse("admin:live_rows"),
            # Filled in by the page: a reverse for each row would cost most of a tick.
            "request": reverse("admin:requests_app_request_change", args=[_ANY]),
            "session": reverse("admin:sessions_app_session_change", args=[_ANY]),
            "any": _ANY,
            "login": f"{reverse('admin:login')}?next={reverse('admin:live')}",
            "params": chosen.params(),
            "interval_ms": _INTERVAL_MS,
            "overlap_ms": round((settings.RECORDER_DEADLINE_S + _LATE_S) * 1000),
            "max_rows": MAX_ROWS,
        },
    }
    return TemplateResponse(request, "admin/live.html", context)


@gateway_view(VIEW_REQUESTS)
def live_rows(request: HttpRequest) -> HttpResponse:
    """What came after the id `after`, and how the requests with the ids `ids` stand now.

    Without `after`, the newest. `newest` is the id to count from later. Of what matches, everything is there
    from the id `complete_from` on.
    """
    after = _read_ids(request.GET.get("after", ""))
    watched = _read_ids(request.GET.get("ids", ""))
    newest = Request.objects.order_by("-pk").values_list("pk", flat=True).first() or 0
    border = max(after[0] if after else 0, newest - _SEARCHED)
    size = MAX_ROWS if after else FIRST_ROWS
    condition = Filter.read(request.GET).condition & Q(pk__gt=border)
    rows = _read(condition, size + 1)
    found = rows[:size]
    complete_from = found[-1]["pk"] if len(rows) > size else border
    if missing := set(watched) - {row["pk"] for row in found}:
        found += _read(Q(pk__in=missing), MAX_ROWS)
    now = datetime.now(UTC)
    return JsonResponse(
        {
            "rows": [_row(row, now) for row in found],
            "newest": newest,
            "complete_from": complete_from,
        }
    )


def _read_ids(text: str) -> list[int]:
    return [int(part) for part in text.split(",", MAX_ROWS)[:MAX_ROWS] if _ID.fullmatch(part)]


def _read(condition: Q, size: int) -> list[dict[str, Any]]:
    return list(Request.objects.filter(condition).order_by("-pk").values(*_COLUMNS)[:size])


def _row(row: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    created_at: datetime = row["created_at"]
    is_running = row["response__status"] == "in_progress"
    total_ms = (
        max((now - created_at).total_seconds() * 1000, 0)
        if is_running
        else row["response__duration_ms"]
    )
    exact = created_at.astimezone(UTC).isoformat(timespec="milliseconds")
    day, today = (display.local_text(moment, "%Y-%m-%d") for moment in (created_at, now))
    return {
        "id": row["pk"],
        "time": display.local_text(created_at, "%H:%M:%S" if day == today else "%m-%d %H:%M"),
        "full": display.local_text(created_at),
        "exact": exact.replace("+00:00", "Z"),
        "request": row["request_id"][:12],
        "session": row["session_id"],
        "key": row["api_key__name"],
        "model": row["model"],
        "status": row["response__status"],
        "error": row["response__error_code"] or "",
        "first_token": display.duration(row["response__ttft_ms"]),
        "total": display.duration(total_ms),
        "tokens_in": display.number(row["response__prompt_tokens"]),
        "tokens_out": display.number(row["response__completion_tokens"]),
    }

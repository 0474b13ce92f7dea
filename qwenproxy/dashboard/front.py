"""Puts the first page together: banners, then the checklist of a new gateway or the Overview."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import connection
from django.http import HttpRequest
from django.urls import reverse

from qwenproxy.access import staff
from qwenproxy.access.models import UpstreamAccount
from qwenproxy.dashboard.checklist import curl_line, has_traffic, read_steps
from qwenproxy.dashboard.overview import account_banners, read_overview
from qwenproxy.proxy.discovery import Found, found
from requests_app.recorder import Recorder

_COLUMNS = {
    "models": ("Requests", "Tokens", "Errors", "p95"),
    "errors": ("Requests",),
    "keys": ("Requests", "Tokens", "Errors"),
}
_LITTLE_DISK = 0.05


def front_context(request: HttpRequest) -> dict[str, Any]:
    """The context of the page, for a database whose migrations are all applied; blocks."""
    now = datetime.now(UTC)
    may = request.user.has_perm
    accounts = (
        list(UpstreamAccount.objects.defer("secrets", "state_reason"))
        if may(staff.VIEW_ACCOUNTS)
        else []
    )
    context: dict[str, Any] = {
        "banners": _banners(request, accounts, now),
        "discovered": discovered_upstreams() if may("access.add_upstreamaccount") else [],
    }
    overview = read_overview(request, now, accounts)
    if overview.is_empty and not has_traffic():
        return {**context, "steps": read_steps(request), "curl": curl_line(request)}
    return {
        **context,
        "overview": overview,
        "columns": _COLUMNS,
        "database": connection.display_name,
        "recorder": _recorder(request),
        "may_see_requests": may(staff.VIEW_REQUESTS),
        "may_see_keys": may(staff.VIEW_KEYS),
        "may_see_accounts": may(staff.VIEW_ACCOUNTS),
    }


def _banners(
    request: HttpRequest, accounts: Sequence[UpstreamAccount], now: datetime
) -> list[dict[str, str]]:
    health = reverse("admin:health") if request.user.has_perm(staff.VIEW_HEALTH) else ""
    url = reverse("admin:access_upstreamaccount_changelist")
    banners = [_banner("warning", text, url) for text in account_banners(accounts, now)]
    recorder = _recorder(request)
    banners += [_banner("error", text, health) for text in _recorder_banners(recorder)]
    data = Path(settings.DATA_DIR)
    if data.exists():
        disk = shutil.disk_usage(data)
        if disk.total and disk.free / disk.total < _LITTLE_DISK:
            text = f"Little disk is left: {disk.free / disk.total * 100:.1f} %."
            banners.append(_banner("error", text, health))
    if settings.DEBUG:
        text = "QWENPROXY_DEBUG is on: errors show their details to whoever meets them."
        banners.append(_banner("warning", text, health))
    return sorted(banners, key=lambda banner: banner["level"] != "error")


def _recorder(request: HttpRequest) -> Recorder | None:
    """Of this process; a test's request comes without a server."""
    gateway = getattr(request, "scope", {}).get("gateway")
    return None if gateway is None else gateway.recorder


def _recorder_banners(recorder: Recorder | None) -> list[str]:
    if recorder is None:
        return []
    banners = []
    if not recorder.is_working:
        banners.append("The recorder has stopped: requests are refused. Start the gateway again.")
    if recorder.owed:
        answers = f"{recorder.owed:,} answer{'' if recorder.owed == 1 else 's'}"
        banners.append(f"The database is busy or away: the ends of {answers} wait to be written.")
    if recorder.queued >= settings.RECORDER_QUEUE_TURNS // 2:
        banners.append(f"The recorder is behind: {recorder.queued:,} writes wait.")
    return banners


def _banner(level: str, text: str, url: str) -> dict[str, str]:
    return {"level": level, "text": text, "url": url}


def discovered_upstreams() -> Sequence[Found]:
    """Servers found on this machine that no account uses yet."""
    offers = found()
    if not offers:
        return []
    used = {url.rstrip("/") for url in UpstreamAccount.objects.values_list("base_url", flat=True)}
    return [offer for offer in offers if offer.base_url.rstrip("/") not in used]

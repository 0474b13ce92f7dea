"""What a new gateway needs until its first answer is recorded; each step ticks itself when it is done."""

from __future__ import annotations

from dataclasses import dataclass

from django.conf import settings
from django.http import HttpRequest
from django.urls import reverse

from qwenproxy.access import staff
from qwenproxy.access.models import ApiKey, UpstreamAccount
from requests_app.models import Request
from requests_app.rollups import rolled_to

_DEMO = "demo"


@dataclass(frozen=True, slots=True)
class Step:
    title: str
    is_done: bool
    text: str
    # Where it is done, if this user may.
    url: str = ""
    action: str = ""


def has_traffic() -> bool:
    """Whether anything was ever asked: what was deleted since is still in the roll-ups."""
    return Request.objects.exists() or rolled_to() is not None


def read_steps(request: HttpRequest) -> list[Step]:
    """The steps in their order; to be asked only where all migrations are applied."""
    kinds = set(UpstreamAccount.objects.values_list("kind", flat=True))
    has_key = ApiKey.objects.filter(revoked_at=None).exists()
    may = request.user.has_perm
    return [
        Step("Database", True, "It answers, and keeps all that follows."),
        Step(
            "Migrations",
            True,
            "Its schema is the one of this version.",
            reverse("admin:migrations"),
            "Show the migrations",
        ),
        _account_step(kinds, may_add=may("access.add_upstreamaccount")),
        Step(
            "API key",
            has_key,
            "Clients send it; the first start printed one."
            if has_key
            else "Clients send it; it is shown once, when it is made.",
            reverse("admin:access_apikey_add") if may("access.add_apikey") else "",
            "Make another" if has_key else "Make an API key",
        ),
        Step(
            "First prompt",
            False,
            "Send one from here, or from a terminal:",
            reverse("admin:playground") if may(staff.USE_PLAYGROUND) else "",
            "Open the playground",
        ),
    ]


def _account_step(kinds: set[str], *, may_add: bool) -> Step:
    url = reverse("admin:access_upstreamaccount_add") if may_add else ""
    if kinds - {_DEMO}:
        return Step("Upstream account", True, "Qwen is asked with its credentials.")
    if kinds:
        text = "Only the built-in imitation answers so far: good for a try, it is no Qwen."
        return Step("Upstream account", True, text, url, "Add a real one")
    return Step(
        "Upstream account",
        False,
        "Who serves Qwen: a server, DashScope or chat.qwen.ai.",
        url,
        "Add",
    )


def curl_line(request: HttpRequest) -> str:
    """A first prompt for a terminal; the key is a variable of the shell."""
    address = settings.PUBLIC_URL or request.build_absolute_uri("/").rstrip("/")
    return (
        f"curl {address}/v1/chat/completions \\\n"
        '  -H "Authorization: Bearer $QWENPROXY_KEY" \\\n'
        "  -H 'Content-Type: application/json' \\\n"
        """  -d '{"messages":[{"role":"user","content":"Hello!"}]}'"""
    )

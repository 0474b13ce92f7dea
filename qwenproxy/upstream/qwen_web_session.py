"""The life of a web session: whether the site still knows it, and its renewal by the site's own means.

A session belongs to the person who copied it. Renewing it is what their browser does: its refresh token
is shown to the site, which gives new tokens or does not. Nobody signs in here, and a challenge is an end.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from qwenproxy.errors import UpstreamChatGone, UpstreamError, UpstreamProtocolError
from qwenproxy.upstream.qwen_web import QwenWeb
from qwenproxy.wire import json

# Host -> the host of the same site that renews its sessions; any other server does both.
_AUTH_HOSTS = {"chat.qwen.ai": "auth.qwen.ai"}
# What a cookie can hold.
_TOKEN = re.compile(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]{1,8192}")


async def is_signed_in(web: QwenWeb) -> bool | None:
    """Ask the site for the session's user; null: it does not tell.

    Raises:
        UpstreamAuthExpired: the site does not know the session.
        UpstreamError: the others of its family.
    """
    try:
        body = await web.ask("GET", "/api/v1/auths/")
    except UpstreamError as exc:
        # The path is gone, or a page answers there: the site was changed.
        is_gone = type(exc) is UpstreamError and exc.upstream_status in (404, 405)
        if is_gone or isinstance(exc, UpstreamChatGone | UpstreamProtocolError):
            return None
        raise
    # The answer names a person: no more of it is read than that it does.
    return bool(_members(body).get("id")) or None


async def renew(web: QwenWeb) -> dict[str, str]:
    """Renew the session; gives the cookies that replace the former ones.

    Raises:
        UpstreamAuthExpired: the site refuses.
        UpstreamError: the others of its family.
    """
    base_url = web.base_url
    body = await web.ask(
        "GET",
        "/api/v2/auths/refresh",
        base_url=auth_base_url(base_url),
        extra={"x-request-origin": base_url},
    )
    data = _members(body).get("data")
    cookies = {}
    for name, member in (("token", "access_token"), ("refresh_token", "refresh_token")):
        token = data.get(member) if isinstance(data, dict) else None
        if isinstance(token, str) and _TOKEN.fullmatch(token):
            cookies[name] = token
    if "token" not in cookies:
        raise UpstreamProtocolError(
            f"Upstream account {web.account.name} answered the renewal of its session without a token."
        )
    return cookies


def auth_base_url(base_url: str) -> str:
    """The host that renews sessions of this one: never one of another site."""
    parts = urlsplit(base_url)
    host = _AUTH_HOSTS.get(parts.netloc.lower())
    return f"{parts.scheme}://{host}" if host else base_url


def _members(body: bytes) -> json.JSONObject:
    try:
        parsed = json.loads(body)
    except json.JSONError:
        return {}
    return parsed if isinstance(parsed, dict) else {}

"""What the tokens of a web session say of themselves, and a cookie header with some of them replaced.

Claims are read without checking the signature: they are shown and tell when to renew, and nothing is
allowed because of them. Whatever else stands where a token should be is taken for one without claims.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TypeAlias

from qwenproxy.wire import json

Secrets: TypeAlias = Mapping[str, str | dict[str, str]]

ACCESS_COOKIE = "token"
REFRESH_COOKIE = "refresh_token"
_BEARER = "bearer "
# Beyond it the claim is no date that anyone meant.
_LAST_YEAR = 3000


def access_token(secrets: Secrets) -> str:
    """The session's token: the cookie `token`, else the bearer of the pasted headers; empty: none."""
    cookie = read_cookie(_cookies(secrets), ACCESS_COOKIE)
    if cookie:
        return cookie
    headers = secrets.get("headers")
    for name, value in (headers if isinstance(headers, dict) else {}).items():
        if name.lower() == "authorization" and value.lower().startswith(_BEARER):
            return value[len(_BEARER) :].strip()
    return ""


def refresh_token(secrets: Secrets) -> str:
    """The cookie with which the site renews the session; empty: it cannot be renewed."""
    return read_cookie(_cookies(secrets), REFRESH_COOKIE)


def session_expiry(secrets: Secrets) -> datetime | None:
    """When the session ends unless its owner signs in again; null where it does not say."""
    # Of a session that can be renewed the token lives for minutes, and says nothing of the session.
    return read_expiry(refresh_token(secrets) or access_token(secrets))


def read_expiry(token: str) -> datetime | None:
    """The claim `exp` of a JWT; null where it makes none."""
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        expires = claims.get("exp") if isinstance(claims, dict) else None
        if isinstance(expires, bool) or not isinstance(expires, int | float):
            return None
        expiry = datetime.fromtimestamp(expires, UTC)
    except (binascii.Error, ValueError, OverflowError, OSError):
        return None
    return expiry if expiry.year < _LAST_YEAR else None


def renewed(secrets: Secrets, cookies: Mapping[str, str]) -> dict[str, str | dict[str, str]]:
    """The secrets with these cookies in their jar, and the new token also where a header held the old."""
    changed = dict(secrets)
    jar = _cookies(secrets)
    for name, value in cookies.items():
        jar = _with_cookie(jar, name, value)
    changed["cookies"] = jar
    headers, token = secrets.get("headers"), cookies.get(ACCESS_COOKIE)
    if isinstance(headers, dict) and token:
        changed["headers"] = {
            name: f"Bearer {token}" if name.lower() == "authorization" else value
            for name, value in headers.items()
        }
    return changed


def read_cookie(cookies: str, name: str) -> str:
    for cookie in cookies.split(";"):
        found, _, value = cookie.strip().partition("=")
        if found == name:
            return value
    return ""


def _cookies(secrets: Secrets) -> str:
    cookies = secrets.get("cookies")
    return cookies if isinstance(cookies, str) else ""


def _with_cookie(cookies: str, name: str, value: str) -> str:
    jar = [cookie.strip() for cookie in cookies.split(";") if cookie.strip()]
    written = f"{name}={value}"
    if read_cookie(cookies, name):
        # The order and the other cookies stay as the browser had them.
        jar = [written if cookie.partition("=")[0] == name else cookie for cookie in jar]
    else:
        jar.append(written)
    return "; ".join(jar)

"""Signing in to the admin: after failures one has to wait (`sign_in_waits`).

While one waits no password is looked at, a right one neither, and tries are not counted. Names that do not
exist are counted like others, so that waiting tells nothing of them.
"""

from __future__ import annotations

import logging
import math
from ipaddress import ip_address, ip_network
from typing import Any

from django.conf import settings
from django.contrib.admin.forms import AdminAuthenticationForm
from django.core.exceptions import ValidationError
from django.http import HttpRequest

from qwenproxy.access.sign_in_waits import Throttle

logger = logging.getLogger(__name__)
throttle = Throttle()


class SignInForm(AdminAuthenticationForm):
    """Django's form; `wait_s` are the seconds to wait where it was refused unread."""

    wait_s = 0

    def clean(self) -> dict[str, Any]:
        name, password = self.cleaned_data.get("username"), self.cleaned_data.get("password")
        if not name or not password or self.request is None:
            return super().clean()
        address = client_address(self.request)
        wait_s = throttle.begin(address, name)
        if wait_s:
            self.wait_s = math.ceil(wait_s)
            logger.warning(
                "sign-in of %s from %s not tried: wait %d s", _shown(name), address, self.wait_s
            )
            raise ValidationError(
                f"Too many tries. Wait {self.wait_s} seconds, then try again.", code="throttled"
            )
        try:
            cleaned = super().clean()
        except ValidationError:
            logger.warning("sign-in of %s from %s failed", _shown(name), address)
            raise
        throttle.succeed(address, name)
        return cleaned


def client_address(request: HttpRequest) -> str:
    """Where the request comes from; an IPv6 network of a customer (/64) counts as one address.

    `X-Forwarded-For` is read from its end for as long as who wrote it is one of QWENPROXY_TRUSTED_PROXIES.
    """
    address = str(request.META.get("REMOTE_ADDR") or "")
    forwarded = str(request.META.get("HTTP_X_FORWARDED_FOR", "")).split(",")
    while forwarded and _is_trusted(address) and (nearer := forwarded.pop().strip()):
        address = nearer
    try:
        found = ip_address(address)
    except ValueError:
        return address[:64]
    if found.version == 6 and found.ipv4_mapped is None:
        return str(ip_network((found, 64), strict=False))
    return str(found)


def _is_trusted(address: str) -> bool:
    try:
        found = ip_address(address)
    except ValueError:
        return False
    return any(found in network for network in settings.TRUSTED_PROXIES)


def _shown(name: str) -> str:
    """One line of the log, whatever was typed."""
    return ascii(name[:64])

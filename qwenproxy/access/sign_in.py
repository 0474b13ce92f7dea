"""Signing in to the admin: after failures one has to wait, by address and by name, longer each time.

`FREE_TRIES` failures cost nothing, each further one doubles the wait, up to `MAX_WAIT_S`: nobody is locked
out for long. While one waits no password is looked at, a right one neither, and tries are not counted. An
address from which a name has signed in does not wait for what others do to that name. Names that do not
exist are counted like others, so that waiting tells nothing of them.

It is kept in this process's memory: a restart forgets it, and each of several processes counts for itself.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address, ip_network
from typing import Any

from django.conf import settings
from django.contrib.admin.forms import AdminAuthenticationForm
from django.core.exceptions import ValidationError
from django.http import HttpRequest

logger = logging.getLogger(__name__)

FREE_TRIES = 5
MAX_WAIT_S = 60.0
# After so long without a failure it is forgotten.
FORGET_S = 3600.0
MAX_REMEMBERED = 10_000


@dataclass(slots=True)
class _Failures:
    count: int
    # time.monotonic() of the last.
    at_s: float

    def wait_s(self, now_s: float) -> float:
        over = self.count - FREE_TRIES
        # The exponent is bounded before the power is taken.
        wait_s = min(MAX_WAIT_S, 2.0 ** min(over, 10)) if over >= 0 else 0.0
        return max(0.0, self.at_s + wait_s - now_s)


class Throttle:
    """Counts failures. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # The longest unchanged first.
        self._failures: OrderedDict[str, _Failures] = OrderedDict()
        # Address and name of those who have signed in.
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()

    def begin(self, address: str, name: str) -> float:
        """Seconds to wait; 0 where the password may be looked at, which then counts as a failure.

        Counted before it is known to be one: of many tries at once none may pass uncounted.
        """
        now_s = time.monotonic()
        with self._lock:
            subjects = self._subjects(address, name)
            wait_s = max(self._get(subject, now_s).wait_s(now_s) for subject in subjects)
            if wait_s == 0:
                for subject in subjects:
                    self._failures[subject] = _Failures(self._get(subject, now_s).count + 1, now_s)
                    self._failures.move_to_end(subject)
                while len(self._failures) > MAX_REMEMBERED:
                    self._failures.popitem(last=False)
            return wait_s

    def succeed(self, address: str, name: str) -> None:
        """Forget the failures: the password was right."""
        with self._lock:
            for subject in self._subjects(address, name):
                self._failures.pop(subject, None)
            self._known[(address, _digest(name))] = None
            while len(self._known) > MAX_REMEMBERED:
                self._known.popitem(last=False)

    def forget(self) -> None:
        """Begin anew."""
        with self._lock:
            self._failures.clear()
            self._known.clear()

    def _subjects(self, address: str, name: str) -> tuple[str, ...]:
        digest = _digest(name)
        if (address, digest) in self._known:
            return (address,)
        return (address, digest)

    def _get(self, subject: str, now_s: float) -> _Failures:
        found = self._failures.get(subject)
        return found if found is not None and now_s < found.at_s + FORGET_S else _Failures(0, now_s)


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


def _digest(name: str) -> str:
    return sha256(name.casefold().encode("utf-8", "replace")).hexdigest()


def _shown(name: str) -> str:
    """One line of the log, whatever was typed."""
    return ascii(name[:64])

"""How long somebody who failed to sign in has to wait: counted by address and by name, in the database.

`FREE_TRIES` failures cost nothing, each further one doubles the wait, up to `MAX_WAIT_S`: nobody is locked
out for long. An address from which a name has signed in does not wait for what others do to that name.
All processes on one database count together, and a restart forgets nothing.

Counts are rows of the table of sessions, as the notes of `once` are: they expire, and go with old sessions. Their
keys are longer than those of sessions, and made with the secret key: no cookie can name one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.db import transaction
from django.utils import timezone
from django.utils.crypto import salted_hmac

FREE_TRIES = 5
MAX_WAIT_S = 60.0
# After so long without a failure it is forgotten.
FORGET_S = 3600.0
# Where a name has signed in from, after its last time.
KNOWN_S = 30 * 86_400.0
MAX_REMEMBERED = 10_000

# Keys of sessions have 32 characters, these 37.
_FAILED, _KNOWN = "fail:", "know:"
# Rows that one try removes at most.
_MAX_REMOVED = 1000


@dataclass(slots=True)
class Throttle:
    now: Callable[[], datetime] = timezone.now

    def begin(self, address: str, name: str) -> float:
        """Seconds to wait; 0 where the password may be looked at, which then counts as a failure.

        Counted before it is known to be one: of many tries at once none may pass uncounted.
        """
        now = self.now()
        keys = self._keys(address, name, now)
        known = list(Session.objects.filter(pk__in=keys))
        # Most tries of those who guess end here, and write nothing.
        if wait_s := _wait_s(known, now):
            return wait_s
        with transaction.atomic():
            if len(known) < len(keys):
                Session.objects.bulk_create(
                    [Session(key, _count(0), now) for key in keys], ignore_conflicts=True
                )
            rows = _locked(keys)
            # Others may have tried meanwhile.
            if wait_s := _wait_s(rows, now):
                return wait_s
            for row in rows:
                row.session_data = _count(_failures(row, now) + 1)
                row.expire_date = now + timedelta(seconds=FORGET_S)
            Session.objects.bulk_update(rows, ["session_data", "expire_date"])
        if len(known) < len(keys):
            _remove_expired(now)
            _bound(_FAILED)
        return 0

    def succeed(self, address: str, name: str) -> None:
        """Forget the failures: the password was right."""
        now = self.now()
        with transaction.atomic():
            rows = _locked(self._keys(address, name, now))
            Session.objects.filter(pk__in=[row.pk for row in rows]).delete()
        key = _key(_KNOWN, f"{address} {name.casefold()}")
        known = {"session_data": "", "expire_date": now + timedelta(seconds=KNOWN_S)}
        Session.objects.update_or_create(pk=key, defaults=known)
        _remove_expired(now)
        _bound(_KNOWN)

    def _keys(self, address: str, name: str, now: datetime) -> list[str]:
        """In order: of two that lock rows neither waits for the other."""
        folded = name.casefold()
        by_address, by_name = _key(_FAILED, f"address {address}"), _key(_FAILED, f"name {folded}")
        known = Session.objects.filter(
            pk=_key(_KNOWN, f"{address} {folded}"), expire_date__gt=now
        ).exists()
        return [by_address] if known else sorted((by_address, by_name))


def _key(prefix: str, subject: str) -> str:
    said = subject.encode("utf-8", "replace")
    return prefix + salted_hmac(__name__, said, algorithm="sha256").hexdigest()[:32]


def _count(failures: int) -> str:
    return SessionStore().encode({"failures": failures})


def _locked(keys: Iterable[str]) -> list[Session]:
    return list(Session.objects.select_for_update().filter(pk__in=keys).order_by("pk"))


def _failures(row: Session, now: datetime) -> int:
    # Noted in a time to come: the clock was set back since.
    latest = now + timedelta(seconds=FORGET_S + MAX_WAIT_S)
    return row.get_decoded().get("failures", 0) if now < row.expire_date <= latest else 0


def _wait_s(rows: Iterable[Session], now: datetime) -> float:
    return max((_wait_of(row, now) for row in rows), default=0.0)


def _wait_of(row: Session, now: datetime) -> float:
    over = _failures(row, now) - FREE_TRIES
    if over < 0:
        return 0.0
    # The exponent is bounded before the power is taken.
    wait_s = min(MAX_WAIT_S, 2.0 ** min(over, 10))
    since_s = (now - row.expire_date).total_seconds() + FORGET_S
    return max(0.0, wait_s - since_s)


def _remove_expired(now: datetime) -> None:
    """Also sessions: nobody else clears them. What somebody has locked waits for the next time."""
    with transaction.atomic():
        expired = Session.objects.select_for_update(skip_locked=True).filter(expire_date__lt=now)
        pks = list(expired.values_list("pk", flat=True)[:_MAX_REMOVED])
        Session.objects.filter(pk__in=pks).delete()


def _bound(prefix: str) -> None:
    """Keep the newest `MAX_REMEMBERED`."""
    rows = Session.objects.filter(pk__startswith=prefix)
    if rows.count() <= MAX_REMEMBERED:
        return
    with transaction.atomic():
        oldest = rows.select_for_update(skip_locked=True).order_by("-expire_date", "pk")
        pks = oldest.values_list("pk", flat=True)[MAX_REMEMBERED:][:_MAX_REMOVED]
        Session.objects.filter(pk__in=list(pks)).delete()

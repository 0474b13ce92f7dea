"""Who is calling: `ApiKeyAuth`, the security class of every route that needs a key.

Known keys are remembered for one second, so that a revocation in another process holds within that second
(one in this process holds at once) and the hot path touches memory alone. Unknown keys are remembered for a
minute: a key cannot have been tried before it was made, because its 256 bits are drawn only then, so a key
made a moment ago by another process works at once all the same. An expired key is refused from its second
on, remembered or not, and may be extended: it is remembered like a known one. Keys that arrive together are
looked up in one query, and one query runs at a time: no flood of invented keys takes the database's threads.

Refusals have one text, but for the key that has expired: only who holds the right secret reads that. A
revoked key is told nothing: it may be in the hands of who found it.
"""

from __future__ import annotations

import asyncio
import hmac
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Literal
from weakref import WeakKeyDictionary

from django.db import Error as DatabaseError
from django.db import transaction
from django.db.models import Q
from django.db.models.signals import post_delete, post_save
from django.dispatch import receiver
from django.http import HttpRequest
from django.utils import timezone
from ninja.security.base import AuthBase

from qwenproxy.access.keys import hash_api_key, is_sendable
from qwenproxy.access.models import ApiKey, Limits, Recorded
from qwenproxy.database import run_in_db
from qwenproxy.errors import AuthenticationFailed, PermissionDenied, RecorderUnavailable

Scope = Literal["chat", "records", "admin"]

KNOWN_S = 1.0
UNKNOWN_S = 60.0
MAX_REMEMBERED = 10_000
# Each hash stands in the statement twice; SQLite's older builds take 999 parameters.
_HASHES_PER_QUERY = 400


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """The caller's key, as routes see it in `request.auth`."""

    id: int
    name: str
    scopes: frozenset[str]
    limits: Limits | None = None
    # Shell-style patterns; empty: every model.
    allowed_models: tuple[str, ...] = ()
    recorded: str = Recorded.EVERYTHING.value

    def allows(self, scope: Scope) -> bool:
        """Tell whether the key has the scope; `admin` implies all."""
        return scope in self.scopes or "admin" in self.scopes

    def allows_model(self, model: str) -> bool:
        """Tell whether the key may use the model with this id; capital letters are small ones."""
        if not self.allowed_models:
            return True
        return any(fnmatchcase(model.lower(), pattern.lower()) for pattern in self.allowed_models)


@dataclass(frozen=True, slots=True)
class _Answer:
    # As the database has it; empty where it has none.
    stored_hash: str
    # Null: not accepted.
    key: KeyInfo | None
    # time.monotonic() from which it no longer holds.
    until_s: float
    # When the key, otherwise right, stopped being accepted.
    expired_at: datetime | None = None


# The oldest first. Reading needs no lock, changing does: signals arrive from any thread.
_answers: dict[str, _Answer] = {}
_answers_lock = threading.Lock()
# Counts invalidations: what was read before one must not be remembered after it.
_generation = 0


def invalidate() -> None:
    """Forget every remembered key, so that the next request of each asks the database. Thread-safe."""
    global _generation
    with _answers_lock:
        _generation += 1
        _answers.clear()


@receiver([post_save, post_delete], sender=ApiKey, dispatch_uid="access.auth.invalidate")
def _invalidate_after_commit(sender: type[ApiKey], **kwargs: object) -> None:
    # Before the commit other threads would read the old row and remember it again.
    transaction.on_commit(invalidate)


def _remember(answers: dict[str, _Answer], generation: int) -> None:
    with _answers_lock:
        if generation != _generation:
            return
        for key_hash, answer in answers.items():
            _answers.pop(key_hash, None)
            _answers[key_hash] = answer
        while len(_answers) > MAX_REMEMBERED:
            del _answers[next(iter(_answers))]


def _load_answers(key_hashes: Sequence[str]) -> dict[str, _Answer]:
    now, now_s = timezone.now(), time.monotonic()
    answers = dict.fromkeys(key_hashes, _Answer("", None, now_s + UNKNOWN_S))
    for start in range(0, len(key_hashes), _HASHES_PER_QUERY):
        some = key_hashes[start : start + _HASHES_PER_QUERY]
        wanted = Q(secret_hash__in=some) | Q(previous_hash__in=some, previous_expires_at__gt=now)
        for row in ApiKey.objects.filter(wanted, revoked_at=None):
            if row.secret_hash in answers:
                answers[row.secret_hash] = _judge(row, row.secret_hash, None, now, now_s)
            end = row.previous_expires_at
            # The row may have been found by its present secret alone.
            if row.previous_hash in answers and end is not None and end > now:
                answers[row.previous_hash] = _judge(row, row.previous_hash, end, now, now_s)
    return answers


def _judge(
    row: ApiKey, stored_hash: str, secret_ends: datetime | None, now: datetime, now_s: float
) -> _Answer:
    if row.expires_at is not None and row.expires_at <= now:
        return _Answer(stored_hash, None, now_s + KNOWN_S, row.expires_at)
    ends = [end for end in (row.expires_at, secret_ends) if end is not None]
    left_s = min(((end - now).total_seconds() for end in ends), default=KNOWN_S)
    key = KeyInfo(
        row.pk,
        row.name,
        row.scope_set,
        limits=row.limits,
        allowed_models=tuple(row.allowed_models.splitlines()),
        recorded=row.recorded,
    )
    return _Answer(stored_hash, key, now_s + min(KNOWN_S, left_s))


class _Lookup:
    """Asks the database for all keys that came up on one event loop while it was busy asking."""

    def __init__(self) -> None:
        self._hashes: set[str] = set()
        self._running: asyncio.Task[dict[str, _Answer]] | None = None
        self._next: asyncio.Task[dict[str, _Answer]] | None = None

    async def find(self, key_hash: str) -> _Answer:
        self._hashes.add(key_hash)
        if self._next is None:
            self._next = asyncio.create_task(self._load(after=self._running))
        # Shielded: others wait for the same task when this client leaves.
        answers = await asyncio.shield(self._next)
        return answers[key_hash]

    async def _load(self, *, after: asyncio.Task[dict[str, _Answer]] | None) -> dict[str, _Answer]:
        if after is not None:
            await asyncio.wait([after])
        self._running, self._next = self._next, None
        hashes, self._hashes = list(self._hashes), set()
        generation = _generation
        try:
            answers = await run_in_db(_load_answers, hashes)
        finally:
            self._running = None
        _remember(answers, generation)
        return answers


_lookups: WeakKeyDictionary[asyncio.AbstractEventLoop, _Lookup] = WeakKeyDictionary()


async def _find(secret: str) -> _Answer | None:
    """What is known of the secret; null where nothing is."""
    key_hash = hash_api_key(secret)
    answer = _answers.get(key_hash)
    if answer is None or time.monotonic() >= answer.until_s:
        answer = await _look_up(key_hash)
    # Finding by hash, in memory or by an index, may take a time that tells how much of a stored hash is
    # the same; that leads to no secret, as nobody can choose what a secret hashes to. Who is let in is
    # decided here, in a time that depends on neither.
    return answer if hmac.compare_digest(answer.stored_hash, key_hash) else None


async def _look_up(key_hash: str) -> _Answer:
    lookup = _lookups.setdefault(asyncio.get_running_loop(), _Lookup())
    try:
        return await lookup.find(key_hash)
    except DatabaseError as exc:
        raise RecorderUnavailable(
            "The database that holds the API keys did not answer. Try again in a moment."
        ) from exc


def _secrets_of(request: HttpRequest) -> Iterator[str]:
    scheme, _, credentials = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
    # Another scheme may belong to a proxy in front; x-api-key then still counts.
    if scheme.lower() == "bearer" and credentials.strip():
        yield credentials.strip()
    api_key = request.META.get("HTTP_X_API_KEY", "").strip()
    if api_key:
        yield api_key


async def authenticate(request: HttpRequest, *, scope: Scope | None = None) -> KeyInfo:
    """Find the key of a request and check its scope; runs on the event loop and does not block it.

    Raises:
        AuthenticationFailed: no key, an unknown, revoked or expired one.
        PermissionDenied: the key lacks the scope.
        RecorderUnavailable: the key had to be looked up and the database failed.
    """
    was_given, expired_at = False, None
    for secret in _secrets_of(request):
        was_given = True
        answer = await _find(secret) if is_sendable(secret) else None
        if answer is None:
            continue
        if answer.key is None:
            expired_at = answer.expired_at
            continue
        key = answer.key
        if scope is not None and not key.allows(scope):
            raise PermissionDenied(f"This needs an API key with the scope '{scope}'.")
        return key
    if expired_at is not None:
        raise AuthenticationFailed(f"This API key expired at {expired_at:%Y-%m-%d %H:%M:%S} UTC.")
    if was_given:
        raise AuthenticationFailed("This API key is not valid: unknown, revoked or expired.")
    raise AuthenticationFailed(
        "An API key is needed. Send it as the header 'Authorization: Bearer <key>' or 'x-api-key: <key>'."
    )


class ApiKeyAuth(AuthBase):
    """django-ninja's security class; on success `request.auth` is a `KeyInfo`.

    A mere presence of a valid key is enough where no scope is named.
    """

    openapi_type = "http"
    openapi_scheme = "bearer"
    openapi_description = "An API key of this gateway; the header `x-api-key` is accepted as well."

    def __init__(self, *, scope: Scope | None = None) -> None:
        super().__init__()
        self.scope = scope

    async def __call__(self, request: HttpRequest) -> KeyInfo:
        return await authenticate(request, scope=self.scope)

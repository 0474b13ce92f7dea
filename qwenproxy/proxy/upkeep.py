"""What accounts need while the gateway runs: web sessions renewed in time, ending credentials announced.

A session is renewed by the site's own means, shortly before its token ends, and only where its owner's
browser had a refresh token. One process does it at a time: the row is claimed before the site is asked.
A refusal makes the account `expired`; a challenge makes it `challenged`, and then nothing more is tried.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db import Error as DatabaseError
from django.utils import timezone

from qwenproxy.access import accounts, session_tokens
from qwenproxy.access.accounts import Secrets, StoredAccount
from qwenproxy.database import run_in_db
from qwenproxy.errors import GatewayError, UpstreamAuthExpired, UpstreamChallenged
from qwenproxy.proxy.account_health import AccountHealth
from qwenproxy.upstream import qwen_web_session
from qwenproxy.upstream.protocol import Upstream, hide_secrets
from qwenproxy.upstream.qwen_web import QwenWeb

logger = logging.getLogger(__name__)

_EVERY_S = 20.0
_RENEW_BEFORE = timedelta(minutes=2)
_RENEWAL_TIMEOUT_S = 15.0
# How long a claim holds, and so the time between two attempts, of all processes together.
_CLAIM = timedelta(minutes=1)
# A session that is refused although it was renewed just now is not renewed again for so long.
_SETTLE_S = 900.0
_WARN_EVERY_S = 86_400.0


# A renewal that runs when the gateway stops may still end: the site may have used up the former token.
_LAST_RENEWAL_S = 5.0


@dataclass(slots=True, eq=False)
class Upkeep:
    """Made at start-up; `make_upstream` builds the client of one account."""

    make_upstream: Callable[[StoredAccount], Upstream]
    _warned_at: float = float("-inf")
    # By account: the secrets with which the site refused a renewal, and when one succeeded.
    _refused: dict[int, Secrets] = field(default_factory=dict, repr=False)
    _renewed_at: dict[int, float] = field(default_factory=dict)
    # By account: the former secrets, and the cookies that the database has still to take.
    _unstored: dict[int, tuple[Secrets, dict[str, str]]] = field(default_factory=dict, repr=False)
    _renewals: set[asyncio.Task[None]] = field(default_factory=set)
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = _spawn(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._renewals:
            await asyncio.wait(self._renewals, timeout=_LAST_RENEWAL_S)
        for task in self._renewals:
            task.cancel()

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except DatabaseError as exc:
                logger.error("accounts cannot be looked after: the database failed: %s", exc)
            await asyncio.sleep(_EVERY_S)

    async def look(self) -> None:
        """Do what is due now.

        Raises:
            DatabaseError: what was not done is done by a later call.
        """
        now = timezone.now()
        for account_id in list(self._unstored):
            await self._store(account_id)
        if time.monotonic() - self._warned_at >= _WARN_EVERY_S:
            for name, warning in await run_in_db(accounts.expiry_warnings, now):
                logger.warning("upstream account %r: %s", name, warning)
            self._warned_at = time.monotonic()
        stored = await run_in_db(accounts.load_accounts)
        renewals = [
            _spawn(self._renew(account, now)) for account in stored if self._is_due(account, now)
        ]
        self._renewals |= {*renewals}
        for task in renewals:
            task.add_done_callback(self._renewals.discard)
        await asyncio.shield(asyncio.gather(*renewals))

    def _is_due(self, stored: StoredAccount, now: datetime) -> bool:
        if stored.kind != "qwen_web" or not session_tokens.refresh_token(stored.secrets):
            return False
        # A challenge wants a person.
        if stored.state == "challenged" or self._refused.get(stored.id) == stored.secrets:
            return False
        if stored.state == "expired":
            renewed_at = self._renewed_at.get(stored.id, float("-inf"))
            return time.monotonic() - renewed_at >= _SETTLE_S
        token = session_tokens.access_token(stored.secrets)
        expires = session_tokens.read_expiry(token)
        return not token or (expires is not None and expires - now < _RENEW_BEFORE)

    async def _renew(self, stored: StoredAccount, now: datetime) -> None:
        if not await run_in_db(accounts.claim_renewal, stored.id, unchanged_since=now - _CLAIM):
            return
        web = self.make_upstream(stored)
        assert isinstance(web, QwenWeb)
        began_s = time.time()
        try:
            async with asyncio.timeout(_RENEWAL_TIMEOUT_S):
                cookies = await qwen_web_session.renew(web)
        except TimeoutError:
            logger.warning("the session of account %r was not renewed in time", stored.name)
        except GatewayError as exc:
            hide_secrets(exc, web.account.credentials)
            logger.warning("the session of account %r: no renewal: %s", stored.name, exc.message)
            await self._failed(stored, exc, began_s)
        else:
            logger.info("the session of account %r was renewed", stored.name)
            self._renewed_at[stored.id] = time.monotonic()
            self._unstored[stored.id] = (stored.secrets, cookies)
            await self._store(stored.id)

    async def _store(self, account_id: int) -> None:
        before, cookies = self._unstored[account_id]
        await run_in_db(accounts.store_renewed, account_id, before, cookies)
        del self._unstored[account_id]

    async def _failed(self, stored: StoredAccount, error: GatewayError, began_s: float) -> None:
        """Refused or challenged: that is the account's state. After anything else, another try."""
        if not isinstance(error, UpstreamAuthExpired | UpstreamChallenged):
            return
        self._refused[stored.id] = stored.secrets
        # As old as the call: a session that was pasted meanwhile is newer.
        health = AccountHealth(on_change=lambda: None, clock=lambda: began_s)
        health.adopt(stored, anew=True)
        health.failed(error, epoch=health.epoch, kind=stored.kind)
        await run_in_db(accounts.record_state, stored.id, health.snapshot())


def _spawn(work: Coroutine[object, None, None]) -> asyncio.Task[None]:
    # A clean context: nothing of what runs when the gateway starts.
    return asyncio.create_task(work, context=contextvars.Context())

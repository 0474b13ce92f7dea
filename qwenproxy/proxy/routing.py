"""Which accounts serve a model: accounts as they are stored, model lists, aliases, the default model.

A model id belongs to the accounts that list it. Lists are what the upstreams really serve, cached and
refreshed; an account whose list cannot be read stays a candidate for models nobody lists, so that its
own error reaches the record. Which of a model's accounts makes a call is `lanes`' business.

All state is in memory, on the event loop. The health of accounts is written to their rows when it
changes, in the background, and read from there with the accounts: the newest state holds in all processes.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial

from django.db import Error as DatabaseError
from django.db.models.signals import post_delete, post_save

from qwenproxy.access.accounts import StoredAccount, load_accounts, record_state
from qwenproxy.access.models import UpstreamAccount
from qwenproxy.database import run_in_db
from qwenproxy.errors import GatewayError, NotFound, NoUpstream, RecorderUnavailable
from qwenproxy.proxy.account_health import AccountHealth
from qwenproxy.proxy.lanes import Lane, Route
from qwenproxy.upstream.protocol import ModelInfo, Upstream, hide_secrets
from qwenproxy.wire.reasoning import split_suffix

logger = logging.getLogger(__name__)

# Accounts changed by another process are seen after this time; by this process at once.
_ACCOUNTS_TTL_S = 2.0
# A list that could not be read is asked for again no sooner than this.
_FAILED_TTL_S = 5.0
# Of an account that is kept out, where its list was never read: that is a call as well.
_OUT_TTL_S = 300.0
# An unknown model has the lists read again, unless they are younger than this.
_FRESH_S = 10.0
# Sessions whose last account is remembered; of others the draw finds the same again where it is ready.
_REMEMBERED = 20_000
# A state that changed at the very end is still written.
_LAST_WRITE_S = 3.0


@dataclass(slots=True)
class _Listing:
    """One account's models; `models` is null until its list was read once."""

    lane: Lane
    stored: StoredAccount
    models: dict[str, ModelInfo] | None = None
    # The upstream has no model list at all: it takes any model.
    unlisted: bool = False
    read_at: float = float("-inf")
    failed_at: float = float("-inf")
    task: asyncio.Task[None] | None = None


@dataclass(slots=True, weakref_slot=True, eq=False)
class Routing:
    """Made at start-up; `make_upstream` builds the client of one account."""

    make_upstream: Callable[[StoredAccount], Upstream]
    models_ttl_s: float
    default_model: str = ""
    # Shell-style pattern -> model id; an empty id is the default model.
    aliases: Sequence[tuple[str, str]] = ()
    clock: Callable[[], float] = time.time
    _listings: list[_Listing] = field(default_factory=list)
    _loaded_at: float = float("-inf")
    _has_loaded: bool = False
    # This process has changed an account since the last load began.
    _is_stale: bool = True
    _loading: asyncio.Task[None] | None = None
    # Of every account that was loaded once: calls may still run on one that is paused or deleted.
    _lanes: dict[int, Lane] = field(default_factory=dict)
    _unwritten: dict[int, AccountHealth] = field(default_factory=dict)
    _writing: asyncio.Task[None] | None = None
    _last_accounts: OrderedDict[str, int] = field(default_factory=OrderedDict)

    def start(self) -> None:
        """Watch for accounts that this process changes."""
        post_save.connect(self._forget, sender=UpstreamAccount, dispatch_uid="routing.save")
        post_delete.connect(self._forget, sender=UpstreamAccount, dispatch_uid="routing.delete")

    async def stop(self) -> None:
        post_save.disconnect(sender=UpstreamAccount, dispatch_uid="routing.save")
        post_delete.disconnect(sender=UpstreamAccount, dispatch_uid="routing.delete")
        for task in self._tasks():
            task.cancel()
        if self._writing is not None:
            await asyncio.wait([self._writing], timeout=_LAST_WRITE_S)
        for lane in self._lanes.values():
            lane.close()

    @property
    def lanes(self) -> Iterable[Lane]:
        """Every account that is not paused."""
        return (listing.lane for listing in self._listings)

    def running(self) -> dict[int, int]:
        """Calls of this process that run now, by account, paused ones too; from any thread."""
        return {account_id: lane.running for account_id, lane in list(self._lanes.items())}

    def last_account(self, session_id: str) -> int | None:
        """The account that answered the session's last turn in this process; null: not known."""
        return self._last_accounts.get(session_id)

    def remember(self, session_id: str, account_id: int) -> None:
        accounts = self._last_accounts
        accounts[session_id] = account_id
        accounts.move_to_end(session_id)
        if len(accounts) > _REMEMBERED:
            accounts.popitem(last=False)

    async def route(self, model: str) -> Route:
        """Find who serves a model; an empty name is the default model.

        Raises:
            NoUpstream: there is no account at all.
            NotFound: no account serves it.
            RecorderUnavailable: the accounts could not be read yet.
        """
        await self._load()
        if not self._listings:
            raise NoUpstream(
                "no upstream account is set up, or all are paused: add one, or switch one on, in the"
                " admin under Upstream accounts"
            )
        self._refresh()
        # A list that cannot be read holds up only requests for what no other list has.
        route = self._listed(model)
        if route is None:
            await self._read_lists(lambda listing: listing.models is None)
            route = self._find(model)
        if route is None:
            now = time.monotonic()
            await self._read_lists(lambda listing: now - listing.read_at > _FRESH_S)
            route = self._find(model)
        if route is None:
            raise NotFound(
                f"the model {model!r} does not exist: GET /v1/models lists those that do",
                param="model",
                code="model_not_found",
            )
        return route

    async def models(self) -> list[ModelInfo]:
        """Everything that the upstreams list now, each id once.

        Raises:
            RecorderUnavailable: the accounts could not be read yet.
        """
        await self._load()
        self._refresh()
        await self._read_lists(lambda listing: listing.models is None)
        merged: dict[str, ModelInfo] = {}
        for listing in self._listings:
            for info in (listing.models or {}).values():
                merged.setdefault(info.id, info)
        return list(merged.values())

    def _find(self, model: str) -> Route | None:
        if not model:
            model = self._default()
        base, thinking = split_suffix(model)
        for name, asked in ((model, None), (base, thinking)):
            if (route := self._listed(name)) is not None:
                return replace(route, thinking=asked)
        for pattern, target in self.aliases:
            if fnmatchcase(model.lower(), pattern.lower()):
                route = self._listed(target or self._default())
                if route is not None:
                    # A pattern that needs the suffix means a model of that name.
                    is_suffix = fnmatchcase(base.lower(), pattern.lower())
                    return replace(route, thinking=thinking if is_suffix else None)
        open_ended = [
            listing.lane for listing in self._listings if listing.unlisted or listing.models is None
        ]
        return Route(model, open_ended, is_listed=False) if open_ended and model else None

    def _listed(self, model: str) -> Route | None:
        serving = [listing.lane for listing in self._listings if model in (listing.models or {})]
        return Route(model, serving) if serving else None

    def _default(self) -> str:
        if self.default_model:
            return self.default_model
        for listing in self._listings:
            for model in listing.models or {}:
                return model
        return ""

    # Accounts and their lists.

    def _forget(self, **kwargs: object) -> None:
        # Called in whatever thread saved the account; one assignment is all it does.
        self._is_stale = True

    async def _load(self) -> None:
        while self._is_stale or time.monotonic() - self._loaded_at >= _ACCOUNTS_TTL_S:
            must_wait = self._is_stale or not self._has_loaded
            if self._loading is None:
                self._is_stale = False
                self._loading = self._spawn(self._load_accounts())
            if not must_wait:
                return
            await asyncio.shield(self._loading)
            if not self._has_loaded:
                raise RecorderUnavailable(
                    "The database that holds the upstream accounts did not answer. Try again in a moment."
                )

    async def _load_accounts(self) -> None:
        started = time.monotonic()
        try:
            stored = await run_in_db(load_accounts)
        except DatabaseError as exc:
            # Those that are known go on.
            logger.error("upstream accounts cannot be read: %s", exc)
        else:
            self._take_over(stored)
            self._loaded_at = started
            self._has_loaded = True
        finally:
            self._loading = None

    def _take_over(self, stored: Sequence[StoredAccount]) -> None:
        known = {listing.stored.id: listing for listing in self._listings}
        self._listings = [self._listing(known.get(account.id), account) for account in stored]
        for account_id in known.keys() - {account.id for account in stored}:
            lane = self._lanes[account_id]
            lane.is_paused = True
            lane.settle()

    def _listing(self, listing: _Listing | None, account: StoredAccount) -> _Listing:
        if listing is not None and listing.stored == account:
            listing.lane.health.adopt(account, anew=False)
            listing.lane.settle()
            return listing
        same_calls = listing is not None and _calls(listing.stored) == _calls(account)
        lane = self._lanes.get(account.id)
        if lane is None:
            health = AccountHealth(partial(self._write_state, account.id), self.clock)
            lane = self._lanes[account.id] = Lane(self.make_upstream(account), health)
        elif not same_calls:
            lane.upstream = self.make_upstream(account)
        lane.health.adopt(account, anew=listing is not None and not same_calls)
        lane.priority, lane.weight = account.priority, account.weight
        lane.max_concurrent = account.max_concurrent
        lane.min_interval_s = account.min_interval_ms / 1000
        lane.is_paused = False
        lane.settle()
        if listing is None or not same_calls:
            return _Listing(lane, account)
        listing.stored = account
        return listing

    def _write_state(self, account_id: int) -> None:
        lane = self._lanes[account_id]
        self._unwritten[account_id] = lane.health
        lane.log_state()
        if self._writing is None:
            self._writing = self._spawn(self._write_states())

    async def _write_states(self) -> None:
        try:
            while self._unwritten:
                account_id, health = self._unwritten.popitem()
                try:
                    await run_in_db(record_state, account_id, health.snapshot())
                except DatabaseError as exc:
                    # The next change is written again, with all that is known by then.
                    logger.error("the state of an upstream account cannot be written: %s", exc)
        finally:
            self._writing = None

    def _refresh(self) -> None:
        """Start reading the lists that are old; nobody waits for them."""
        now = time.monotonic()
        for listing in self._listings:
            if now - listing.read_at > self.models_ttl_s:
                self._start_reading(listing, now)

    async def _read_lists(self, wanted: Callable[[_Listing], bool]) -> None:
        now = time.monotonic()
        tasks = [
            task
            for listing in self._listings
            if wanted(listing) and (task := self._start_reading(listing, now)) is not None
        ]
        if tasks:
            await asyncio.shield(asyncio.gather(*tasks))

    def _start_reading(self, listing: _Listing, now: float) -> asyncio.Task[None] | None:
        is_out = listing.lane.standing() == "out"
        may_read = not is_out or listing.models is None
        ttl_s = _OUT_TTL_S if is_out else _FAILED_TTL_S
        if listing.task is None and may_read and now - listing.failed_at > ttl_s:
            listing.task = self._spawn(self._read_list(listing))
        return listing.task

    async def _read_list(self, listing: _Listing) -> None:
        try:
            models = await listing.lane.upstream.list_models()
        except NotFound:
            listing.unlisted = True
            listing.models = listing.models or {}
            listing.read_at = time.monotonic()
        except GatewayError as exc:
            hide_secrets(exc, listing.lane.upstream.account.credentials)
            listing.failed_at = time.monotonic()
            logger.warning("models of account %r: %s", listing.stored.name, exc.message)
        else:
            listing.models = {info.id: info for info in models}
            listing.read_at = time.monotonic()
        finally:
            listing.task = None

    def _spawn(self, work: Coroutine[object, None, None]) -> asyncio.Task[None]:
        # A clean context: a task that outlives its request must not inherit the request's.
        return asyncio.create_task(work, context=contextvars.Context())

    def _tasks(self) -> Iterable[asyncio.Task[None]]:
        if self._loading is not None:
            yield self._loading
        for listing in self._listings:
            if listing.task is not None:
                yield listing.task


def _calls(account: StoredAccount) -> tuple[object, ...]:
    """What its calls are made of; where that changes, another account may be at the other end."""
    return account.name, account.kind, account.base_url, account.secrets

"""Who of the accounts that serve a model makes a call, and when: places, pacing, order, waiting.

A `Lane` is one account as turns see it: its client, its health, and how many calls it may make at the
same time and how soon after each other. A call is made inside a `Place`, which is given back once,
whatever happens. Turns that wait are served in the order in which they came. All of it is this
process's alone, in memory, on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import blake2b
from typing import TypeAlias

from qwenproxy.access.account_states import PAUSED, way_out
from qwenproxy.errors import (
    AllRateLimited,
    GatewayError,
    NoAccountReady,
    UpstreamBusy,
    UpstreamRateLimited,
)
from qwenproxy.proxy.account_health import AccountHealth, Standing
from qwenproxy.upstream import parameters
from qwenproxy.upstream.protocol import Upstream
from qwenproxy.wire.json import JSONObject

logger = logging.getLogger(__name__)

# A conversation waits so long for the account that has its chat, where only pacing keeps it from there:
# elsewhere all of it would have to be sent again.
_PATIENCE_S = 10.0


@dataclass(slots=True, eq=False)
class Lane:
    upstream: Upstream
    health: AccountHealth
    priority: int = 100
    weight: int = 1
    # Null: no limit.
    max_concurrent: int | None = None
    min_interval_s: float = 0.0
    is_paused: bool = False
    running: int = field(default=0, init=False)
    # A call that finds out whether the account is ready again.
    trial: Place | None = field(default=None, init=False)
    # On the loop's clock: before it no call begins.
    _next_at: float = field(default=0.0, init=False)
    # In the order in which they came; each waits in all of its lanes.
    _waiters: dict[_Waiter, Sequence[Lane]] = field(default_factory=dict, init=False)
    _timer: asyncio.TimerHandle | None = field(default=None, init=False)
    _logged: str = field(default="ready", init=False)

    def standing(self) -> Standing:
        return "out" if self.is_paused else self.health.standing()

    @property
    def state(self) -> str:
        return PAUSED if self.is_paused else self.health.state

    def way_out(self) -> str:
        until = datetime.fromtimestamp(self.health.until, UTC) if self.health.until else None
        return way_out(self.upstream.account.kind, self.state, until)

    def is_free(self) -> bool:
        """A call can begin now, and nobody waits for that."""
        return not self._waiters and self._can_begin()

    def enter(self) -> Place:
        """Begin a call; only where one can."""
        place = Place(self, self.upstream, self.health.epoch)
        self.running += 1
        if self.min_interval_s:
            self._next_at = asyncio.get_running_loop().time() + self.min_interval_s
        if self.health.is_strict:
            self.trial = place
        return place

    def pacing_s(self) -> float | None:
        """How long one more who waits here is held up by pacing; null: other things hold it up."""
        if self._is_full() or self._is_tried():
            return None
        return self._interval_left_s() + len(self._waiters) * self.min_interval_s

    def settle(self) -> None:
        """Something changed: free places go to those who wait, or they hear that there are none."""
        if self.standing() == "out":
            for waiter, lanes in list(self._waiters.items()):
                if not waiter.done() and all(lane.standing() == "out" for lane in lanes):
                    waiter.set_result(None)
        while self._waiters:
            waiter = next(iter(self._waiters))
            if waiter.done():
                del self._waiters[waiter]
            elif self._can_begin():
                del self._waiters[waiter]
                waiter.set_result(self.enter())
            else:
                self._settle_later()
                return

    def log_state(self) -> None:
        """Say in the log that the account went out, or came back; without the upstream's words."""
        account, health = self.upstream.account, self.health
        if health.state == self._logged:
            return
        self._logged = health.state
        if health.state == "ready":
            logger.info("upstream account %r is ready again", account.name)
        else:
            logger.warning(
                "upstream account %r is %s: %s", account.name, health.state, self.way_out()
            )

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _can_begin(self) -> bool:
        if self._is_full() or self._is_tried() or self.standing() == "out":
            return False
        return not self.min_interval_s or self._interval_left_s() <= 0

    def _is_full(self) -> bool:
        return self.max_concurrent is not None and self.running >= self.max_concurrent

    def _is_tried(self) -> bool:
        return self.trial is not None and self.health.is_strict

    def _interval_left_s(self) -> float:
        if not self.min_interval_s:
            return 0.0
        return max(0.0, self._next_at - asyncio.get_running_loop().time())

    def _settle_later(self) -> None:
        """Where time alone is in the way: a place that is given back, or a new state, settles anyway."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.is_paused or self._is_full() or self._is_tried():
            return
        wait_s = self._interval_left_s()
        if self.standing() == "out":
            wait_s = max(wait_s, self.health.wait_s())
        # Also where that time has come since it was looked at; a little late rather than too early.
        self._timer = asyncio.get_running_loop().call_later(wait_s + 0.001, self.settle)


@dataclass(slots=True, eq=False)
class Place:
    """The right to make one call, and what it tells about the account."""

    lane: Lane
    upstream: Upstream
    _epoch: int
    _is_held: bool = field(default=True, init=False)

    def answering(self) -> None:
        """The beginning of an answer arrived."""
        if self.lane.trial is self:
            self.lane.health.answering(epoch=self._epoch)
            self._end_trial()

    def succeeded(self) -> None:
        """The whole answer arrived."""
        self.lane.health.succeeded(epoch=self._epoch)

    def failed(self, error: GatewayError, cause: str) -> None:
        """The call failed; `cause` says why in words that may be stored."""
        lane = self.lane
        kind = self.upstream.account.kind
        lane.health.failed(error, epoch=self._epoch, kind=kind, cause=cause)
        if isinstance(error, UpstreamRateLimited) and error.retry_after_s is None:
            # Before that time its client would be refused here.
            error.retry_after_s = lane.health.wait_s()
        if lane._waiters:
            lane.settle()

    async def again(self) -> None:
        """Wait until another call may begin in the same place."""
        lane = self.lane
        wait_s = lane._interval_left_s()
        if lane.min_interval_s:
            lane._next_at = asyncio.get_running_loop().time() + wait_s + lane.min_interval_s
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        self._epoch = lane.health.epoch

    def leave(self) -> None:
        """Give the place back; a second time does nothing."""
        if not self._is_held:
            return
        self._is_held = False
        self.lane.running -= 1
        self._end_trial()
        if self.lane._waiters:
            self.lane.settle()

    def _end_trial(self) -> None:
        if self.lane.trial is self:
            self.lane.trial = None
            if self.lane._waiters:
                self.lane.settle()


# Null: there is nothing (more) to wait for.
_Waiter: TypeAlias = "asyncio.Future[Place | None]"


@dataclass(frozen=True, slots=True)
class Wishes:
    """Where a turn would go by itself; ids of accounts."""

    # Has the conversation's chat: only there it can go on.
    chat: int | None
    # Served the session's last turn.
    last: int | None
    # Of turns without either, all of one session go to the same account where they can.
    session_id: str


@dataclass(frozen=True, slots=True)
class Route:
    """A model's id as its upstreams name it, and the accounts that serve it, by priority."""

    model: str
    lanes: Sequence[Lane]
    # What the end of the name that was asked for says; null: nothing.
    thinking: bool | None = None
    # False: no list has it; they may serve it all the same.
    is_listed: bool = True

    def taking(self, asked: JSONObject) -> Route:
        """Leave out accounts that would refuse these parameters, where others take them.

        Where none does, one of them is asked, so that its refusal names the parameter and is on record.
        """
        if len(self.lanes) < 2:
            return self
        lanes = [ln for ln in self.lanes if parameters.takes(ln.upstream.account.kind, asked)]
        return replace(self, lanes=lanes) if 0 < len(lanes) < len(self.lanes) else self

    def others(self, failed: Sequence[Lane]) -> list[Lane]:
        """Those that may be asked and have not failed this turn."""
        return [lane for lane in self.lanes if lane not in failed and lane.standing() != "out"]

    async def take(self, wishes: Wishes, *, failed: Sequence[Lane], wait_s: float) -> Place:
        """Get a place with one that has not failed this turn, at once or after waiting.

        Raises:
            NoAccountReady: each of them is out, for reasons that the message names.
            UpstreamBusy: none had a place in time.
        """
        # Nearly always.
        lanes = self.lanes
        if len(lanes) == 1 and not failed and lanes[0].is_free():
            return lanes[0].enter()
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while True:
            lanes = self._open(failed)
            if not lanes:
                raise self._nobody_ready()
            asked = _ordered(lanes, wishes)
            if (place := _enter_first(asked)) is not None:
                return place
            left_s = until - loop.time()
            if left_s <= 0:
                raise UpstreamBusy(
                    f"every account that serves {self.model!r} has as many calls as it may:"
                    " try again in a moment",
                    retry_after_s=min(max(1.0, *(lane.pacing_s() or 0 for lane in asked)), 60.0),
                )
            if len(asked) == len(lanes):
                # One that is out may come back sooner than another has a place.
                asked = [*asked, *self._out(failed)]
            if (place := await _wait(asked, left_s)) is not None:
                return place

    def _open(self, failed: Sequence[Lane]) -> list[Lane]:
        others = [(lane.standing(), lane) for lane in self.lanes if lane not in failed]
        return [lane for standing, lane in others if standing == "open"] or [
            lane for standing, lane in others if standing == "avoided"
        ]

    def _out(self, failed: Sequence[Lane]) -> list[Lane]:
        return [lane for lane in self.lanes if lane not in failed and lane.standing() == "out"]

    def _nobody_ready(self) -> NoAccountReady:
        told = []
        for lane in self.lanes:
            told.append(f"{lane.upstream.account.name} is {lane.state} ({lane.way_out()})")
        waits = [lane.health.wait_s() for lane in self.lanes if not lane.is_paused]
        are_limited = all(lane.health.is_limited and not lane.is_paused for lane in self.lanes)
        error = AllRateLimited if are_limited else NoAccountReady
        return error(
            f"no account that serves {self.model!r} is ready: {'; '.join(told)}",
            retry_after_s=min(waits, default=None),
        )


def _ordered(lanes: Sequence[Lane], wishes: Wishes) -> Sequence[Lane]:
    """Where the turn would go, best first; fewer than `lanes` where it goes nowhere else."""
    if len(lanes) < 2:
        return lanes
    for wish in (wishes.chat, wishes.last):
        wished = [] if wish is None else [ln for ln in lanes if ln.upstream.account.id == wish]
        if wished and wished[0].is_free():
            return wished
        if wished and wish == wishes.chat:
            pacing_s = wished[0].pacing_s()
            if pacing_s is not None and pacing_s <= _PATIENCE_S:
                return wished
    session = wishes.session_id.encode()
    return sorted(lanes, key=lambda lane: (lane.priority, _draw(session, lane)))


def _draw(session: bytes, lane: Lane) -> float:
    """A session's number for an account; the lowest wins, as often as its weight says.

    Not by chance: other processes, and this one after a restart, find the same account.
    """
    if lane.weight <= 0:
        return math.inf
    digest = blake2b(session + b"%d" % lane.upstream.account.id, digest_size=8).digest()
    # The first of several exponential waiting times is each with the probability of its rate.
    return -math.log((int.from_bytes(digest) + 1) / 2**64) / lane.weight


def _enter_first(lanes: Sequence[Lane]) -> Place | None:
    for lane in lanes:
        if lane.is_free():
            return lane.enter()
    return None


async def _wait(lanes: Sequence[Lane], wait_s: float) -> Place | None:
    """Wait in the lanes for the first place; null: time is up, or all of them are out now."""
    loop = asyncio.get_running_loop()
    waiter: _Waiter = loop.create_future()

    def give_up() -> None:
        if not waiter.done():
            waiter.set_result(None)

    timer = loop.call_later(wait_s, give_up)
    for lane in lanes:
        lane._waiters[waiter] = lanes
        lane._settle_later()
    try:
        return await waiter
    except asyncio.CancelledError:
        if waiter.done() and not waiter.cancelled() and (place := waiter.result()) is not None:
            # It was handed over in the same moment.
            place.leave()
        raise
    finally:
        timer.cancel()
        for lane in lanes:
            lane._waiters.pop(waiter, None)

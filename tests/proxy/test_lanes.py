"""Who makes a call and when: places, pacing, shares, waiting, and calls that are given up."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from types import SimpleNamespace
from uuid import uuid4

import pytest

from qwenproxy.errors import (
    AllRateLimited,
    NoAccountReady,
    UpstreamAuthExpired,
    UpstreamBusy,
    UpstreamChallenged,
    UpstreamError,
    UpstreamRateLimited,
)
from qwenproxy.proxy.account_health import AccountHealth
from qwenproxy.proxy.lanes import Lane, Route, Wishes

_ids = iter(range(1, 10**6))


class Clock:
    """Of the health of all lanes; pacing has the loop's."""

    now = 1_800_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make_lane(clock):
    def make_lane(name="", *, kind="qwen_web", **fields):
        number = next(_ids)
        account = SimpleNamespace(id=number, name=name or f"account {number}", kind=kind)
        upstream = SimpleNamespace(account=account)
        return Lane(upstream, AccountHealth(lambda: None, clock), **fields)

    return make_lane


def wishes(chat=None, last=None, session_id=""):
    def id_of(lane):
        return None if lane is None else lane.upstream.account.id

    return Wishes(id_of(chat), id_of(last), session_id or str(uuid4()))


async def take(*lanes, failed=(), wait_s=5.0, **wanted):
    return await Route("m", lanes).take(wishes(**wanted), failed=failed, wait_s=wait_s)


def run(test):
    asyncio.run(asyncio.wait_for(test(), 20))


async def settled():
    """Let everything that can go on go on."""
    for _ in range(20):
        await asyncio.sleep(0)


def fail(lane, error):
    code = error.error_code
    lane.health.failed(error, epoch=lane.health.epoch, kind="qwen_web", cause=code)


# Order.


def test_the_lowest_priority_number_goes_first(make_lane):
    first, second = make_lane(priority=1), make_lane(priority=2)

    async def test():
        for _ in range(20):
            place = await take(second, first)
            assert place.lane is first
            place.leave()

    run(test)


@pytest.mark.parametrize("weights", [(1, 1), (1, 3), (8, 1), (5, 3, 2)], ids=str)
def test_a_thousand_new_conversations_are_shared_by_weight(make_lane, weights):
    lanes = [make_lane(weight=weight) for weight in weights]

    async def test():
        drawn = Counter()
        for number in range(1000):
            # Sessions have random ids; these are the same in every run.
            place = await take(*lanes, session_id=f"session {number}")
            drawn[place.lane] += 1
            place.leave()
        return [drawn[lane] / 1000 for lane in lanes]

    shares = asyncio.run(test())
    assert shares == pytest.approx([weight / sum(weights) for weight in weights], abs=0.05)


def test_without_weight_an_account_only_stands_in(make_lane):
    usual, reserve = make_lane(weight=1), make_lane(weight=0)

    async def test():
        for _ in range(50):
            place = await take(usual, reserve)
            assert place.lane is usual
            place.leave()
        assert (await take(usual, reserve, failed=[usual])).lane is reserve

    run(test)


def test_a_session_draws_the_same_account_again(make_lane):
    lanes = [make_lane() for _ in range(4)]

    async def test():
        for _ in range(20):
            session_id = str(uuid4())
            drawn = set()
            for _ in range(5):
                place = await take(*lanes, session_id=session_id)
                drawn.add(place.lane)
                place.leave()
            assert len(drawn) == 1

    run(test)


def test_the_chats_account_goes_before_the_last_one_and_that_before_priorities(make_lane):
    a, b, c = make_lane(priority=1), make_lane(priority=2), make_lane(priority=3)

    async def test():
        assert (await take(a, b, c, chat=c, last=b)).lane is c
        assert (await take(a, b, c, last=b)).lane is b
        assert (await take(a, b, c, chat=c, last=b, failed=[c])).lane is b
        assert (await take(a, b, c)).lane is a

    run(test)


# Health.


def test_an_avoided_account_is_asked_only_where_no_other_is_ready(make_lane):
    failing, ready = make_lane(priority=1), make_lane(priority=2)
    for _ in range(3):
        fail(failing, UpstreamError("500"))

    async def test():
        place = await take(failing, ready)
        assert place.lane is ready
        assert (await take(failing)).lane is failing
        assert (await take(failing, ready, failed=[ready])).lane is failing

    run(test)


def test_nobody_waits_for_accounts_that_are_all_out(make_lane, clock):
    home = make_lane("home")
    other = make_lane("other", kind="dashscope")
    fail(home, UpstreamChallenged("check"))
    fail(other, UpstreamRateLimited("slow", retry_after_s=40.0))
    clock.now += 10

    async def test():
        with pytest.raises(NoAccountReady) as caught:
            await take(home, other, wait_s=60)
        error = caught.value
        assert (error.http_status, error.error_code) == (503, "no_account_ready")
        assert error.retry_after_s == 30.0
        assert "home is challenged (open the site in the browser" in error.message
        assert "other is cooling (nothing to do: tried again by itself at" in error.message

    run(test)


def test_where_all_are_rate_limited_it_is_a_429_with_the_earliest_time(make_lane):
    lanes = [make_lane(), make_lane()]
    fail(lanes[0], UpstreamRateLimited("slow", retry_after_s=40.0))
    fail(lanes[1], UpstreamRateLimited("slow", retry_after_s=20.0))

    async def test():
        with pytest.raises(AllRateLimited) as caught:
            await take(*lanes)
        assert (caught.value.http_status, caught.value.retry_after_s) == (429, 20.0)

    run(test)


def test_a_paused_account_is_not_asked_and_says_so(make_lane):
    lane = make_lane("mine", is_paused=True)

    async def test():
        with pytest.raises(NoAccountReady, match=r"mine is paused \(switch it on"):
            await take(lane)

    run(test)


@pytest.mark.parametrize("fate", ["answering", "left", "failed"])
def test_one_call_tries_an_account_and_the_others_wait_for_what_it_finds(make_lane, clock, fate):
    lane = make_lane()
    fail(lane, UpstreamChallenged("check"))
    clock.now += 901

    async def test():
        trial = await take(lane)
        others = [asyncio.create_task(take(lane)) for _ in range(3)]
        await settled()
        assert not any(task.done() for task in others)
        if fate == "answering":
            trial.answering()
            await settled()
            assert lane.health.state == "ready"
            assert all(task.done() for task in others)
            assert lane.running == 4
        elif fate == "failed":
            trial.failed(UpstreamChallenged("check"), "upstream_challenge")
            trial.leave()
            results = await asyncio.gather(*others, return_exceptions=True)
            assert all(isinstance(result, NoAccountReady) for result in results)
            assert lane.running == 0
        else:
            trial.leave()
            await settled()
            # The next one tries.
            assert [task.done() for task in others] == [True, False, False]
            assert lane.running == 1
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    run(test)


def test_while_one_account_is_tried_others_take_the_turns(make_lane, clock):
    tried, ready = make_lane(priority=1), make_lane(priority=2)
    fail(tried, UpstreamAuthExpired("over"))
    clock.now += 3601

    async def test():
        assert (await take(tried, ready)).lane is tried
        assert [(await take(tried, ready)).lane for _ in range(3)] == [ready] * 3

    run(test)


# Places.


def test_no_more_calls_at_a_time_than_an_account_may_make(make_lane):
    lane = make_lane(max_concurrent=2)
    running = most = 0

    async def call():
        nonlocal running, most
        place = await take(lane)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        place.leave()

    async def test():
        await asyncio.gather(*(call() for _ in range(50)))
        assert (most, lane.running, len(lane._waiters)) == (2, 0, 0)

    run(test)


def test_who_waits_is_served_in_the_order_of_coming(make_lane):
    lane = make_lane(max_concurrent=1)
    served = []

    async def call(number):
        place = await take(lane)
        served.append(number)
        await asyncio.sleep(0)
        place.leave()

    async def test():
        await asyncio.gather(*(call(number) for number in range(30)))

    run(test)
    assert served == list(range(30))


def test_another_account_is_preferred_to_waiting(make_lane):
    first, second = make_lane(priority=1, max_concurrent=1), make_lane(priority=2)

    async def test():
        assert (await take(first, second)).lane is first
        assert (await take(first, second, last=first)).lane is second
        assert (await take(first, second, chat=first)).lane is second

    run(test)


def test_the_first_of_several_accounts_to_get_free_is_taken(make_lane):
    lanes = [make_lane(max_concurrent=1) for _ in range(3)]

    async def test():
        places = [await take(lane) for lane in lanes]
        waiting = asyncio.create_task(take(*lanes))
        await settled()
        places[1].leave()
        assert (await waiting).lane is lanes[1]
        assert [len(lane._waiters) for lane in lanes] == [0, 0, 0]

    run(test)


def test_one_that_comes_back_is_taken_while_another_is_full(make_lane, clock):
    full, out = make_lane(max_concurrent=1), make_lane()
    fail(out, UpstreamRateLimited("slow", retry_after_s=0.05))

    async def test():
        await take(full)
        waiting = asyncio.create_task(take(full, out))
        await settled()
        assert not waiting.done()
        clock.now += 1
        assert (await asyncio.wait_for(waiting, 2)).lane is out

    run(test)


def test_nothing_free_in_time_is_an_error_with_a_time(make_lane):
    lane = make_lane(max_concurrent=1)

    async def test():
        await take(lane)
        with pytest.raises(UpstreamBusy) as caught:
            await take(lane, wait_s=0.02)
        assert (caught.value.http_status, caught.value.error_code) == (503, "upstream_busy")
        assert caught.value.retry_after_s >= 1
        with pytest.raises(UpstreamBusy):
            await take(lane, wait_s=0)
        assert (lane.running, len(lane._waiters)) == (1, 0)

    run(test)


def test_who_waits_hears_at_once_that_the_account_went_out(make_lane):
    lane = make_lane(max_concurrent=1)

    async def test():
        place = await take(lane)
        waiting = asyncio.create_task(take(lane, wait_s=60))
        await settled()
        place.failed(UpstreamChallenged("check"), "upstream_challenge")
        with pytest.raises(NoAccountReady):
            await waiting

    run(test)


def test_pacing_keeps_the_beginnings_of_calls_apart(make_lane):
    lane = make_lane(min_interval_s=0.03)
    began = []

    async def call():
        place = await take(lane)
        began.append(asyncio.get_running_loop().time())
        place.leave()

    async def test():
        await asyncio.gather(*(call() for _ in range(5)))

    run(test)
    # Each hears of its place at that time or later; the first at once.
    for number, at in enumerate(sorted(began)):
        assert at - min(began) >= number * 0.03 - 0.001


def test_a_call_made_again_in_its_place_is_paced_too(make_lane):
    lane = make_lane(min_interval_s=0.03, max_concurrent=1)

    async def test():
        loop = asyncio.get_running_loop()
        place = await take(lane)
        began = loop.time()
        await place.again()
        assert loop.time() - began >= 0.029
        place.leave()
        await take(lane)
        assert loop.time() - began >= 0.058

    run(test)


def test_a_conversation_waits_for_its_chat_where_only_pacing_is_in_the_way(make_lane):
    home, other = make_lane(min_interval_s=0.03), make_lane()

    async def test():
        (await take(home)).leave()
        assert (await take(home, other, chat=home)).lane is home
        # Too long a wait: it moves.
        home._next_at += 60
        assert (await take(home, other, chat=home)).lane is other

    run(test)


def test_nobody_gets_ahead_of_those_who_wait(make_lane):
    lane = make_lane(min_interval_s=0.02)
    served = []

    async def call(name):
        served.append((name, await take(lane)))

    async def test():
        (await take(lane)).leave()
        first = asyncio.create_task(call("first"))
        await settled()
        # The interval ends while the loop is busy: who comes now runs before the timer does.
        time.sleep(0.03)  # noqa: ASYNC251  # the loop is to stand still
        await asyncio.gather(first, call("second"))

    run(test)
    assert [name for name, _ in served] == ["first", "second"]


def test_a_call_made_again_tells_about_the_state_that_it_found(make_lane):
    lane = make_lane()

    async def test():
        place = await take(lane)
        for _ in range(3):
            place.failed(UpstreamError("500"), "upstream_error")
        assert lane.health.state == "cooling"
        await place.again()
        place.succeeded()
        assert lane.health.state == "ready"

    run(test)


def test_a_changed_limit_holds_for_those_who_wait(make_lane):
    lane = make_lane(max_concurrent=1)

    async def test():
        await take(lane)
        waiting = [asyncio.create_task(take(lane)) for _ in range(2)]
        await settled()
        lane.max_concurrent = None
        lane.settle()
        await asyncio.gather(*waiting)
        assert lane.running == 3

    run(test)


def test_a_place_is_given_back_once(make_lane):
    lane = make_lane(max_concurrent=1)

    async def test():
        place = await take(lane)
        place.leave()
        again = await take(lane)
        place.leave()
        assert lane.running == 1
        again.leave()
        assert lane.running == 0

    run(test)


@pytest.mark.parametrize("steps", range(12))
@pytest.mark.parametrize("limits", [{"max_concurrent": 1}, {"min_interval_s": 0.001}], ids=str)
def test_no_place_is_lost_however_far_a_turn_came_that_is_given_up(make_lane, limits, steps):
    """A turn of several is cancelled after so many steps of the loop, the others go on."""
    lanes = [make_lane(**limits), make_lane(**limits)]

    async def turn():
        place = await take(*lanes)
        try:
            await asyncio.sleep(0)
            await place.again()
        finally:
            place.leave()

    async def test():
        for victim in range(6):
            tasks = [asyncio.create_task(turn()) for _ in range(6)]
            for _ in range(steps):
                await asyncio.sleep(0)
            tasks[victim].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for number, task in enumerate(tasks):
                assert number == victim or task.exception() is None
            assert [(lane.running, len(lane._waiters)) for lane in lanes] == [(0, 0), (0, 0)]

    run(test)


def test_a_place_handed_over_in_the_moment_of_giving_up_goes_to_the_next(make_lane):
    lane = make_lane(max_concurrent=1)

    async def test():
        place = await take(lane)
        first, second = (asyncio.create_task(take(lane)) for _ in range(2))
        await settled()
        # Handed over, and cancelled before it could hear of it.
        place.leave()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await second).lane is lane
        assert lane.running == 1

    run(test)

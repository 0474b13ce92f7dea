"""Accounts as processes see them: states that are shared by the database, credentials that change."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from datetime import timedelta

import pytest
from django.db import OperationalError
from django.utils import timezone

from qwenproxy.access.accounts import StoredAccount, set_secrets
from qwenproxy.access.models import UpstreamAccount
from qwenproxy.database import close_pool, run_in_db
from qwenproxy.errors import NoAccountReady, UpstreamChallenged, UpstreamError, UpstreamRateLimited
from qwenproxy.proxy import routing as routing_module
from qwenproxy.proxy.lanes import Wishes
from qwenproxy.proxy.routing import Routing
from qwenproxy.upstream.protocol import Account, ModelInfo

NOBODY = Wishes(None, None, "session")


class Stub:
    """An upstream that lists one model."""

    keeps_chats = True
    on_client_left = "finish"

    def __init__(self, stored: StoredAccount) -> None:
        self.account = Account(stored.id, stored.name, stored.kind, stored.base_url)
        self.lists = 0

    async def list_models(self):
        self.lists += 1
        return [ModelInfo("m")]


@contextlib.asynccontextmanager
async def process(**fields):
    """What one serving process has of it."""
    routing = Routing(Stub, models_ttl_s=300, **fields)
    try:
        yield routing
    finally:
        await routing.stop()


@pytest.fixture
def run(transactional_db):
    def run(test):
        async def main():
            try:
                return await asyncio.wait_for(test(), 20)
            finally:
                await asyncio.to_thread(close_pool)

        return asyncio.run(main())

    return run


async def reload(routing):
    """As after two seconds."""
    routing._is_stale = True
    return await routing.route("m")


async def take(routing):
    route = await routing.route("m")
    return await route.take(NOBODY, failed=[], wait_s=0)


async def written(routing):
    while routing._writing is not None:
        await routing._writing


async def fail(routing, error):
    place = await take(routing)
    place.failed(error, f"{error.error_code}: {error.message}")
    place.leave()
    await written(routing)


def row():
    return UpstreamAccount.objects.get()


def test_a_state_is_stored_and_taken_over_by_other_processes_and_by_the_next(run, make_account):
    make_account("qwen_web")

    async def test():
        async with process() as one, process() as other:
            await take(other)
            await fail(one, UpstreamChallenged("check"))
            stored = await run_in_db(row)
            assert (stored.state, stored.failures) == ("challenged", 1)
            assert stored.state_reason == "upstream_challenge: check"
            assert stored.last_error_at is not None
            assert stored.state_until - stored.state_since == timedelta(minutes=15)
            await reload(other)
            async with process() as next_one:
                for routing in (one, other, next_one):
                    with pytest.raises(NoAccountReady, match="is challenged"):
                        await take(routing)

    run(test)


def test_one_process_finds_an_account_ready_for_all(run, make_account):
    make_account("qwen_web")

    async def test():
        later = timezone.now().timestamp() + 901
        async with process() as one, process() as other:
            await take(other)
            await fail(one, UpstreamChallenged("check"))
            await reload(other)
            (lane,) = one.lanes
            lane.health.clock = lambda: later
            place = await take(one)
            assert lane.trial is place
            place.answering()
            place.leave()
            await written(one)
            await reload(other)
            await take(other)
            stored = await run_in_db(row)
            assert (stored.state, stored.state_reason, stored.failures) == ("ready", "", 0)
            assert stored.last_ok_at is not None

    run(test)


def test_old_news_of_one_process_overwrites_no_newer_state_of_another(run, make_account):
    make_account("qwen_web")

    async def test():
        async with process() as one, process() as other:
            slow = await take(one)
            await fail(other, UpstreamChallenged("check"))
            # A long answer that began before ends well.
            slow.succeeded()
            await written(one)
            assert (await run_in_db(row)).state == "challenged"
            await reload(one)
            with pytest.raises(NoAccountReady):
                await take(one)

    run(test)


@pytest.mark.parametrize("skew_s", [0, 60], ids=["same-clock", "clock-ahead"])
def test_new_credentials_make_an_account_ready_in_every_process(run, make_account, skew_s):
    account = make_account("qwen_web", secrets={"cookies": "token=old"})

    def replace():
        set_secrets(UpstreamAccount.objects.get(pk=account.pk), {"cookies": "token=new"})

    async def test():
        ahead = timezone.now().timestamp() + skew_s
        async with process(clock=lambda: ahead) as one, process() as other:
            await take(other)
            old = await take(one)
            await fail(one, UpstreamChallenged("check"))
            await reload(other)
            await run_in_db(replace)
            for routing in (one, other):
                await reload(routing)
                await take(routing)
            # A call with the old ones ends only now.
            old.failed(UpstreamChallenged("check"), "upstream_challenge")
            await take(one)
            await written(one)
            assert (await run_in_db(row)).state == "ready"

    run(test)


def test_a_start_after_new_credentials_finds_the_account_ready(run, make_account):
    account = make_account("qwen_web", secrets={"cookies": "token=old"})

    async def test():
        async with process() as one:
            await fail(one, UpstreamChallenged("check"))
        await run_in_db(set_secrets, account, {"cookies": "token=new"})
        async with process() as next_one:
            await take(next_one)

    run(test)


def test_limits_and_places_outlive_a_change_of_the_account(run, make_account):
    account = make_account("qwen_web", max_concurrent=1)

    def rename():
        changed = UpstreamAccount.objects.get(pk=account.pk)
        changed.name, changed.weight, changed.min_interval_ms = "renamed", 7, 250
        changed.save()

    async def test():
        async with process() as one:
            place = await take(one)
            (lane,) = one.lanes
            await run_in_db(rename)
            await reload(one)
            assert list(one.lanes) == [lane]
            assert (lane.running, lane.weight, lane.min_interval_s) == (1, 7, 0.25)
            assert lane.upstream.account.name == "renamed"
            place.leave()
            assert lane.running == 0

    run(test)


def test_a_change_of_the_order_alone_reads_no_list_again(run, make_account):
    account = make_account("qwen_web")

    def change(**fields):
        UpstreamAccount.objects.filter(pk=account.pk).update(**fields)

    async def test():
        async with process() as one:
            await take(one)
            (lane,) = one.lanes
            upstream = lane.upstream
            await run_in_db(change, priority=7)
            await reload(one)
            assert (lane.upstream, lane.priority, upstream.lists) == (upstream, 7, 1)

    run(test)


def test_a_paused_account_turns_away_who_waits_for_it_and_comes_back(run, make_account):
    account = make_account("qwen_web", max_concurrent=1)

    def switch(enabled):
        UpstreamAccount.objects.filter(pk=account.pk).update(enabled=enabled)

    async def test():
        async with process() as one:
            place = await take(one)
            route = await one.route("m")
            waiting = asyncio.create_task(route.take(NOBODY, failed=[], wait_s=60))
            await asyncio.sleep(0)
            await run_in_db(switch, enabled=False)
            one._is_stale = True
            with contextlib.suppress(Exception):
                await one.route("m")
            with pytest.raises(NoAccountReady, match="is paused"):
                await waiting
            await run_in_db(switch, enabled=True)
            await reload(one)
            place.leave()
            (await take(one)).leave()

    run(test)


def test_a_list_is_not_asked_of_an_account_that_is_out(run, make_account):
    make_account("qwen_web")

    async def test():
        async with process() as one:
            await fail(one, UpstreamChallenged("check"))
            (lane,) = one.lanes
            one.models_ttl_s = 0
            for _ in range(3):
                await one.route("m")
                await asyncio.sleep(0)
            assert lane.upstream.lists == 1

    run(test)


def test_a_write_that_fails_is_logged_and_made_up_for_by_the_next(
    run, make_account, monkeypatch, caplog
):
    make_account("qwen_web")
    real = routing_module.record_state

    def fails(*args):
        raise OperationalError("disk full") from sqlite3.OperationalError("disk full")

    async def test():
        async with process() as one:
            await take(one)
            monkeypatch.setattr(routing_module, "record_state", fails)
            await fail(one, UpstreamRateLimited("slow", retry_after_s=0))
            assert "cannot be written" in caplog.text
            await fail(one, UpstreamChallenged("check"))
            with pytest.raises(NoAccountReady):
                await take(one)
            monkeypatch.setattr(routing_module, "record_state", real)
            (lane,) = one.lanes
            lane.health.clock = lambda: lane.health.until
            (await take(one)).succeeded()
            await written(one)
            stored = await run_in_db(row)
            assert (stored.state, stored.last_ok_at is None) == ("ready", False)
            assert stored.last_error_at is not None

    run(test)


def test_the_last_change_is_written_before_the_end(run, make_account):
    make_account("qwen_web")

    async def test():
        async with process() as one:
            place = await take(one)
            place.failed(UpstreamChallenged("check"), "upstream_challenge")
        assert (await run_in_db(row)).state == "challenged"

    run(test)


def test_single_failures_are_not_written(run, make_account):
    make_account("qwen_web")

    async def test():
        async with process() as one:
            for _ in range(2):
                await fail(one, UpstreamError("500"))
            stored = await run_in_db(row)
            assert (stored.state, stored.last_error_at) == ("ready", None)
            await fail(one, UpstreamError("500"))
            stored = await run_in_db(row)
            assert (stored.state, stored.failures) == ("cooling", 3)

    run(test)


def test_the_last_account_of_sessions_is_remembered_within_bounds(monkeypatch):
    monkeypatch.setattr(routing_module, "_REMEMBERED", 3)
    routing = Routing(Stub, models_ttl_s=300)
    for number in range(4):
        routing.remember(f"s{number}", number)
        routing.remember("s0", 0)
    assert [routing.last_account(f"s{n}") for n in range(4)] == [0, None, 2, 3]


def test_the_log_says_once_that_an_account_went_out_and_came_back(run, make_account, caplog):
    make_account("qwen_web", name="mine")
    caplog.set_level("INFO")

    async def test():
        async with process() as one:
            earlier = await take(one)
            await fail(one, UpstreamChallenged("they said something"))
            earlier.failed(UpstreamChallenged("again"), "upstream_challenge")
            (lane,) = one.lanes
            lane.health.clock = lambda: lane.health.until
            for _ in range(2):
                place = await take(one)
                place.succeeded()
                place.leave()
            await written(one)

    run(test)
    said = [text for text in caplog.messages if "'mine'" in text]
    assert len(said) == 2
    assert said[0].startswith("upstream account 'mine' is challenged: open the site")
    assert said[1] == "upstream account 'mine' is ready again"
    assert "they said something" not in caplog.text

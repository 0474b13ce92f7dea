from __future__ import annotations

import contextlib
import signal

import pytest

from tests.browser.serving import served
from tests.browser.visits import is_inert

ROWS = "/live/rows/"


@pytest.fixture
def ticks(page):
    """Addresses of the polls of the page."""
    asked = []
    page.on("request", lambda r: asked.append(r.url) if ROWS in r.url else None)
    return asked


@pytest.fixture
def live(page, ticks):
    with page.expect_response(lambda r: ROWS in r.url):
        page.goto("/admin/live/")
    page.wait_for_selector("#live-table tbody tr")
    return page


def first_row(live):
    return live.locator("#live-table tbody tr").first


def row_of(live, answer):
    """The row of what was just answered, by the beginning of its id."""
    shown = answer.headers["x-request-id"][:12]
    return live.locator("#live-table tbody tr", has_text=shown)


def test_what_comes_is_shown_within_three_seconds(live, gateway, facts):
    answer = gateway.ask(facts["secret"], "Is anybody there?")
    assert answer.status_code == 200
    row = row_of(live, answer)
    row.wait_for(timeout=3000)
    assert "completed" in row.inner_text().lower()
    assert is_inert(live)


def test_a_tick_is_one_call(live, ticks):
    before = len(ticks)
    with live.expect_response(lambda r: ROWS in r.url, timeout=5000):
        pass
    assert len(ticks) - before == 1


def test_while_paused_it_asks_nothing_and_then_catches_up(live, ticks, gateway, facts):
    live.click("#live-pause")
    live.wait_for_timeout(300)
    before = len(ticks)
    shown = first_row(live).inner_text()
    answer = gateway.ask(facts["secret"], "While you rest")
    live.wait_for_timeout(2500)
    assert len(ticks) == before
    assert first_row(live).inner_text() == shown
    live.click("#live-pause")
    row_of(live, answer).wait_for(timeout=5000)


def test_a_tab_that_is_not_seen_asks_nothing(live, ticks):
    # What a browser does to a tab behind another one; headless ones are always in front.
    live.evaluate(
        "() => { Object.defineProperty(document, 'visibilityState', {value: 'hidden', configurable: true});"
        " document.dispatchEvent(new Event('visibilitychange')); }"
    )
    live.wait_for_timeout(300)
    before = len(ticks)
    live.wait_for_timeout(2500)
    assert len(ticks) == before
    with live.expect_response(lambda r: ROWS in r.url, timeout=4000):
        live.evaluate(
            "() => { delete document.visibilityState; document.dispatchEvent(new Event('visibilitychange')); }"
        )


def test_it_says_that_the_server_is_away_and_goes_on_when_it_is_back(
    copy_seeded, facts, make_context
):
    with served(copy_seeded()) as gateway:
        gateway.start()
        page = make_context(gateway.cookies(facts), base_url=gateway.url).new_page()
        page.goto("/admin/live/")
        page.wait_for_selector("#live-table tbody tr")
        gateway.stop(signal.SIGTERM)
        page.wait_for_selector("#live-problem", state="visible", timeout=6000)
        assert "cannot be reached" in page.locator("#live-problem").inner_text()
        gateway.start()
        with contextlib.suppress(Exception):
            page.bring_to_front()
        page.wait_for_selector("#live-problem", state="hidden", timeout=15_000)

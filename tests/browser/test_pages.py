"""What holds for every page, in every theme and width."""

from __future__ import annotations

import tomllib
from hashlib import sha256

import pytest

from tests.browser.pages import PAGES
from tests.browser.visits import VENDOR, Watch, is_inert, run_axe, settled, sideways


@pytest.fixture(scope="module")
def tabs(chromium, seeded):
    """A watched tab for each user, for all pages: new windows cost as much as the pages."""
    gateway, facts = seeded
    contexts, watches = [], {}
    for user in {entry.user for entry in PAGES}:
        context = chromium.new_context(base_url=gateway.url)
        context.set_default_timeout(30_000)
        context.add_cookies(facts["cookies"].get(user, ()))
        contexts.append(context)
        watches[user] = Watch(context.new_page())
    yield watches
    for context in contexts:
        context.close()


@pytest.mark.parametrize("entry", PAGES, ids=lambda entry: entry.name.replace(" ", "-"))
def test_a_page_is_silent_sound_in_both_themes_and_fits_a_telephone(entry, tabs, gateway, facts):
    """One visit for all of it: opening a page is what costs."""
    watch = tabs[entry.user]
    page = watch.page
    # What the page before still asks for ends with it.
    page.goto("about:blank")
    watch.clear()
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 390, "height": 844})
    path = entry.path.format(**facts)
    assert page.goto(path).status == entry.status
    settled(page)
    assert page.locator(entry.shows).first.is_visible()
    assert sideways(page) == 0
    page.set_viewport_size({"width": 1440, "height": 900})
    settled(page)
    assert page.locator(entry.shows).first.is_visible()
    assert is_inert(page)
    assert watch.off_host == []
    own = [] if entry.status == 200 else [f"{entry.status} {gateway.url}{path}"]
    assert watch.failed == own
    # Of the page's own status a browser tells in the console; axe, below, tries styles that the policy refuses.
    own_status = f"status of {entry.status}"
    assert [said for said in watch.console if own_status not in said] == []
    assert run_axe(page) == ""
    page.emulate_media(color_scheme="dark")
    assert run_axe(page, colours_only=True) == ""


def test_what_is_vendored_is_what_was_published():
    listed = tomllib.loads((VENDOR / "vendor.toml").read_text())
    for entry in listed.values():
        assert sha256((VENDOR / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
        assert (VENDOR / entry["license_file"]).is_file()

"""What holds for every page, in every theme and width."""

from __future__ import annotations

import tomllib
from hashlib import sha256

import pytest

from tests.browser.pages import PAGES
from tests.browser.visits import VENDOR, Watch, is_inert, run_axe, settled, sideways


@pytest.mark.parametrize("entry", PAGES, ids=lambda entry: entry.name.replace(" ", "-"))
def test_a_page_is_silent_sound_in_both_themes_and_fits_a_telephone(
    entry, make_context, gateway, facts
):
    """One visit for all of it: opening a page is what costs."""
    cookies = facts["cookies"][entry.user] if entry.user else ()
    page = make_context(cookies, base_url=gateway.url).new_page()
    watch = Watch(page)
    path = entry.path.format(**facts)
    assert page.goto(path).status == entry.status
    settled(page)
    assert page.locator(entry.shows).first.is_visible()
    # Of the page's own status a browser tells in the console.
    own_status = f"status of {entry.status}"
    assert [said for said in watch.console if own_status not in said] == []
    assert run_axe(page) == ""
    page.emulate_media(color_scheme="dark")
    assert run_axe(page, colours_only=True) == ""
    # axe tries styles that the policy refuses.
    watch.console.clear()
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(path)
    settled(page)
    assert sideways(page) == 0
    assert is_inert(page)
    assert watch.off_host == []
    own = [] if entry.status == 200 else [f"{entry.status} {gateway.url}{path}"] * 2
    assert watch.failed == own
    assert [said for said in watch.console if own_status not in said] == []


def test_what_is_vendored_is_what_was_published():
    listed = tomllib.loads((VENDOR / "vendor.toml").read_text())
    for entry in listed.values():
        assert sha256((VENDOR / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
        assert (VENDOR / entry["license_file"]).is_file()

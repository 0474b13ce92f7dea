"""What holds for every page, in every theme and width."""

from __future__ import annotations

import tomllib
from hashlib import sha256

import pytest

from tests.browser.pages import PAGES
from tests.browser.visits import VENDOR, Watch, is_inert, run_axe, settled, sideways

each = pytest.mark.parametrize("entry", PAGES, ids=lambda entry: entry.name.replace(" ", "-"))


def opened(page, entry, facts, **options):
    answer = page.goto(entry.path.format(**facts), **options)
    assert answer.status == 200
    settled(page)
    assert page.locator(entry.shows).first.is_visible()
    return answer


@each
def test_it_says_nothing_in_the_console_and_asks_nobody_else(entry, page, facts):
    watch = Watch(page)
    opened(page, entry, facts)
    assert watch.console == []
    assert watch.off_host == []
    assert watch.failed == []
    assert is_inert(page)


@each
def test_axe_finds_nothing_in_either_theme(entry, page, facts):
    opened(page, entry, facts)
    assert run_axe(page) == ""
    page.emulate_media(color_scheme="dark")
    assert run_axe(page) == ""


@each
def test_a_telephone_needs_no_sideways_scroll(entry, make_context, gateway, facts):
    context = make_context(facts["cookies"]["admin"], size=(390, 844), base_url=gateway.url)
    page = context.new_page()
    opened(page, entry, facts)
    assert sideways(page) == 0


def test_what_is_vendored_is_what_was_published():
    listed = tomllib.loads((VENDOR / "vendor.toml").read_text())
    for entry in listed.values():
        assert sha256((VENDOR / entry["file"]).read_bytes()).hexdigest() == entry["sha256"]
        assert (VENDOR / entry["license_file"]).is_file()

from __future__ import annotations

import pytest

from tests.browser.pages import PAGES
from tests.browser.serving import PASSWORD, USER


@pytest.fixture
def plain(make_context, gateway, facts):
    """A tab of a browser that runs no scripts."""
    context = make_context(
        facts["cookies"]["admin"], base_url=gateway.url, java_script_enabled=False
    )
    return context.new_page()


@pytest.mark.parametrize("entry", PAGES, ids=lambda entry: entry.name.replace(" ", "-"))
def test_pages_show_themselves(entry, plain, facts):
    assert plain.goto(entry.path.format(**facts)).status == 200
    assert plain.locator(entry.shows).first.is_visible()
    assert len(plain.locator("#content").inner_text()) > 30


def test_one_signs_in_and_reads_a_conversation(make_context, gateway, facts):
    plain = make_context(base_url=gateway.url, java_script_enabled=False).new_page()
    plain.goto("/admin/")
    plain.fill("#id_username", USER)
    plain.fill("#id_password", PASSWORD)
    plain.click("input[type=submit], button[type=submit]")
    plain.click("#site-navigation a:text('Sessions')")
    plain.click("#result_list th a >> nth=0")
    assert "/admin/sessions_app/session/" in plain.url
    assert plain.locator("#content").inner_text()

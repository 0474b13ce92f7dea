from __future__ import annotations

from tests.browser.pages import PAGES
from tests.browser.serving import PASSWORD, USER


def test_pages_show_themselves(make_context, gateway, facts):
    tabs = {}
    for user in ("", *facts["cookies"]):
        cookies = facts["cookies"].get(user, ())
        context = make_context(cookies, base_url=gateway.url, java_script_enabled=False)
        tabs[user] = context.new_page()
    for entry in PAGES:
        plain = tabs[entry.user]
        assert plain.goto(entry.path.format(**facts)).status == entry.status, entry.name
        assert plain.locator(entry.shows).first.is_visible(), entry.name
        assert len(plain.locator("#content").inner_text().strip()) > 15, entry.name


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

from __future__ import annotations

import httpx
import pytest

from tests.browser.serving import PASSWORD, USER
from tests.browser.visits import Watch
from tests.conftest import NO_TLS


@pytest.fixture
def tab(make_context, gateway):
    """A tab of somebody who has not signed in."""
    return make_context(base_url=gateway.url).new_page()


def sign_in(tab, password):
    tab.fill("#id_username", USER)
    tab.fill("#id_password", password)
    tab.press("#id_password", "Enter")


def test_the_form_lets_in_with_the_password_and_out_again(tab):
    watch = Watch(tab)
    tab.goto("/admin/migrations/")
    assert "/admin/login/" in tab.url
    sign_in(tab, "wrong")
    assert tab.locator(".errornote").is_visible()
    sign_in(tab, PASSWORD)
    tab.wait_for_url("**/admin/migrations/")
    assert tab.locator("#site-navigation a[aria-current=page]").inner_text() == "Migrations"
    tab.click("#logout-form button")
    tab.wait_for_load_state()
    assert "Log" in tab.title()
    tab.goto("/admin/migrations/")
    assert "/admin/login/" in tab.url
    assert watch.console == []
    assert watch.off_host == []


def test_the_cookie_of_the_session_is_out_of_scripts_reach(tab, gateway):
    tab.goto("/admin/login/")
    sign_in(tab, PASSWORD)
    tab.wait_for_url("**/admin/")
    cookies = {cookie["name"]: cookie for cookie in tab.context.cookies()}
    session = cookies["qwenproxy_session"]
    assert session["httpOnly"]
    assert session["sameSite"] in ("Lax", "Strict")
    assert "qwenproxy_session" not in tab.evaluate("document.cookie")


def test_pages_are_not_kept_by_the_browser(page):
    assert "no-store" in page.goto("/admin/").headers["cache-control"]


def test_a_form_without_its_token_changes_nothing(page, gateway, facts):
    cookies = {cookie["name"]: cookie["value"] for cookie in facts["cookies"]["admin"]}
    for path in ("/admin/access/apikey/add/", "/admin/logout/", "/admin/test-accounts/"):
        url = gateway.url + path
        assert httpx.post(url, cookies=cookies, verify=NO_TLS).status_code == 403


def test_another_page_may_not_frame_it(page):
    headers = page.goto("/admin/").headers
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-frame-options"] == "DENY"


def test_there_is_an_icon(tab, gateway):
    tab.goto("/admin/login/")
    icon = tab.locator("link[rel=icon]").get_attribute("href")
    assert icon
    answer = tab.request.get(gateway.url + icon)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("image/")

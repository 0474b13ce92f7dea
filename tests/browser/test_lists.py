from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.browser.visits import Watch

LIST = "/admin/requests_app/request/"
ROWS = "#result_list tbody tr"
_PK = re.compile(r"/request/(\d+)/change/")


def ids(page) -> list[int]:
    """Rows of the page, in its order."""
    links = page.locator(f"{ROWS} a[href*='/request/']")
    hrefs = links.evaluate_all("links => links.map(link => link.getAttribute('href'))")
    found = [int(match[1]) for href in hrefs if (match := _PK.search(href))]
    return list(dict.fromkeys(found))


def query(page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def choose(page, chip: str, choice: str) -> None:
    page.locator(".chip summary", has_text=chip).first.click()
    page.get_by_role("link", name=choice, exact=True).click()
    page.wait_for_load_state()


def test_filters_stay_from_page_to_page_and_no_row_is_lost_while_others_come(page, gateway, facts):
    watch = Watch(page)
    page.goto(f"{LIST}?span=all")
    choose(page, "Status", "completed")
    assert query(page)["status"] == ["completed"]
    there = {
        row[0]
        for row in gateway.sql(
            "SELECT request_id FROM requests_app_response WHERE status = 'completed'"
        )
    }
    seen = ids(page)
    newest = seen[0]
    while older := page.locator("a[rel=next]").count():
        assert older == 1
        assert gateway.ask(facts["secret"], "Am I in the way?").status_code == 200
        page.click("a[rel=next]")
        page.wait_for_load_state()
        assert query(page)["status"] == ["completed"]
        assert query(page)["span"] == ["all"]
        seen += ids(page)
    assert len(seen) == len(set(seen))
    assert set(seen) == there
    back = ids(page)
    while page.locator("a[rel=prev]").count():
        page.click("a[rel=prev]")
        page.wait_for_load_state()
        assert query(page)["status"] == ["completed"]
        back = ids(page) + back
    # The newest page is always a full one, so it may begin with rows that came meanwhile.
    assert newest in back
    assert set(back) > there
    assert watch.console == []


def test_a_chip_is_opened_followed_and_closed_with_the_keyboard(page):
    page.goto(f"{LIST}?span=all")
    summary = page.locator(".chip summary", has_text="Status").first
    summary.focus()
    page.keyboard.press("Enter")
    menu = page.get_by_role("link", name="completed", exact=True)
    assert menu.is_visible()
    page.keyboard.press("Escape")
    assert not menu.is_visible()
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.keyboard.press("Enter")
    menu.focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**status=completed**")
    page.locator(".chip-remove[aria-label*=Status]").click()
    page.wait_for_load_state()
    assert "status" not in query(page)


def test_a_row_leads_to_its_request_and_on_to_its_session(page):
    page.goto(f"{LIST}?span=all")
    wanted = ids(page)[0]
    page.locator(f"{ROWS} a[href*='/request/{wanted}/']").first.click()
    page.wait_for_url(f"**/request/{wanted}/change/**")
    page.locator("#content a[href*='/sessions_app/session/']").first.click()
    page.wait_for_url("**/sessions_app/session/**")


def test_a_filter_that_leaves_nothing_says_so_and_leads_on(page):
    page.goto(f"{LIST}?span=1h&model=no-such-model")
    assert page.locator(".empty").is_visible()
    page.locator(".empty a").first.click()
    page.wait_for_load_state()
    assert page.locator(ROWS).count() > 0


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(f"{LIST}?span=forever&status=%00&key=x&model=%F0%9F%98%80&slower=-1", id="values"),
        pytest.param(f"{LIST}?older=forged&newer=~", id="cursors"),
        pytest.param(f"{LIST}?from=99999999999999999999&to=-1", id="numbers"),
        pytest.param("/admin/sessions_app/session/?q=%00%F0%9F%98%80&older=%27", id="searches"),
    ],
)  # fmt: skip
def test_forged_addresses_are_no_error(page, path):
    watch = Watch(page)
    assert page.goto(path).status == 200
    assert watch.console == []

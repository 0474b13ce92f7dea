from __future__ import annotations

from tests.browser.seed import REPLIES
from tests.browser.visits import Watch

LEAVES = "#content a[href*='leaf=']"


def test_every_branch_is_reached_by_links_and_shown_alone(page, facts):
    watch = Watch(page)
    start = f"/admin/sessions_app/session/{facts['branches']}/change/"
    shown, waiting, visited = {}, [start], set()
    while waiting:
        address = waiting.pop()
        if address in visited:
            continue
        visited.add(address)
        assert page.goto(address).status == 200
        text = page.locator("#content").inner_text()
        found = [name for name in REPLIES if f"answered {name}" in text]
        assert len(found) == 1
        assert "Left or right." in text
        shown.setdefault(found[0], address)
        waiting += page.locator(LEAVES).evaluate_all("links => links.map(link => link.href)")
    assert set(shown) == set(REPLIES)
    # Without a choice it is the newest.
    assert shown[REPLIES[-1]] == start
    assert watch.console == []


def test_a_conversation_shows_what_was_said_and_folds_the_work(page, facts):
    page.goto(f"/admin/sessions_app/session/{facts['session']}/change/")
    content = page.locator("#content")
    assert "Working directory: /srv/checkout" not in content.inner_text()
    content.locator("details summary", has_text="System").first.click()
    assert "Working directory: /srv/checkout" in content.inner_text()

"""A newcomer: from an empty database to a first recorded answer, in the browser alone."""

from __future__ import annotations

from tests.browser.serving import PASSWORD, USER, served
from tests.browser.visits import Watch, run_axe, settled, sideways, until


def test_a_newcomer_gets_to_a_first_recorded_answer(tmp_path, make_context):
    with served(tmp_path / "data") as gateway:
        gateway.start()
        page = make_context(base_url=gateway.url).new_page()
        watch = Watch(page)
        page.goto("/admin/")
        page.fill("#id_username", USER)
        page.fill("#id_password", PASSWORD)
        page.press("#id_password", "Enter")
        page.wait_for_url("**/admin/")
        settled(page)
        checklist = page.locator("#content")
        assert "first" in checklist.inner_text().lower()
        assert run_axe(page) == ""
        page.locator("#content a[href='/admin/playground/']").first.click()
        until(page, "!document.getElementById('model').disabled")
        page.fill("#prompt", "Hello!")
        page.click("#send")
        page.wait_for_selector("#links", state="visible")
        assert page.locator("#answer-text").inner_text()
        page.goto("/admin/")
        settled(page)
        assert page.locator("#content a[href*='/admin/requests_app/request/']").count() > 0
        page.goto("/admin/requests_app/request/")
        page.locator("#result_list tbody tr a").first.click()
        page.wait_for_load_state()
        page.set_viewport_size({"width": 390, "height": 844})
        assert sideways(page) == 0
        assert watch.console == []
        assert watch.off_host == []

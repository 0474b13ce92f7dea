from __future__ import annotations

import pytest

from tests.browser.visits import Watch, is_inert, until

PROMPT = 'Say <img src=x-pwned onerror="window.pwned=1"> twice'


@pytest.fixture
def playground(page):
    page.goto("/admin/playground/")
    until(page, "!document.getElementById('model').disabled")
    page.select_option("#model", "qwen-demo")
    return page


def ended(playground) -> None:
    """Wait for the end of an answer; its links are there from its beginning."""
    until(playground, "document.getElementById('stop').disabled")
    playground.wait_for_selector("#links", state="visible")


def test_an_answer_streams_in_and_its_row_is_a_click_away(playground):
    watch = Watch(playground)
    playground.fill("#prompt", PROMPT)
    playground.click("#send")
    ended(playground)
    assert "[demo] You said:" in playground.locator("#answer-text").inner_text()
    assert playground.locator("#figures").inner_text()
    assert is_inert(playground)
    with playground.expect_popup() if _opens_tab(playground) else playground.expect_navigation():
        playground.click("#request-link")
    page = playground.context.pages[-1]
    page.wait_for_url("**/requests_app/request/*/change/**")
    assert "qwen-demo" in page.locator("#content").inner_text()
    assert watch.console == []
    assert watch.off_host == []


def _opens_tab(playground) -> bool:
    return playground.locator("#request-link").get_attribute("target") == "_blank"


def test_stop_ends_the_answer_and_the_row_says_so(playground, gateway):
    playground.fill("#prompt", "word " * 200)
    playground.click("#send")
    until(playground, "document.getElementById('answer-text').innerText.length > 20")
    playground.click("#stop")
    until(playground, "document.getElementById('stop').disabled")
    length = len(playground.locator("#answer-text").inner_text())
    for _ in range(50):
        newest = "SELECT status FROM requests_app_response ORDER BY id DESC LIMIT 1"
        if gateway.sql(newest) == [("cancelled",)]:
            break
        playground.wait_for_timeout(100)
    assert gateway.sql(newest) == [("cancelled",)]
    assert len(playground.locator("#answer-text").inner_text()) == length


def test_a_conversation_goes_on_in_its_session(playground, gateway):
    for text in ("First, a question", "Then another"):
        playground.fill("#prompt", text)
        playground.press("#prompt", "Control+Enter")
        ended(playground)
    rows = gateway.sql(
        "SELECT session_id, match FROM requests_app_request ORDER BY id DESC LIMIT 2"
    )
    assert rows[0][0] == rows[1][0]
    assert rows[0][1] == "continued"


def test_a_recorded_request_is_filled_in(page, facts):
    page.goto(f"/admin/playground/?request={facts['request']}")
    until(page, "document.getElementById('system').value.length > 0")
    assert "coding agent" in page.locator("#system").input_value()

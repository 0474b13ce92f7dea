"""A newcomer: from an empty database to a first recorded answer, in the browser alone."""

from __future__ import annotations

import shlex

import httpx
import pytest

from tests.browser.serving import PASSWORD, USER, served
from tests.browser.visits import Watch, run_axe, settled, sideways, until
from tests.conftest import NO_TLS
from tests.doubles.openai_compatible import OpenAICompatibleDouble
from tests.doubles.server import serve_in_thread

STEPS = """() => Object.fromEntries([...document.querySelectorAll('.checklist li')].map(
  step => [step.querySelector('strong').textContent, step.classList.contains('done')]))"""


@pytest.fixture
def empty(tmp_path):
    with served(tmp_path / "data") as gateway:
        gateway.start()
        yield gateway


def sign_in(page) -> None:
    page.goto("/admin/")
    page.fill("#id_username", USER)
    page.fill("#id_password", PASSWORD)
    page.press("#id_password", "Enter")
    page.wait_for_url("**/admin/")
    settled(page)


def answer(page, prompt: str) -> str:
    """What the playground shows when an answer has ended."""
    until(page, "!document.getElementById('model').disabled")
    page.fill("#prompt", prompt)
    page.click("#send")
    until(page, "document.getElementById('stop').disabled")
    page.wait_for_selector("#links", state="visible")
    return page.locator("#answer-text").inner_text()


def send(curl: str) -> int:
    """Status of the answer to a line for a terminal."""
    _, url, *options = shlex.split(curl.replace("\\\n", " "))
    headers = dict(text.split(": ") for text in options[1:-2:2])
    return httpx.post(url, content=options[-1], headers=headers, verify=NO_TLS).status_code


def test_a_newcomer_gets_to_a_first_recorded_answer(empty, make_context):
    page = make_context(base_url=empty.url).new_page()
    watch = Watch(page)
    sign_in(page)
    assert run_axe(page) == ""
    page.emulate_media(color_scheme="dark")
    assert run_axe(page, colours_only=True) == ""
    page.emulate_media(color_scheme="light")
    page.locator("#content a[href='/admin/playground/']").first.click()
    assert "Hello!" in answer(page, "Hello!")
    page.goto("/admin/")
    settled(page)
    assert page.locator(".checklist").count() == 0
    assert page.locator("#content a[href*='/admin/requests_app/request/']").count() > 0
    page.goto("/admin/requests_app/request/")
    page.locator("#result_list tbody tr a").first.click()
    page.wait_for_url("**/requests_app/request/*/change/**")
    assert "Hello!" in page.locator("#content").text_content()
    page.set_viewport_size({"width": 390, "height": 844})
    assert sideways(page) == 0
    assert watch.console == []
    assert watch.off_host == []


def test_each_step_of_the_checklist_ticks_itself(empty, make_context):
    # Without the imitation and the key that a first start makes.
    empty.sql("DELETE FROM access_upstreamaccount")
    empty.sql("UPDATE access_apikey SET revoked_at = created_at")
    page = make_context(base_url=empty.url).new_page()
    watch = Watch(page)

    def done() -> dict[str, bool]:
        page.goto("/admin/")
        return page.evaluate(STEPS)

    sign_in(page)
    expected = {
        "Database": True,
        "Migrations": True,
        "Upstream account": False,
        "API key": False,
        "First prompt": False,
    }
    assert done() == expected
    with serve_in_thread(OpenAICompatibleDouble()) as upstream:
        page.locator(".checklist a.button[href*='upstreamaccount/add']").click()
        page.fill("#id_name", "ours")
        page.select_option("#id_kind", "openai_compatible")
        page.fill("#id_base_url", f"{upstream}/v1")
        page.click("input[name=_save]")
        page.wait_for_url("**/access/upstreamaccount/**")
        assert done() == expected | {"Upstream account": True}
        page.locator(".checklist a.button[href*='apikey/add']").click()
        page.fill("#id_name", "mine")
        page.click("input[name=_save]")
        line = page.locator("#text-1").inner_text()
        assert page.locator("#secret").inner_text() in line
        assert done() == expected | {"Upstream account": True, "API key": True}
        page.locator(".checklist a.button[href*='playground']").click()
        assert answer(page, "Hello!")
        assert send(line) == 200
    assert done() == {}
    assert watch.console == []

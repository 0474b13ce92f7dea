from __future__ import annotations

import pytest

OUTLINE = """() => {
  const style = getComputedStyle(document.activeElement);
  return style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0
    || style.boxShadow !== 'none';
}"""


@pytest.mark.parametrize(
    "path",
    [
        "/admin/",
        "/admin/requests_app/request/",
        "/admin/sessions_app/session/",
        "/admin/migrations/",
    ],
)
def test_the_first_stop_leads_past_the_navigation(page, path):
    page.goto(path)
    page.keyboard.press("Tab")
    link = page.evaluate("document.activeElement.getAttribute('href')")
    assert link
    assert link.startswith("#")
    assert page.evaluate("document.activeElement.innerText").lower().startswith("skip")
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == link
    assert page.locator(link).count() == 1


def test_whatever_has_the_focus_is_seen_to_have_it(page):
    page.goto("/admin/requests_app/request/")
    for _ in range(40):
        page.keyboard.press("Tab")
        name = page.evaluate("document.activeElement.outerHTML.slice(0, 120)")
        if name.startswith("<body"):
            break
        assert page.evaluate(OUTLINE), name


def test_the_navigation_is_walked_with_the_keyboard_alone(page):
    page.goto("/admin/migrations/")
    page.locator("#site-navigation a", has_text="Requests").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/requests_app/request/**")

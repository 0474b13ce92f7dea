"""`make pictures`: takes the pictures of README and docs/admin.md from a gateway with made-up traffic."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from tests.browser.conftest import CHROMIUM
from tests.browser.serving import ROOT, Gateway, served
from tests.browser.visits import settled, until

DIRECTORY = ROOT / "docs" / "pictures"
_NEWEST_OF_AGENTS = (
    "SELECT s.id FROM sessions_app_session s JOIN access_apikey k ON k.id = s.api_key_id"
    " WHERE k.name = 'Demo: coding agents' AND s.request_count BETWEEN 5 AND 12"
    " ORDER BY s.last_accessed DESC LIMIT 1"
)


@dataclass(frozen=True)
class Picture:
    name: str
    path: str
    size: tuple[int, int] = (1280, 800)
    theme: str = "light"
    then: Callable[[Any], None] | None = None


def _ask(page: Any) -> None:
    until(page, "!document.getElementById('model').disabled")
    page.select_option("#model", "qwen-demo")
    page.fill("#prompt", "How do I record what my agents say?")
    page.click("#send")
    until(page, "document.getElementById('stop').disabled")


def pictures(gateway: Gateway) -> list[Picture]:
    ((session,),) = gateway.sql(_NEWEST_OF_AGENTS)
    transcript = f"/admin/sessions_app/session/{session}/change/"
    return [
        Picture("overview", "/admin/", (1280, 900)),
        Picture("transcript", transcript, (1280, 900), "dark"),
        Picture("playground", "/admin/playground/", then=_ask),
        Picture("accounts", "/admin/access/upstreamaccount/", (1440, 640)),
        Picture("telephone", "/admin/", (390, 844)),
        Picture("telephone-transcript", transcript, (390, 844), "dark"),
    ]


def main() -> None:
    if CHROMIUM is None:
        sys.exit("Install chromium first (Debian, Ubuntu: apt install chromium).")
    DIRECTORY.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as directory, served(Path(directory) / "data") as gateway:
        gateway.run("manage.py", "migrate", "-v0")
        gateway.run("manage.py", "seeddemo", "--requests", "10000", "--days", "4")
        gateway.start()
        cookies = gateway.sign_in()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            for picture in pictures(gateway):
                width, height = picture.size
                page = browser.new_page(
                    base_url=gateway.url,
                    viewport={"width": width, "height": height},
                    color_scheme=picture.theme,
                    reduced_motion="reduce",
                )
                page.context.add_cookies(cookies)
                answer = page.goto(picture.path)
                if answer.status != 200:
                    sys.exit(f"{picture.path}: {answer.status}")
                settled(page)
                if picture.then is not None:
                    picture.then(page)
                page.screenshot(path=DIRECTORY / f"{picture.name}.png")
                page.close()
            browser.close()


if __name__ == "__main__":
    main()

"""Debian's Chromium, driven by Playwright, before a gateway of its own with a seeded database."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.serving import Gateway, served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="session")
def seeded(tmp_path_factory) -> Iterator[tuple[Gateway, dict[str, Any]]]:
    """A gateway with made-up traffic, and what is in it; tests add to it and take nothing away."""
    if CHROMIUM is None:
        pytest.skip("NO BROWSER: install chromium (apt install chromium)")
    with served(tmp_path_factory.mktemp("browser") / "data") as gateway:
        facts = gateway.seed()
        shutil.copytree(gateway.directory, gateway.directory.with_name("untouched"))
        gateway.start()
        cookies = {user: gateway.cookies(facts, user) for user in facts["sessions"]}
        yield gateway, {**facts, "cookies": cookies}


@pytest.fixture(scope="session")
def copy_seeded(seeded, tmp_path_factory) -> Callable[[], Path]:
    """Make data directories as it was before the tests, with everybody signed in: cheaper than new ones."""

    def copy() -> Path:
        directory = tmp_path_factory.mktemp("copied") / "data"
        return shutil.copytree(seeded[0].directory.with_name("untouched"), directory)

    return copy


@pytest.fixture
def gateway(seeded) -> Gateway:
    return seeded[0]


@pytest.fixture
def facts(seeded) -> dict[str, Any]:
    return seeded[1]


@pytest.fixture(scope="package")
def chromium() -> Iterator[Any]:
    """The browser; of this package and not of the session, as its loop is in the way of Django's ORM."""
    if CHROMIUM is None:
        pytest.skip("NO BROWSER: install chromium (apt install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # In containers there is no user namespace to build the sandbox from.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def make_context(chromium) -> Iterator[Any]:
    """Make windows with cookies of their own; `size` is width and height."""
    contexts = []

    def make_context(cookies=(), *, size: tuple[int, int] = (1440, 900), **options: Any) -> Any:
        width, height = size
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        context.set_default_timeout(30_000)
        contexts.append(context)
        if cookies:
            context.add_cookies(cookies)
        return context

    yield make_context
    for context in contexts:
        context.close()


@pytest.fixture
def page(make_context, gateway, facts) -> Any:
    """A tab of the administrator, who has signed in."""
    page = make_context(facts["cookies"]["admin"], base_url=gateway.url).new_page()
    return page

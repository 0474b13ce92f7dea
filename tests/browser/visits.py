"""What a page does when it is opened: what its console says, whom it asks, what axe finds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VENDOR = Path(__file__).parent / "vendor"
AXE = VENDOR / "axe.min.js"
# WCAG 2.0 and 2.1, A and AA.
_RUN_AXE = """async runOnly => {
  const found = await axe.run(document, {runOnly, resultTypes: ['violations']});
  return found.violations.flatMap(rule => rule.nodes.map(
    node => `${rule.id}: ${node.target.join(' ')} ${node.failureSummary.slice(0, 300)}`));
}"""
_WCAG = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa")
_COLOURS = ("color-contrast", "link-in-text-block")
# Elements and effects that only a payload that ran could have made.
_IS_INERT = """() => window.pwned === undefined
  && !document.querySelector('[src="x-pwned"], svg[onload], [onerror], script:not([src], [type])')"""
_SIDEWAYS = """() => Math.max(...[document.documentElement,
  ...[...document.querySelectorAll('.as-cards')].flatMap(table => [table, table.parentElement])]
  .map(element => element.scrollWidth - element.clientWidth))"""


@dataclass
class Watch:
    """What a tab says and asks from now on."""

    page: Any
    console: list[str] = field(default_factory=list)
    off_host: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        page = self.page
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.console.append(f"pageerror: {error}"))
        page.on("dialog", lambda dialog: self.console.append(f"dialog: {dialog.message}"))
        page.on("request", self._asked)
        page.on("response", self._answered)

    def clear(self) -> None:
        for heard in (self.console, self.off_host, self.failed):
            heard.clear()

    def _said(self, message: Any) -> None:
        # Hints for developers, which a console shows only where it is asked to.
        if message.type != "verbose":
            self.console.append(f"{message.type}: {message.text}")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.off_host.append(request.url)

    def _answered(self, response: Any) -> None:
        if response.status >= 400:
            self.failed.append(f"{response.status} {response.url}")


def run_axe(page: Any, *, colours_only: bool = False) -> str:
    """What axe finds wrong, a line each; another theme of a page differs in colours alone."""
    # Links change their colour in a transition.
    page.evaluate("() => Promise.all(document.getAnimations().map(a => a.finished))")
    if page.evaluate("typeof axe") == "undefined":
        # By the debugger, which the page's policy does not concern.
        page.evaluate(AXE.read_text())
    only = ("rule", _COLOURS) if colours_only else ("tag", _WCAG)
    return "\n".join(page.evaluate(_RUN_AXE, {"type": only[0], "values": only[1]}))


def is_inert(page: Any) -> bool:
    return page.evaluate(_IS_INERT)


def sideways(page: Any) -> int:
    """Pixels that the page can be scrolled to the side, or a table in it whose rows are cards."""
    return page.evaluate(_SIDEWAYS)


def settled(page: Any) -> None:
    """Wait until scripts of the page have run; the live tail never falls silent."""
    page.wait_for_load_state("load")
    page.evaluate(
        "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )


def until(page: Any, condition: str, *, timeout_s: float = 30) -> None:
    """Wait until a condition in JavaScript holds; Playwright's own way needs `eval`, which the policy refuses."""
    deadline = time.monotonic() + timeout_s
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(50)

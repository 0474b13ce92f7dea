"""The health page: what doctor finds, the figures of every part, and a text of both for a ticket.

It works, in part, where a part does not: the database may be away, and each section says its own error.
"""

from __future__ import annotations

from datetime import UTC, datetime

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from qwenproxy.access.staff import VIEW_HEALTH, gateway_view
from qwenproxy.dashboard.health_sections import Section, as_text, read_sections
from qwenproxy.doctor import SLOW, Finding, examine

_SYMBOLS = {"ok": "✓", "warning": "!", "error": "✗"}
# Beside each other; the others are tables, below each other.
_FIGURES = ("Version", "This process", "Database", "Disk", "Record", "Retention")


@gateway_view(VIEW_HEALTH)
def health(request: HttpRequest) -> HttpResponse:
    now = datetime.now(UTC)
    findings = list(examine(quick=True))
    # A test's request comes without a server.
    gateway = getattr(request, "scope", {}).get("gateway")
    sections = read_sections(gateway, now)
    levels = [finding.level for finding in findings]
    context = {
        **admin.site.each_context(request),
        "title": "Health",
        "errors": levels.count("error"),
        "warnings": levels.count("warning"),
        "findings": [(_SYMBOLS[finding.level], finding) for finding in findings],
        "left_out": sorted(SLOW),
        "figures": [section for section in sections if section.title in _FIGURES],
        "tables": [section for section in sections if section.title not in _FIGURES],
        "diagnostics": _diagnostics(findings, sections, now),
    }
    return TemplateResponse(request, "admin/health.html", context)


def _diagnostics(findings: list[Finding], sections: list[Section], now: datetime) -> str:
    lines = [f"Qwen Proxy, {now:%Y-%m-%d %H:%M:%S} UTC", "", "## Checks"]
    for finding in findings:
        mend = f" -> {finding.mend}" if finding.mend else ""
        lines.append(f"{_SYMBOLS[finding.level]} {finding.part}: {finding.what}{mend}")
    return "\n".join([*lines, "", as_text(sections)])

"""`manage.py doctor`: what is wrong with this installation, and how to mend it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby
from typing import Any

import orjson
from django.core.management.base import BaseCommand, CommandParser

from qwenproxy.doctor import Finding, examine

_SYMBOLS = {"ok": ("✓", "[ok]"), "warning": ("!", "[!]"), "error": ("✗", "[x]")}
_STYLES = {"ok": "SUCCESS", "warning": "WARNING", "error": "ERROR"}


class Command(BaseCommand):
    help = (
        "Check configuration, files, disk, database, schema, clock, encryption, keys, accounts and retention, and "
        "say how to mend what is wrong. Exit code 1 where an error was found. Changes nothing."
    )
    # What they find is told in our own words.
    requires_system_checks = ()
    requires_migrations_checks = False

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--online", action="store_true", help="also ask every upstream account")
        parser.add_argument("--json", action="store_true", help="one JSON document")

    def handle(self, *args: Any, online: bool, json: bool, **options: Any) -> None:
        findings: Iterable[Finding] = examine(online=online)
        if json:
            findings = list(findings)
            document = {
                "version": 1,
                "well": all(finding.level != "error" for finding in findings),
                "findings": [asdict(finding) for finding in findings],
            }
            self.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
        else:
            findings = self._show(findings)
        if any(finding.level == "error" for finding in findings):
            sys.exit(1)

    def _show(self, findings: Iterable[Finding]) -> list[Finding]:
        """Print each as it is found: some take seconds."""
        shown = []
        for part, group in groupby(findings, key=lambda finding: finding.part):
            self.stdout.write(self.style.MIGRATE_HEADING(part))
            for finding in group:
                shown.append(finding)
                style = getattr(self.style, _STYLES[finding.level])
                self.stdout.write(f"  {style(self._symbol(finding.level))} {finding.what}")
                if finding.mend:
                    self.stdout.write(f"      {finding.mend}")
        counts = {level: sum(one.level == level for one in shown) for level in ("error", "warning")}
        self.stdout.write(
            f"{_count(counts['error'], 'error')}, {_count(counts['warning'], 'warning')}"
            if any(counts.values())
            else "All is well."
        )
        return shown

    def _symbol(self, level: str) -> str:
        symbol, fallback = _SYMBOLS[level]
        encoding = getattr(self.stdout, "encoding", None) or "ascii"
        try:
            symbol.encode(encoding)
        except UnicodeEncodeError:
            return fallback
        return symbol


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"

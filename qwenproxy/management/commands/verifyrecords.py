"""`manage.py verifyrecords`: whether the record is whole, while the gateway serves or not."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import orjson
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from requests_app.verifying import Difference, Verification, Verified

_INTERVAL_S = 5.0


class Command(BaseCommand):
    help = (
        "Derive every digest, count and reference of the record again and name what differs; changes nothing. "
        "Exit status 0 whole, 1 differences, 2 it could not be looked at, 130 interrupted."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--session", default="", metavar="ID", help="this session alone")
        parser.add_argument(
            "--from", dest="start", default="", metavar="PLACE", help="where to go on"
        )
        parser.add_argument("--json", action="store_true", help="one JSON document")

    def handle(self, *args: Any, json: bool, session: str, start: str, **options: Any) -> None:
        began = self._told = time.monotonic()
        verified, shown = Verified(start), 0
        try:
            steps = Verification(settings.DATA_DIR / "workers").steps(
                start=start, session_id=session
            )
            for verified in steps:
                if not json:
                    for difference in verified.differences[shown:]:
                        self.stdout.write(_line(difference))
                    shown = len(verified.differences)
                self._show(verified)
        except KeyboardInterrupt:
            raise CommandError(_resume("Interrupted", verified.place), returncode=130) from None
        except ValueError as exc:
            raise CommandError(f"--from: {exc}", returncode=2) from exc
        except (DatabaseError, OSError) as exc:
            text = _resume(f"The database: {exc}", verified.place)
            raise CommandError(text, returncode=2) from exc
        if session and not start and not verified.rows["sessions"]:
            raise CommandError(f"--session: there is no session {session[:100]!r}", returncode=2)
        if self.stderr.isatty():
            self.stderr.write("")
        seconds = time.monotonic() - began
        self.stdout.write(_document(verified, seconds) if json else _summary(verified, seconds))
        if count := len(verified.differences):
            raise CommandError(f"The record is not whole: {count:,} differences.", returncode=1)

    def _show(self, verified: Verified) -> None:
        """On a terminal a line that changes, elsewhere one now and then: logs see that it lives."""
        text = f"{verified.rows.total():,} rows, at {verified.place or 'the start'}"
        if self.stderr.isatty():
            self.stderr.write(f"\r\x1b[K{text}", style_func=str, ending="")
        elif time.monotonic() - self._told < _INTERVAL_S:
            return
        else:
            self.stderr.write(text, style_func=str)
        self._told = time.monotonic()
        self.stderr.flush()


def _line(difference: Difference) -> str:
    return (
        f"{difference.where}: {difference.what}: expected {difference.expected},"
        f" found {difference.found}"
    )


def _resume(what: str, place: str) -> str:
    return f"{what}; to go on: manage.py verifyrecords --from {place}" if place else f"{what}."


def _summary(verified: Verified, seconds: float) -> str:
    rows = ", ".join(f"{count:,} {name}" for name, count in verified.rows.items()) or "no rows"
    missing = ", ".join(
        f"; {count:,} digests not verifiable: {reason}"
        for reason, count in verified.not_verifiable.items()
    )
    return f"{len(verified.differences):,} differences in {rows}{missing} ({seconds:.1f} s)."


def _document(verified: Verified, seconds: float) -> str:
    document = {
        "version": 1,
        "whole": not verified.differences,
        "rows": dict(verified.rows),
        "not_verifiable": dict(verified.not_verifiable),
        "differences": [asdict(difference) for difference in verified.differences],
        "took_s": round(seconds, 3),
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2).decode()

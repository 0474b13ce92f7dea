"""Counts the statistics of the past anew from the record, while the gateway serves or not."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from requests_app.rollups import rebuild
from requests_app.windows import SLOT, Window, read_moment, slot_start

_BAR_CHARS = 30


class Command(BaseCommand):
    help = "Count the statistics anew from the record, all or of a stretch of time."

    def add_arguments(self, parser: CommandParser) -> None:
        form = "2026-11-22, 2026-11-22T12:15Z or milliseconds since 1970"
        parser.add_argument("--from", dest="start", metavar="TIME", help=form)
        parser.add_argument("--to", dest="end", metavar="TIME", help="default: now")

    def handle(self, *args: Any, **options: Any) -> None:
        now = datetime.now(UTC)
        start = self._read("--from", options["start"], datetime(1970, 1, 1, tzinfo=UTC))
        end = self._read("--to", options["end"], now)
        if start >= end:
            raise CommandError("--from is not before --to")
        began, slots, next_start = time.monotonic(), 0, start
        window = Window.between(start, end)
        try:
            for slot in rebuild(window.start, window.end, now):
                slots += 1
                if slots == 1:
                    start = max(start, slot_start(slot))
                next_start = slot_start(slot) + SLOT
                self._show(start, next_start, min(end, now))
        except KeyboardInterrupt:
            raise CommandError(
                _resume("Interrupted", next_start, options), returncode=130
            ) from None
        except DatabaseError as exc:
            raise CommandError(_resume(f"The database: {exc}", next_start, options)) from exc
        if slots and self.stderr.isatty():
            self.stderr.write("")
        took = time.monotonic() - began
        self.stdout.write(f"Counted anew: {slots} quarters of an hour in {took:.1f} s.")

    @staticmethod
    def _read(option: str, text: str | None, default: datetime) -> datetime:
        if text is None:
            return default
        try:
            return read_moment(text, settings.REPORTING_ZONE)
        except (ValueError, OverflowError):
            raise CommandError(
                f"{option}: {text!r} is no time; write 2026-11-22 or 2026-11-22T12:15Z"
            ) from None

    def _show(self, start: datetime, done: datetime, end: datetime) -> None:
        if not self.stderr.isatty():
            return
        share = min((done - start) / (end - start), 1.0) if end > start else 1.0
        filled = round(share * _BAR_CHARS)
        bar = "█" * filled + "░" * (_BAR_CHARS - filled)
        self.stderr.write(
            f"\r{bar} {share:4.0%}  {done:%Y-%m-%d %H:%M} UTC", style_func=str, ending=""
        )
        self.stderr.flush()


def _resume(what: str, next_start: datetime, options: dict[str, Any]) -> str:
    command = f"manage.py rebuildstats --from {next_start:%Y-%m-%dT%H:%MZ}"
    if options["end"] is not None:
        command += f" --to {options['end']}"
    return f"{what}; what is done stays. To go on: {command}"

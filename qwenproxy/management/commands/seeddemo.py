"""Fills a database with made-up traffic, to try the product and to take its pictures."""

from __future__ import annotations

import math
import sqlite3
import time
from argparse import ArgumentTypeError
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import psycopg
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError

from qwenproxy.dashboard import demo_data
from qwenproxy.dashboard.demo_talks import Turn

_BAR_CHARS = 30
_HEARTBEAT_S = 5.0
_MOST_REQUESTS, _MOST_DAYS = 1_000_000, 366


class Command(BaseCommand):
    help = "Fill an empty database with believable traffic: keys, accounts, conversations, errors."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--requests", type=_requests, default=5000, metavar="N", help="default: 5000"
        )
        parser.add_argument(
            "--days", type=_days, default=7.0, metavar="D", help="default: the last 7"
        )
        parser.add_argument(
            "--seed", type=int, default=1, metavar="S", help="another seed, other traffic"
        )
        parser.add_argument(
            "--large-session",
            action="store_true",
            help="with one session of 300 turns, 40 branches and results of tools of 2 MB",
        )
        parser.add_argument(
            "--force",
            action="store_true",
            help="also into a database that has records of its own; they stay as they are",
        )

    def handle(
        self, *args: Any, requests: int, days: float, seed: int, large_session: bool, force: bool, **options: Any
    ) -> None:  # fmt: skip
        began, now = time.monotonic(), datetime.now(UTC)
        self._said_at = began
        try:
            if not force and demo_data.foreign_records():
                raise CommandError(
                    "This database has records of its own; made-up ones would change its statistics."
                    " Use another (QWENPROXY_DATA_DIR), or --force.",
                    returncode=2,
                )
            turns = demo_data.make_turns(requests, days, seed, now, large=large_session)
            self._write(turns, seed, now)
        except (DatabaseError, sqlite3.Error, psycopg.Error) as exc:
            raise CommandError(f"The database: {exc}") from exc
        took = time.monotonic() - began
        self.stdout.write(
            f"Made {len(turns):,} requests in {took:.1f} s. To see them: manage.py serve, then /admin/."
        )

    def _write(self, turns: Sequence[Turn], seed: int, now: datetime) -> None:
        written = 0
        try:
            for written in demo_data.write_turns(turns, seed, now):
                self._show(written, f"of {len(turns):,} requests", written / len(turns))
            for slots in demo_data.count_up(now):
                self._show(slots, "quarters of an hour counted", 1.0)
        except KeyboardInterrupt:
            self._end_line()
            raise CommandError(
                f"Interrupted: {written:,} of {len(turns):,} requests are there and stay. To count them:"
                " manage.py rebuildstats",
                returncode=130,
            ) from None
        self._end_line()

    def _show(self, done: int, what: str, share: float) -> None:
        """A bar on a terminal; elsewhere a line now and then, so that a log shows that it lives."""
        if self.stderr.isatty():
            filled = round(share * _BAR_CHARS)
            bar = "█" * filled + "░" * (_BAR_CHARS - filled)
            self.stderr.write(f"\r{bar} {done:,} {what}\x1b[K", style_func=str, ending="")
            self.stderr.flush()
        elif time.monotonic() - self._said_at > _HEARTBEAT_S:
            self.stderr.write(f"{done:,} {what}", style_func=str)
            self._said_at = time.monotonic()

    def _end_line(self) -> None:
        if self.stderr.isatty():
            self.stderr.write("")


def _requests(text: str) -> int:
    return int(_number(text, 1, _MOST_REQUESTS))


def _days(text: str) -> float:
    return _number(text, 0.1, _MOST_DAYS)


def _number(text: str, least: float, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        raise ArgumentTypeError(f"{text!r} is not a number from {least:g} to {most:,}")
    return number

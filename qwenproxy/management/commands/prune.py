"""`manage.py prune`: what the serving process does every hour by itself, now, and gives space back."""

from __future__ import annotations

import time
from argparse import ArgumentTypeError
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connection

from qwenproxy.access.key_fields import MAX_DAYS
from qwenproxy.access.models import ApiKey
from qwenproxy.display import size
from requests_app import erasure
from requests_app.prunings import KINDS, Kind, Removed, note_run
from requests_app.retention import Periods, Plan, Pruning, estimate, plans

_WHAT: dict[Kind, str] = {"content": "content of", "record": "all of"}


class Command(BaseCommand):
    help = (
        "Remove what is over: content, then whole sessions, after the days that QWENPROXY_CONTENT_DAYS, "
        "QWENPROXY_RECORD_DAYS and the keys say. While the gateway serves or not; may be interrupted, and goes "
        "on when it is called again. Exit status 0 done, 1 the database failed, 2 wrong usage, 130 interrupted."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--dry-run", action="store_true", help="only tell what would go")
        parser.add_argument(
            "--content-days",
            type=_days,
            metavar="N",
            help="this once, for every key, in the place of what is set",
        )
        parser.add_argument("--record-days", type=_days, metavar="N", help="the same, for records")
        parser.add_argument(
            "--vacuum",
            action="store_true",
            help="then give free space back; the first time on SQLite nobody else can write meanwhile",
        )
        parser.add_argument("--json", action="store_true", help="one JSON document")

    def handle(self, *args: Any, json: bool, **options: Any) -> None:
        wanted = Periods(options["content_days"], options["record_days"])
        now = datetime.now(UTC)
        try:
            if options["dry_run"]:
                document = self._estimate(now, wanted, is_shown=not json)
            else:
                document = self._prune(now, wanted, is_shown=not json)
                if options["vacuum"]:
                    document["given_back_bytes"] = self._vacuum(is_shown=not json)
        except KeyboardInterrupt:
            raise CommandError(
                "Interrupted; what is done stays. To go on, call it again.", returncode=130
            ) from None
        except erasure.NoRoom as exc:
            raise CommandError(f"--vacuum: {exc}") from exc
        except DatabaseError as exc:
            raise CommandError(f"The database: {exc}; what is done stays. Call it again.") from exc
        if json:
            self.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())

    def _estimate(self, now: datetime, wanted: Periods, *, is_shown: bool) -> dict[str, Any]:
        names = dict(ApiKey.objects.values_list("pk", "name"))
        found = []
        for plan in plans(now, wanted):
            removed = Removed()
            for part in estimate(plan):
                removed += part
                self._show(
                    f"looked through: {removed.sessions:,} sessions of {names[plan.api_key_id]}"
                )
            found.append((plan, removed))
        self._show("")
        if is_shown:
            for plan, removed in found:
                self.stdout.write(_line(names[plan.api_key_id], plan, removed))
            self.stdout.write("Nothing was changed." if found else _NOTHING)
        return {
            "version": 1,
            "dry_run": True,
            "keys": [
                {
                    "api_key": plan.api_key_id,
                    "name": names[plan.api_key_id],
                    "kind": plan.kind,
                    "before": plan.before.isoformat(),
                    **_figures(removed),
                }
                for plan, removed in found
            ],
        }

    def _prune(self, now: datetime, wanted: Periods, *, is_shown: bool) -> dict[str, Any]:
        began = time.monotonic()
        pruning = Pruning(now, wanted, waits=True)
        for _ in pruning.steps():
            self._show("removed: " + _summary(pruning.removed))
            time.sleep(pruning.rest_s)
        self._show("")
        took = timedelta(seconds=time.monotonic() - began)
        is_empty = not settings.SECURE_DELETE or erasure.empty_log()
        note_run(pruning.removed, ended_at=datetime.now(UTC), took=took)
        if is_shown:
            none_set = not plans(now, wanted)
            text = _NOTHING if none_set else f"Removed {_summary(pruning.removed)}"
            self.stdout.write(f"{text} ({took.total_seconds():.1f} s)." if not none_set else text)
        if not is_empty:
            self.stderr.write(
                "The write-ahead log could not be emptied: something reads on. Call it again."
            )
        removed: dict[str, Any] = {kind: _figures(pruning.removed[kind]) for kind in KINDS}
        seconds = round(took.total_seconds(), 3)
        return {
            "version": 1,
            "dry_run": False,
            **removed,
            "took_s": seconds,
            "log_emptied": is_empty,
        }

    def _vacuum(self, *, is_shown: bool) -> int:
        given = 0
        for freed in erasure.give_space_back():
            given += freed
            self._show(f"given back: {size(given)}")
        self._show("")
        if connection.vendor == "sqlite" and not erasure.empty_log():
            self.stderr.write("The file shrinks when what reads it now has ended.")
        if is_shown:
            what = size(given) if connection.vendor == "sqlite" else "the tables were vacuumed"
            self.stdout.write(f"Given back: {what}.")
        return given

    def _show(self, text: str) -> None:
        if self.stderr.isatty():
            self.stderr.write(f"\r\x1b[K{text}", style_func=str, ending="")
            self.stderr.flush()


_NOTHING = (
    "Nothing is set to expire: QWENPROXY_CONTENT_DAYS, QWENPROXY_RECORD_DAYS, or days of a key."
)


def _days(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 9 and 1 <= int(text) <= MAX_DAYS:
        return int(text)
    raise ArgumentTypeError(f"{text[:50]!r} is not a whole number from 1 to {MAX_DAYS}")


def _line(name: str, plan: Plan, removed: Removed) -> str:
    sessions = f"{removed.sessions:,} session{'' if removed.sessions == 1 else 's'}"
    return (
        f"{name}: {_WHAT[plan.kind]} {sessions} last used before {plan.before:%Y-%m-%d %H:%M} UTC,"
        f" {size(removed.bytes)} of texts"
    )


def _summary(removed: dict[Kind, Removed]) -> str:
    return ", ".join(
        f"{_WHAT[kind]} {removed[kind].sessions:,} sessions ({size(removed[kind].bytes)})"
        for kind in KINDS
    )


def _figures(removed: Removed) -> dict[str, int]:
    return {"sessions": removed.sessions, "bytes": removed.bytes}

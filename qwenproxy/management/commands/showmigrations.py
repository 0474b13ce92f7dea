"""Django's `showmigrations`, and with flags of ours the whole state of the schema; writes nothing."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from django.core.management.base import CommandParser
from django.core.management.commands import showmigrations
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from qwenproxy.schema import report, verify
from qwenproxy.schema.history import History
from qwenproxy.schema.refusals import SchemaChanged
from qwenproxy.schema.state import read_state, refuse_ahead

_STYLES = {"applied": "SUCCESS", "pending": "NOTICE", "failed": "ERROR", "changed": "WARNING"}


class Command(showmigrations.Command):
    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--status", action="store_true", help="the state, with who and when")
        parser.add_argument("--json", action="store_true", help="the same as one JSON document")
        parser.add_argument("--deps", action="store_true", help="what each migration needs")
        parser.add_argument(
            "--history", nargs="?", type=int, const=20, metavar="N", help="the last N events (20)"
        )
        parser.add_argument(
            "--verify",
            action="store_true",
            help="compare the tables with the migrations; exit 5 where they differ",
        )
        parser.add_argument(
            "--check",
            action="store_true",
            help="exit 3 where something is pending, 4 where the database is ahead, 5 on drift",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        ours = ("status", "json", "deps", "history", "verify", "check")
        if not any(options[name] for name in ours):
            super().handle(*args, **options)
            return
        connection = connections[options["database"]]
        with report.read_only(connection):
            if options["history"]:
                self._show_history(History(connection), options["history"])
                return
            if options["verify"]:
                self._verify(connection, is_json=options["json"])
                return
            document = report.build(connection)
        if options["json"]:
            self.stdout.write(json.dumps(document, indent=2))
        elif options["status"] or options["deps"]:
            self._show(document, options["app_label"], deps=options["deps"])
        if options["check"]:
            report.check(document)

    def _verify(self, connection: BaseDatabaseWrapper, *, is_json: bool) -> None:
        # The tables of a newer version are for that version to judge.
        now = read_state(connection.alias)
        refuse_ahead(now, connection.alias)
        found = verify.differences(connection)
        if is_json:
            document = {"version": 1, "differences": [asdict(one) for one in found]}
            self.stdout.write(json.dumps(document, indent=2))
        else:
            for one in found:
                self.stdout.write(f"{one.table}: {one.what}".removeprefix(": "), self.style.ERROR)
                self.stdout.write("\n".join(f"    {line}" for line in one.mend))
        if found:
            raise SchemaChanged(
                f"{len(found)} differences between the tables and the migrations. Nothing was "
                "changed; each is told above with what would mend it."
            )
        if not is_json:
            self.stdout.write("The tables are what the migrations say.")

    def _show(self, document: dict[str, Any], labels: list[str], *, deps: bool) -> None:
        counts = {
            key: len(document[key]) for key in ("pending", "failed", "held", "unknown", "changed")
        }
        self.stdout.write(
            f"Database {document['database']}  {document['engine']}  {document['file']}     "
            f"state: {document['state'].upper()}"
        )
        states = self._states(document)
        for label in sorted({app for app, _ in states}):
            if labels and label not in labels:
                continue
            self.stdout.write(self.style.MIGRATE_LABEL(label))
            for (app, name), (state, row) in states.items():
                if app == label:
                    self._show_one(name, state, row, deps=deps)
        backup = document["backup"]
        last = (
            f"last backup {backup['at'][:16]} ({backup['bytes'] / 2**20:.0f} MB)" if backup else ""
        )
        summary = "  ".join(f"{count} {key}" for key, count in counts.items())
        self.stdout.write(f"{summary}      {last}".rstrip())

    def _states(self, document: dict[str, Any]) -> dict[tuple[str, str], tuple[str, Any]]:
        # A later list says more than an earlier one.
        return {
            (row["app"], row["name"]): (state, row)
            for state in ("applied", "pending", "failed", "held", "changed", "unknown")
            for row in document[state]
        }

    def _show_one(self, name: str, state: str, row: dict[str, Any], *, deps: bool) -> None:
        parts = [f"  {self._symbol(state)} {name:<44}"]
        if row.get("applied_at"):
            parts.append(row["applied_at"][:16].replace("T", " "))
            if row.get("ms") is not None:
                parts.append(f"{row['ms']:>6} ms")
            if row.get("actor"):
                parts.append(f"{row['actor']}@{row['host']}  {row['source']}")
        elif state == "failed":
            parts.append(f"failed (rolled back): {row['error'].splitlines()[0]}")
        elif state == "held":
            parts.append("rolled back by hand; `migrate` applies it")
        if deps or state == "pending":
            needs = ", ".join(row.get("needs", []))
            parts.append(f"needs {needs}" if needs else "")
        text = "  ".join(part for part in parts if part).rstrip()
        style = getattr(self.style, _STYLES.get(state, "WARNING"))
        self.stdout.write(text, style if state != "applied" else None)

    def _symbol(self, state: str) -> str:
        symbol, fallback = report.SYMBOLS[state]
        encoding = getattr(self.stdout, "encoding", None) or "ascii"
        try:
            symbol.encode(encoding)
        except UnicodeEncodeError:
            return fallback
        return symbol

    def _show_history(self, history: History, count: int) -> None:
        for row in history.rows()[-count:]:
            name = f"{row['app']}.{row['name']}" if row["app"] else row["name"]
            ms = f"{row['ms']} ms" if row["ms"] is not None else ""
            error = f"  {row['error'].splitlines()[0]}" if row["error"] else ""
            self.stdout.write(
                f"{row['at']:%Y-%m-%d %H:%M:%S}  {str(row['run'])[:8]}  {row['action']:<8}"
                f"{row['status']:<12}{name:<52}{ms:>9}  {row['actor']}@{row['host']}  "
                f"{row['source']}{error}"
            )

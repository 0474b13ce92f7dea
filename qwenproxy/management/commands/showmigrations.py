"""Django's `showmigrations`, and with flags of ours the whole state of the schema; writes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from django.apps import apps
from django.core.management.base import CommandParser
from django.core.management.commands import showmigrations
from django.db import DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from qwenproxy.schema import engine, plan, report, verify
from qwenproxy.schema.commands import SchemaCommand
from qwenproxy.schema.history import History
from qwenproxy.schema.refusals import SchemaChanged, WrongUsage
from qwenproxy.schema.state import read_state, refuse_ahead

_STYLES = {"applied": "SUCCESS", "ready": "SUCCESS", "pending": "NOTICE", "failed": "ERROR"}


class Command(SchemaCommand, showmigrations.Command):
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

    def execute(self, *args: Any, **options: Any) -> str | None:
        try:
            return super().execute(*args, **options)
        except DatabaseError as exc:
            raise engine.unusable(connections[options["database"]], exc) from exc

    def handle(self, *args: Any, **options: Any) -> None:
        ours = ("status", "json", "deps", "history", "verify", "check")
        # By identity: 0 events are asked for as well.
        if all(options[name] is None or options[name] is False for name in ours):
            super().handle(*args, **options)
            return
        if options["history"] is not None and options["history"] < 1:
            raise WrongUsage("--history takes the number of events to show, at least 1.")
        unknown = set(options["app_label"]) - {app.label for app in apps.get_app_configs()}
        if unknown:
            raise WrongUsage(
                f"There is no app {', '.join(sorted(unknown))}. Those that there are: "
                "manage.py showmigrations"
            )
        connection = connections[options["database"]]
        steps: dict[str, Any] | None = None
        with report.read_only(connection):
            if options["history"]:
                self._show_history(History(connection), options["history"])
                return
            if options["verify"]:
                self._verify(connection, is_json=options["json"])
                return
            document: dict[str, Any] = report.build(connection)
            if options["status"] and not options["json"] and document["pending"]:
                steps = plan.describe(connection)
        if options["json"]:
            self._write_json(document)
        elif options["status"] or options["deps"]:
            self._show(document, steps, options["app_label"], deps=options["deps"])
        if options["check"]:
            report.check(document)

    def _verify(self, connection: BaseDatabaseWrapper, *, is_json: bool) -> None:
        # The tables of a newer version are for that version to judge.
        now = read_state(connection.alias)
        refuse_ahead(now, connection.alias)
        found = verify.differences(connection)
        if is_json:
            document = {"version": 1, "differences": [asdict(one) for one in found]}
            self._write_json(document)
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

    def _show(
        self,
        document: dict[str, Any],
        steps: dict[str, Any] | None,
        labels: list[str],
        *,
        deps: bool,
    ) -> None:
        size = f"  {plan.size(document['bytes'])}" if document["bytes"] else ""
        self.stdout.write(
            f"Database {document['database']}  {document['engine']}  {document['file']}{size}     "
            f"state: {self._styled(document['state'].upper(), document['state'])}"
        )
        if document["problem"]:
            self.stdout.write(document["problem"], self.style.WARNING)
        notes = {
            (step["app"], step["name"]): plan.note(step)
            for step in (steps["migrations"] if steps else ())
        }
        shown = {
            name: found
            for name, found in report.states(document).items()
            if not labels or name[0] in labels
        }
        width = max((len(name) for _, name in shown), default=0)
        for label in sorted({app for app, _ in shown}):
            self.stdout.write(self.style.MIGRATE_LABEL(label))
            for (app, name), (state, row) in shown.items():
                if app == label:
                    parts = self._parts(state, row, notes.get((app, name), ""), deps=deps)
                    text = f"  {self._symbol(state)} {name:<{width}}  {'  '.join(parts)}".rstrip()
                    self.stdout.write(self._styled(text, state))
        keys = ("pending", "failed", "held", "unknown", "changed")
        summary = "  ".join(f"{len(document[key])} {key}" for key in keys)
        if (backup := document["backup"]) is not None:
            at = self._minute(backup["at"])
            summary += f"     last backup {at} ({plan.size(backup['bytes'])}, verified)"
        self.stdout.write(summary)

    def _parts(self, state: str, row: Mapping[str, Any], note: str, *, deps: bool) -> list[str]:
        parts = []
        if "applied_at" in row:
            # Itself it is not on record where all that it replaces is.
            parts.append(f"{self._minute(row['applied_at']) or 'as its parts':<16}")
            parts.append(f"{row['ms']:>6} ms" if row.get("ms") is not None else " " * 9)
            parts.append(
                f"{row['actor']}@{row['host']}  {row['source']}" if row.get("actor") else ""
            )
        elif state == "failed":
            error = row["error"].partition("\n")[0]
            parts.append(f"failed {self._minute(row['at'])} (rolled back): {error}")
        elif state == "held":
            parts.append("rolled back by hand; `migrate` applies it")
        needs = ", ".join(row.get("needs", ()))
        if needs and (deps or state == "pending"):
            parts.append(f"needs {needs}")
        if note and state != "failed":
            parts.append(note)
        return [part for part in parts if part]

    def _minute(self, at: str | None) -> str:
        return (at or "")[:16].replace("T", " ")

    def _styled(self, text: str, state: str) -> str:
        return str(getattr(self.style, _STYLES.get(state, "WARNING"))(text))

    def _symbol(self, state: str) -> str:
        symbol, fallback = report.SYMBOLS[state]
        encoding = getattr(self.stdout, "encoding", None) or "ascii"
        try:
            symbol.encode(encoding)
        except UnicodeEncodeError:
            return fallback
        return symbol

    def _write_json(self, document: dict[str, Any]) -> None:
        # In ASCII: not every terminal has more.
        self.stdout.write(json.dumps(document, indent=2))

    def _show_history(self, history: History, count: int) -> None:
        rows = report.read_events(history)[-count:]
        names = [f"{row['app']}.{row['name']}" if row["app"] else row["name"] for row in rows]
        width = max(map(len, names), default=0)
        for row, name in zip(rows, names, strict=True):
            ms = f"{row['ms']} ms" if row["ms"] is not None else ""
            error = row["error"].partition("\n")[0]
            at = f"{row['at']:%Y-%m-%d %H:%M:%S}" if row["at"] else "-"
            self.stdout.write(
                f"{at:<19}  {str(row['run'])[:8]}  {row['action']:<7}  {row['status']:<11}  "
                f"{name:<{width}}  {ms:>8}  {row['actor']}@{row['host']}  {row['source']}  "
                f"{error}".rstrip()
            )

"""Processes that start to migrate one empty database at the same moment, for some rounds.

`python -m tests.schema.racers '{"processes": 8, "rounds": 20, "kills": false}'` prints what came of it as JSON.
With `kills` the one that migrates is killed in each round, at a statement chosen by chance.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.schema.kill_points import Databases, in_child, operate, outcome, prepared

UP = ["migrate", "--lock-wait", "300"]


class Killer:
    """Kills the first process that comes to a statement; the others, which come later, go on.

    Counted are those that write; at 0 it only counts them.
    """

    def __init__(self, flag: Path, at: int = 0) -> None:
        self.count = 0
        self._flag = flag
        self._at = at

    def watch(self, execute, sql, params, many, context):
        # Who waits for the lock, or looks who has it, only reads.
        self.count += not sql.lstrip().upper().startswith(("SELECT", "PRAGMA", "SHOW", "SET"))
        if self._at and self.count == self._at:
            self.count += 1
            try:
                os.close(os.open(self._flag, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return execute(sql, params, many, context)


def start_together(count: int, work: Callable[[], None]) -> list[int]:
    """Run `work` in forked processes, all let go at once; return how they ended."""
    closed, start = os.pipe()
    pids = []
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            os.close(start)
            os.read(closed, 1)
            status = 1
            try:
                work()
                status = 0
            except SystemExit as exc:
                status = int(exc.code or 0)
            except BaseException:  # noqa: BLE001  # the process ends here
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        pids.append(pid)
    os.close(closed)
    os.close(start)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def run(task: dict[str, Any], databases: Databases, directory: Path) -> dict[str, Any]:
    from django.db import connection

    flag = directory / "killed"
    random.seed(task.get("seed", 0))
    databases.fresh()
    operation = UP[:1] if task.get("plain") else UP

    def counted() -> object:
        counter = Killer(flag)
        connection.execute_wrappers.append(counter.watch)
        operate(task, operation)
        return counter.count, outcome(databases)

    _, (writes, expected) = in_child(counted)
    ended: Counter[int] = Counter()
    wrong = []
    for _ in range(task["rounds"]):
        databases.fresh()
        flag.unlink(missing_ok=True)
        at = random.randint(1, writes) if task.get("kills") else 0

        def work(at=at) -> None:
            if at:
                connection.execute_wrappers.append(Killer(flag, at).watch)
            operate(task, operation)

        ended.update(start_together(task["processes"], work))
        _, found = in_child(lambda: outcome(databases))
        if found != expected:
            wrong.append([key for key in expected if found is None or found[key] != expected[key]])
    return {"ended": ended, "wrong": wrong, "twice": expected["twice"]}


def main() -> None:
    task = json.loads(sys.argv[1])
    with prepared(task) as (databases, directory):
        sys.stdout.write(json.dumps(run(task, databases, directory)))


if __name__ == "__main__":
    main()

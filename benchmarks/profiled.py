"""Serves the gateway under cProfile, its loop and its recorder's thread apart, and groups what was found.

A profile shows where time goes, not how much: cProfile makes every call dearer, so that code of many
small functions looks worse than it is.
"""

from __future__ import annotations

import cProfile
import os
import pstats
import sys
import time
from collections import Counter
from pathlib import Path

import django
import uvicorn

FOLDER = "BENCHMARKS_PROFILE_DIR"
# The first name that a function's file has in it decides.
_GROUPS = (
    "benchmarks", "qwenproxy/proxy", "qwenproxy/wire", "qwenproxy/upstream", "qwenproxy/access",
    "qwenproxy/asgi", "qwenproxy", "requests_app", "sessions_app", "prometheus_client", "ninja",
    "django", "asgiref", "httpx_aiohttp", "httpx", "httpcore", "aiohttp", "yarl", "multidict", "uvicorn", "asyncio",
)  # fmt: skip


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "qwenproxy.settings")
    django.setup()
    # Models may be imported after `django.setup()` only.
    from django.core.management import execute_from_command_line

    from requests_app.recorder import Recorder

    folder = Path(os.environ[FOLDER])
    write, serve = Recorder._run, uvicorn.Server.main_loop
    on_loop = cProfile.Profile()
    # CPU time: on the clock, the wait for the disk would be all there is to see. Dear, so not on the loop.
    in_thread = cProfile.Profile(time.thread_time)

    def profiled_write(self: Recorder) -> None:
        in_thread.runcall(write, self)

    async def profiled_serve(self: uvicorn.Server) -> None:
        # From here on everything that runs in this thread is seen, until the server stops.
        on_loop.enable()
        try:
            await serve(self)
        finally:
            on_loop.disable()

    Recorder._run = profiled_write  # type: ignore[method-assign]  # the swap is the point
    uvicorn.Server.main_loop = profiled_serve  # type: ignore[method-assign]
    try:
        execute_from_command_line(["manage.py", "serve", *sys.argv[1:]])
    finally:
        on_loop.dump_stats(folder / "loop.pstats")
        in_thread.dump_stats(folder / "recorder.pstats")


def report(path: Path, *, count: int, unit: str, top: int = 30) -> None:
    """Print a profile's self time by group and its heaviest functions, per request or chunk."""
    stats = pstats.Stats(str(path)).stats  # type: ignore[attr-defined]  # typeshed has it not
    groups: Counter[str] = Counter()
    rows = []
    for (file, line, function), (_, calls, self_s, _, _) in stats.items():
        if "epoll" in function or "SimpleQueue" in function or "run_until_complete" in function:
            continue
        groups[_group(file, function)] += self_s
        rows.append((self_s, calls, f"{_short(file)}:{line} {function}"))
    total = sum(groups.values())
    print(f"  {path.stem}: {total / count * 1e6:.0f} us a {unit} under the profiler")
    for group, self_s in groups.most_common(18):
        print(f"    {self_s / total:6.1%}  {group}")
    for self_s, calls, name in sorted(rows, reverse=True)[:top]:
        print(f"    {self_s / count * 1e6:7.1f} us {calls / count:7.1f} calls  {name}")


def _group(file: str, function: str) -> str:
    if file == "~":
        return f"C: {function.partition(' of ')[2].strip(' >') or function}"[:60]
    return next((group for group in _GROUPS if f"/{group}" in file), "the standard library")


def _short(file: str) -> str:
    return "/".join(Path(file).parts[-3:])


if __name__ == "__main__":
    main()

"""`python -m tests.faults.replicas`: agents converse through several gateways on one PostgreSQL at once.

Each call of a conversation goes to another process than the one before it. Afterwards nothing may be mixed
or lost: every answer that a client received is on record and whole, every conversation is one session, the
upstreams saw whole histories of one conversation each, `verifyrecords` finds no difference, and statistics
that all processes rolled at the same time count each answer once. Exit status 0 where nothing differs, else 1.

With `--restarts` the processes are restarted meanwhile, one after the other, and the clients know but the
address of an nginx with the configuration of docs/scaling.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psycopg

from tests.doubles.server import serve_in_thread, unused_port
from tests.doubles.servers import documented, nginx, put
from tests.faults.agents import Agents, OpenAIAgents, Script, WebAgents
from tests.faults.gateway import Gateway
from tests.faults.load import check, read_rows
from tests.faults.torture import SERVER, new_database

_SETTLED_S = 120
# Far enough back that the slots of all answers are over.
_INTO_THE_PAST = "UPDATE requests_app_response SET completed_at = completed_at - interval '3 hours'"
_FORGET_SLOTS = "DELETE FROM requests_app_usageslot; DELETE FROM requests_app_latencyslot"
_RECORDED = (
    "SELECT COUNT(*), COALESCE(SUM(prompt_tokens), 0), COALESCE(SUM(completion_tokens), 0),"
    " COALESCE(SUM(duration_ms), 0) FROM requests_app_response"
)
_ROLLED = (
    "SELECT COALESCE(SUM(n), 0), COALESCE(SUM(tokens_in), 0), COALESCE(SUM(tokens_out), 0),"
    " COALESCE(SUM(ms_sum), 0) FROM requests_app_usageslot WHERE dim = '{}'"
)
_CALLS_BETWEEN_RESTARTS = 60
_TOLD = 20


class Replicas:
    """Gateways of one database, and the upstreams of all."""

    def __init__(
        self,
        directory: Path,
        upstream_url: str,
        database_url: str,
        *,
        count: int = 2,
        settings: Mapping[str, str] | None = None,
        is_warm: bool = False,
    ) -> None:
        self.database_url = database_url
        self.gateways = [
            Gateway(
                directory / f"replica{number}",
                upstream_url=upstream_url,
                database_url=database_url,
                settings=settings,
                is_warm=is_warm,
            )
            for number in range(count)
        ]

    async def start(self) -> str:
        """Start all at once; return the API key that one of them made on the empty database."""
        for gateway in self.gateways:
            gateway.launch()
        await asyncio.gather(*(gateway.wait_until_ready() for gateway in self.gateways))
        keys = {gateway.key for gateway in self.gateways if gateway.key}
        assert len(keys) == 1
        return keys.pop()

    async def stop(self) -> None:
        for gateway in self.gateways:
            gateway.signal(signal.SIGTERM)
        for gateway in self.gateways:
            assert await gateway.wait() == 0, gateway.tail()

    @property
    def urls(self) -> list[str]:
        return [gateway.url for gateway in self.gateways]

    def count(self, sql: str) -> int:
        return int(read_rows(self.database_url, sql)[0][0])

    def close(self) -> None:
        for gateway in self.gateways:
            gateway.close()


async def wait_until(condition: Callable[[], bool]) -> None:
    """Ask until it holds, in a thread: it is another process's rows.

    Raises:
        TimeoutError: it did not for two minutes.
    """
    async with asyncio.timeout(_SETTLED_S):
        while not await asyncio.to_thread(condition):  # noqa: ASYNC110  # another process's rows
            await asyncio.sleep(0.1)


@contextmanager
def upstreams(script: Script) -> Iterator[tuple[str, dict[str, str], WebAgents]]:
    """Both kinds of the script's: the URL of the one, the settings that name the other, and that one."""
    web = WebAgents(script)
    with serve_in_thread(OpenAIAgents(script)) as url, serve_in_thread(web) as web_url:
        yield url, {"QWEN_BASE_URL": web_url, "QWEN_TOKEN": "planted-token"}, web


@contextmanager
def balanced(replicas: Replicas) -> Iterator[str]:
    """The documented nginx before two of them, without TLS."""
    port = unused_port()
    text = put(documented("nginx"), "listen 443 ssl", f"listen 127.0.0.1:{port}")
    text = re.sub(r" *ssl_certificate.*\n", "", text)
    for number, gateway in enumerate(replicas.gateways, 11):
        text = put(text, f"10.0.0.{number}:8100", f"127.0.0.1:{gateway.port}")
    with nginx(text, port):
        yield f"http://127.0.0.1:{port}"


async def roll_over(replicas: Replicas, agents: Agents, restarts: int) -> int:
    """Restart one after the other under load; return how often before the conversations ended."""
    running = asyncio.create_task(agents.run())
    done = 0
    while done < restarts and not running.done():
        wanted = len(agents.calls) + _CALLS_BETWEEN_RESTARTS
        while len(agents.calls) < wanted and not running.done():  # noqa: ASYNC110  # many tasks bring them
            await asyncio.sleep(0.02)
        gateway = replicas.gateways[done % len(replicas.gateways)]
        gateway.signal(signal.SIGTERM)
        assert await gateway.wait() == 0, gateway.tail()
        await gateway.start()
        done += not running.done()
    await running
    return done


async def roll_together(replicas: Replicas) -> list[str]:
    """Let all processes begin to roll what ended at the same moment; return what was counted otherwise."""
    await replicas.stop()
    with psycopg.connect(replicas.database_url) as server:
        server.execute(_INTO_THE_PAST)
        server.execute(_FORGET_SLOTS)
    (recorded,) = read_rows(replicas.database_url, _RECORDED)
    await replicas.start()
    wanted = int(recorded[0])
    await wait_until(lambda: replicas.count(_ROLLED.format("total")) >= wanted)
    await replicas.stop()
    return [
        f"statistics by {dim} have {rolled}, the record {recorded}"
        for dim in ("total", "model", "key", "account", "htotal", "dtotal")
        if (rolled := read_rows(replicas.database_url, _ROLLED.format(dim))[0]) != recorded
    ]


@dataclass
class Summary:
    replicas: int
    conversations: int
    turns: int
    restarts: int = 0
    calls: int = 0
    at_the_same_time: int = 0
    answers_whole: int = 0
    broken_off: int = 0
    sessions: int = 0
    web_chats: int = 0
    mixed: int = 0
    seconds: float = 0.0
    median_s: float = 0.0
    p99_s: float = 0.0
    verified: str = ""
    differences: list[str] = field(default_factory=list)


async def converse(
    directory: Path,
    *,
    conversations: int,
    turns: int,
    count: int = 2,
    restarts: int = 0,
    pace_s: float = 0.05,
) -> Summary:
    """Run it in a directory that is empty; `conversations` for each replica, all at the same time."""
    summary = Summary(count, conversations * count, turns)
    script = Script(pace_s)
    with ExitStack() as servers:
        database_url = servers.enter_context(new_database("postgresql"))
        url, settings, web = servers.enter_context(upstreams(script))
        replicas = Replicas(directory, url, database_url, count=count, settings=settings)
        servers.callback(replicas.close)
        key = await replicas.start()
        urls = [servers.enter_context(balanced(replicas))] if restarts else replicas.urls
        agents = Agents(urls, key, conversations=conversations * count, turns=turns)
        if restarts:
            agents.refusals |= {502, 504}
        began = time.monotonic()
        summary.restarts = await roll_over(replicas, agents, restarts)
        summary.seconds = round(time.monotonic() - began, 1)
        _compare(summary, agents, database_url)
        verified = replicas.gateways[0].manage("verifyrecords")
        summary.verified = verified.stdout.strip().rpartition("\n")[2]
        if verified.returncode:
            summary.differences.append(f"verifyrecords: {verified.stdout}{verified.stderr}")
        summary.differences += await roll_together(replicas)
    summary.web_chats, summary.mixed = len(web.chats), len(script.mixed)
    summary.differences += script.mixed
    return summary


def _compare(summary: Summary, agents: Agents, database_url: str) -> None:
    took = sorted(call.took_s for call in agents.calls)
    summary.median_s = round(took[len(took) // 2], 2)
    summary.p99_s = round(took[len(took) * 99 // 100], 2)
    summary.calls = len(agents.calls)
    summary.at_the_same_time = agents.most_running
    summary.sessions = len(set.union(*agents.sessions.values()))
    found = check(database_url, agents.calls)
    summary.answers_whole, summary.broken_off = found.whole, len(agents.calls) - found.whole
    summary.differences += [
        *found.differences,
        *agents.differences(database_url),
        *agents.complaints,
    ]
    counts = (
        "SELECT (SELECT COUNT(*) FROM sessions_app_session), COUNT(*) FROM requests_app_request"
    )
    rows = read_rows(database_url, counts)[0]
    if not summary.broken_off and rows != (summary.conversations, summary.calls):
        summary.differences.append(f"{rows} sessions and requests are on record")


def table(summary: Summary) -> str:
    chats = f"{summary.web_chats:,} for {summary.conversations // 2:,} conversations"
    rows = (
        ("replicas", f"{summary.replicas}"),
        ("conversations at the same time", f"{summary.conversations:,}"),
        ("turns of each", f"{summary.turns}, each with a call of a tool"),
        ("restarts meanwhile, behind nginx", f"{summary.restarts}"),
        ("calls of the gateway", f"{summary.calls:,}"),
        ("most of them at the same time", f"{summary.at_the_same_time:,}"),
        ("answers received whole", f"{summary.answers_whole:,}"),
        ("broken off or refused", f"{summary.broken_off:,}"),
        ("sessions", f"{summary.sessions:,}"),
        ("chats of the web upstream", chats),
        ("histories mixed or not whole", f"{summary.mixed:,}"),
        ("time to an answer, median and p99", f"{summary.median_s} s, {summary.p99_s} s"),
        ("verifyrecords", summary.verified),
        ("time", f"{summary.seconds:,.0f} s"),
        ("differences", f"{len(summary.differences):,}"),
    )
    return "\n".join(f"| {name} | {value} |" for name, value in rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Agents converse through several gateways at once."
    )
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--conversations", type=int, default=200, help="for each replica")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--restarts", type=int, default=0, help="behind nginx; of two replicas")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.restarts and given.replicas != 2:
        parser.error("the documented nginx has two replicas")
    if not SERVER:
        parser.error("QWENPROXY_TEST_DATABASE_URL names no server: use .ci/postgresql")
    with tempfile.TemporaryDirectory(prefix="qwenproxy-replicas.") as directory:
        summary = asyncio.run(
            converse(
                Path(directory),
                conversations=given.conversations,
                turns=given.turns,
                count=given.replicas,
                restarts=given.restarts,
            )
        )
    text = json.dumps(asdict(summary), indent=2) if given.json else table(summary)
    sys.stdout.write(text + "\n")
    for difference in summary.differences[:_TOLD]:
        sys.stderr.write(f"DIFFERENT: {difference}\n")
    return 1 if summary.differences else 0


if __name__ == "__main__":
    sys.exit(main())

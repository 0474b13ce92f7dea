"""A few rounds of `make torture`: gateways are killed under load, and nothing that was received is lost."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.doubles.server import serve_in_thread
from tests.faults.gateway import Gateway
from tests.faults.load import Answer, EchoDouble, Load, check, compare, read_rows
from tests.faults.torture import SERVER, table, torture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_kills_at_random_moments_lose_nothing_that_was_received(tmp_path):
    engine = "postgresql" if SERVER else "sqlite"
    summary = asyncio.run(
        torture(tmp_path, engine, rounds=8, seconds=1.5, conversations=8, limit_s=60)
    )
    assert summary.findings.differences == [], table(summary)
    assert summary.rounds >= 1
    assert summary.findings.whole > 0


@pytest.mark.skipif(bool(SERVER), reason="what is compared is the same on every engine")
def test_the_comparison_finds_what_is_lost(tmp_path):
    """A rig that finds nothing must be able to find something."""

    async def scenario(gateway):
        await gateway.start()
        load = Load([gateway.url], gateway.key, conversations=2, max_conversations=3, turns=2)
        await load.run()
        gateway.signal(signal.SIGTERM)
        assert await gateway.wait() == 0
        return load.take()

    with serve_in_thread(EchoDouble(words=(3, 5), delay_s=0)) as url:
        gateway = Gateway(tmp_path / "data", upstream_url=url)
        try:
            answers = asyncio.run(scenario(gateway))
        finally:
            gateway.close()
    database = gateway.database_url
    assert check(database, answers).differences == []
    assert check(database, answers).whole == len(answers) == 6
    answer = answers[0]
    changed = [
        Answer(answer.secret, answer.question, "", "unknown", answer.pieces, is_whole=True),
        Answer(answer.secret, "another", "", answer.response_id, answer.pieces, is_whole=True),
        Answer(answer.secret, answer.question, "", answer.response_id, [(0, "x")], is_whole=True),
        Answer(
            answer.secret, answer.question, "", answer.response_id, [(0, "x")], killed_at=1.01
        ),
    ]  # fmt: skip
    for one in changed:
        assert len(compare(database, [one]).differences) == 1
    assert read_rows(database, "SELECT COUNT(*) FROM requests_app_request") == [(6,)]

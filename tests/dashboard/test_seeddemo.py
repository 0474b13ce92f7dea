from __future__ import annotations

import io
import itertools
import math
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from django.core.management import CommandError, call_command

from qwenproxy.access.models import ApiKey, KeyUsage, UpstreamAccount
from qwenproxy.dashboard import demo_data
from qwenproxy.dashboard.demo_talks import Plan, make_large_talk
from qwenproxy.management.commands import seeddemo
from qwenproxy.wire import history
from requests_app.figures import Reader
from requests_app.models import Request, Response
from requests_app.records import load_request, load_response
from requests_app.windows import Window, slot_of
from sessions_app.models import Message, Session
from tests.factories import make_request, make_session
from tests.requests_app.ended import ended_rows, expected, seen

# The recorder's transactions are not inside another.
pytestmark = pytest.mark.django_db(transaction=True)

NOW = datetime(2026, 11, 22, 12, 5, tzinfo=UTC)


def seed(*arguments: str, tty: bool = False):
    out, err = io.StringIO(), io.StringIO()
    err.isatty = lambda: tty
    call_command("seeddemo", *arguments, stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def test_rows_are_those_the_recorder_would_write(monkeypatch):
    # A slow machine would have a line for the log.
    monkeypatch.setattr(seeddemo, "_HEARTBEAT_S", math.inf)
    out, err = seed("--requests", "120", "--days", "2")
    assert out.startswith("Made 120 requests in ")
    assert err == ""
    for message in Message.objects.exclude(session__api_key__recorded="metadata"):
        above = (
            bytes(message.parent.digest)
            if message.parent
            else history.root_digest(message.session.api_key_id)
        )
        said = history.decode_content(message.role, message.content)
        assert bytes(message.digest) == history.message_digest(above, said)
    assert not Response.objects.filter(status="in_progress").exists()
    assert set(Request.objects.values_list("match", flat=True)) >= {"new", "continued"}
    assert max(Response.objects.values_list("completed_at", flat=True)) < datetime.now(UTC)


def test_bodies_are_rebuilt_and_are_what_went_upstream():
    seed("--requests", "60", "--days", "1")
    for request in Request.objects.filter(recorded="everything"):
        shown = load_request(request.pk)
        assert shown["qwen_request_exact"] is True
        assert shown["openai_request"]["messages"]
        load_response(request.response.pk)


def test_of_the_key_that_keeps_no_content_there_is_none():
    turns = demo_data.make_turns(300, 1, 1, NOW, large=False)
    kept_out = [turn for turn in turns if turn.client.recorded == "metadata"]
    assert kept_out
    list(demo_data.write_turns(kept_out, 1, NOW))
    contents = set(Message.objects.values_list("content", flat=True))
    assert contents == {"{}"}
    assert set(Session.objects.values_list("title", flat=True)) == {""}


def test_statistics_and_use_of_limits_are_counted():
    seed("--requests", "150", "--days", "1")
    now = datetime.now(UTC)
    window = Window(slot_of(now) - 96, slot_of(now))
    start, end = (datetime.fromtimestamp(slot * 900, UTC) for slot in (window.start, window.end))
    assert seen(Reader(now).totals(window)) == expected(ended_rows(), start, end)[""]
    limited = ApiKey.objects.get(name="Demo: coding agents")
    assert KeyUsage.objects.get(api_key=limited, span="month").requests > 0


def test_accounts_are_well_cooling_and_expiring_and_answer_as_demo():
    seed("--requests", "5")
    accounts = {account.name: account for account in UpstreamAccount.objects.all()}
    assert {account.kind for account in accounts.values()} == {"demo"}
    assert {account.state for account in accounts.values()} == {"ready", "cooling"}
    assert accounts["Demo: web session"].secrets_expire_at is not None


def test_the_same_seed_makes_the_same_traffic():
    def said(seed):
        return [
            (turn.at, turn.model, turn.line, turn.answer.message(), turn.outcome)
            for turn in demo_data.make_turns(50, 1, seed, NOW, large=False)
        ]

    assert said(3) == said(3)
    assert said(3) != said(4)


def test_a_short_stretch_in_which_nobody_works_is_filled_as_well():
    night = datetime(2026, 11, 22, 21, tzinfo=UTC)
    assert len(demo_data.make_turns(200, 0.1, 1, night, large=False)) == 200


def test_a_database_of_the_demo_gets_more_and_loses_nothing():
    seed("--requests", "20", "--days", "1")
    before = set(Request.objects.values_list("pk", flat=True))
    seed("--requests", "20", "--days", "1", "--seed", "2")
    assert Request.objects.count() == 40
    assert before < set(Request.objects.values_list("pk", flat=True))
    assert ApiKey.objects.count() == 5


def test_a_database_with_records_of_its_own_is_left_alone():
    make_request(make_session())
    with pytest.raises(CommandError, match="records of its own") as refused:
        seed("--requests", "5")
    assert refused.value.returncode == 2
    assert Request.objects.count() == 1
    assert ApiKey.objects.count() == 1
    seed("--requests", "5", "--force")
    assert Request.objects.count() == 6


def test_an_interrupted_run_says_what_stays(monkeypatch):
    def interrupted(now):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(demo_data, "count_up", interrupted)
    with pytest.raises(CommandError, match="5 of 5 requests are there and stay") as ended:
        seed("--requests", "5")
    assert ended.value.returncode == 130


def test_a_terminal_sees_a_bar():
    assert "█" in seed("--requests", "5", tty=True)[1]


def test_a_log_sees_a_line_now_and_then(monkeypatch):
    monkeypatch.setattr(seeddemo, "_HEARTBEAT_S", -1.0)
    assert "5 of 5 requests\n" in seed("--requests", "5")[1]


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--requests", "0"], id="none"),
        pytest.param(["--requests", "many"], id="no number"),
        pytest.param(["--days", "nan"], id="not a number"),
        pytest.param(["--days", "1e9"], id="for ages"),
    ],
)
def test_what_cannot_be_made_is_refused(arguments):
    with pytest.raises(CommandError, match="is not a number from"):
        seed(*arguments)


def test_the_large_session_has_turns_branches_and_large_results():
    turns = make_large_talk(Plan(NOW - timedelta(days=1), NOW), Random(1))
    assert sum(turn.outcome == "answer" for turn in turns) >= 295
    assert max(turn.ended_at for turn in turns) < NOW
    children: dict[int, set[int]] = {}
    for turn in turns:
        for above, below in itertools.pairwise(turn.line):
            children.setdefault(id(above), set()).add(id(below))
    assert sum(len(below) - 1 for below in children.values()) >= 40
    results = {id(m): len(m["content"]) for t in turns for m in t.line if m["role"] == "tool"}
    assert max(results.values()) == 2 * 10**6
    list(demo_data.write_turns(turns[:20], 1, NOW))
    assert Session.objects.get().request_count == 20

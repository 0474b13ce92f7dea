"""What dead workers left gets an end; what live ones do is left alone."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection, connections

from qwenproxy.transaction import transaction
from qwenproxy.wire.events import (
    Asked,
    ReasoningDelta,
    Sent,
    Started,
    TextDelta,
    ToolCallDelta,
    UsageReport,
)
from requests_app import settling
from requests_app.liveness import WorkerLock
from requests_app.models import Partial, Request, Response, Worker
from requests_app.settling import release_expired_chats, settle_dead_workers
from requests_app.writes import ChatRow, PartialRows, append_partials
from sessions_app.models import Message, Session, UpstreamChat
from tests.factories import make_account, make_api_key
from tests.turns import (
    TTL,
    WORKER,
    assistant,
    close_all,
    make_closing,
    make_opening,
    make_worker,
    one_shots,
    open_all,
    running_recorder,
    take_turn,
    user,
)

pytestmark = pytest.mark.django_db(transaction=True)
OWN = "00000000-0000-4000-8000-00000000000a"


@pytest.fixture(autouse=True)
def _worker(transactional_db):
    make_worker()


@pytest.fixture
def key():
    return make_api_key()


@pytest.fixture
def settle(tmp_path):
    lock = WorkerLock(OWN, tmp_path, wait_s=5)

    def settle():
        with transaction(lock_wait_s=5) as tx:
            return settle_dead_workers(tx, lock, now=datetime.now(UTC), session_ttl=TTL)

    return settle


def append(opening, *batches):
    with transaction(lock_wait_s=5) as tx:
        rows = [(opening.response_id, seq, events) for seq, events in enumerate(batches)]
        append_partials(tx, PartialRows(rows))


def test_what_went_upstream_is_on_record_though_the_end_never_came(key, settle):
    account = make_account()
    opening = make_opening(key, user("tell"))
    open_all(opening)
    attempt = {"account": account.name, "started": 1, "ms": None, "cause": None}
    sent = Sent({"model": "qwen3-max", "messages": None}, "the prompt", 2)
    append(
        opening,
        [Asked(account.pk, "new", attempt), sent, Started("r1", "chat-1", "u1")],
        [TextDelta("Once")],
    )
    settle()
    request = Request.objects.get()
    assert (request.account, request.upstream) == (account, "new")
    assert json.loads(request.attempts) == [attempt]
    assert json.loads(request.upstream_request) == {"request": sent.request, "first_message": 2}
    assert bytes(request.upstream_text_digest) == sent.text_digest
    assert Response.objects.get().upstream_parent_id == "u1"
    # REST shows the chat; no turn goes on in it.
    reply = Message.objects.get(given=True)
    assert (reply.upstream_chat.chat_id, reply.upstream_id) == ("chat-1", None)


def test_the_text_so_far_becomes_the_answer(key, settle):
    opening = make_opening(key, user("tell"))
    open_all(opening)
    append(
        opening,
        [Started("r1", "chat-1", "u1"), ReasoningDelta("hm")],
        [TextDelta("Once "), TextDelta("upon")],
        [TextDelta(" a"), UsageReport(5, 3, 8)],
    )
    assert settle() == 1
    response = Response.objects.get()
    assert (response.status, response.finish_reason, response.error_code) == (
        "interrupted", "error", "interrupted",
    )  # fmt: skip
    assert (response.reply.content, response.reasoning) == ('"Once upon a"', "hm")
    assert (response.total_tokens, response.usage_source) == (8, "partial")
    assert (response.http_status, response.worker_id) == (200, None)
    assert json.loads(response.upstream_response)["chat_id"] == "chat-1"
    assert Partial.objects.count() == 0
    assert Session.objects.get().message_count == 2
    # Nothing is left of the worker either.
    assert settle() == 0
    assert Worker.objects.count() == 0


@pytest.mark.parametrize(
    "events",
    ['{"t":"x"}', "[[]]", '[["t"]]', "[[{}]]", "[", '[["s",1,2,3,4,5,6]]'],
)
def test_a_part_that_cannot_be_read_keeps_no_turn_from_its_end(key, settle, events, caplog):
    broken, other = one_shots(key, 2)
    open_all(broken, other)
    append(broken, [TextDelta("Once ")], [TextDelta("upon ")], [TextDelta("a time")])
    append(other, [TextDelta("whole")])
    row = Partial.objects.get(response__response_id=broken.response_id, seq=1)
    row.events = events
    row.save()
    assert settle() == 2
    replies = Response.objects.order_by("response_id").values_list("status", "reply__content")
    assert list(replies) == [("interrupted", '"Once a time"'), ("interrupted", '"whole"')]
    # What is there is left for who can read it.
    assert Partial.objects.filter(events=events).exists()
    assert broken.response_id in caplog.text


def test_calls_so_far_become_the_answer(key, settle):
    opening = make_opening(key, user("list"))
    open_all(opening)
    append(opening, [ToolCallDelta(0, "c1", "ls", '{"pa')], [ToolCallDelta(0, arguments='th":')])
    settle()
    reply = json.loads(Response.objects.get().reply.content)
    assert reply["tool_calls"][0]["function"] == {"name": "ls", "arguments": '{"path":'}


def test_a_turn_without_any_text_has_no_answer(key, settle):
    open_all(make_opening(key, user("tell")))
    assert settle() == 1
    response = Response.objects.get()
    assert (response.status, response.reply, response.http_status) == ("interrupted", None, 503)
    assert Session.objects.get().message_count == 0


def test_an_interrupted_answer_is_found_when_it_is_sent_back(key, settle):
    opening = make_opening(key, user("tell"))
    open_all(opening)
    append(opening, [TextDelta("Once upon ")])
    settle()
    turn = take_turn(key, user("tell"), assistant("Once upon"), user("go on"))
    assert (turn.match, turn.session_id) == ("continued", Session.objects.get().id)


def test_a_turn_below_system_text_alone_is_settled(key, settle):
    opening = make_opening(key, {"role": "system", "content": "speak"})
    open_all(opening)
    append(opening, [TextDelta("So be it.")])
    settle()
    assert Response.objects.get().reply.parent is None


def test_many_turns_are_settled_batch_by_batch(key, settle, monkeypatch):
    monkeypatch.setattr(settling, "_BATCH_TURNS", 20)
    open_all(*one_shots(key, 50))
    assert [settle() for _ in range(4)] == [20, 20, 10, 0]
    assert Response.objects.filter(status="interrupted").count() == 50
    assert Worker.objects.count() == 0


def test_turns_of_a_live_worker_are_left_alone(key, tmp_path):
    async def main():
        opening = make_opening(key, user("hi"))
        async with (
            running_recorder(tmp_path) as first,
            running_recorder(tmp_path) as second,
        ):
            opened = await first.open(opening)
            await second.settle()
            await first.commit(make_closing(opening, opened, "hello"))

    asyncio.run(main())
    assert Response.objects.get().status == "completed"


def test_a_start_settles_what_the_last_process_left(key, tmp_path):
    opening = make_opening(key, user("hi"))
    open_all(opening)

    async def main():
        async with running_recorder(tmp_path):
            pass

    asyncio.run(main())
    assert Response.objects.get().status == "interrupted"
    assert Worker.objects.count() == 0


def test_a_worker_that_lost_its_lock_for_a_while_goes_on(key, tmp_path):
    """Its connection drops, another process settles what it ran and forgets it; then it is back."""
    if connection.vendor != "postgresql":
        pytest.skip("a file's lock is not lost while its process lives")

    async def main():
        async with (
            running_recorder(tmp_path) as first,
            running_recorder(tmp_path) as second,
        ):
            running, later = one_shots(key, 2)
            opened = await first.open(running)

            def drop(tx):
                connections["default"].close()
                raise ValueError("the connection goes, and this write with it")

            with pytest.raises(Exception, match="cannot be written"):
                await first.run(drop)
            # The server notices a moment later that its client has gone.
            async with asyncio.timeout(20):
                while await asyncio.to_thread(statuses) != ["interrupted"]:
                    await second.settle()
            # The answer was whole in truth, and is.
            await first.commit(make_closing(running, opened, "whole"))
            await first.open(later)
            await second.settle()
            assert await asyncio.to_thread(statuses) == ["completed", "in_progress"]

    asyncio.run(main())


def statuses():
    try:
        return list(Response.objects.order_by("id").values_list("status", flat=True))
    finally:
        connections.close_all()


def test_an_account_that_is_gone_is_no_obstacle(key, settle):
    opening = make_opening(key, user("hi"))
    open_all(opening)
    account = make_account()
    Request.objects.update(account=account)
    account.delete()
    assert settle() == 1
    assert Request.objects.get().account is None


def test_expired_sessions_let_go_of_their_chats_and_keep_their_messages(key):
    account = make_account(kind="qwen_web")
    for number in (1, 2):
        opening = make_opening(key, user(f"q{number}"))
        (opened,) = open_all(opening)
        chat = ChatRow(f"chat-{number}", account.pk, "qwen3-max", b"context")
        close_all(make_closing(opening, opened, "a", chat=chat, upstream_id="r"))
    old = Session.objects.order_by("created_at").first()
    Session.objects.filter(pk=old.pk).update(expires_at=datetime.now(UTC) - timedelta(minutes=1))
    with transaction(lock_wait_s=5) as tx:
        release_expired_chats(tx, now=datetime.now(UTC))
    assert UpstreamChat.objects.get().chat_id == "chat-2"
    assert Message.objects.count() == 4
    assert Message.objects.filter(given=True, upstream_chat=None, upstream_id="r").count() == 1


def test_rows_of_a_worker_that_stopped_cleanly_are_settled_by_the_next(key, settle):
    open_all(make_opening(key, user("hi")))
    Response.objects.update(worker=None)
    Worker.objects.filter(pk=WORKER).delete()
    assert settle() == 1

"""What expires, when, and what is left of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.db.models import Sum

from qwenproxy.access.models import ApiKey
from qwenproxy.wire import json
from qwenproxy.wire.attachments import FILES
from qwenproxy.wire.history import decode_content
from requests_app.keeping import KEEP, KeepMetadata
from requests_app.models import Blob, MessageFile, Request, Response, UsageSlot
from requests_app.prunings import Removed, growth, last_run, measure, note_run, read_removed
from requests_app.records import load_request
from requests_app.retention import Periods, Pruning, due, estimate, plans
from sessions_app.models import Message, Session
from tests.factories import make_api_key, make_line, make_message, make_session, make_turn
from tests.turns import (
    assistant,
    close_all,
    make_closing,
    make_opening,
    make_worker,
    open_all,
    take_turn,
    user,
)

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
SECRET = "the planted secret"
IMAGE = "data:image/png;base64," + "aGVsbG8gd29ybGQh" * 20


def aged(api_key, days, **fields):
    """A session of one turn, used last so many days ago."""
    session = make_session(api_key, title=SECRET, **fields)
    make_turn(
        session,
        SECRET,
        f"{SECRET}!",
        request={
            "parameters": json.dumps_text({"model": "m", "temperature": 0.5, "stop": [SECRET]}),
            "attempts": json.dumps_text([{"account": 1, "ms": 5, "cause": f"code: {SECRET}"}]),
            "upstream_request": json.dumps_text(
                {"request": {"model": "m", "stop": [SECRET]}, "first_message": 0}
            ),
        },
        response={
            "reasoning": SECRET,
            "upstream_response": json.dumps_text({"response_id": "r", "raw_text": SECRET}),
            "error_code": "some_code",
            "error_message": SECRET,
        },
    )
    at = NOW - timedelta(days=days)
    Session.objects.filter(pk=session.pk).update(last_accessed=at)
    session.refresh_from_db()
    return session


def prune(now=NOW, **periods):
    pruning = Pruning(now, Periods(**periods))
    for _ in pruning.steps():
        pass
    return pruning.removed


def everything():
    """All texts of all tables that hold content."""
    texts = []
    for table in ("sessions_app_session", "sessions_app_message", "requests_app_request",
                  "requests_app_response", "requests_app_blob", "requests_app_usageslot"):  # fmt: skip
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {table}")
            texts += [str(row) for row in cursor.fetchall()]
    return "\n".join(texts)


def test_nothing_expires_unless_asked():
    aged(make_api_key(), 10_000)
    before = everything()
    assert plans(NOW) == []
    assert prune() == {"content": Removed(), "record": Removed()}
    assert everything() == before


def test_content_goes_and_counts_stay():
    session = aged(make_api_key(), 31)
    counts = Response.objects.values(
        "total_tokens", "duration_ms", "response_id", "error_code"
    ).get()
    removed = prune(content_days=30)
    assert removed["record"] == Removed()
    assert removed["content"].sessions == 1
    assert removed["content"].bytes > 5 * len(SECRET)
    assert SECRET not in everything()
    session.refresh_from_db()
    assert session.content_removed_at == NOW
    request = Request.objects.get()
    assert (request.recorded, request.model, request.user_agent) == (
        "removed",
        "qwen3-max",
        "tests/1",
    )
    assert json.loads_text(request.parameters) == {"temperature": 0.5}
    assert json.loads_text(request.attempts) == [{"account": 1, "ms": 5, "cause": "code"}]
    assert Response.objects.values(*counts).get() == counts
    assert Response.objects.get().error_message == "some_code"
    assert sorted(Message.objects.values_list("role", "content")) == [
        ("assistant", "{}"),
        ("user", "{}"),
    ]


@pytest.mark.django_db(transaction=True)
def test_the_bare_form_is_that_of_keys_without_content():
    """The same turn, recorded without content and made bare afterwards."""
    make_worker()
    question = user(
        [{"type": "text", "text": SECRET}, {"type": "image_url", "image_url": {"url": IMAGE}}]
    )
    tools = [{"type": "function", "function": {"name": SECRET}}]
    keys = make_api_key(), make_api_key()
    for api_key, keep in zip(keys, (KEEP, KeepMetadata(KEEP)), strict=True):
        opening = make_opening(
            api_key, {"role": "system", "content": SECRET}, question, tools=tools, title=SECRET,
            parameters={"model": "m", "n": 1, "user": SECRET}, keep=keep,
            created_at=NOW - timedelta(days=2),
        )  # fmt: skip
        (opened,) = open_all(keep.opening(opening))
        closing = make_closing(
            opening, opened, SECRET, reasoning=SECRET, completed_at=NOW - timedelta(days=2),
            error_code="c", error_message=SECRET, keep=keep,
            upstream_response=json.dumps_text({"response_id": "r", "raw_text": SECRET}),
            attempts=json.dumps_text([{"ms": 1, "cause": f"c: {SECRET}"}]),
        )  # fmt: skip
        close_all(keep.closing(closing))
    assert MessageFile.objects.count() == 1
    assert prune(content_days=1)["content"].bytes > len(IMAGE)
    assert SECRET not in everything()
    assert not Blob.objects.exists()
    assert not MessageFile.objects.exists()

    def stored(api_key):
        of_key = {"session__api_key": api_key}
        return (
            list(Message.objects.filter(**of_key).order_by("id").values_list("role", "content")),
            list(Request.objects.filter(**of_key).values("parameters", "attempts", "system", "tools")),
            list(Response.objects.filter(**of_key).values(
                "reasoning", "error_message", "upstream_response", "status")),
            Session.objects.get(api_key=api_key).title,
        )  # fmt: skip

    made_bare, bare = map(stored, keys)
    assert made_bare == bare
    facts = json.loads_text(bare[0][0][1])
    assert facts[FILES][0]["type"] == "image/png"


def test_records_go_whole_and_stay_counted():
    old, young = aged(make_api_key(), 91), aged(make_api_key(), 89)
    removed = prune(record_days=90, content_days=30)
    assert removed["record"].sessions == 1
    assert removed["content"].sessions == 1
    assert list(Session.objects.values_list("pk", flat=True)) == [young.pk]
    assert not Message.objects.filter(session=old.pk).exists()
    counted = UsageSlot.objects.filter(dim="-total").aggregate(n=Sum("n"), t=Sum("tokens_in"))
    assert counted == {"n": 1, "t": 11}
    assert SECRET not in everything()


def test_a_key_has_its_own_days(settings):
    settings.CONTENT_DAYS, settings.RECORD_DAYS = 10, 100
    usual, short, long = (
        make_api_key(),
        make_api_key(content_days=5),
        make_api_key(record_days=1000),
    )
    sessions = {key.pk: aged(key, days) for key, days in ((usual, 9), (short, 9), (long, 200))}
    assert prune()["record"] == Removed()
    removed = {
        key: Session.objects.get(pk=session.pk).content_removed_at is not None
        for key, session in sessions.items()
    }
    assert removed == {usual.pk: False, short.pk: True, long.pk: True}
    assert ApiKey.objects.count() == 3


def test_pinned_running_and_younger_sessions_stay():
    api_key = make_api_key()
    aged(api_key, 50, pinned_at=NOW)
    aged(api_key, 5)
    running = aged(api_key, 50)
    Response.objects.filter(session=running).update(status="in_progress")
    before = everything()
    assert prune(content_days=10, record_days=20) == {"content": Removed(), "record": Removed()}
    assert everything() == before


def test_what_comes_into_use_meanwhile_stays():
    session = aged(make_api_key(), 50)
    pruning = Pruning(NOW, Periods(content_days=10))
    steps = pruning.steps()
    next(steps)
    Session.objects.filter(pk=session.pk).update(last_accessed=NOW)
    before = everything()
    for _ in steps:
        pass
    assert pruning.removed["content"] == Removed()
    assert everything() == before


def test_a_large_session_goes_in_pieces_and_an_interrupted_one_is_found_again(monkeypatch):
    monkeypatch.setattr("requests_app.content_removal.PIECE_ROWS", 3)
    monkeypatch.setattr("requests_app.retention._ROWS", (1, 1))
    session = aged(make_api_key(), 50)
    make_line(session, *(user(f"{SECRET} {n}") for n in range(7)))
    steps = Pruning(NOW, Periods(content_days=10)).steps()
    next(steps)
    next(steps)
    session.refresh_from_db()
    assert session.content_removed_at == session.last_accessed
    bare = Message.objects.filter(content="{}").count()
    assert 0 < bare < 9
    steps.close()
    assert prune(content_days=10)["content"].sessions == 1
    session.refresh_from_db()
    assert session.content_removed_at == NOW
    assert SECRET not in everything()


def test_a_large_session_is_emptied_before_it_is_deleted(monkeypatch):
    monkeypatch.setattr("requests_app.retention._LARGE_BYTES", 10)
    monkeypatch.setattr("requests_app.content_removal.PIECE_ROWS", 2)
    aged(make_api_key(), 50)
    removed = prune(record_days=10)
    assert removed["content"] == Removed()
    assert removed["record"].sessions == 1
    assert removed["record"].bytes > 5 * len(SECRET)
    assert not Session.objects.exists()


def test_chunks_pass_over_what_has_gone_before(monkeypatch):
    monkeypatch.setattr("requests_app.retention._CHUNK", 3)
    api_key = make_api_key()
    sessions = [aged(api_key, 50) for _ in range(10)]
    for session in sessions[:7]:
        Session.objects.filter(pk=session.pk).update(content_removed_at=NOW)
    (plan,) = plans(NOW, Periods(content_days=10))
    chunks = list(due(plan))
    assert len(chunks) == 4
    assert sorted(pk for chunk in chunks for pk in chunk) == sorted(s.pk for s in sessions[7:])


def test_a_second_run_finds_nothing_and_new_content_expires_again():
    session = aged(make_api_key(), 50)
    assert prune(content_days=10)["content"].sessions == 1
    assert prune(content_days=10)["content"] == Removed()
    make_message(session, user(f"{SECRET} again"))
    Session.objects.filter(pk=session.pk).update(last_accessed=NOW + timedelta(days=1))
    later = NOW + timedelta(days=20)
    assert prune(later, content_days=10)["content"].sessions == 1
    assert SECRET not in everything()


def test_an_estimate_is_what_goes():
    api_key = make_api_key()
    for days in (5, 15, 25, 35):
        aged(api_key, days)
    before = everything()
    wanted = Periods(content_days=10, record_days=30)
    told = {plan.kind: sum(estimate(plan), start=Removed()) for plan in plans(NOW, wanted)}
    assert everything() == before
    assert told == prune(content_days=10, record_days=30)
    assert {kind: one.sessions for kind, one in told.items()} == {"content": 2, "record": 1}


def test_what_was_removed_is_counted_by_day():
    aged(make_api_key(), 50)
    removed = prune(content_days=10)
    assert read_removed(NOW) == removed
    assert read_removed(NOW + timedelta(days=1))["content"] == Removed()
    assert last_run() is None
    for sessions in (3, 4):
        note_run({"content": Removed(sessions, 5)}, ended_at=NOW, took=timedelta(seconds=2))
    run = last_run()
    assert run is not None
    assert (run.ended_at, run.took, run.content_sessions, run.record_sessions) == (
        NOW, timedelta(seconds=2), 4, 0,
    )  # fmt: skip


def test_growth_is_measured_from_day_to_day(monkeypatch):
    sizes = iter((1000, 5000))
    monkeypatch.setattr("requests_app.prunings.bytes_in_use", lambda: next(sizes))
    measure(NOW)
    measure(NOW + timedelta(hours=1))
    assert growth(NOW + timedelta(days=1)) is None
    found = growth(NOW + timedelta(days=4))
    assert found is not None
    assert (found.bytes_a_day, found.days) == (1000, 4)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("external_id", [None, "mine"])
def test_a_client_that_sends_its_history_again_goes_on_and_it_is_recorded_again(external_id):
    make_worker()
    api_key = make_api_key()
    picture = user([{"type": "image_url", "image_url": {"url": IMAGE}}])
    before = {"created_at": NOW - timedelta(days=50), "external_id": external_id}
    closing = {"completed_at": NOW - timedelta(days=50)}
    first = take_turn(api_key, picture, answer="a", closing=closing, **before)
    other = take_turn(
        api_key, picture, assistant("a"), user("b"), answer="c", closing=closing, **before
    )
    assert first.session_id == other.session_id
    assert prune(content_days=10)["content"].sessions == 1
    assert not Blob.objects.exists()
    again = take_turn(
        api_key, picture, assistant("a"), user("b"), answer="c",
        created_at=NOW, external_id=external_id, closing={"completed_at": NOW},
    )  # fmt: skip
    assert again.session_id == first.session_id
    rows = Message.objects.order_by("position").values_list("role", "content")
    assert [decode_content(*row) for row in rows[1:]] == [assistant("a"), user("b"), assistant("c")]
    assert Message.objects.count() == 4
    old, _, new = (load_request(request.pk) for request in Request.objects.order_by("id"))
    assert new["recorded"] == "everything"
    assert new["openai_request"]["messages"] == [picture, assistant("a"), user("b")]
    assert new["response"]["openai_response"]["choices"][0]["message"]["content"] == "c"
    assert (old["recorded"], old["openai_request"]) == ("removed", None)
    assert old["response"]["openai_response"] is None


def test_rest_and_admin_say_that_content_was_removed(admin_client):
    session = aged(make_api_key(), 31)
    prune(content_days=30)
    said = "Content removed after 31 days, on 2026-11-23"
    request = Request.objects.get()
    page = admin_client.get(f"/admin/sessions_app/session/{session.pk}/change/").content.decode()
    assert f"{said}: what was said is gone" in page
    assert page.count(f"({said})") == 2
    page = admin_client.get(f"/admin/requests_app/request/{request.pk}/change/").content.decode()
    assert page.count("Removed on 2026-11-23: its time was over.") == 3
    page = admin_client.get("/admin/sessions_app/session/?span=all").content.decode()
    assert "(content removed)" in page
    record = load_request(request.pk)
    assert (record["recorded"], record["openai_request"]) == ("removed", None)
    assert record["content_removed_at"] == round(NOW.timestamp() * 1000)
    # It goes on.
    Session.objects.filter(pk=session.pk).update(last_accessed=NOW + timedelta(days=1))
    page = admin_client.get(f"/admin/sessions_app/session/{session.pk}/change/").content.decode()
    assert "Content removed, on 2026-11-23: what was said before is gone" in page

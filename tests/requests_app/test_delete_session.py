from __future__ import annotations

import pytest
from django.apps import apps

from requests_app.deletion import delete_session_rows
from requests_app.models import Blob, LatencySlot, Partial, Request, UsageSlot
from sessions_app.models import Message, Session, UpstreamChat
from tests.factories import make_api_key, make_blob, make_chat, make_line, make_session, make_turn
from tests.records_api import RecordsClient

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.records_api")]

RECORDS = [
    model
    for label in ("sessions_app", "requests_app")
    for model in apps.get_app_config(label).get_models()
    # What was counted stays counted.
    if model not in (UsageSlot, LatencySlot)
]


def counts():
    return {model.__name__: model.objects.count() for model in RECORDS}


def make_full_session(api_key, system=None):
    session = make_session(api_key)
    chat = make_chat(session)
    tools = make_blob(api_key, "tools", [{"name": session.id}])
    first = make_turn(
        session, "a", reply={"upstream_chat": chat}, request={"system": system, "tools": tools}
    )
    make_turn(session, "b", parent=first.reply, request={"system": system})
    make_turn(session, "c", answer=None)
    make_line(session, *({"role": "user", "content": str(n)} for n in range(10)))
    Partial.objects.create(response=first, seq=0, events="[]")
    return session


def test_everything_of_the_session_goes_and_nothing_else():
    api_key = make_api_key()
    system = make_blob(api_key, "system", [{"role": "system", "content": "shared"}])
    make_full_session(api_key, system)
    before = counts()
    session = make_full_session(api_key, system)
    response = RecordsClient(api_key).delete(f"/sessions/{session.id}")
    assert response.status_code == 200
    assert response.json() == {"deleted": True, "session_id": session.id}
    assert counts() == before
    assert not Message.objects.filter(session=session.id).exists()


def test_shared_texts_go_with_their_last_reference():
    api_key = make_api_key()
    system = make_blob(api_key, "system", [{"role": "system", "content": "shared"}])
    sessions = [make_full_session(api_key, system) for _ in range(2)]
    assert delete_session_rows(sessions[0].id, api_key.pk)
    assert Blob.objects.filter(pk=system.pk).exists()
    assert delete_session_rows(sessions[1].id, None)
    assert not Blob.objects.exists()
    assert not UpstreamChat.objects.exists()


def test_more_texts_than_one_statement_takes(monkeypatch):
    monkeypatch.setattr("requests_app.deletion._BLOBS_PER_STATEMENT", 2)
    session = make_session()
    for number in range(5):
        blob = make_blob(session.api_key, "system", [number])
        make_turn(session, str(number), request={"system": blob})
    assert delete_session_rows(session.id, None)
    assert not Blob.objects.exists()


def test_a_number_of_statements_that_does_not_grow(django_assert_max_num_queries):
    session = make_full_session(make_api_key())
    for number in range(5):
        make_turn(session, f"more {number}")
    # A savepoint, the session, its blobs, seven tables, links to its chats, the blobs and their size, the
    # release; what it counts, and keeping it in two tables.
    with django_assert_max_num_queries(17):
        delete_session_rows(session.id, None)
    assert not Request.objects.exists()


def test_another_keys_session_stays():
    session = make_full_session(make_api_key())
    before = counts()
    other = make_api_key()
    for url in (f"/sessions/{session.id}", "/sessions/nope", "/sessions/a%00b"):
        response = RecordsClient(other).delete(url)
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "session_not_found"
    assert counts() == before
    assert RecordsClient(other, "admin").delete(f"/sessions/{session.id}").status_code == 200
    assert not Session.objects.exists()


def test_a_second_time():
    session = make_session()
    records = RecordsClient(session.api_key)
    assert records.delete(f"/sessions/{session.id}").status_code == 200
    assert records.delete(f"/sessions/{session.id}").status_code == 404

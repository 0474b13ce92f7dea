"""`manage.py verifyrecords`: a whole record is told from one in which anything was changed."""

from __future__ import annotations

import io
import json

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from qwenproxy.wire.redaction import compile_rules
from requests_app import verifying
from requests_app.keeping import choose_keep
from requests_app.models import MessageFile, Request, Response
from requests_app.verifying import Verification
from sessions_app.models import Message, Session
from tests.factories import make_api_key
from tests.turns import assistant, make_opening, make_worker, open_all, take_turn, user

pytestmark = pytest.mark.django_db(transaction=True)
SYSTEM = {"role": "system", "content": "Be brief."}
FILE = "data:image/png;base64,iVBORw0KGgo="
SECRET_FILE = "data:text/plain;base64,b3JkZXIgNDcxMQ=="
IMAGE = user([{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": FILE}}])
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"b": 1, "a": 2}'}}


@pytest.fixture
def key(transactional_db):
    make_worker()
    return make_api_key()


@pytest.fixture
def record(key):
    """Two conversations with everything that a message can hold."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    first = [SYSTEM, IMAGE]
    calls = assistant(None, tool_calls=[CALL])
    take_turn(key, *first, answer=calls, tools=tools)
    result = {"role": "tool", "tool_call_id": "c1", "content": "3 \ud800 \x00"}
    take_turn(key, *first, calls, result, answer="done", tools=tools)
    take_turn(key, user("hello"), answer="there")
    return key


def verify(tmp_path, **wanted):
    *_, verified = Verification(tmp_path / "workers").steps(**wanted)
    return verified


def command(*arguments):
    """Exit status, what it wrote to stdout."""
    out = io.StringIO()
    try:
        call_command("verifyrecords", *arguments, stdout=out, stderr=io.StringIO())
    except CommandError as error:
        return error.returncode, out.getvalue()
    return 0, out.getvalue()


def test_a_whole_record_is_told_with_what_was_looked_at(record, tmp_path, monkeypatch):
    # Batches have borders.
    monkeypatch.setattr(verifying, "BATCH_ROWS", 2)
    verified = verify(tmp_path)
    assert verified.differences == []
    assert dict(verified.rows) == {
        "sessions": 2, "messages": 6, "requests": 3, "responses": 3, "files": 1, "blobs": 3,
    }  # fmt: skip
    assert not verified.not_verifiable
    assert command()[0] == 0


UNLINKED = "UPDATE requests_app_response SET reply_id = NULL WHERE reply_id IS NOT NULL"


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE sessions_app_session SET request_count = request_count + 1", "request_count"),
        ("UPDATE sessions_app_session SET message_count = message_count + 1", "message_count"),
        ("""UPDATE sessions_app_message SET content = '"other"' WHERE role = 'assistant'""", "digest"),
        ("UPDATE sessions_app_message SET content = '{\"x\"' WHERE role = 'user'", "content"),
        ("UPDATE sessions_app_message SET position = position + 1", "position"),
        ("UPDATE sessions_app_message SET parent_id = NULL WHERE position = 1", "position"),
        ("UPDATE sessions_app_message SET given = FALSE", "answer"),
        (UNLINKED, "answer"),
        ("UPDATE requests_app_response SET status = 'in_progress'", "process"),
        ("UPDATE requests_app_response SET completed_at = NULL", "time, reason and status of the end"),
        ("UPDATE requests_app_response SET total_tokens = -1", "token counts"),
        (
            "UPDATE requests_app_response SET usage_source = 'estimated', total_tokens = 7",
            "total_tokens",
        ),
        ("UPDATE requests_app_request SET system_id = tools_id", "system blob"),
        ("UPDATE requests_app_request SET system_id = NULL, tools_id = NULL", "use"),
        ("UPDATE requests_app_blob SET body = '[]' WHERE kind = 'tools'", "digest"),
        ("UPDATE requests_app_blob SET body = '\"data:,x\"' WHERE kind = 'file'", "digest"),
        ("DELETE FROM requests_app_messagefile", "content"),
        ("DELETE FROM requests_app_response", "response"),
        (
            "INSERT INTO requests_app_partial (response_id, seq, events)"
            " SELECT id, 0, '[]' FROM requests_app_response",
            "parts after the end",
        ),
    ],
)  # fmt: skip
def test_what_was_changed_is_named(record, tmp_path, statement, what):
    with connection.cursor() as cursor:
        cursor.execute(statement)
    verified = verify(tmp_path)
    assert what in {difference.what for difference in verified.differences}
    assert all(d.expected != d.found and d.where for d in verified.differences)
    assert command()[0] == 1


def test_rows_of_two_sessions_that_meet_are_named(record, tmp_path):
    other = Session.objects.order_by("created_at").last()
    Message.objects.filter(position=3).update(session=other)
    found = {difference.what for difference in verify(tmp_path).differences}
    assert {"session of the parent", "reply", "session of the last reply"} <= found


def test_an_answer_whose_process_is_gone_is_named(key, tmp_path):
    opening = make_opening(key, user("hello"))
    open_all(opening)
    (difference,) = verify(tmp_path).differences
    assert (difference.what, difference.where) == ("process", f"response {opening.response_id}")


def test_what_is_not_kept_is_counted_and_no_difference(key, tmp_path):
    metadata = choose_keep("metadata", compile_rules(()))
    take_turn(key, SYSTEM, IMAGE, keep=metadata, closing={"keep": metadata})
    redacted = choose_keep("everything", compile_rules(["4711"]))
    data = {"type": "image_url", "image_url": {"url": SECRET_FILE}}
    take_turn(key, user("order 4711"), answer="4711?", keep=redacted, closing={"keep": redacted})
    take_turn(key, {"role": "system", "content": "4711"}, user([data]), keep=redacted)
    verified = verify(tmp_path)
    # The closing of a turn is bared by the recorder: here its reply has its content.
    assert verified.differences == []
    assert verified.not_verifiable == {"no content kept": 1, "redacted": 4}
    assert "not verifiable: redacted" in command()[1]


def test_one_session_and_a_place_to_go_on_from(record, tmp_path):
    with connection.cursor() as cursor:
        cursor.execute("UPDATE sessions_app_session SET request_count = 9")
    one = Session.objects.order_by("created_at").first()
    (difference,) = verify(tmp_path, session_id=one.pk).differences
    assert difference.where == f"session {one.pk}"
    assert verify(tmp_path, start="messages:0").differences == []
    last = Message.objects.order_by("pk").last().pk
    assert verify(tmp_path, start=f"messages:{last}").rows["messages"] == 0


def test_a_document_for_other_programs(record):
    status, text = command("--json")
    assert status == 0
    document = json.loads(text)
    assert document["whole"] is True
    assert document["rows"]["messages"] == Message.objects.count()
    Response.objects.filter(reply__isnull=False).update(total_tokens=-1)
    status, text = command("--json")
    assert (status, json.loads(text)["differences"][0]["what"]) == (1, "token counts")


@pytest.mark.parametrize(
    "arguments", [("--from", "nowhere:1"), ("--from", "messages:x"), ("--session", "unknown")]
)
def test_what_cannot_be_looked_at_has_a_status_of_its_own(record, arguments):
    assert command(*arguments)[0] == 2


def test_nothing_is_changed(record, tmp_path):
    def rows():
        return [
            list(m.objects.order_by("pk").values())
            for m in (Message, Request, Response, MessageFile)
        ]

    before = rows()
    verify(tmp_path)
    assert rows() == before

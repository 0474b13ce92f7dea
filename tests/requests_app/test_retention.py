"""What expires, when, and what is left of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection

from qwenproxy.wire import json
from requests_app.models import Request, Response
from requests_app.prunings import Removed
from requests_app.retention import Periods, Pruning, plans
from sessions_app.models import Message, Session
from tests.factories import make_api_key, make_session, make_turn

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
    counts = Response.objects.values("total_tokens", "duration_ms", "response_id", "error_code").get()
    removed = prune(content_days=30)
    assert removed["record"] == Removed()
    assert removed["content"].sessions == 1
    assert removed["content"].bytes > 5 * len(SECRET)
    assert SECRET not in everything()
    session.refresh_from_db()
    assert session.content_removed_at == NOW
    request = Request.objects.get()
    assert (request.recorded, request.model, request.user_agent) == ("removed", "qwen3-max", "tests/1")
    assert json.loads_text(request.parameters) == {"temperature": 0.5}
    assert json.loads_text(request.attempts) == [{"account": 1, "ms": 5, "cause": "code"}]
    assert Response.objects.values(*counts).get() == counts
    assert Response.objects.get().error_message == "some_code"
    assert sorted(Message.objects.values_list("role", "content")) == [
        ("assistant", "{}"),
        ("user", "{}"),
    ]

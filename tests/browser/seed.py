"""`python -m tests.browser.seed`: fills the database that the environment names; prints what is in it."""

from __future__ import annotations

import io
import json
import sys

import django

# What a client may send that a page must not run, follow or be torn apart by.
HOSTILE = (
    '"><script>window.pwned=1</script><img src=x-pwned onerror="window.pwned=1">'
    "</title></script></pre><svg onload=window.pwned=1>{{7*7}}{% now %}'\u202etxet\u202c\u0000&amp;"
)
REPLIES = ("a", "b", "c")
PASSWORD = "browser-tests-only"


def main(requests: str = "260") -> None:
    django.setup()
    from django.core.management import call_command

    call_command("migrate", verbosity=0, stdout=io.StringIO())
    call_command("seeddemo", requests=int(requests), days=8.0, stdout=io.StringIO())
    from qwenproxy.access import first_start

    first_start.prepare()
    facts = {**_make_users(), **_make_branches(), **_make_hostile(), **_rows()}
    sys.stdout.write(json.dumps(facts))


def _make_users() -> dict[str, object]:
    """Users who have signed in already: a password is slow to hash, by design."""
    from django.contrib.auth.models import Group, User
    from django.test import Client

    hashed = User.objects.get(username="admin").password
    for name in ("Viewer", "Auditor", "Operator"):
        user = User.objects.create(username=name.lower(), password=hashed, is_staff=True)
        user.groups.add(Group.objects.get(name=name))
    sessions = {}
    for user in User.objects.all():
        client = Client()
        client.force_login(user)
        sessions[user.username] = client.session.session_key
    return {"user": User.objects.get(username="viewer").pk, "sessions": sessions}


def _make_branches() -> dict[str, object]:
    """A session whose second question was asked three times."""
    from django.utils import timezone

    from sessions_app.models import Message
    from tests.factories import make_api_key, make_session, make_turn

    now = timezone.now()
    session = make_session(
        make_api_key("branches"), created_at=now, last_accessed=now, title="A fork in the road"
    )
    times = {"request": {"created_at": now}, "response": {"created_at": now, "completed_at": now}}
    first = make_turn(session, "Which way?", "Left or right.", **times)
    for name in REPLIES:
        make_turn(session, f"asked {name}", f"answered {name}", parent=first.reply, **times)
    assert Message.objects.filter(parent=first.reply).count() == len(REPLIES)
    return {"branches": session.pk}


def _make_hostile() -> dict[str, object]:
    """A session whose every text is hostile; PostgreSQL keeps no NUL, and neither does the recorder."""
    from django.utils import timezone

    from qwenproxy.access.models import UpstreamAccount
    from qwenproxy.wire import json as wire
    from tests.factories import (
        make_account,
        make_api_key,
        make_blob,
        make_line,
        make_request,
        make_response,
        make_session,
        make_turn,
    )

    bad = wire.plain(HOSTILE)
    now = timezone.now()
    key = make_api_key(bad[:100])
    account = make_account(bad[:100], kind="demo", state="expired", state_reason=bad)
    session = make_session(key, title=bad[:200], created_at=now, last_accessed=now, external_id=bad)
    fields = {
        "model": bad[:200], "user_agent": bad[:300], "created_at": now, "account": account,
        "headers": wire.dumps_text({"x-note": bad}),
        "parameters": wire.dumps_text({"model": bad, "stop": [bad]}),
        "system": make_blob(key, "system", [{"role": "system", "content": bad}]),
        "attempts": wire.dumps_text([{"account": bad, "started": 1, "ms": 5, "cause": bad}]),
    }  # fmt: skip
    call = {
        "id": bad,
        "type": "function",
        "function": {"name": bad, "arguments": '{"a": "' + "<b>"},
    }
    line = make_line(
        session,
        {"role": "user", "content": bad},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": bad, "content": bad + "W" * 300_000},
    )
    answered = make_request(session, line, **fields)
    reply = make_line(session, {"role": "assistant", "content": bad}, parent=line)
    times = {"created_at": now, "completed_at": now}
    make_response(answered, reply, reasoning=bad, **times)
    failed = make_turn(
        session, bad, None, parent=reply, request=fields,
        response={
            **times, "error_message": bad, "error_code": bad[:50], "error_type": bad[:50],
            "upstream_response": wire.dumps_text({"error_body": bad, "status": 502}),
        },
    )  # fmt: skip
    UpstreamAccount.objects.filter(pk=account.pk).update(last_error_at=now)
    return {
        "hostile_session": session.pk,
        "hostile_request": answered.pk,
        "hostile_failed": failed.request_id,
        "hostile_key": key.pk,
        "hostile_account": account.pk,
    }


def _rows() -> dict[str, object]:
    from django.contrib.auth.models import Group

    from qwenproxy.access.keys import create_api_key
    from qwenproxy.access.models import ApiKey, UpstreamAccount
    from requests_app.models import Request, Response
    from sessions_app.models import Session

    agents = Session.objects.filter(api_key__name="Demo: coding agents")
    session = agents.order_by("-request_count").first()
    _, secret = create_api_key(name="tests", scopes=("chat", "records"))
    return {
        "session": session.pk,
        "request": Request.objects.filter(session=session).order_by("pk").last().pk,
        "failed": Response.objects.filter(status="failed").order_by("pk").first().request_id,
        "key": ApiKey.objects.filter(name="Demo: support desk").get().pk,
        "account": UpstreamAccount.objects.get(name="Demo: own GPU server").pk,
        "group": Group.objects.get(name="Operator").pk,
        "secret": secret,
        "requests": Request.objects.count(),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])

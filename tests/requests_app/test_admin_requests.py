from __future__ import annotations

import json
import re
import subprocess
from contextlib import contextmanager
from datetime import timedelta
from html import unescape

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, User
from django.db import connection
from django.db.models.expressions import RawSQL
from django.db.models.lookups import GreaterThan
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from qwenproxy.access import staff
from requests_app.deletion import delete_session_rows
from requests_app.models import Request
from requests_app.waterfall import draw
from sessions_app.admin import RecordAdmin
from sessions_app.guard import Stopped
from tests.factories import START_MS, make_account, make_api_key, make_line, make_session, make_turn
from tests.requests_app.ended import make_ended

pytestmark = pytest.mark.django_db
LIST = "/admin/requests_app/request/"
HOSTILE = 'it\'s "$(id)" `id` \\ \n </pre><script>alert(1)</script> \u202e'
BODIES = ("openai_request", "openai_response", "qwen_request", "qwen_response")


def url_of(response):
    return f"{LIST}{response.request_id}/change/"


def page(client, url, **query):
    answer = client.get(url, query)
    assert answer.status_code == 200
    return answer.content.decode()


@pytest.fixture
def as_member(client):
    def log_in(group):
        user = User.objects.create_user(group, password="x", is_staff=True)
        user.groups.add(Group.objects.get(name=group))
        client.force_login(user)
        return client

    return log_in


def segments(row):
    return [(one.kind, one.x, one.width) for one in row.segments]


def test_a_waterfall_has_a_row_for_each_try():
    attempts = [
        {"account": "first", "started": START_MS + 100, "ms": 200, "cause": "upstream_timeout: x"},
        {"account": "second", "started": START_MS + 300, "ms": 700, "cause": None},
    ]
    found = draw(created_ms=START_MS, attempts=attempts, ttft_ms=600, duration_ms=1000)
    before, first, second = found.rows
    assert segments(before) == [("queue", 0, 100)]
    assert (segments(first), first.has_failed) == ([("failed", 100, 200)], True)
    assert segments(second) == [("wait", 300, 300), ("stream", 600, 400)]
    assert (found.total_ms, found.first_token_x) == (1000, 600)


@pytest.mark.parametrize(
    ("attempts", "ttft_ms", "duration_ms", "rows"),
    [
        pytest.param([], None, None, None, id="nothing-known"),
        pytest.param([], 100, 1000, 1, id="no-try"),
        pytest.param([{}], None, 5, 1, id="nothing-of-a-try"),
        pytest.param([{"started": "x", "ms": "y", "cause": 5}], 3, 5, 1, id="forged"),
        pytest.param([{"started": START_MS - 9999, "ms": 5}], None, 5, 1, id="clock-set-back"),
        pytest.param([{"started": START_MS + 9999}], 5, 10, 2, id="clock-set-forward"),
    ],
)
def test_a_waterfall_stays_within_its_width(attempts, ttft_ms, duration_ms, rows):
    found = draw(created_ms=START_MS, attempts=attempts, ttft_ms=ttft_ms, duration_ms=duration_ms)
    assert (None if found is None else len(found.rows)) == rows
    for row in found.rows if found else ():
        for one in row.segments:
            assert 0 <= one.x <= one.x + one.width <= 1000
            assert one.width > 0


def test_the_curl_line_says_what_was_asked_and_no_secret(admin_client):
    parameters = json.dumps({"model": HOSTILE, "stop": [HOSTILE]})
    headers = json.dumps({"authorization": "Bearer qp-secret1", "x-title": "mine"})
    turn = make_turn(
        make_session(), HOSTILE, request={"parameters": parameters, "headers": headers}
    )
    text = page(admin_client, url_of(turn))
    command = unescape(re.search(r'<pre id="curl"[^>]*>(.*?)</pre>', text, re.DOTALL)[1])
    assert "secret1" not in text
    # What the shell gives to the program, and that it runs nothing else.
    script = "curl() { printf '%s\\0' \"$@\"; }; QWENPROXY_KEY=the-key\n" + command
    ran = subprocess.run(["sh", "-c", script], capture_output=True, check=True)
    arguments = ran.stdout.decode().split("\0")
    assert "Authorization: Bearer the-key" in arguments
    body = json.loads(arguments[arguments.index("--data-raw") + 1])
    assert (body["model"], body["messages"][0]["content"]) == (HOSTILE, HOSTILE)
    assert arguments[0] == "http://testserver/v1/chat/completions"


def test_a_long_body_is_sent_from_the_downloaded_file(admin_client):
    turn = make_turn(make_session(), "x" * 200_000)
    text = page(admin_client, url_of(turn))
    name = re.search(r"--data-binary @([^\s<]+)", text)[1]
    answer = admin_client.get(url_of(turn), {"download": "openai_request"})
    assert name in answer["Content-Disposition"]
    assert len(answer.json()["messages"][0]["content"]) == 200_000


def test_headers_that_may_be_secrets_are_masked(admin_client):
    headers = {
        "authorization": "Bearer qp-s1", "cookie": "a=s2", "x-api-key": "s3", "x-token": "s4",
        "x-title": "My <b>tool", "x-note": "Bearer sk-abcdefghijklmnopqrstuvwx",
    }  # fmt: skip
    text = page(
        admin_client,
        url_of(make_turn(make_session(), request={"headers": json.dumps(headers)})),
    )
    shown = text[text.index("Recorded headers") :]
    assert "My &lt;b&gt;tool" in shown
    for secret in ("qp-s1", "a=s2", ">s3<", ">s4<", "abcdefghijklmnop"):
        assert secret not in shown


def test_a_viewer_sees_figures_and_nothing_that_was_said(as_member):
    attempts = json.dumps([{"account": "house", "started": 1, "ms": 5, "cause": "boom: it quotes"}])
    turn = make_turn(
        make_session(title="the title"),
        "the question",
        None,
        request={"attempts": attempts, "headers": '{"x-title": "mine"}'},
        response={"error_message": "it quotes", "error_code": "upstream_error"},
    )
    client = as_member("Viewer")
    text = page(client, url_of(turn))
    for secret in ("the question", "it quotes", "the title", "mine", 'id="curl"', "playground/?"):
        assert secret not in text
    assert "you lack the permission" in text
    assert "upstream_error" in text
    assert "house" in text
    assert "the title" not in page(client, LIST, span="all")
    for name in BODIES:
        assert client.get(url_of(turn), {"download": name}).status_code == 403
    assert not LogEntry.objects.exists()


def test_views_of_content_are_audited(as_member):
    turn = make_turn(make_session(), "the question")
    client = as_member("Auditor")
    assert "the question" in page(client, url_of(turn))
    page(client, url_of(turn), download="openai_request")
    page(client, url_of(turn), full=1)
    entry = LogEntry.objects.get()
    assert (entry.action_flag, entry.object_id) == (staff.VIEWED, str(turn.request_id))
    assert "the question" not in entry.object_repr + entry.change_message
    page(client, url_of(make_turn(make_session())))
    assert LogEntry.objects.count() == 2


@pytest.mark.parametrize(
    ("payloads", "sees_fine", "sees_broken"),
    [("all", True, True), ("errors", False, True), ("off", False, False)],
)
def test_the_settings_hide_content_from_everybody(
    admin_client, settings, payloads, sees_fine, sees_broken
):
    settings.PAYLOADS = payloads
    fine, broken = make_turn(make_session(), "said"), make_turn(make_session(), "said", None)
    for turn, sees in ((fine, sees_fine), (broken, sees_broken)):
        text = page(admin_client, url_of(turn))
        assert ("said" in text[text.index("<h1") :]) == sees
        assert ("QWENPROXY_PAYLOADS" in text) == (not sees)
        status = admin_client.get(url_of(turn), {"download": "openai_request"}).status_code
        assert status == (200 if sees else 403)
    assert LogEntry.objects.count() == sees_fine + sees_broken


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (
            {"status": "failed", "error_code": "upstream_timeout"},
            "No answer came: upstream_timeout.",
        ),
        ({"status": "interrupted"}, "Lost: the process that answered ended"),
        ({"status": "cancelled"}, "The client left before anything of the answer came."),
        ({"status": "in_progress"}, "The answer has not come to its end yet."),
    ],
)
def test_a_body_that_is_missing_says_why(admin_client, response, words):
    text = page(admin_client, url_of(make_turn(make_session(), "x", None, response=response)))
    assert words in text
    assert "Nothing was sent to an upstream." in text
    assert "Nothing came from an upstream." in text


def test_a_key_without_content_says_so(admin_client):
    turn = make_turn(make_session(), "secret words", request={"recorded": "metadata"})
    text = page(admin_client, url_of(turn))
    assert text.count("the API key kept no content") == len(BODIES)
    assert "secret words" not in text[text.index("<h1") :]


@pytest.mark.parametrize("path", ["0", str(2**63), "-1", "1e3", "a%00b", "%F0%9F%92%A5", "x" * 300])
def test_a_forged_id_is_not_found(admin_client, path):
    assert admin_client.get(f"{LIST}{path}/change/").status_code == 404


@pytest.mark.parametrize("query", [{"download": "nothing"}, {"full": "\0"}, {"download": "\ud800"}])
def test_forged_parameters_show_the_page(admin_client, query):
    query = {name: value.encode("utf-8", "surrogatepass") for name, value in query.items()}
    assert "<h1" in page(admin_client, url_of(make_turn(make_session())), **query)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "url", [f"{LIST}?span=all&path=/x", "/admin/sessions_app/session/?errors=1"]
)
def test_a_filter_that_matches_nothing_is_stopped_by_the_database(admin_client, monkeypatch, url):
    """The database itself is slow: its own limit stops it, and the connection goes on working."""
    make_turn(make_session())
    slow = {
        "sqlite": "(WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT COUNT(*) FROM n)",
        "postgresql": "(SELECT 1 FROM pg_sleep(60))",
    }
    endless = RawSQL(slow[connection.vendor], [])  # of the test
    rows = RecordAdmin.get_queryset

    def slowly(self, request):
        return rows(self, request).filter(GreaterThan(endless, 0))

    monkeypatch.setattr("sessions_app.guard.LIMIT_S", 0.1)
    monkeypatch.setattr(RecordAdmin, "get_queryset", slowly)
    text = page(admin_client, url)
    assert "Search stopped after 1 s; narrow the time." in text
    monkeypatch.undo()
    assert "Search stopped" not in page(admin_client, url)
    assert make_turn(make_session()).pk


def test_a_list_says_what_was_deleted_since(admin_client, settings):
    now = timezone.now()
    key, other = make_api_key(), make_api_key()
    kept, gone, others = make_session(key), make_session(key), make_session(other)
    moments = [now - timedelta(hours=hours) for hours in (3, 2, 1)]
    make_ended([kept] * 3, moments, status="completed")
    make_ended([gone] * 3, moments, status="failed", error_code="upstream_timeout")
    make_ended([gone], [now - timedelta(days=3)], status="completed")
    make_ended([others], moments[:1], status="interrupted", error_code=None, error_type="x")
    for session in (gone, others):
        delete_session_rows(session.pk, None)

    def said(**query):
        found = re.search(
            r'list-note">(\d+) more requests? that', page(admin_client, LIST, **query)
        )
        return int(found[1]) if found else 0

    start = int((now - timedelta(hours=24)).timestamp() * 1000)
    assert said() == 4
    assert said(**{"by": "ended", "from": start, "to": start + 86_400_001}) == 4
    assert said(span="7d") == said(span="all") == 5
    assert said(key=key.pk) == 3
    assert said(key=other.pk, status="interrupted") == 1
    assert said(status="errors") == 4
    assert said(status="completed", span="7d") == 1
    assert said(error="upstream_timeout", status="failed") == 3
    assert said(error="x") == 1
    assert said(model="qwen3-max") == 4
    # Statistics know one dimension at a time; of these they say nothing.
    assert said(key=key.pk, model="qwen3-max") == said(slower="5") == said(q="req_1") == 0
    assert said(model="\0") == said(key="no such") == 0
    # Also where nothing else is left.
    assert "1 more request that ended in this time was in a session deleted since" in page(
        admin_client, LIST, key=other.pk
    )


def test_a_search_that_takes_too_long_says_so(admin_client, monkeypatch):
    make_turn(make_session())

    @contextmanager
    def at_once():
        raise Stopped
        yield

    monkeypatch.setattr("sessions_app.admin.stopped_after", at_once)
    text = page(admin_client, LIST, span="all", path="/x")
    assert "Search stopped after 1 s; narrow the time." in text
    assert "span=7d" in text


def test_a_page_costs_the_same_however_long_the_conversation(admin_client):
    def queries(turn):
        with CaptureQueriesContext(connection) as captured:
            page(admin_client, url_of(turn))
        return len(captured)

    short = make_turn(make_session(), request={"account": make_account()})
    session = make_session()
    line = make_line(session, *({"role": "user", "content": str(n)} for n in range(50)))
    long = make_turn(session, "last", parent=line, request={"account": make_account()})
    queries(short)
    assert queries(short) == queries(short)
    assert queries(long) - 3 <= queries(short) <= 10


def test_the_list_filters_by_when_answers_ended(admin_client):
    ended = make_turn(make_session())
    make_turn(make_session(), "runs", None, response={"status": "in_progress"})
    text = page(admin_client, LIST, span="all", by="ended")
    assert f"/{ended.request_id}/change/" in text
    assert ">1 request<" in text
    assert Request.objects.count() == 2
    assert "0 requests" in page(admin_client, LIST, by="forged") or "No requests" in page(
        admin_client, LIST, by="forged"
    )

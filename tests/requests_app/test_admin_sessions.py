from __future__ import annotations

import re

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from qwenproxy.access import staff
from qwenproxy.wire.events import ReasoningDelta, Started, TextDelta, pack
from requests_app import arrived
from requests_app.models import Partial
from sessions_app.models import Session
from tests.factories import make_line, make_request, make_response, make_session, make_turn

pytestmark = pytest.mark.django_db

LIST = "/admin/sessions_app/session/"


@pytest.fixture
def viewer_client(client):
    """Someone who may see records and none of what was said."""
    user = User.objects.create_user("viewer", password="x", is_staff=True)
    codenames = ["view_session", "view_request"]
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    client.force_login(user)
    return client


def page(client, url, **query):
    response = client.get(url, query)
    assert response.status_code == 200
    return response.content.decode()


def url_of(session):
    return reverse("admin:sessions_app_session_change", args=[session.pk])


def followed(client, session, text, label):
    """The page behind a link of the transcript."""
    link = re.search(rf'<a [^>]*href="([^"]*)"[^>]*>\s*{label}', text)
    assert link, label
    query, _, anchor = link[1].replace("&amp;", "&").partition("#")
    answer = page(client, url_of(session) + query)
    if anchor:
        assert f'id="{anchor}"' in answer
    return answer


def call(name, call_id, arguments='{"q": "weather"}'):
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def test_a_fork_is_a_switch_that_keeps_its_place(admin_client):
    session = make_session()
    first = make_turn(session, "Which way?", "Left or right.")
    for name in ("one", "two", "three"):
        make_turn(session, f"asked {name}", f"answered {name}", parent=first.reply)
    text = page(admin_client, url_of(session))
    assert "answered three" in text
    assert "branch 3/3" in text
    text = followed(admin_client, session, text, "◀")
    assert "answered two" in text
    assert "answered three" not in text
    assert "branch 2/3" in text
    assert "answered three" in followed(admin_client, session, text, "▶")


def test_a_switch_leads_to_the_newest_leaf_below(admin_client):
    session = make_session()
    first = make_turn(session, "start", "go")
    left = make_turn(session, "left", "gone left", parent=first.reply)
    make_turn(session, "right", "gone right", parent=first.reply)
    make_turn(session, "older", "older leaf", parent=left.reply)
    make_turn(session, "newer", "newer leaf", parent=left.reply)
    text = page(admin_client, url_of(session), leaf=left.request.prompt_id)
    assert "newer leaf" in text
    assert "older leaf" not in text


def test_results_stand_in_the_calls_that_they_answer(admin_client):
    session = make_session()
    leaf = make_line(
        session,
        {"role": "user", "content": "look"},
        {"role": "assistant", "tool_calls": [call("search", "a"), call("fetch", "b", "{broken")]},
        {"role": "tool", "tool_call_id": "b", "content": "of fetch"},
        {"role": "tool", "tool_call_id": "a", "content": "of search"},
        {"role": "tool", "tool_call_id": "z", "content": "of nobody"},
    )
    make_response(make_request(session, leaf), None, status="failed", error_code="upstream_timeout")
    text = page(admin_client, url_of(session))
    assert text.index("search(q=&quot;weather&quot;)") < text.index("of search")
    assert text.index("of search") < text.index("fetch({broken)") < text.index("of fetch")
    assert text.index("of fetch") < text.index("Tool result") < text.index("of nobody")
    assert text.index("of nobody") < text.index("upstream_timeout")
    assert "did not answer in time" in text


def test_the_first_error_is_found_on_its_page(admin_client):
    session = make_session()
    leaf = make_line(session, *({"role": "user", "content": f"m{n}"} for n in range(250)))
    failed = make_turn(session, "failing", None, parent=leaf)
    text = page(admin_client, url_of(session))
    assert "failing" not in text
    text = followed(admin_client, session, text, "▸ first error")
    assert f'id="request-{failed.request_id}"' in text
    assert "The upstream failed." in text


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("cancelled", "Cancelled before its end"),
        ("interrupted", "Interrupted before its end"),
        ("in_progress", "still coming"),
    ],
)
def test_an_answer_that_is_not_whole_says_so(admin_client, status, words):
    session = make_session()
    make_turn(session, "go", "half an", response={"status": status})
    text = page(admin_client, url_of(session))
    assert "half an" in text
    assert words in text


def test_a_running_answer_shows_what_has_come(admin_client, monkeypatch):
    monkeypatch.setattr(arrived, "MAX_ROWS", 3)
    session = make_session()
    turn = make_turn(session, "go", None, response={"status": "in_progress", "error_code": None})
    assert "still coming" in page(admin_client, url_of(session))
    for seq, event in enumerate(
        [Started("r1"), ReasoningDelta("hmm"), TextDelta("Half <b>an"), TextDelta(" answer")]
    ):
        Partial.objects.create(response=turn, seq=seq, events=pack([event]))
    for url in (url_of(session), f"/admin/requests_app/request/{turn.request_id}/change/"):
        text = page(admin_client, url)
        assert "Half &lt;b&gt;an answer" in text
        assert "hmm" in text
        assert "end of what has arrived" in text


def test_the_number_of_errors_is_the_length_of_the_list_behind_it(admin_client):
    session = make_session()
    for status in ("failed", "interrupted", "cancelled"):
        make_turn(session, status, None, response={"status": status})
    make_turn(session, "fine")
    for text in (page(admin_client, LIST, span="all"), page(admin_client, url_of(session))):
        link = re.search(r'<a class="bad" href="([^"]+status=[^"]+)">(\d+)</a>', text)
        assert link[2] == "2"
        shown = page(admin_client, link[1].replace("&amp;", "&"))
        assert len(set(re.findall(r"request/(\d+)/change/", shown))) == 2


def test_what_was_said_is_for_those_who_may_read(viewer_client):
    session = make_session(title="secret title")
    make_turn(session, "secret question", "secret answer")
    for url in (url_of(session), LIST):
        text = page(viewer_client, url)
        assert "secret" not in text
        assert session.pk[:8] in text
    assert "you lack the permission" in page(viewer_client, url_of(session))
    assert page(viewer_client, LIST, q="secret").count(session.pk[:8]) == 0
    assert not LogEntry.objects.exists()


def test_content_is_hidden_from_all_where_the_settings_say_so(admin_client, settings):
    settings.PAYLOADS = "errors"
    session = make_session(title="secret title")
    make_turn(session, "secret question", "secret answer")
    text = page(admin_client, url_of(session))
    assert "secret" not in text
    assert "QWENPROXY_PAYLOADS" in text


def test_a_view_is_audited_once(admin_client):
    sessions = [make_turn(make_session()).session for _ in range(2)]
    for session in (*sessions, *sessions):
        page(admin_client, url_of(session))
        page(admin_client, url_of(session), **{"from": 0})
    entries = LogEntry.objects.filter(action_flag=staff.VIEWED)
    assert sorted(entry.object_id for entry in entries) == sorted(row.pk for row in sessions)


@pytest.mark.parametrize("value", ["-1", "x", "9" * 18, "9" * 40, "٣", "%00"])
@pytest.mark.parametrize("name", ["leaf", "from", "show"])
def test_forged_parameters_show_a_page(admin_client, name, value):
    session = make_session()
    make_turn(session, "mine")
    assert "mine" in page(admin_client, url_of(session), **{name: value})


def test_a_large_session_is_small_on_its_page(admin_client, django_assert_max_num_queries):
    session, parent = make_session(), None
    for number in range(60):
        turn = make_turn(session, f"q{number}", f"a{number}", parent=parent)
        if number % 10 == 0:
            make_turn(session, f"other {number}", None, parent=parent)
        content = "x" * (2_000_000 if number == 3 else 100)
        parent = make_line(
            session,
            {"role": "assistant", "tool_calls": [call("run", f"c{number}")]},
            {"role": "tool", "tool_call_id": f"c{number}", "content": content},
            parent=turn.reply,
        )
    with django_assert_max_num_queries(15):
        text = page(admin_client, url_of(session))
    assert len(text) < 400_000
    assert "show all (≈ 2.0 MB)" in text
    assert "a24" in text
    assert "q26" not in text


def test_many_branches_at_one_place_are_a_few_links(admin_client):
    session = make_session()
    first = make_turn(session, "Which way?", "Left or right.")
    turns = [make_turn(session, f"ask {n}", f"said {n}.", parent=first.reply) for n in range(1, 41)]
    text = page(admin_client, url_of(session), leaf=turns[18].reply_id)
    assert "branch 19/40" in text
    numbers = re.search(r'<nav class="branches".*?</nav>', text, re.DOTALL)[0]
    assert re.sub(r"<[^>]*>|\s", "", numbers) == "1…1718192021…40"
    for label, said in (
        ("40", "said 40."),
        ("1", "said 1."),
        ("21", "said 21."),
        ("◀", "said 18."),
    ):
        assert said in followed(admin_client, session, text, f"{label}<")
    two = make_turn(session, "two", parent=turns[0].reply)
    make_turn(session, "more", parent=turns[0].reply)
    text = page(admin_client, url_of(session), leaf=two.reply_id)
    assert text.count('<nav class="branches"') == 1
    assert "branch 1/2" in text


def test_branches_from_the_beginning_are_those_of_the_session(admin_client):
    session, other = make_session(), make_session()
    for number in range(3):
        make_turn(other, f"theirs {number}")
    turns = [make_turn(session, f"ask {number}", f"said {number}") for number in range(4)]
    text = page(admin_client, url_of(session), leaf=turns[2].reply_id)
    assert "branch 3/4" in text
    assert "said 3" in followed(admin_client, session, text, "▶")


def test_a_call_repeated_a_hundred_times_is_shown_some_times(admin_client):
    session = make_session()
    first = make_turn(session, "before", "so far")
    # The same question with the same answer is one message.
    turn = make_turn(session, "again", "the same", parent=first.reply)
    outcomes = [(turn.reply, "completed")] * 29 + [(None, "failed")] * 50 + [(None, "in_progress")]
    for reply, status in outcomes:
        make_response(make_request(session, turn.request.prompt), reply, status=status)
    text = page(admin_client, url_of(session))
    assert text.count('class="turn turn-error') == 20
    assert text.count(">request</a>") == 1 + 20 + 20 + 1
    assert sorted(re.findall(r">(\d+) more</a>", text)) == ["10", "30"]
    assert "still coming" in text


def test_a_session_of_every_size_costs_the_same(admin_client):
    small, large = make_session(), make_session()
    for session, turns, branches in ((small, 3, 2), (large, 300, 40)):
        parent = None
        for number in range(turns):
            for name in range(branches if number == 1 else 1):
                turn = make_turn(session, f"q{number}-{name}", f"a{number}", parent=parent)
            parent = turn.reply
            if number % 20 == 0:
                parent = make_line(
                    session,
                    {"role": "assistant", "tool_calls": [call("run", "a")]},
                    result_of(2_000_000 if session == large else 10),
                    parent=parent,
                )
        Session.objects.filter(pk=session.pk).update(last_reply=turn.reply)
        page(admin_client, url_of(session))
    counts = []
    for session in (small, large):
        with CaptureQueriesContext(connection) as queries:
            text = page(admin_client, url_of(session))
        counts.append(len(queries))
    # On PostgreSQL contents are read in queries of their own, and ends of long results in another.
    assert counts in ([11, 11], [12, 13])
    assert len(text) < 500_000
    assert "branch 40/40" in text


def result_of(length, call_id="a", content=None):
    body = {"role": "tool", "content": content or "x" * length + "the end", "tool_call_id": call_id}
    return body


def test_all_of_a_long_result_is_shown_where_it_is_asked_for(admin_client):
    session = make_session()
    leaf = make_line(
        session,
        {"role": "user", "content": "y" * 600_000 + "end of the question"},
        {"role": "assistant", "tool_calls": [call("one", "a"), call("two", "b")]},
        result_of(700_000, "b"),
        result_of(800_000, "a"),
        result_of(900_000, "nobody"),
    )
    make_response(make_request(session, leaf), None)
    first = page(admin_client, url_of(session))
    assert "the end" not in first
    assert "end of the question" not in first
    for sizes in ("600.0 kB", "700.0 kB", "800.0 kB", "900.0 kB"):
        assert f"show all (≈ {sizes})" in first
    assert first.index("800.0 kB") < first.index("two(") < first.index("700.0 kB")
    for label, said in (
        ("600.0", "end of the question"), ("700.0", "the end"), ("800.0", "the end"), ("900.0", "the end"),
    ):  # fmt: skip
        text = followed(admin_client, session, first, rf"show all \(≈ {label}")
        assert text.count(said) == 1
        assert f"show all (≈ {label}" not in text


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("\\" * 900_000, id="escapes"),
        pytest.param("\U0001f600" * 200_000, id="pairs"),
        pytest.param("\ud83d" * 100_000, id="halves"),
        pytest.param(
            [{"type": "text", "text": "末" * 300_000}, {"type": "text", "text": "z"}], id="parts"
        ),
        pytest.param([{"n": [{"deep": ["w" * 5] * 60_000}]}], id="nested"),
    ],
)
def test_a_result_is_cut_anywhere(admin_client, content):
    session = make_session()
    leaf = make_line(
        session,
        {"role": "assistant", "tool_calls": [call("one", "b"), call("two", "a")]},
        result_of(10, "a", content),
        result_of(10, "b", "short"),
    )
    make_response(make_request(session, leaf), None)
    text = page(admin_client, url_of(session))
    assert text.count("show all (≈ ") == 1
    assert text.index("one(") < text.index("short") < text.index("two(") < text.index("show all")
    followed(admin_client, session, text, r"show all \(≈")


def test_a_call_at_the_end_of_a_page_has_its_results(admin_client):
    session = make_session()
    head = make_line(session, *({"role": "user", "content": f"m{n}"} for n in range(99)))
    calls = [call("run", f"c{number}") for number in range(3)]
    results = [
        {"role": "tool", "tool_call_id": f"c{number}", "content": f"result {number}"}
        for number in range(3)
    ]
    leaf = make_line(session, {"role": "assistant", "tool_calls": calls}, *results, parent=head)
    make_turn(session, "afterwards", parent=leaf)
    first, second = (page(admin_client, url_of(session), **{"from": at}) for at in (0, 100))
    assert first.count("<h3>Result</h3>") == 3
    assert "afterwards" not in first
    assert "result 2" not in second
    assert "afterwards" in second


def test_the_list_tells_what_sessions_amount_to(admin_client):
    session = make_session(title="Compare prices")
    first = make_turn(session, "a", "b", request={"model": "qwen-old"})
    make_turn(session, "c", "d", parent=first.reply, request={"model": "qwen-new"})
    make_turn(session, "e", None, parent=first.reply, request={"model": "qwen-new"})
    text = page(admin_client, LIST)
    cells = dict(re.findall(r'<td class="field-(\w+)">(.*?)</td>', text, re.DOTALL))
    shown = {name: re.sub("<[^>]*>", "", cell) for name, cell in cells.items()}
    assert shown["last_model"] == "qwen-new"
    assert shown["requests"] == "3"
    assert shown["branches"] == "2"
    assert shown["errors"] == "1"
    assert shown["tokens"] == "22 → 14"
    assert "Compare prices" in text


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"errors": "1"}, ["bad"]),
        ({"branches": "1"}, ["forked"]),
        ({"model": "qwen3-max"}, ["bad", "forked", "plain"]),
        ({"model": "other"}, []),
        ({"errors": "2"}, []),
        ({"q": "for"}, ["forked"]),
        ({"q": "outside-7"}, ["plain"]),
        ({"q": "outside"}, []),
        ({"q": "%"}, []),
    ],
)
def test_filters_and_search(admin_client, query, expected):
    names = ("plain", "bad", "forked")
    sessions = {name: make_session(title=name) for name in names}
    first = make_turn(sessions["forked"])
    for name in "xy":
        make_turn(sessions["forked"], name, parent=first.reply)
    make_turn(sessions["plain"])
    make_turn(sessions["bad"], answer=None)
    Session.objects.filter(title="plain").update(external_id="outside-7")
    text = page(admin_client, LIST, **query)
    assert [name for name in sorted(names) if sessions[name].pk[:8] in text] == expected


def test_an_empty_list_says_when_there_was_something(admin_client):
    session = make_turn(make_session()).session
    Session.objects.update(last_accessed=session.created_at)
    text = page(admin_client, LIST)
    assert "No sessions in the last 24 hours." in text
    assert "Newest was" in text

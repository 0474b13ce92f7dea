"""A sample of `make fuzz`; and what judges answers can find something."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from tests.fuzz import hostile
from tests.fuzz.cases import Case, Known, make
from tests.fuzz.rig import running
from tests.fuzz.run import Answer, Run, judge

_KNOWN = Known(
    key="qp-x",
    models={"openai": "m", "dashscope": "d", "web": "w"},
    pages=[("/admin/{object_id}/", ["q"])],
    forms=[("/admin/login/", {"username": "a"})],
    operations=[("GET", "/v1/requests/{reference}", ["limit"])],
)
_CHAT = Case("chat", b"", "/v1/chat/completions", "POST")


def _error(body):
    return Answer(400, "application/json", body)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Answer(500, "application/json", b"{}"), id="500"),
        pytest.param(Answer(501, "text/plain", b"x"), id="501"),
        pytest.param(Answer(fault="no answer in 60 s"), id="hang"),
        pytest.param(_error(b"{}"), id="no error"),
        pytest.param(_error(b'{"error": {"message": "", "type": "t"}}'), id="no message"),
        pytest.param(_error(b'{"error": {"message": "m"}}'), id="no type"),
        pytest.param(_error(b'{"error": {"message": "m", "type": "t"}}'), id="no field"),
        pytest.param(_error(b"{"), id="broken JSON"),
        pytest.param(Answer(400, "text/html", b"<p>"), id="a page"),
        pytest.param(Answer(200, "application/json", b'{"a": NaN}'), id="NaN"),
        pytest.param(Answer(200, "application/json", b'"\xed\xa0\x80"'), id="no UTF-8"),
        pytest.param(Answer(200, "text/event-stream", b"data: {}\n"), id="half an event"),
        pytest.param(Answer(200, "text/event-stream", b"data: {\n\n"), id="no JSON in it"),
    ],
)
def test_a_wrong_answer_is_told(answer):
    assert judge(_CHAT, answer)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(
            _error(b'{"error": {"message": "m", "type": "t", "param": "n"}}'), id="refused"
        ),
        pytest.param(
            _error(b'{"error": {"message": "the body is not JSON", "type": "t", "param": null}}'),
            id="no JSON",
        ),
        pytest.param(Answer(200, "application/json", b"{}"), id="whole"),
        pytest.param(
            Answer(200, "text/event-stream", b"data: {}\n\ndata: [DONE]\n\n"), id="stream"
        ),
    ],
)
def test_a_right_answer_is_not(answer):
    assert judge(_CHAT, answer) == ""


def test_a_seed_gives_the_same_cases():
    first = [make(5, index, _KNOWN).data for index in range(300)]
    assert [make(5, index, _KNOWN).data for index in range(300)] == first
    assert [make(6, index, _KNOWN).data for index in range(300)] != first


def test_bent_documents_differ_from_the_valid_one():

    document = {"a": [1, {"b": "c"}], "d": {"e": None}}
    bent = [hostile.bend(random.Random(seed), document) for seed in range(200)]
    assert sum(one != document for one in bent) > 150
    assert document == {"a": [1, {"b": "c"}], "d": {"e": None}}


@pytest.mark.parametrize(
    ("case", "body", "failures"),
    [
        pytest.param(Case("records", b"", "/v1/keys", "HEAD"), b"", 0, id="no body to a HEAD"),
        pytest.param(Case("records", b"", "/v1/keys", "GET"), b"{", 1, id="broken JSON"),
    ],
)
def test_an_answer_that_cannot_be_read_ends_no_run(tmp_path, case, body, failures):
    run = Run(SimpleNamespace(), 1, tmp_path)
    run._note(0, case, Answer(400, "application/json", body), 0.1)
    assert len(run.report.failures) == failures


def _fuzz(directory, cases):
    with running(directory) as rig:
        run = Run(rig, 1, directory)
        report = run.run(range(cases), lambda done, failed: None)
    assert report.failures == []
    assert sum(area.cases for area in report.areas.values()) == cases
    return report


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_no_case_of_a_sample_gets_500_or_hangs(tmp_path):
    report = _fuzz(tmp_path, 700)
    # Answers of every kind, or the cases did not reach what they are for.
    assert report.areas["chat"].statuses[200] > 0
    assert report.areas["upstream web"].statuses[502] > 0
    assert report.areas["admin pages"].statuses[200] > 0

"""Health, readiness and metrics."""

from __future__ import annotations

import asyncio
import re

import pytest
from django.db import OperationalError, connection

from qwenproxy import metrics
from tests.proxy.conftest import HELLO, wait_until


@pytest.fixture
def anonymous(http):
    del http.headers["authorization"]
    return http


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("path", ["/health", "/healthz"])
def test_alive_asks_for_no_key_and_no_database(anonymous, path, monkeypatch):
    from qwenproxy import health

    async def fail(function):
        raise AssertionError("the database was asked")

    monkeypatch.setattr(health, "run_in_db", fail)
    answer = anonymous.get(path)
    assert answer.status_code == 200
    body = answer.json()
    assert body["status"] == "healthy"
    assert body["uptime"] >= 0
    assert body["timestamp"] > 1_700_000_000_000


def test_ready_says_what_it_looked_at(anonymous):
    answer = anonymous.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ready",
        "pending": 0,
        "checks": {"serving": "ok", "recording": "ok", "schema": "ok"},
    }


def test_not_ready_while_it_drains(gateway, anonymous):
    gateway.gateway.draining = True
    answer = anonymous.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["checks"]["serving"] == "draining"
    assert anonymous.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("statement", "undo", "status", "said"),
    [
        pytest.param(
            "DELETE FROM django_migrations WHERE app = 'requests_app' AND name = '0001_initial'",
            "INSERT INTO django_migrations (app, name, applied) "
            "VALUES ('requests_app', '0001_initial', CURRENT_TIMESTAMP)",
            "pending",
            "pending migrations: 1",
            id="pending",
        ),
        pytest.param(
            "INSERT INTO django_migrations (app, name, applied) "
            "VALUES ('requests_app', '9999_future', CURRENT_TIMESTAMP)",
            "DELETE FROM django_migrations WHERE name = '9999_future'",
            "ahead",
            "the database is ahead of this version",
            id="ahead",
        ),
    ],
)
def test_not_ready_where_the_schema_does_not_fit(anonymous, statement, undo, status, said):
    with connection.cursor() as cursor:
        cursor.execute(statement)
        try:
            answer = anonymous.get("/readyz")
        finally:
            cursor.execute(undo)
    assert answer.status_code == 503
    assert answer.json()["status"] == status
    assert answer.json()["pending"] == (status == "pending")
    assert answer.json()["checks"]["schema"] == said
    assert anonymous.get("/readyz").status_code == 200


def test_a_database_that_does_not_answer_is_told(anonymous, monkeypatch):
    from qwenproxy import health

    def fail():
        raise OperationalError("gone")

    monkeypatch.setattr(health, "read_standing", fail)
    answer = anonymous.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["status"] == "db_down"


def test_not_ready_where_nothing_can_be_recorded(gateway, anonymous, monkeypatch):
    from qwenproxy import health
    from qwenproxy.errors import RecorderUnavailable

    async def refuse(task):
        raise RecorderUnavailable("the record cannot be written: OperationalError")

    monkeypatch.setattr(gateway.gateway.recorder, "run", refuse)
    answer = anonymous.get("/readyz")
    assert answer.status_code == 503
    assert "cannot be written" in answer.json()["checks"]["recording"]

    async def hang(task):
        await asyncio.Event().wait()

    monkeypatch.setattr(health, "_CHECK_TIMEOUT_S", 0.05)
    monkeypatch.setattr(gateway.gateway.recorder, "run", hang)
    answer = anonymous.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["checks"]["recording"] == "no write within 0.05 s"


def test_who_asks_during_a_check_causes_no_other(monkeypatch):
    from qwenproxy import health

    begun = []

    async def check(gateway):
        begun.append(gateway)
        await asyncio.sleep(0)
        return None, ("ready", 0, "ok")

    async def ask():
        monkeypatch.setattr(health, "_check", check)
        together = await asyncio.gather(*(health._check_once(None) for _ in range(50)))
        assert set(together) == {(None, ("ready", 0, "ok"))}
        assert len(begun) == 1
        await health._check_once(None)
        assert len(begun) == 2

    asyncio.run(ask())


def test_details_are_for_admin_keys(anonymous, api_key, admin_key):
    assert anonymous.get("/health/detailed").status_code == 401
    assert anonymous.get("/health/detailed", headers=bearer(api_key)).status_code == 403
    answer = anonymous.get("/health/detailed", headers=bearer(admin_key))
    assert answer.status_code == 200
    body = answer.json()
    assert body["status"] == "ready"
    assert body["checks"]["recording"] == "ok"
    assert (body["running"], body["recorder_queue"], body["unrecorded"]) == (0, 0, 0)
    assert body["version"]


def test_metrics_are_for_admin_keys(anonymous, api_key, admin_key):
    assert anonymous.get("/metrics").status_code == 401
    assert anonymous.get("/metrics", headers=bearer(api_key)).status_code == 403
    answer = anonymous.get("/metrics", headers=bearer(admin_key))
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "qwenproxy_turns_running 0.0" in answer.text


def test_metrics_may_be_open(anonymous, settings):
    settings.METRICS_OPEN = True
    assert anonymous.get("/metrics").status_code == 200


def value_of(text, line_start):
    values = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith(line_start)]
    return float(values[0]) if values else 0.0


@pytest.fixture
def no_models(monkeypatch):
    """As in a process that has counted nothing yet."""
    monkeypatch.setattr(metrics, "_listed", {})
    monkeypatch.setattr(metrics, "_answered", {})


def observe(model, *, is_listed=True, status="completed"):
    metrics.observe_turn(
        model=model, is_listed=is_listed, status=status,
        duration_s=1, ttft_s=1, prompt_tokens=1, completion_tokens=1,
    )  # fmt: skip


def labels():
    lines = metrics.exposition().decode().splitlines()
    found = (re.search(r'_model="((?:[^"\\]|\\.)*)"', line) for line in lines)
    return {match[1] for match in found if match}


def test_metrics_can_be_written_whatever_a_model_is_called(no_models):
    observe("qwen-\ud800")
    assert "qwen-\ufffd" in labels()


def test_names_that_no_upstream_lists_share_a_label_until_one_answers_by_them(no_models):
    before = labels()
    for number in range(500):
        observe(f"unheard-{number}", is_listed=False, status="failed")
    assert labels() - before <= {metrics.OTHER}
    observe("unheard-7", is_listed=False)
    observe("unheard-7", is_listed=False, status="failed")
    text = metrics.exposition().decode()
    assert 'gen_ai_request_model="unheard-7",status="failed"' in text
    assert labels() - before - {metrics.OTHER} == {"unheard-7"}


def test_however_many_models_are_served_labels_are_bounded(no_models, monkeypatch):
    monkeypatch.setattr(metrics, "MAX_LISTED", 4)
    monkeypatch.setattr(metrics, "MAX_ANSWERED", 3)
    before = labels()
    # Those who make names up take no label from those that are listed.
    for number in range(20):
        observe(f"made-up-{number}", is_listed=False)
    for number in range(20):
        observe(f"served-{number}")
    observe("long" * metrics.MAX_NAME_CHARS)
    assert labels() - before - {metrics.OTHER} == {f"made-up-{number}" for number in range(3)} | {
        f"served-{number}" for number in range(4)
    }


def test_metrics_count_turns_by_how_they_end(http, settings, openai_compatible, make_account):
    from tests.doubles.server import Reply, serve_in_thread

    settings.METRICS_OPEN = True
    with serve_in_thread(openai_compatible) as url:
        make_account("openai_compatible", url)
        openai_compatible.models = ("qwen-counted",)
        counts = 'gen_ai_server_request_duration_seconds_count{gen_ai_request_model="qwen-counted",'
        before = http.get("/metrics").text
        body = {"model": "qwen-counted", "messages": HELLO}
        openai_compatible.enqueue(
            Reply(text="fine"), Reply(body={"error": {"message": "no"}}, status=400)
        )
        assert http.post("/v1/chat/completions", json=body).status_code == 200
        assert http.post("/v1/chat/completions", json=body).status_code == 400

        def counted(status):
            line = f'{counts}status="{status}"}}'
            return value_of(http.get("/metrics").text, line) - value_of(before, line)

        wait_until(lambda: counted("completed") == counted("failed") == 1)
        text = http.get("/metrics").text
    tokens = 'gen_ai_client_token_usage_total{gen_ai_request_model="qwen-counted",'
    assert value_of(text, f'{tokens}gen_ai_token_type="output"}}') > 0
    assert value_of(text, "gen_ai_server_time_to_first_token_seconds_count{") >= 1


def test_a_key_s_holder_gives_no_model_a_label_by_asking(
    http, settings, openai_compatible, make_account
):
    from tests.doubles.openai_compatible import CHAT, MODELS
    from tests.doubles.server import Reply, serve_in_thread

    settings.METRICS_OPEN = True
    with serve_in_thread(openai_compatible) as url:
        make_account("openai_compatible", url)
        # It has no list at all, so it is asked for whatever is wanted.
        openai_compatible.enqueue(Reply(body={}, status=404), path=MODELS)
        openai_compatible.enqueue(Reply(body={"error": {"message": "no"}}, status=400), path=CHAT)
        body = {"model": "made-up", "messages": HELLO}
        before = http.get("/metrics").text
        assert http.post("/v1/chat/completions", json=body).status_code == 400
        line = 'gen_ai_server_request_duration_seconds_count{gen_ai_request_model="other",'
        wait_until(lambda: value_of(http.get("/metrics").text, line) > value_of(before, line))
    assert "made-up" not in http.get("/metrics").text

"""Started by a server of one's own, without `serve`: nothing is served before the schema is ready."""

from __future__ import annotations

import httpx
import pytest
from django.db import connection

from tests.conftest import NO_TLS
from tests.doubles.server import serve_in_thread
from tests.proxy.conftest import wait_until

CHAT = "/v1/chat/completions"
PENDING = (
    "DELETE FROM django_migrations WHERE app = 'sessions_app' AND name = '0001_initial'",
    "INSERT INTO django_migrations (app, name, applied) "
    "VALUES ('sessions_app', '0001_initial', CURRENT_TIMESTAMP)",
    "pending migrations: 1",
)
AHEAD = (
    "INSERT INTO django_migrations (app, name, applied) "
    "VALUES ('sessions_app', '9999_future', CURRENT_TIMESTAMP)",
    "DELETE FROM django_migrations WHERE name = '9999_future'",
    "the database is ahead of this version",
)


def execute(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


@pytest.mark.parametrize(
    ("statement", "undo", "said"),
    [pytest.param(*PENDING, id="pending"), pytest.param(*AHEAD, id="ahead")],
)
def test_nothing_is_served_before_the_schema_is_ready(
    make_application, api_key, monkeypatch, caplog, statement, undo, said
):
    from qwenproxy import asgi

    monkeypatch.setattr(asgi, "_LOOK_EVERY_S", 0.02)
    execute(statement)
    is_undone = False
    headers = {"Authorization": f"Bearer {api_key}"}
    try:
        with (
            serve_in_thread(make_application(), lifespan="on") as url,
            httpx.Client(base_url=url, verify=NO_TLS, headers=headers, timeout=10) as client,
        ):
            for answer in (
                client.post(CHAT, json={"messages": []}),
                client.get("/v1/sessions"),
                client.get("/v1/models"),
            ):
                assert answer.status_code == 503
                assert answer.json()["error"]["code"] == "schema_not_ready"
                assert answer.headers["retry-after"] == "2"
            assert client.get("/healthz").status_code == 200
            ready = client.get("/readyz")
            assert ready.status_code == 503
            assert ready.json()["checks"] == {"serving": "starting", "schema": said}
            assert said in caplog.text
            execute(undo)
            is_undone = True
            wait_until(lambda: client.get("/readyz").status_code == 200)
            assert client.get("/v1/sessions").status_code == 200
    finally:
        if not is_undone:
            execute(undo)


def test_it_ends_also_while_it_waits(make_application, monkeypatch):
    from qwenproxy import asgi

    monkeypatch.setattr(asgi, "_LOOK_EVERY_S", 3600)
    execute(PENDING[0])
    try:
        application = make_application()
        with serve_in_thread(application, lifespan="on"):
            assert application.gateway is None
    finally:
        execute(PENDING[1])


def test_once_ready_it_asks_no_more(gateway, http, monkeypatch):
    from qwenproxy import asgi

    def fail() -> None:
        raise AssertionError("the state was read again")

    monkeypatch.setattr(asgi, "read_state", fail)
    execute(PENDING[0])
    try:
        assert http.get("/v1/sessions").status_code == 200
        assert http.get("/readyz").status_code == 503
    finally:
        execute(PENDING[1])

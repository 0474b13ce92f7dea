from __future__ import annotations

import pytest

from tests.browser.serving import served
from tests.browser.visits import Watch, run_axe, settled, sideways

NEWEST = "SELECT id, app, name FROM django_migrations WHERE app = 'requests_app' ORDER BY id DESC"


@pytest.fixture(scope="module")
def changed(seeded, copy_seeded):
    """A gateway on a migrated database, whose history the tests change and put right again."""
    with served(copy_seeded()) as gateway:
        gateway.start()
        yield gateway, gateway.cookies(seeded[1])


@pytest.fixture
def show(changed, make_context):
    gateway, cookies = changed
    page = make_context(cookies, base_url=gateway.url).new_page()
    watch = Watch(page)

    def show() -> str:
        assert page.goto("/admin/migrations/").status == 200
        settled(page)
        assert watch.console == []
        assert run_axe(page) == ""
        page.set_viewport_size({"width": 390, "height": 844})
        assert sideways(page) == 0
        return page.locator("#content").inner_text()

    return show


def test_up_to_date(show):
    assert "Database is up to date" in show()


def test_pending(changed, show):
    gateway, _ = changed
    (row,) = gateway.sql(NEWEST)[:1]
    applied = gateway.sql("SELECT applied FROM django_migrations WHERE id = ?", row[0])[0][0]
    gateway.sql("DELETE FROM django_migrations WHERE id = ?", row[0])
    try:
        text = show()
    finally:
        gateway.sql("INSERT INTO django_migrations VALUES (?, ?, ?, ?)", *row, applied)
    assert "not applied" in text
    assert row[2] in text


def test_unknown(changed, show):
    gateway, _ = changed
    gateway.sql(
        "INSERT INTO django_migrations (app, name, applied) VALUES (?, ?, '2026-01-01')",
        "requests_app", "9999_of_tomorrow",
    )  # fmt: skip
    try:
        text = show()
    finally:
        gateway.sql("DELETE FROM django_migrations WHERE name = '9999_of_tomorrow'")
    assert "unknown to this version" in text
    assert "9999_of_tomorrow" in text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param("status = 'failed', error = 'no such table: nowhere'", "failed", id="failed"),
        pytest.param(
            "status = 'started', pid = 77, host = 'web1'", "is running since", id="running-by-another"
        ),
    ],
)  # fmt: skip
def test_what_the_newest_run_did(changed, show, change, told):
    gateway, _ = changed
    columns = "status, error, pid, host"
    newest = "(SELECT max(id) FROM schema_migrationevent)"
    (before,) = gateway.sql(f"SELECT {columns} FROM schema_migrationevent WHERE id = {newest}")
    gateway.sql(f"UPDATE schema_migrationevent SET {change} WHERE id = {newest}")
    try:
        text = show()
    finally:
        gateway.sql(
            f"UPDATE schema_migrationevent SET ({columns}) = (?, ?, ?, ?) WHERE id = {newest}",
            *before,
        )
    assert told in text

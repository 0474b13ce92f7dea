from __future__ import annotations

import csv
import io
import json

FILTER = "span=all&status=failed"


def failed(gateway) -> set[str]:
    rows = gateway.sql(
        "SELECT q.request_id FROM requests_app_request q"
        " JOIN requests_app_response r ON r.request_id = q.id WHERE r.status = 'failed'"
    )
    return {row[0] for row in rows}


def download(page, form: str) -> str:
    """Follow the list's own link."""
    page.goto(f"/admin/requests_app/request/?{FILTER}")
    link = page.locator(f"a[href*='/admin/export/requests/'][href*='format={form}']").first
    with page.expect_download() as started:
        link.click()
    return started.value.path().read_text()


def test_lines_are_json_and_those_of_the_filter(page, gateway):
    lines = download(page, "jsonl").splitlines()
    rows = [json.loads(line) for line in lines]
    assert {row["request_id"] for row in rows} == failed(gateway)
    assert len(rows) == len(failed(gateway))


def test_a_table_has_the_same_rows(page, gateway):
    rows = list(csv.DictReader(io.StringIO(download(page, "csv"))))
    assert {row["request_id"] for row in rows} == failed(gateway)


def test_an_export_is_in_the_audit_log(page):
    download(page, "csv")
    page.goto("/admin/admin/logentry/")
    assert "export" in page.locator("#content").inner_text().lower()

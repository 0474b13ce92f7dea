"""Days of the Overview are days of the reporting zone, and hold what was asked in them."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from tests.browser.serving import served

ENDED = (
    "SELECT completed_at, status FROM requests_app_response"
    " WHERE completed_at IS NOT NULL AND status <> 'in_progress'"
)
ROWS = """() => [...document.querySelectorAll('.as-table tbody tr')].map(
  row => [...row.cells].map(cell => cell.textContent))"""


# Half an hour off the hour, east of the date in UTC, and one where a clock changes.
@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai", "Asia/Kolkata", "America/New_York"])
def test_the_days_of_a_zone_hold_what_ended_in_them(copy_seeded, facts, make_context, zone):
    with served(copy_seeded(), QWENPROXY_TIME_ZONE=zone) as gateway:
        gateway.start()
        page = make_context(gateway.cookies(facts), base_url=gateway.url).new_page()
        page.goto("/admin/?range=30d")
        shown = {
            row[0][:10]: [int(cell.replace(",", "")) for cell in row[2:5]]
            for row in page.evaluate(ROWS)
        }
        counted: dict[str, Counter[str]] = {}
        for completed_at, status in gateway.sql(ENDED):
            at = datetime.fromisoformat(completed_at).replace(tzinfo=UTC)
            day = at.astimezone(ZoneInfo(zone)).strftime("%Y-%m-%d")
            counted.setdefault(day, Counter())[status] += 1
        assert shown == {
            day: [of["completed"], of["failed"] + of["interrupted"], of["cancelled"]]
            for day, of in counted.items()
        }
        assert len(shown) >= 8
        assert page.locator(".zone").text_content() == zone

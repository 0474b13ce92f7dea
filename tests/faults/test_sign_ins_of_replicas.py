"""Two serving processes on one database count failed sign-ins together."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from qwenproxy.access.sign_in_waits import FREE_TRIES
from tests.conftest import NO_TLS
from tests.faults.gateway import Gateway
from tests.faults.torture import SERVER, new_database

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
_MORE = 3


@pytest.fixture
def gateways(tmp_path):
    with new_database("postgresql" if SERVER else "sqlite") as found:
        url = found or f"sqlite:///{tmp_path / 'shared.sqlite3'}"
        gateways = [
            Gateway(tmp_path / f"replica{n}", upstream_url="http://127.0.0.1:9", database_url=url)
            for n in range(2)
        ]
        try:
            for gateway in gateways:
                asyncio.run(gateway.start())
            yield gateways
        finally:
            for gateway in gateways:
                gateway.close()


def test_a_name_waits_at_either_process_for_what_was_tried_at_both(gateways):
    # Alone neither would see as many as are free.
    assert -(-(FREE_TRIES + _MORE) // 2) < FREE_TRIES
    with httpx.Client(verify=NO_TLS, timeout=60) as client:
        client.get(f"{gateways[0].url}/admin/login/").raise_for_status()
        fields = {"username": "operator", "password": "wrong"}
        fields["csrfmiddlewaretoken"] = client.cookies["csrftoken"]
        answers = [
            client.post(f"{gateways[number % 2].url}/admin/login/", data=fields)
            for number in range(FREE_TRIES + _MORE)
        ]
    statuses = [answer.status_code for answer in answers]
    assert statuses[:FREE_TRIES] == [200] * FREE_TRIES
    # Not each of them on a machine that is slow: the first wait is of a second.
    assert 429 in statuses[FREE_TRIES:]

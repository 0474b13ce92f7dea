from __future__ import annotations

import time

import pytest
from django.db import OperationalError, connection

from requests_app.models import Request
from sessions_app.guard import Stopped, stopped_after
from tests.factories import make_session, make_turn

SLOW = {
    "sqlite": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT COUNT(*) FROM n",
    "postgresql": "SELECT pg_sleep(30)",
}


def read(sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


@pytest.mark.parametrize("in_transaction", [True, False])
def test_what_takes_too_long_is_stopped_and_the_connection_works_on(request, in_transaction):
    request.getfixturevalue("db" if in_transaction else "transactional_db")
    make_turn(make_session())
    began = time.monotonic()
    with pytest.raises(Stopped), stopped_after(0.05):
        read(SLOW[connection.vendor])
    assert time.monotonic() - began < 3
    assert Request.objects.count() == 1
    make_turn(make_session())
    assert Request.objects.count() == 2


@pytest.mark.django_db
def test_what_is_quick_is_not_stopped_and_leaves_no_limit():
    with stopped_after(0.05):
        assert read("SELECT 1") == [(1,)]
    if connection.vendor == "postgresql":
        assert read("SHOW statement_timeout")[0][0] != "50ms"
    time.sleep(0.06)
    long = {
        "sqlite": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 300000)"
        " SELECT COUNT(*) FROM n",
        "postgresql": "SELECT pg_sleep(0.1)",
    }
    assert read(long[connection.vendor])


@pytest.mark.django_db
def test_other_errors_stay_what_they_are():
    with pytest.raises(Exception, match="nowhere") as caught, stopped_after():
        read("SELECT * FROM nowhere")
    assert not isinstance(caught.value, Stopped)
    with pytest.raises(OperationalError, match="mine"), stopped_after():
        raise OperationalError("mine")

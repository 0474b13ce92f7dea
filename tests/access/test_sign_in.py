"""Failed sign-ins to the admin: who waits how long, and who does not."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.contrib.auth import get_user_model
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.db import connections
from django.test import RequestFactory
from django.utils import timezone

from qwenproxy.access import sign_in, sign_in_waits
from qwenproxy.access.sign_in import client_address
from qwenproxy.access.sign_in_waits import FORGET_S, FREE_TRIES, MAX_WAIT_S, Throttle

pytestmark = pytest.mark.django_db
PASSWORD = "correct horse battery"


class Clock:
    def __init__(self):
        self.now = timezone.now()

    def __call__(self):
        return self.now

    def go(self, seconds):
        self.now += timedelta(seconds=seconds)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """The throttle's time."""
    clock = Clock()
    monkeypatch.setattr(sign_in.throttle, "now", clock)
    return clock


@pytest.fixture
def operator():
    return get_user_model().objects.create_superuser("operator", password=PASSWORD)


def post(client, name="operator", password="wrong", address="192.0.2.1"):
    return client.post(
        "/admin/login/", {"username": name, "password": password}, REMOTE_ADDR=address
    )


def test_after_some_failures_also_the_right_password_has_to_wait(client, operator, clock):
    for _ in range(FREE_TRIES):
        assert post(client).status_code == 200
    answer = post(client, password=PASSWORD)
    assert answer.status_code == 429
    assert answer["Retry-After"] == "1"
    assert "Wait 1 seconds" in answer.content.decode()
    assert "_auth_user_id" not in client.session
    clock.go(1)
    assert post(client, password=PASSWORD).status_code == 302


def test_the_wait_doubles_up_to_its_end_and_waiting_adds_nothing(clock):
    throttle = Throttle(clock)
    waits = []
    for _ in range(20):
        if wait_s := throttle.begin("a", "name"):
            assert throttle.begin("a", "name") == wait_s
            waits.append(wait_s)
            clock.go(wait_s)
            assert throttle.begin("a", "name") == 0
    assert waits[:4] == [1, 2, 4, 8]
    assert max(waits) == waits[-1] == MAX_WAIT_S


def test_an_address_waits_whatever_name_it_tries_and_a_name_from_wherever(client, operator):
    for number in range(FREE_TRIES):
        assert post(client, name=f"guess{number}").status_code == 200
    assert post(client, name="another").status_code == 429
    assert post(client, name="another", address="192.0.2.2").status_code == 200
    for number in range(FREE_TRIES):
        post(client, address=f"192.0.2.{10 + number}")
    assert post(client, name="OPERATOR", address="192.0.2.99").status_code == 429


def test_where_a_name_has_signed_in_others_failures_do_not_hold_it(client, operator):
    assert post(client, password=PASSWORD, address="192.0.2.7").status_code == 302
    for number in range(FREE_TRIES + 1):
        post(client, address=f"198.51.100.{number}")
    assert post(client, password=PASSWORD, address="198.51.100.200").status_code == 429
    assert post(client, password=PASSWORD, address="192.0.2.7").status_code == 302


def test_names_that_do_not_exist_wait_like_others(client):
    for number in range(FREE_TRIES):
        post(client, name="nobody", address=f"192.0.2.{number}")
    assert post(client, name="nobody", address="192.0.2.50").status_code == 429


def rows():
    return {key[:5] for key in Session.objects.values_list("pk", flat=True)}


def test_what_is_remembered_is_bounded(monkeypatch, clock):
    monkeypatch.setattr(sign_in_waits, "MAX_REMEMBERED", 10)
    throttle = Throttle(clock)
    for number in range(30):
        clock.go(0.001)
        throttle.begin(f"a{number}", f"n{number}")
        throttle.succeed(f"b{number}", f"m{number}")
    for prefix in ("fail:", "know:"):
        assert Session.objects.filter(pk__startswith=prefix).count() == 10
    # The newest.
    for _ in range(FREE_TRIES - 1):
        throttle.begin("a29", "n29")
    assert throttle.begin("a29", "n29") > 0
    assert throttle.begin("a0", "n0") == 0


def test_it_is_forgotten_and_goes_with_old_sessions(clock):
    throttle = Throttle(clock)
    SessionStore().save()
    for _ in range(FREE_TRIES + 1):
        throttle.begin("a", "name")
    assert throttle.begin("a", "name") > 0
    clock.go(FORGET_S + 1)
    assert throttle.begin("a", "name") == 0
    assert rows() >= {"fail:"}
    clock.go(14 * 86_400)
    throttle.succeed("b", "other")
    assert rows() == {"know:"}


def test_processes_on_one_database_count_together(clock):
    """What one counts another finds: nothing is kept in memory."""
    for _ in range(FREE_TRIES):
        assert Throttle(clock).begin("a", "name") == 0
    assert Throttle(clock).begin("a", "name") == 1


def test_a_clock_that_is_set_back_holds_nobody_up(clock):
    throttle = Throttle(clock)
    for _ in range(FREE_TRIES):
        throttle.begin("a", "name")
    clock.go(-86_400)
    assert throttle.begin("a", "name") == 0


def test_keys_of_counts_cannot_be_made_up_nor_be_a_session_s(client, settings):
    post(client)
    keys = Session.objects.filter(pk__startswith="fail:").values_list("pk", flat=True)
    assert [len(key) > 32 for key in keys] == [True, True]
    settings.SECRET_KEY = "another" * 10
    post(client)
    assert Session.objects.filter(pk__startswith="fail:").count() == 4


@pytest.mark.django_db(transaction=True)
def test_of_many_tries_at_once_none_passes_uncounted(clock):
    barrier = threading.Barrier(FREE_TRIES + 7)

    def attempt(number):
        try:
            barrier.wait(timeout=30)
            # Names in common with others, in either order of the keys.
            return Throttle(clock).begin("a", f"name{number % 3}")
        finally:
            connections.close_all()

    with ThreadPoolExecutor(barrier.parties) as pool:
        waits = list(pool.map(attempt, range(barrier.parties)))
    assert waits.count(0) == FREE_TRIES


def test_the_log_names_the_try_in_one_line_and_never_the_password(client, caplog):
    with caplog.at_level(logging.WARNING, logger="qwenproxy"):
        logging.getLogger("qwenproxy").addHandler(caplog.handler)
        try:
            post(client, name="evil\nname", password="hunter2-secret")
        finally:
            logging.getLogger("qwenproxy").removeHandler(caplog.handler)
    said = [record.getMessage() for record in caplog.records if "sign-in" in record.getMessage()]
    assert said
    assert all("192.0.2.1" in line and "\n" not in line for line in said)
    assert "hunter2" not in caplog.text


def test_forwarded_addresses_count_only_from_trusted_proxies(settings):
    def of(address, forwarded=None):
        more = {} if forwarded is None else {"HTTP_X_FORWARDED_FOR": forwarded}
        return client_address(RequestFactory().get("/", REMOTE_ADDR=address, **more))

    from ipaddress import ip_network

    assert of("10.0.0.1", "203.0.113.5") == "10.0.0.1"
    settings.TRUSTED_PROXIES = (ip_network("10.0.0.0/8"),)
    assert of("10.0.0.1", "203.0.113.5") == "203.0.113.5"
    # What the client itself wrote stands before what the proxies did.
    assert of("10.0.0.1", "1.1.1.1, 203.0.113.5, 10.0.0.2") == "203.0.113.5"
    assert of("192.0.2.1", "203.0.113.5") == "192.0.2.1"
    assert of("10.0.0.1") == "10.0.0.1"
    assert of("2001:db8::1") == of("2001:db8::2") == "2001:db8::/64"

"""Failed sign-ins to the admin: who waits how long, and who does not."""

from __future__ import annotations

import logging

import pytest
from django.contrib.auth import get_user_model
from django.test import RequestFactory

from qwenproxy.access import sign_in
from qwenproxy.access.sign_in import FREE_TRIES, MAX_WAIT_S, Throttle, client_address

pytestmark = pytest.mark.django_db
PASSWORD = "correct horse battery"


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """The throttle's time, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr(sign_in.time, "monotonic", lambda: now[0])
    sign_in.throttle.forget()
    yield now
    sign_in.throttle.forget()


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
    clock[0] += 1
    assert post(client, password=PASSWORD).status_code == 302


def test_the_wait_doubles_up_to_its_end_and_waiting_adds_nothing(clock):
    throttle = Throttle()
    waits = []
    for _ in range(20):
        if wait_s := throttle.begin("a", "name"):
            assert throttle.begin("a", "name") == wait_s
            waits.append(wait_s)
            clock[0] += wait_s
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


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(sign_in, "MAX_REMEMBERED", 10)
    throttle = Throttle()
    for number in range(50):
        throttle.begin(f"a{number}", f"n{number}")
        throttle.succeed(f"b{number}", f"m{number}")
    assert len(throttle._failures) <= 10
    assert len(throttle._known) <= 10


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

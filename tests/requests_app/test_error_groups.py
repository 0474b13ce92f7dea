from __future__ import annotations

from datetime import timedelta

import pytest
from django.contrib.auth.models import User
from django.utils import timezone

from qwenproxy import errors as gateway_errors
from requests_app import error_groups
from requests_app.ways_out import WAYS_OUT
from tests.factories import make_account, make_api_key, make_session
from tests.requests_app.ended import make_ended

pytestmark = pytest.mark.django_db
URL = "/admin/errors/"


def make_failed(count, *, ago=timedelta(minutes=5), **fields):
    now = timezone.now()
    defaults = {
        "status": "failed",
        "error_type": "upstream_error",
        "error_code": "upstream_timeout",
    }
    moments = [now - ago - timedelta(seconds=number) for number in range(count)]
    return make_ended([make_session(make_api_key())], moments, **{**defaults, **fields})


def groups_of(response):
    return [
        (group.code, group.model, group.account, group.count)
        for group in response.context["found"].groups
    ]


def test_errors_are_grouped_by_code_model_and_account(admin_client):
    account = make_account("house")
    make_failed(3, account_id=account.pk)
    make_failed(2, model="<script>alert(1)</script>")
    make_failed(1, status="interrupted", error_code="interrupted")
    make_failed(1, error_code=None)
    make_failed(3, status="completed", error_code=None, error_type=None)
    response = admin_client.get(URL)
    assert groups_of(response) == [
        ("upstream_timeout", "qwen3-max", "house", 3),
        ("upstream_timeout", "<script>alert(1)</script>", "", 2),
        ("interrupted", "qwen3-max", "", 1),
        ("upstream_error", "qwen3-max", "", 1),
    ]
    assert [group.share for group in response.context["found"].groups] == [0.3, 0.2, 0.1, 0.1]
    assert "<script>alert(1)" not in response.content.decode()
    assert groups_of(admin_client.get(URL, {"range": "x"})) == groups_of(response)
    make_failed(1, ago=timedelta(days=2), model="old")
    assert len(groups_of(admin_client.get(URL))) == 4
    response = admin_client.get(URL, {"range": "7d"})
    assert len(groups_of(response)) == 5
    # Statistics that are behind say up to when they go, and nothing of shares.
    assert "Statistics as of" in response.content.decode()
    assert response.context["found"].groups[0].share is None


def test_a_groups_link_shows_as_many_requests(admin_client):
    account = make_account("house")
    make_failed(3, account_id=account.pk)
    make_failed(1, error_code=None)
    make_failed(2, status="interrupted", error_code="interrupted")
    for group in admin_client.get(URL).context["found"].groups:
        cl = admin_client.get(group.url).context["cl"]
        assert len(cl.result_list) == group.count, group.url


def test_what_is_too_much_is_cut_and_said(admin_client, monkeypatch):
    monkeypatch.setattr(error_groups, "MAX_ROWS", 4)
    make_failed(6)
    response = admin_client.get(URL)
    assert groups_of(response)[0][3] == 4
    assert "there were more" in response.content.decode()


def test_a_cooling_account_says_until_when(admin_client):
    until = timezone.now() + timedelta(hours=1)
    account = make_account("house", state="cooling", state_until=until)
    make_failed(1, error_code="upstream_rate_limited", account_id=account.pk)
    assert "The account is cooling until" in admin_client.get(URL).content.decode()


def test_what_is_not_the_accounts_fault_does_not_name_its_state(admin_client):
    account = make_account("house", state="cooling")
    make_failed(1, error_code="context_length_exceeded", account_id=account.pk)
    (group,) = admin_client.get(URL).context["found"].groups
    assert group.what_to_do == WAYS_OUT["context_length_exceeded"]


def test_every_code_has_a_way_out():
    codes = {
        each.code
        for each in vars(gateway_errors).values()
        if isinstance(each, type) and issubclass(each, gateway_errors.GatewayError)
    }
    # Refused before they are requests on record.
    unrecorded = {None, "invalid_api_key", "insufficient_scope", "body_too_large"}
    assert codes - unrecorded <= set(WAYS_OUT)


def test_a_fixed_number_of_queries(admin_client, django_assert_max_num_queries):
    account = make_account("house")
    for number in range(5):
        make_failed(2, model=f"m{number}", account_id=account.pk)
    with django_assert_max_num_queries(12):
        admin_client.get(URL)


def test_who_may_not_see_requests_sees_no_errors(client):
    client.force_login(User.objects.create_user("staff", password="x", is_staff=True))
    assert client.get(URL).status_code == 403

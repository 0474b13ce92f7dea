from __future__ import annotations

import json
from datetime import timedelta

import httpx
import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.db.models.signals import post_save
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from qwenproxy.access import auth, keys, playground_key, staff
from qwenproxy.access.models import ApiKey
from qwenproxy.access.playground_key import LIFE, PREFIX, lend_key
from tests.conftest import NO_TLS
from tests.factories import make_api_key, make_blob, make_line, make_session, make_turn

pytestmark = pytest.mark.django_db


def make_user(name="alice", *permissions):
    user = User.objects.create_user(name, password="x", is_staff=True)
    names = [one.split(".")[1] for one in (staff.USE_PLAYGROUND, *permissions)]
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    return user


def ask_key(client):
    return client.post(reverse("admin:playground_key"))


def page(client, **query):
    return client.get(reverse("admin:playground"), query)


@pytest.fixture
def alice(client):
    client.force_login(make_user())
    return client


def test_the_key_is_the_users_own_short_and_for_chat_alone(alice):
    response = ask_key(alice)
    answer = response.json()
    assert response.status_code == 200
    assert "no-store" in response.headers["Cache-Control"]
    assert (answer["name"], answer["expires_in_s"]) == ("Playground: alice", 600)
    api_key = ApiKey.objects.get()
    assert api_key.secret_hash == keys.hash_api_key(answer["key"])
    assert api_key.scopes == "chat"
    assert timedelta() < api_key.expires_at - timezone.now() <= LIFE
    assert playground_key.is_lent(api_key)
    assert not playground_key.is_lent(make_api_key())


def test_each_user_has_one_row_whose_secret_is_renewed(alice):
    secrets = {ask_key(alice).json()["key"] for _ in range(3)}
    assert len(secrets) == 3
    assert ApiKey.objects.count() == 1
    lend_key(make_user("bob"))
    assert ApiKey.objects.count() == 2


def test_another_tabs_secret_ends_when_it_would(alice):
    user = User.objects.get()
    api_key, first = lend_key(user)
    ends = api_key.expires_at
    lend_key(user)
    api_key.refresh_from_db()
    assert api_key.previous_hash == keys.hash_api_key(first)
    assert api_key.previous_expires_at == ends


def test_what_an_operator_set_stays_but_for_scope_and_end():
    user = make_user()
    api_key, _ = lend_key(user)
    ApiKey.objects.update(
        scopes="chat records admin", expires_at=None, tokens_per_day=5, name="Own name"
    )
    renewed, _ = lend_key(user)
    renewed.refresh_from_db()
    assert (renewed.pk, renewed.name, renewed.tokens_per_day) == (api_key.pk, "Own name", 5)
    assert renewed.scopes == "chat"
    assert renewed.expires_at is not None
    assert renewed.previous_expires_at <= timezone.now() + LIFE


def test_an_operators_key_of_the_same_name_is_not_touched():
    theirs = make_api_key("Playground: alice", prefix=f"{PREFIX}x", scopes="chat")
    before = ApiKey.objects.values().get(pk=theirs.pk)
    api_key, _ = lend_key(make_user())
    assert api_key.pk != theirs.pk
    assert ApiKey.objects.values().get(pk=theirs.pk) == before


def test_a_key_that_was_rotated_by_hand_is_somebody_elses():
    user = make_user()
    api_key, _ = lend_key(user)
    secret = keys.rotate_api_key(api_key)
    assert lend_key(user)[0].pk != api_key.pk
    api_key.refresh_from_db()
    assert api_key.secret_hash == keys.hash_api_key(secret)


def test_a_revoked_key_stays_revoked(alice):
    ask_key(alice)
    keys.revoke_api_key(ApiKey.objects.get())
    response = ask_key(alice)
    assert response.status_code == 403
    assert response.json() == {
        "error": "The key of your playground was revoked; there is no way back."
    }
    assert ApiKey.objects.count() == 1


def test_a_long_user_name_fits():
    api_key, _ = lend_key(make_user("x" * 150))
    assert len(api_key.name) == 100


def test_a_key_is_given_to_a_post_with_a_token_only():
    client = Client(enforce_csrf_checks=True)
    client.force_login(make_user())
    url = reverse("admin:playground_key")
    assert client.get(url).status_code == 405
    assert client.post(url).status_code == 403
    assert not ApiKey.objects.exists()
    page(client)
    token = client.cookies["csrftoken"].value
    assert client.post(url, headers={"X-CSRFToken": token}).status_code == 200


@pytest.mark.parametrize("name", ["playground", "playground_key", "playground_record"])
def test_it_is_for_those_who_may_use_it(client, name):
    url = reverse(f"admin:{name}", args=["req_1"] if name.endswith("record") else [])
    assert client.post(url).status_code == 302
    client.force_login(User.objects.create_user("staff", password="x", is_staff=True))
    assert client.post(url).status_code == 403
    assert not ApiKey.objects.exists()


def test_the_page_holds_no_key(alice):
    secret = ask_key(alice).json()["key"]
    text = page(alice).content.decode()
    assert secret not in text
    assert PREFIX not in text


def test_a_recorded_request_fills_it_in_and_is_audited(admin_client, django_user_model):
    session = make_session()
    above = make_line(
        session, {"role": "user", "content": "<script>1"}, {"role": "assistant", "content": "2"}
    )
    tools = [{"type": "function", "function": {"name": "f"}}]
    row = make_turn(
        session,
        "3</script>",
        parent=above,
        request={
            "system": make_blob(session.api_key, "system", [{"role": "system", "content": "Be."}]),
            "tools": make_blob(session.api_key, "tools", tools),
            "parameters": json.dumps({"model": "qwen3-max", "temperature": 0.5, "top_p": 0.1}),
        },
    )
    response = page(admin_client, request=row.request_id)
    assert response.context["config"]["body"] == {
        "model": "qwen3-max",
        "temperature": 0.5,
        "top_p": 0.1,
        "tools": tools,
        "messages": [
            {"role": "system", "content": "Be."},
            {"role": "user", "content": "<script>1"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "3</script>"},
        ],
    }
    assert "<script>1" not in response.content.decode()
    assert "Filled in from" in response.content.decode()
    entry = LogEntry.objects.get()
    assert (entry.action_flag, entry.object_id) == (staff.VIEWED, str(row.request_id))


def test_a_request_in_anthropics_form_fills_it_in_as_a_chat(admin_client):
    session = make_session()
    parameters = {"model": "claude-x", "max_tokens": 9, "thinking": {"type": "adaptive"}}
    system = make_blob(session.api_key, "system", [{"role": "system", "content": "Be."}])
    fields = {"dialect": "anthropic", "parameters": json.dumps(parameters), "system": system}
    row = make_turn(session, "Hi", request=fields)
    assert page(admin_client, request=row.request_id).context["config"]["body"] == {
        "model": "claude-x",
        "stream": False,
        "max_tokens": 9,
        "enable_thinking": True,
        "messages": [{"role": "system", "content": "Be."}, {"role": "user", "content": "Hi"}],
    }


def test_a_response_fills_in_the_whole_conversation_that_it_went_on_with(admin_client):
    session = make_session()
    parameters = {
        "model": "m",
        "max_output_tokens": 9,
        "previous_response_id": "resp_1",
        "_shape": {"input": "Hi"},
    }
    system = make_blob(session.api_key, "system", [{"role": "system", "content": "Be."}])
    fields = {"dialect": "responses", "parameters": json.dumps(parameters), "system": system}
    row = make_turn(session, "Hi", request=fields)
    assert page(admin_client, request=row.request_id).context["config"]["body"] == {
        "model": "m",
        "stream": False,
        "max_tokens": 9,
        "messages": [{"role": "system", "content": "Be."}, {"role": "user", "content": "Hi"}],
    }


@pytest.mark.parametrize("case", ["no permission", "hidden", "not kept"])
def test_what_may_not_be_read_is_not_filled_in(client, settings, case):
    client.force_login(
        make_user("alice", *([] if case == "no permission" else [staff.VIEW_PAYLOAD]))
    )
    settings.PAYLOADS = "errors" if case == "hidden" else "all"
    recorded = "metadata" if case == "not kept" else "everything"
    row = make_turn(make_session(), "secret question", request={"recorded": recorded})
    response = page(client, request=row.request_id)
    assert response.context["config"]["body"] is None
    assert "secret question" not in response.content.decode()
    assert "you may not read it" in response.content.decode()
    assert not LogEntry.objects.exists()


def test_what_failed_may_be_read_where_errors_are_shown(client, settings):
    client.force_login(make_user("alice", staff.VIEW_PAYLOAD))
    settings.PAYLOADS = "errors"
    row = make_turn(make_session(), "why", None)
    assert page(client, request=row.request_id).context["config"]["body"]["messages"]


@pytest.mark.parametrize("wanted", ["", "0", "99", "x", "-1", "9" * 30, "1\0", "٣"])
def test_a_request_that_is_not_there_is_404(alice, wanted):
    assert page(alice, request=wanted).status_code == 404


def test_an_answers_id_leads_to_its_request(alice):
    row = make_turn(make_session())
    response = alice.get(reverse("admin:playground_record", args=[row.request.request_id]))
    assert response.url == reverse("admin:requests_app_request_change", args=[row.request_id])
    for wanted in ("req_none", "a\0b", "<x>"):
        url = reverse("admin:playground_record", args=[wanted])
        assert alice.get(url).status_code == 404


def test_the_page_costs_the_same_whatever_there_is(admin_client):
    page(admin_client)
    with CaptureQueriesContext(connection) as few:
        page(admin_client)
    for _ in range(3):
        make_turn(make_session())
    with CaptureQueriesContext(connection) as many:
        page(admin_client)
    assert len(few) == len(many) <= 3


@pytest.mark.django_db(transaction=True)
def test_a_renewed_key_works_at_once_where_another_process_renewed_it(gateway_url, make_account):
    make_account("demo")
    user = make_user()

    def status(secret):
        headers = {"Authorization": f"Bearer {secret}"}
        return httpx.get(f"{gateway_url}/v1/models", headers=headers, verify=NO_TLS).status_code

    _, first = lend_key(user)
    assert (status(first), status("qp-play-guess")) == (200, 401)
    # Another process's signals do not reach this one: what it remembers, it remembers.
    post_save.disconnect(sender=ApiKey, dispatch_uid="access.auth.invalidate")
    try:
        _, second = lend_key(user)
        assert status(second) == 200
        assert status(first) == 200
        records = httpx.get(
            f"{gateway_url}/v1/sessions",
            headers={"Authorization": f"Bearer {second}"},
            verify=NO_TLS,
        )
        assert records.status_code == 403
    finally:
        post_save.connect(
            auth._invalidate_after_commit, ApiKey, dispatch_uid="access.auth.invalidate"
        )

"""Who is let in, what a lookup costs, and how soon a change holds."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from django.db import OperationalError, transaction
from django.test import RequestFactory
from django.utils import timezone
from ninja import NinjaAPI
from ninja.testing import TestAsyncClient

from qwenproxy.access import auth, keys
from qwenproxy.access.auth import ApiKeyAuth, KeyInfo, authenticate
from qwenproxy.access.models import ApiKey, Limits
from qwenproxy.errors import AuthenticationFailed, PermissionDenied, RecorderUnavailable

pytestmark = pytest.mark.usefixtures("db_pool")


def bearer(secret):
    return RequestFactory().get("/", headers={"authorization": f"Bearer {secret}"})


def check(*requests, scope=None):
    """Authenticate one after the other on one loop; an error stands for itself."""

    async def run():
        return [await settle(request) for request in requests]

    async def settle(request):
        try:
            return await authenticate(request, scope=scope)
        except AuthenticationFailed as exc:
            return exc

    return asyncio.run(run())


@pytest.fixture
def made():
    return keys.create_api_key(name="agent", scopes=["chat", "records"])


@pytest.fixture
def lookups(monkeypatch):
    """The hashes that each query of the database asked for."""
    asked = []
    load = auth._load_answers

    def note(key_hashes):
        asked.append(sorted(key_hashes))
        return load(key_hashes)

    monkeypatch.setattr(auth, "_load_answers", note)
    return asked


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"authorization": "Bearer {}"}, id="bearer"),
        pytest.param({"authorization": "bEARER   {} "}, id="any case, spaces"),
        pytest.param({"x-api-key": "{}"}, id="x-api-key"),
        pytest.param({"authorization": "Basic dTpw", "x-api-key": "{}"}, id="a proxy's own scheme"),
        pytest.param(
            {"authorization": "Bearer wrong", "x-api-key": "{}"}, id="the second is right"
        ),
    ],
)
def test_a_known_key_is_let_in(made, headers):
    api_key, secret = made
    request = RequestFactory().get("/", headers={n: v.format(secret) for n, v in headers.items()})
    assert check(request) == [KeyInfo(api_key.pk, "agent", frozenset({"chat", "records"}))]


def test_without_a_key_the_answer_says_how_to_send_one():
    [error] = check(RequestFactory().get("/"))
    assert error.http_status == 401
    assert "Authorization: Bearer" in error.message
    assert "x-api-key" in error.message


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("Bearer " + "x" * 1_000_000, id="very long"),
        pytest.param("Bearer qp-" + "x" * 510, id="a character too long"),
        pytest.param("Bearer sch\xfcssel", id="not ASCII"),
        pytest.param("Bearer a\x00b", id="NUL"),
        pytest.param("Bearer two words", id="space"),
        pytest.param("Bearer", id="no key"),
        pytest.param("Bearer \t ", id="blank"),
        pytest.param("Basic dTpw", id="other scheme"),
        pytest.param("\ud800", id="surrogate"),
    ],
)
def test_garbled_headers_are_refused_without_a_query(lookups, value):
    request = RequestFactory().get("/")
    request.META["HTTP_AUTHORIZATION"] = value
    [error] = check(request)
    assert isinstance(error, AuthenticationFailed)
    assert value == "Bearer" or value not in error.message
    assert lookups == []


def test_a_known_key_is_read_once_and_then_from_memory(made, lookups):
    check(*[bearer(made[1])] * 50)
    assert len(lookups) == 1


def test_a_known_key_is_read_again_after_a_second(made, lookups, monkeypatch):
    check(bearer(made[1]))
    now_s = auth.time.monotonic()
    monkeypatch.setattr(auth.time, "monotonic", lambda: now_s + auth.KNOWN_S)
    check(bearer(made[1]))
    assert len(lookups) == 2


def test_a_wrong_key_costs_one_query(lookups):
    errors = check(*[bearer("qp-wrong")] * 50)
    assert {type(error) for error in errors} == {AuthenticationFailed}
    assert len(lookups) == 1


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(auth, "MAX_REMEMBERED", 10)
    check(*[bearer(f"qp-{n}") for n in range(30)])
    assert len(auth._answers) == 10


def test_keys_that_come_together_are_looked_up_together(made, lookups):
    async def crowd():
        requests = [bearer(f"qp-{n}") for n in range(900)] + [bearer(made[1])] * 50
        return await asyncio.gather(
            *(authenticate(request) for request in requests), return_exceptions=True
        )

    answers = asyncio.run(crowd())
    assert [type(answer) for answer in answers[-50:]] == [KeyInfo] * 50
    assert {type(answer) for answer in answers[:900]} == {AuthenticationFailed}
    assert len(lookups) <= 2


def test_a_client_that_leaves_takes_no_other_with_it(made):
    async def leave_and_stay():
        leaving = asyncio.create_task(authenticate(bearer(made[1])))
        staying = asyncio.create_task(authenticate(bearer(made[1])))
        await asyncio.sleep(0)
        leaving.cancel()
        return await staying

    assert asyncio.run(leave_and_stay()).id == made[0].pk


def test_a_new_key_works_at_once_beside_the_memory_of_others():
    check(bearer("qp-wrong"))
    _, secret = keys.create_api_key(name="late", scopes=["chat"])
    assert check(bearer(secret))[0].name == "late"


def test_a_key_that_another_process_made_works_at_once(lookups):
    check(bearer("qp-wrong"))
    secret = keys.new_api_key()
    row = ApiKey(name="elsewhere", scopes="chat")
    keys.assign_secret(row, secret)
    ApiKey.objects.bulk_create([row])  # sends no signal, as another process sends none here
    assert check(bearer(secret))[0].name == "elsewhere"


def test_a_revocation_holds_at_once(made):
    assert check(bearer(made[1]))[0].id == made[0].pk
    keys.revoke_api_key(made[0])
    assert isinstance(check(bearer(made[1]))[0], AuthenticationFailed)


def test_a_revocation_holds_once_it_is_committed(made):
    with transaction.atomic():
        keys.revoke_api_key(made[0])
        # The other connection still reads the row as it was, and remembers it.
        assert check(bearer(made[1]))[0].id == made[0].pk
    assert isinstance(check(bearer(made[1]))[0], AuthenticationFailed)


def test_a_revocation_by_another_process_holds_within_a_second(made, monkeypatch):
    check(bearer(made[1]))
    ApiKey.objects.update(revoked_at=timezone.now())
    now_s = auth.time.monotonic()
    monkeypatch.setattr(auth.time, "monotonic", lambda: now_s + auth.KNOWN_S)
    assert isinstance(check(bearer(made[1]))[0], AuthenticationFailed)


def test_what_was_read_before_a_revocation_is_not_remembered_after_it(made, monkeypatch):
    load = auth._load_answers

    def load_then_revoke(key_hashes):
        answers = load(key_hashes)
        auth.invalidate()
        return answers

    monkeypatch.setattr(auth, "_load_answers", load_then_revoke)
    check(bearer(made[1]))
    assert auth._answers == {}


def test_a_change_of_scopes_holds_at_once(made):
    check(bearer(made[1]))
    made[0].scopes = "chat"
    made[0].save()
    with pytest.raises(PermissionDenied, match="records"):
        check(bearer(made[1]), scope="records")


def test_the_secret_before_a_rotation_works_until_it_expires(made, monkeypatch):
    api_key, old = made
    new = keys.rotate_api_key(api_key, overlap=timedelta(hours=1))
    assert [key.id for key in check(bearer(old), bearer(new))] == [api_key.pk] * 2
    ApiKey.objects.update(previous_expires_at=timezone.now() - timedelta(seconds=1))
    auth.invalidate()
    answers = check(bearer(old), bearer(new))
    assert isinstance(answers[0], AuthenticationFailed)
    assert answers[1].id == api_key.pk


def test_an_expiring_secret_is_not_remembered_beyond_its_end(made):
    api_key, old = made
    keys.rotate_api_key(api_key, overlap=timedelta(milliseconds=500))
    check(bearer(old))
    answer = auth._answers[keys.hash_api_key(old)]
    assert answer.until_s < auth.time.monotonic() + 0.5


def test_a_secret_whose_overlap_is_over_does_not_come_in_with_the_present_one(made):
    """Both are looked up in one query, which finds the row by one of them."""
    api_key, old = made
    new = keys.rotate_api_key(api_key, overlap=timedelta(0))

    async def together():
        requests = [bearer(new), bearer(old)]
        return await asyncio.gather(*map(authenticate, requests), return_exceptions=True)

    accepted, refused = asyncio.run(together())
    assert accepted.id == api_key.pk
    assert isinstance(refused, AuthenticationFailed)


def test_revocation_covers_the_previous_secret(made):
    api_key, old = made
    keys.rotate_api_key(api_key)
    keys.revoke_api_key(api_key)
    assert isinstance(check(bearer(old))[0], AuthenticationFailed)


def expire(api_key, *, after_s):
    ApiKey.objects.update(expires_at=timezone.now() + timedelta(seconds=after_s))
    auth.invalidate()


def test_an_expired_key_is_told_so_and_nothing_else_is(made):
    api_key, secret = made
    ApiKey.objects.update(expires_at=datetime(2026, 1, 31, 12, tzinfo=UTC))
    expired, unknown = check(bearer(secret), bearer("qp-unknown"))
    keys.revoke_api_key(api_key)
    [revoked] = check(bearer(secret))
    assert expired.message == "This API key expired at 2026-01-31 12:00:00 UTC."
    assert revoked.message == unknown.message
    assert {error.error_code for error in (expired, revoked, unknown)} == {"invalid_api_key"}


def test_a_remembered_key_is_refused_from_its_second_on(made, monkeypatch):
    api_key, secret = made
    expire(api_key, after_s=0.5)
    assert check(bearer(secret))[0].id == api_key.pk
    assert auth._answers[keys.hash_api_key(secret)].until_s < auth.time.monotonic() + 0.5
    now, now_s = timezone.now(), auth.time.monotonic()
    monkeypatch.setattr(auth.timezone, "now", lambda: now + timedelta(seconds=0.5))
    monkeypatch.setattr(auth.time, "monotonic", lambda: now_s + 0.5)
    assert isinstance(check(bearer(secret))[0], AuthenticationFailed)


def test_expiry_covers_the_previous_secret(made):
    api_key, old = made
    keys.rotate_api_key(api_key)
    expire(api_key, after_s=-1)
    assert "expired at" in check(bearer(old))[0].message


def test_a_key_that_another_process_extends_works_within_a_second(made, monkeypatch):
    api_key, secret = made
    expire(api_key, after_s=-1)
    check(bearer(secret))
    ApiKey.objects.update(expires_at=None)
    now_s = auth.time.monotonic()
    monkeypatch.setattr(auth.time, "monotonic", lambda: now_s + auth.KNOWN_S)
    assert check(bearer(secret))[0].id == api_key.pk


def test_an_expired_key_beside_a_valid_one_does_no_harm(made):
    _, valid = keys.create_api_key(name="valid", scopes=["chat"])
    ApiKey.objects.filter(name="agent").update(expires_at=timezone.now())
    headers = {"authorization": f"Bearer {made[1]}", "x-api-key": valid}
    assert check(RequestFactory().get("/", headers=headers))[0].name == "valid"


def test_a_row_that_only_looks_like_the_keys_lets_nobody_in(made, monkeypatch):
    """As a database would that compares without regard to capitals."""
    stored = auth._Answer(made[0].secret_hash.upper(), KeyInfo(1, "k", frozenset()), float("inf"))
    monkeypatch.setattr(auth, "_load_answers", lambda hashes: dict.fromkeys(hashes, stored))
    assert isinstance(check(bearer(made[1]))[0], AuthenticationFailed)


def test_routes_see_what_the_key_may_use():
    _, secret = keys.create_api_key(
        name="k",
        scopes=["chat"],
        requests_per_minute=0,
        tokens_per_day=10**12,
        allowed_models=["qwen3-*", "qwq"],
        recorded="metadata",
    )
    [key] = check(bearer(secret))
    assert key.limits == Limits(requests_per_minute=0, tokens_per_day=10**12)
    assert key.allowed_models == ("qwen3-*", "qwq")
    assert key.recorded == "metadata"


@pytest.mark.parametrize(
    ("patterns", "model", "allowed"),
    [
        pytest.param((), "anything", True, id="no list"),
        pytest.param(("qwen3-*",), "qwen3-max", True, id="pattern"),
        pytest.param(("qwen3-*",), "qwen3", False, id="not the pattern"),
        pytest.param(("QWEN3-max",), "Qwen3-Max", True, id="capitals"),
        pytest.param(("qwen3-max",), "qwen3-max-preview", False, id="whole names"),
        pytest.param(("a", "b?"), "bc", True, id="any of several"),
        pytest.param(("Qwen/*",), "Qwen/Qwen3-32B", True, id="slash"),
        pytest.param(("[ab]x",), "bx", True, id="set"),
        pytest.param(("[", "x"), "[", True, id="an open bracket is itself"),
    ],
)
def test_patterns_name_models(patterns, model, allowed):
    key = KeyInfo(1, "k", frozenset(), allowed_models=patterns)
    assert key.allows_model(model) is allowed


def test_a_missing_scope_is_named(made):
    with pytest.raises(PermissionDenied, match="'admin'") as error:
        check(bearer(made[1]), scope="admin")
    assert error.value.http_status == 403


@pytest.mark.parametrize("scope", ["chat", "records", "admin"])
def test_admin_implies_every_scope(scope):
    _, secret = keys.create_api_key(name="root", scopes=["admin"])
    assert check(bearer(secret), scope=scope)[0].name == "root"


def test_a_failing_database_is_a_503_and_not_remembered(made, monkeypatch):
    def fail(key_hashes):
        raise OperationalError("gone")

    monkeypatch.setattr(auth, "_load_answers", fail)
    with pytest.raises(RecorderUnavailable):
        check(bearer(made[1]))
    monkeypatch.undo()
    assert check(bearer(made[1]))[0].id == made[0].pk


def test_two_loops_at_once_do_not_meet(made):
    async def both():
        other = asyncio.create_task(asyncio.to_thread(check, bearer(made[1])))
        return await authenticate(bearer(made[1])), (await other)[0]

    here, there = asyncio.run(both())
    assert here == there


def test_it_guards_a_route_of_ninja(made):
    api = NinjaAPI(urls_namespace="test-access-auth")

    @api.exception_handler(AuthenticationFailed)
    def refuse(request, exc):
        return api.create_response(request, {"message": exc.message}, status=exc.http_status)

    @api.get("/who", auth=ApiKeyAuth(scope="chat"))
    async def who(request):
        return {"name": request.auth.name}

    async def call(**meta):
        return await TestAsyncClient(api).get("/who", META=meta)

    answer = asyncio.run(call(HTTP_AUTHORIZATION=f"Bearer {made[1]}"))
    assert (answer.status_code, answer.json()) == (200, {"name": "agent"})
    assert asyncio.run(call()).status_code == 401
    schema = api.get_openapi_schema(path_prefix="/")
    assert schema["components"]["securitySchemes"]["ApiKeyAuth"]["scheme"] == "bearer"

"""An account asked on demand: does its upstream answer, with these credentials.

The model list is read and, of a web session, whether the site knows it: nothing that costs quota. So a
success says nothing about a quota or a challenge, and leaves those states alone; a failure counts like that
of a turn. Running gateways take the state over with their next look at the accounts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from django.http import HttpResponse
from ninja import Field, Schema

from qwenproxy.access import accounts, encryption
from qwenproxy.access.account_states import way_out
from qwenproxy.access.accounts import AccountState, StoredAccount
from qwenproxy.access.accounts_api import AccountObject, account_object, no_account, require_account
from qwenproxy.access.rest import answer, read_id
from qwenproxy.access.session_tokens import access_token
from qwenproxy.database import run_in_db
from qwenproxy.errors import GatewayError, NotFound, UpstreamTimeout
from qwenproxy.proxy.account_health import AccountHealth
from qwenproxy.proxy.gateway import GatewayRequest
from qwenproxy.proxy.upstreams import make_upstream
from qwenproxy.upstream import qwen_web_session
from qwenproxy.upstream.http import open_client
from qwenproxy.upstream.protocol import Upstream, hide_secrets
from qwenproxy.upstream.qwen_web import QwenWeb
from qwenproxy.wire.json import JSONObject

TIMEOUT_S = 10.0

_REACH = "see whether its server runs, and whether the base URL is right"


@dataclass(frozen=True, slots=True)
class Tested:
    """What a test found; all is well where there is no error."""

    ms: int = 0
    # Null: the upstream has no list, or did not give it.
    models: int | None = None
    # signed_in, guest or unknown; null: no web session.
    session: str | None = None
    code: str | None = None
    message: str = ""
    way_out: str = ""

    @property
    def is_ok(self) -> bool:
        return self.code is None


_UNREADABLE = Tested(
    code="credentials_unreadable",
    message="The stored credentials cannot be read.",
    way_out=accounts.UNREADABLE,
)


class AccountTest(Schema):
    object: Literal["account_test"]
    ok: bool
    ms: int
    models: int | None = Field(description="How many it lists; null: it has no list.")
    session: Literal["signed_in", "guest", "unknown"] | None = Field(
        description="Of a web session; unknown: the site did not tell."
    )
    code: str | None = Field(description="Null: all is well.")
    message: str
    way_out: str
    account: AccountObject


async def test_account(request: GatewayRequest, account_id: str) -> HttpResponse:
    """Ask the account's upstream for its models, now, and take what that shows into its state."""
    pk = read_id(account_id)
    try:
        stored = await run_in_db(accounts.load_account, pk)
    except encryption.EncryptionError:
        tested, state = _UNREADABLE, None
    else:
        if stored is None:
            raise no_account()
        tested, state = await _test(request.gateway.routing.make_upstream(stored), stored)
    return answer(await run_in_db(_test_object, pk, tested, state))


def test_accounts(ids: Sequence[int]) -> dict[int, Tested]:
    """Test accounts from outside the gateway, all at once; blocks, on an event loop of its own."""
    tested, chosen = {}, []
    for pk in ids:
        try:
            stored = accounts.load_account(pk)
        except encryption.EncryptionError:
            tested[pk] = _UNREADABLE
        else:
            chosen += [stored] if stored is not None else []
    for stored, (found, state) in zip(chosen, asyncio.run(_test_all(chosen)), strict=True):
        tested[stored.id] = found
        accounts.record_state(stored.id, state)
    return tested


async def _test_all(chosen: Sequence[StoredAccount]) -> list[tuple[Tested, AccountState]]:
    client = open_client()
    try:
        return await asyncio.gather(
            *(_test(make_upstream(client, stored), stored) for stored in chosen)
        )
    finally:
        await client.aclose()


async def _test(upstream: Upstream, stored: StoredAccount) -> tuple[Tested, AccountState]:
    """Ask, and tell what that makes of the account's state; never raises for what the upstream does."""
    # A state is as old as the call that shows it: credentials that are stored meanwhile are newer.
    began_s = time.time()
    health = AccountHealth(on_change=lambda: None, clock=lambda: began_s)
    health.adopt(stored, anew=True)
    started_s = time.perf_counter()
    models, session, error = await _ask(upstream, stored)
    ms = round((time.perf_counter() - started_s) * 1000)
    if error is None:
        if not health.is_limited and health.state != "challenged":
            health.succeeded(epoch=health.epoch)
        return Tested(ms, models, session), health.snapshot()
    health.failed(error, epoch=health.epoch, kind=stored.kind)
    state = health.snapshot()
    todo = way_out(stored.kind, state.state, state.until) or _REACH
    code = error.error_code or error.type
    return Tested(ms, models, session, code, error.message, todo), state


async def _ask(
    upstream: Upstream, stored: StoredAccount
) -> tuple[int | None, str | None, GatewayError | None]:
    models = session = None
    try:
        async with asyncio.timeout(TIMEOUT_S):
            if isinstance(upstream, QwenWeb):
                session = await _session(upstream, stored)
            models = len(await upstream.list_models())
    except NotFound:
        # It answered: it has no list, and takes any model.
        pass
    except TimeoutError:
        who = f"Upstream account {stored.name}"
        return None, session, UpstreamTimeout(f"{who} did not answer within {TIMEOUT_S:g} s.")
    except GatewayError as exc:
        hide_secrets(exc, upstream.account.credentials)
        return None, session, exc
    return models, session, None


async def _session(web: QwenWeb, stored: StoredAccount) -> str:
    if not access_token(stored.secrets):
        return "guest"
    return "signed_in" if await qwen_web_session.is_signed_in(web) else "unknown"


def _test_object(pk: int, tested: Tested, state: AccountState | None) -> JSONObject:
    if state is not None:
        accounts.record_state(pk, state)
    return {
        "object": "account_test",
        "ok": tested.is_ok,
        "ms": tested.ms,
        "models": tested.models,
        "session": tested.session,
        "code": tested.code,
        "message": tested.message,
        "way_out": tested.way_out,
        "account": account_object(require_account(pk)),
    }

"""REST of upstream accounts, for keys with the scope `admin`: list, create, change, pause, resume, delete.

Credentials go in and never come out: answers name those that are set. What a field may hold is the form's
(`forms`), which the admin's pages use as well; each endpoint makes one call to the database pool. Testing
an account calls its upstream, so that route is elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from ninja import Field, Query, Router, Schema

from qwenproxy.access import accounts
from qwenproxy.access.account_states import PAUSED, expiry_warning, way_out
from qwenproxy.access.forms import UpstreamAccountForm
from qwenproxy.access.models import UpstreamAccount
from qwenproxy.access.rest import (
    MAX_ID,
    Milliseconds,
    answer,
    json_body,
    milliseconds,
    read_id,
    read_object,
)
from qwenproxy.database import run_in_db
from qwenproxy.errors import InvalidRequest, NotFound
from qwenproxy.wire.json import JSONObject, JSONValue

router = Router(tags=["accounts"])

State = Literal["ready", "cooling", "challenged", "expired", "paused"]
SecretName = Literal["api_key", "cookies", "token", "user_agent", "headers"]


class AccountObject(Schema):
    id: int
    name: str
    kind: Literal["openai_compatible", "dashscope", "qwen_web", "demo"]
    base_url: str
    enabled: bool
    priority: int = Field(description="Lower goes first.")
    weight: int = Field(description="Share of new conversations within the priority.")
    max_concurrent: int | None = Field(description="Per serving process; null: no limit.")
    min_interval_ms: int = Field(description="Between the beginnings of two calls.")
    has_secrets: bool
    secrets_set: list[SecretName] | None = Field(description="Null: they cannot be read.")
    secrets_expire_at: Milliseconds | None = Field(
        description="When they end unless somebody acts; null: they do not say."
    )
    state: State
    state_reason: str = Field(description="What the upstream said.")
    state_since: Milliseconds | None
    state_until: Milliseconds | None = Field(description="When it is tried again by itself.")
    way_out: str = Field(description="What to do; empty where nothing is wrong.")
    warning: str = Field(description="Credentials that end within three days; else empty.")
    failures: int = Field(description="Since the last success.")
    last_ok_at: Milliseconds | None
    last_error_at: Milliseconds | None
    created_at: Milliseconds
    updated_at: Milliseconds


class SavedAccount(AccountObject):
    warnings: list[str] = Field(description="What to know about what was just saved.")


class AccountList(Schema):
    object: Literal["list"]
    data: list[AccountObject]
    total: int
    limit: int
    offset: int
    has_more: bool


class DeletedAccount(Schema):
    deleted: Literal[True]
    id: int


_TEXT: Mapping[str, Any] = {"type": "string"}
_SECRETS = {
    "type": "object",
    "description": "Write-only. Those named are replaced or, by null, removed; the others stay. Null in "
    "place of the object removes all.",
    "properties": {
        **{name: _TEXT for name in accounts.SECRET_NAMES if name != "headers"},
        "headers": {"type": "object", "additionalProperties": _TEXT},
    },
    "additionalProperties": False,
}
_CHANGES: Mapping[str, Any] = {
    "name": {"type": "string", "maxLength": 100},
    "base_url": {"type": "string", "description": "Another host drops the stored credentials."},
    "enabled": {"type": "boolean"},
    "priority": {"type": "integer"},
    "weight": {"type": "integer", "minimum": 0},
    "max_concurrent": {"oneOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]},
    "min_interval_ms": {"type": "integer", "minimum": 0, "maximum": 3_600_000},
    "secrets": _SECRETS,
    "browser_request": {
        "type": "string",
        "description": "Write-only, for qwen_web: a request copied with Copy as cURL. It replaces the "
        "whole session.",
    },
}
_KINDS = [kind for kind, _ in UpstreamAccount.KINDS if kind != "demo"]
_FIELDS: Mapping[str, Any] = {**_CHANGES, "kind": {"type": "string", "enum": _KINDS}}
# The form's fields that a body fills in as they are.
_PLAIN = ("name", "base_url", "enabled", "priority", "weight", "max_concurrent", "min_interval_ms")
_TYPES: Mapping[str, tuple[type, str]] = {
    "enabled": (bool, "true or false"),
    "priority": (int, "a whole number"),
    "weight": (int, "a whole number"),
    "max_concurrent": (int, "a whole number or null"),
    "min_interval_ms": (int, "a whole number"),
    "secrets": (dict, "an object or null"),
}


@router.get("", response={200: AccountList})
async def list_accounts(
    request: HttpRequest,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=MAX_ID - 1001)] = 0,
) -> HttpResponse:
    """List upstream accounts, the one that goes first before the others."""
    return await _answer(lambda: _account_list(limit, offset))


@router.post("", response={201: SavedAccount}, openapi_extra=json_body(_FIELDS, ["name", "kind"]))
async def create_account(request: HttpRequest) -> HttpResponse:
    """Create an upstream account. Its credentials are stored encrypted and never shown."""
    body = _read_body(request, _FIELDS)
    for name in ("name", "kind"):
        if name not in body:
            raise InvalidRequest(f"{name} is missing", param=name)
    return await _answer(lambda: _save(UpstreamAccount(), body), status=201)


@router.get("/{account_id}", response={200: AccountObject})
async def get_account(request: HttpRequest, account_id: str) -> HttpResponse:
    """Show one upstream account: its limits, its state, and what ends that."""
    pk = read_id(account_id)
    return await _answer(lambda: account_object(require_account(pk)))


@router.patch("/{account_id}", response={200: SavedAccount}, openapi_extra=json_body(_CHANGES))
async def change_account(request: HttpRequest, account_id: str) -> HttpResponse:
    """Change what the body names. The kind stays: another one would be another account."""
    pk, body = read_id(account_id), _read_body(request, _CHANGES)
    return await _answer(lambda: _changed(pk, body))


@router.post("/{account_id}/pause", response={200: AccountObject})
async def pause_account(request: HttpRequest, account_id: str) -> HttpResponse:
    """Take an account out until it is resumed; running answers go on."""
    pk = read_id(account_id)
    return await _answer(lambda: _switched(pk, accounts.pause))


@router.post("/{account_id}/resume", response={200: AccountObject})
async def resume_account(request: HttpRequest, account_id: str) -> HttpResponse:
    """Let an account be asked again, at once: it was paused, or it waits and what was wrong is mended."""
    pk = read_id(account_id)
    return await _answer(lambda: _switched(pk, accounts.resume))


@router.delete("/{account_id}", response={200: DeletedAccount})
async def delete_account(request: HttpRequest, account_id: str) -> HttpResponse:
    """Delete an account and its credentials. Records stay; its conversations go on elsewhere."""
    pk = read_id(account_id)

    def delete() -> JSONObject:
        require_account(pk).delete()
        return {"deleted": True, "id": pk}

    return await _answer(delete)


def account_object(account: UpstreamAccount) -> JSONObject:
    """The account as REST shows it: everything but its credentials."""
    names = accounts.stored_names(account)
    state = account.state if account.enabled else PAUSED
    todo = way_out(account.kind, state, account.state_until)
    return {
        "id": account.pk,
        "name": account.name,
        "kind": account.kind,
        "base_url": account.base_url,
        "enabled": account.enabled,
        "priority": account.priority,
        "weight": account.weight,
        "max_concurrent": account.max_concurrent,
        "min_interval_ms": account.min_interval_ms,
        "has_secrets": bool(account.secrets),
        "secrets_set": None if names is None else [*names],
        "secrets_expire_at": milliseconds(account.secrets_expire_at),
        "state": state,
        "state_reason": account.state_reason,
        "state_since": milliseconds(account.state_since),
        "state_until": milliseconds(account.state_until),
        "way_out": accounts.UNREADABLE if names is None else todo,
        "warning": expiry_warning(account.kind, account.secrets_expire_at, timezone.now()),
        "failures": account.failures,
        "last_ok_at": milliseconds(account.last_ok_at),
        "last_error_at": milliseconds(account.last_error_at),
        "created_at": milliseconds(account.created_at),
        "updated_at": milliseconds(account.updated_at),
    }


def _account_list(limit: int, offset: int) -> JSONObject:
    rows = UpstreamAccount.objects.order_by("priority", "id")
    total = rows.count()
    return {
        "object": "list",
        "data": [account_object(account) for account in rows[offset : offset + limit]],
        "total": total,
        "limit": limit,
        "offset": offset,
        "has_more": offset + limit < total,
    }


def _read_body(request: HttpRequest, fields: Mapping[str, Any]) -> JSONObject:
    """Check names and types; values are the form's."""
    body = read_object(request)
    for name, value in body.items():
        if name not in fields:
            known = ", ".join(fields)
            raise InvalidRequest(
                f"there is no field {name[:50]!r}; there are: {known}", param=name[:50]
            )
        kind, expected = _TYPES.get(name, (str, "a text"))
        is_none = value is None and name in ("max_concurrent", "secrets")
        # A bool is an int to Python.
        if not is_none and type(value) is not kind:
            raise InvalidRequest(f"{name} must be {expected}", param=name)
        if isinstance(value, str):
            _check_text(name, value)
    secrets = body.get("secrets")
    if isinstance(secrets, dict):
        _check_secrets(secrets)
    return body


def _check_secrets(secrets: Mapping[str, JSONValue]) -> None:
    for name, value in secrets.items():
        param = f"secrets.{name[:50]}"
        if name not in accounts.SECRET_NAMES:
            known = ", ".join(accounts.SECRET_NAMES)
            raise InvalidRequest(
                f"{param}: there is no such credential; there are: {known}", param=param
            )
        if name == "headers" and isinstance(value, dict):
            for text in value.values():
                _check_text(param, text)
        elif value is not None:
            _check_text(param, value if name != "headers" else None)


def _check_text(param: str, value: object) -> None:
    """Raise for what is no text, without showing it."""
    if not isinstance(value, str):
        expected = "an object of texts" if param == "secrets.headers" else "a text"
        raise InvalidRequest(f"{param} must be {expected}", param=param)
    # Neither can be stored or sent.
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidRequest(f"{param} holds a character that cannot be stored", param=param)


def _changed(pk: int, body: JSONObject) -> JSONObject:
    with transaction.atomic():
        # Locked: a session that is renewed meanwhile must not be overwritten by what was read before.
        return _save(require_account(pk, is_locked=True), body)


def _save(account: UpstreamAccount, body: JSONObject) -> JSONObject:
    """Create or change, all of it or nothing."""
    form = UpstreamAccountForm(_form_data(account, body), instance=account)
    try:
        with transaction.atomic():
            if not form.is_valid():
                raise _refusal(form)
            form.save()
            form.store_secrets()
    except IntegrityError as exc:
        # Another request took the name since the form looked.
        raise InvalidRequest("name: another account has it", param="name") from exc
    return {**_shown(account), "warnings": [*form.warnings]}


def _shown(account: UpstreamAccount) -> JSONObject:
    # A demo that is switched on beside a real account is off again.
    account.refresh_from_db()
    return account_object(account)


def _form_data(account: UpstreamAccount, body: JSONObject) -> dict[str, Any]:
    data: dict[str, Any] = {name: getattr(account, name) for name in _PLAIN}
    data |= {name: value for name, value in body.items() if name != "secrets"}
    secrets = body.get("secrets", {})
    stored = accounts.stored_names(account) or []
    if isinstance(secrets, dict):
        data |= {name: value for name, value in secrets.items() if value}
        data["forget"] = [name for name in stored if name in secrets and not secrets[name]]
    else:
        data["forget"] = stored
    return data


def _refusal(form: UpstreamAccountForm) -> InvalidRequest:
    field, errors = next(iter(form.errors.items()))
    is_secret = field in accounts.SECRET_NAMES
    param = f"secrets.{field}" if is_secret else field if field in _FIELDS else None
    return InvalidRequest(f"{param}: {errors[0]}" if param else str(errors[0]), param=param)


def _switched(pk: int, switch: Callable[[UpstreamAccount], None]) -> JSONObject:
    with transaction.atomic():
        account = require_account(pk, is_locked=True)
        switch(account)
    return _shown(account)


def require_account(pk: int, *, is_locked: bool = False) -> UpstreamAccount:
    rows = UpstreamAccount.objects.filter(pk=pk)
    account = (rows.select_for_update() if is_locked else rows).first()
    if account is None:
        raise no_account()
    return account


def no_account() -> NotFound:
    return NotFound("There is no such upstream account.", code="account_not_found")


async def _answer(function: Callable[[], JSONObject], *, status: int = 200) -> HttpResponse:
    return answer(await run_in_db(function), status=status)

"""Writes made-up traffic as the recorder would, for a look at the product and for its pictures.

The statements are the recorder's own (`requests_app.writes`), so lists, transcripts and REST show these
rows like any others. Its keys' names begin with a mark; a database with records of other keys is left
alone. Nothing is ever deleted.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final

from django.conf import settings
from django.db.models import Count, Sum

from qwenproxy import errors
from qwenproxy.access.accounts import retire_demo
from qwenproxy.access.keys import create_api_key
from qwenproxy.access.models import ApiKey, KeyUsage, UpstreamAccount
from qwenproxy.dashboard.demo_talks import (
    CLIENTS,
    Plan,
    Turn,
    make_large_talk,
    make_traffic,
)
from qwenproxy.proxy.outcome import estimated_usage, upstream_response
from qwenproxy.proxy.schemas import Body
from qwenproxy.transaction import Transaction, transaction
from qwenproxy.wire import history, json
from qwenproxy.wire.events import Accumulator, Sent, Started, UsageReport
from qwenproxy.wire.json import JSONObject
from requests_app.keeping import choose_keep
from requests_app.limits import Moment
from requests_app.models import Request, Response
from requests_app.rollups import rebuild
from requests_app.windows import slot_of
from requests_app.writes import BlobText, Closing, Opened, Opening, close_turns, open_turns

# What the names of its keys and accounts begin with.
MARK: Final = "Demo: "
# Turns per transaction: others come to write in between.
_BATCH = 200
_LOCK_WAIT_S = 20.0
_SESSION_TTL = timedelta(hours=24)
_ACCOUNTS: Final = ("model studio", "own GPU server", "web session")
_ACCOUNT_SHARES: Final = (0.55, 0.33, 0.12)


@dataclass(frozen=True, slots=True)
class _Failure:
    share: float
    make: type[errors.UpstreamError]
    message: str
    upstream_status: int
    body: str


_FAILURES: Final = (
    _Failure(0.42, errors.UpstreamRateLimited, "The upstream allows no more requests: try again in 30 s.", 429, '{"code":"Throttling.RateQuota","message":"Requests rate limit exceeded"}'),
    _Failure(0.22, errors.UpstreamError, "The upstream answered 502.", 502, "<html><head><title>502 Bad Gateway</title></head></html>"),
    _Failure(0.14, errors.UpstreamTimeout, "The upstream said nothing for 60 seconds.", 0, ""),
    _Failure(0.09, errors.ContextLengthExceeded, "The prompt has 135,188 tokens; the model takes 131,072.", 400, '{"code":"invalid_parameter_error","message":"Range of input length should be [1, 129024]"}'),
    _Failure(0.08, errors.UpstreamAuthExpired, "The upstream refuses the account's credentials.", 401, '{"code":"InvalidApiKey","message":"Invalid API-key provided."}'),
    _Failure(0.05, errors.UpstreamProtocolError, "the upstream's answer has no end", 200, ""),
)  # fmt: skip


def foreign_records() -> bool:
    """Whether there are records of keys that are not of the demo."""
    keys = ApiKey.objects.exclude(name__startswith=MARK).values_list("pk", flat=True)
    return any(Request.objects.filter(api_key=key).exists() for key in keys)


def make_turns(requests: int, days: float, seed: int, now: datetime, *, large: bool) -> list[Turn]:
    """Make the traffic of the last days, in the order of its times; writes nothing."""
    chance = Random(seed)  # noqa: S311  # believable, not secret
    plan = Plan(now - timedelta(days=days), now)
    turns = make_traffic(plan, requests, chance)
    if large:
        turns = sorted([*turns, *make_large_talk(plan, chance)], key=lambda turn: turn.at)
    return turns


def write_turns(turns: Sequence[Turn], seed: int, now: datetime) -> Iterator[int]:
    """Write traffic, yielding how many turns are committed after each transaction; blocks.

    Raises:
        sqlite3.Error, psycopg.Error: from the driver; what was yielded stays.
    """
    writer = _Writer(Random(seed), now)  # noqa: S311  # believable, not secret
    for start in range(0, len(turns), _BATCH):
        some = turns[start : start + _BATCH]
        with transaction(lock_wait_s=_LOCK_WAIT_S) as tx:
            for turn in some:
                writer.write(tx, turn)
        yield start + len(some)


def count_up(now: datetime) -> Iterator[int]:
    """Count what keys with limits used, then the statistics, yielding how many slots are done; blocks."""
    for key in ApiKey.objects.filter(name__startswith=MARK):
        if key.limits is not None:
            _count_usage(key, now)
    for number, _ in enumerate(rebuild(0, slot_of(now), now), 1):
        yield number


def _count_usage(key: ApiKey, now: datetime) -> None:
    moment = Moment.at(now.timestamp())
    day = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for span, slot, start in (
        ("day", moment.day, day),
        ("month", moment.month, day.replace(day=1)),
    ):
        used = Response.objects.filter(api_key=key, created_at__gte=start).aggregate(
            requests=Count("id"), tokens=Sum("total_tokens", default=0)
        )
        KeyUsage.objects.update_or_create(api_key=key, span=span, slot=slot, defaults=used)


def make_keys() -> dict[str, ApiKey]:
    """Make the demo's keys that are not there yet; nobody knows their secrets."""
    found = {key.name: key for key in ApiKey.objects.filter(name__startswith=MARK)}
    for client in CLIENTS:
        if (name := MARK + client.key) not in found:
            fields: dict[str, Any] = {"recorded": client.recorded, **client.limits}
            found[name], _ = create_api_key(name=name, **fields)
    return found


def make_accounts(now: datetime) -> list[UpstreamAccount]:
    """Make the demo's accounts that are not there yet: one is well, one is cooling, one expires soon."""
    health: dict[str, dict[str, object]] = {
        "model studio": {"last_ok_at": now, "priority": 10},
        "own GPU server": {
            "state": "cooling", "state_reason": "upstream_rate_limited: too many requests",
            "state_since": now - timedelta(minutes=4), "state_until": now + timedelta(minutes=26),
            "failures": 3, "last_error_at": now - timedelta(minutes=4),
            "last_ok_at": now - timedelta(minutes=9),
        },
        "web session": {"last_ok_at": now, "secrets_expire_at": now + timedelta(hours=21)},
    }  # fmt: skip
    for name in _ACCOUNTS:
        UpstreamAccount.objects.get_or_create(
            name=MARK + name, defaults={"kind": "demo", **health[name]}
        )
    retire_demo()
    return list(UpstreamAccount.objects.filter(name__startswith=MARK).order_by("id"))


class _Writer:
    def __init__(self, chance: Random, now: datetime) -> None:
        self._chance = chance
        self._keys = make_keys()
        self._accounts = make_accounts(now)
        self._redaction = settings.REDACTION
        # Rows name a process while they run; these never do when a transaction ends.
        self._worker_id = str(uuid.uuid4())

    def write(self, tx: Transaction, turn: Turn) -> None:
        body = _body(turn)
        opening = self._opening(turn, body)
        (opened,) = open_turns(tx, [opening.keep.opening(opening)], worker_id=self._worker_id)
        closing = self._closing(turn, body, opening, opened)
        close_turns(tx, [closing.keep.closing(closing)])

    def _opening(self, turn: Turn, body: Body) -> Opening:
        key = self._keys[MARK + turn.client.key]
        system, line = history.split_system(body.messages)
        system_blob = _blob("system", list(system)) if system else None
        tools_blob = _blob("tools", body.tools) if body.tools else None
        return Opening(
            api_key_id=key.pk,
            user_id=None,
            external_id=None,
            request_id=f"req_{self._hex()}",
            response_id=f"chatcmpl-{self._hex()}",
            dialect=body.dialect,
            method="POST",
            path="/v1/chat/completions",
            model=body.model,
            stream=body.stream,
            user_agent=turn.client.user_agent,
            title=history.text_of(line[0])[:200],
            parameters=json.dumps_text(body.recorded_parameters()),
            system=system_blob,
            tools=tools_blob,
            context_digest=history.digest_of(
                system_blob.digest if system_blob else b"-",
                tools_blob.digest if tools_blob else b"-",
            ),
            line=history.chain(key.pk, line),
            created_at=turn.at,
            session_ttl=_SESSION_TTL,
            keep=choose_keep(key.recorded, self._redaction),
        )

    def _closing(self, turn: Turn, body: Body, opening: Opening, opened: Opened) -> Closing:
        (account,) = self._chance.choices(self._accounts, _ACCOUNT_SHARES)
        answer = turn.answer
        answer.add(_sent(body))
        attempts = self._attempts(turn, account)
        closing = Closing(
            session_id=opened.session_id,
            request_id=opening.request_id,
            response_id=opening.response_id,
            reply=None,
            parent=opening.line[-1].digest,
            dialect=opening.dialect,
            position=len(opening.line),
            status="completed",
            finish_reason=answer.finish_reason or "error",
            http_status=200,
            completed_at=turn.ended_at,
            session_ttl=_SESSION_TTL,
            duration_ms=turn.duration_ms,
            ttft_ms=turn.ttft_ms if turn.outcome != "error" else None,
            upstream="whole",
            account_id=account.pk,
            sent=answer.sent,
            keep=opening.keep,
        )
        if turn.outcome == "error":
            self._fail(closing, attempts[-1], answer)
        else:
            self._answer(closing, turn, body, opening)
        closing.attempts = json.dumps_text(attempts)
        closing.reasoning = answer.reasoning
        return closing

    def _answer(self, closing: Closing, turn: Turn, body: Body, opening: Opening) -> None:
        answer = turn.answer
        message = answer.message()
        digest = history.message_digest(opening.line[-1].digest, message)
        closing.reply = history.Node(digest, message)
        usage = self._usage(body, answer)
        closing.prompt_tokens, closing.completion_tokens = (
            usage.prompt_tokens,
            usage.completion_tokens,
        )
        closing.total_tokens = usage.total_tokens
        closing.usage_source = "partial"
        if turn.outcome == "answer":
            answer.add(Started(f"resp_{self._hex()}", model=turn.model))
            answer.add(usage)
            closing.usage_source = "reported"
            closing.reasoning_tokens = usage.reasoning_tokens
            closing.cached_tokens = usage.cached_tokens
            closing.upstream_id = answer.started.response_id
            closing.upstream_response = upstream_response(answer)
            return
        closing.finish_reason = "error"
        if turn.outcome == "left":
            closing.status, closing.finish_reason = "cancelled", "cancelled"
            closing.http_status = 200 if turn.client.stream else 499
            closing.error_type, closing.error_code = "client_error", "client_left"
            closing.error_message = "the client left before the answer's end"
            closing.client_left = True
        else:
            stopped = errors.ShuttingDown("the answer was stopped before its end")
            closing.status, closing.error_message = "interrupted", stopped.message
            closing.error_type, closing.error_code = stopped.type, stopped.error_code
            closing.http_status = 200 if turn.client.stream else stopped.http_status

    def _fail(self, closing: Closing, attempt: JSONObject, answer: Accumulator) -> None:
        (failure,) = self._chance.choices(_FAILURES, [failure.share for failure in _FAILURES])
        error = failure.make(
            failure.message, body=failure.body, upstream_status=failure.upstream_status or None
        )
        closing.status, closing.finish_reason = "failed", "error"
        closing.http_status = error.http_status
        closing.error_type, closing.error_code = error.type, error.error_code
        closing.error_message = error.message
        if error.body:
            closing.upstream_response = upstream_response(answer, error)
        attempt["cause"] = f"{error.error_code}: {error.message}"

    def _attempts(self, turn: Turn, account: UpstreamAccount) -> list[JSONObject]:
        started = round(turn.at.timestamp() * 1000) + self._chance.randint(1, 9)
        attempts: list[JSONObject] = []
        took = turn.duration_ms
        if turn.is_second_try and turn.outcome == "answer":
            other = next(row for row in self._accounts if row != account)
            waited = min(self._chance.randint(200, 1900), took // 2)
            cause = "upstream_error: The upstream answered 502."
            attempts.append(
                {"account": other.name, "started": started, "ms": waited, "cause": cause}
            )
            started, took = started + waited + 2, took - waited
        cut = {"left": "cancelled", "stopped": "interrupted"}.get(turn.outcome)
        attempts.append({"account": account.name, "started": started, "ms": took, "cause": cut})
        return attempts

    def _usage(self, body: Body, answer: Accumulator) -> UsageReport:
        """Counts such as an upstream reports; most of a long history is in its cache."""
        known = estimated_usage(body, answer)
        cached = known.prompt_tokens * 9 // 10 if len(body.messages) > 4 else 0
        thought = -(-len(answer.reasoning) // 4) if answer.reasoning else None
        raw: JSONObject = {
            "prompt_tokens": known.prompt_tokens,
            "completion_tokens": known.completion_tokens,
            "total_tokens": known.total_tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        if thought is not None:
            raw["completion_tokens_details"] = {"reasoning_tokens": thought}
        return UsageReport(
            known.prompt_tokens, known.completion_tokens, known.total_tokens, thought, cached, raw
        )

    def _hex(self) -> str:
        # Told apart from those of another run by chance alone, as the gateway's own are.
        return uuid.uuid4().hex


def _body(turn: Turn) -> Body:
    """What the client sent, as `parse_chat` leaves it."""
    messages = list(turn.line)
    if turn.system:
        messages.insert(0, {"role": "system", "content": turn.system})
    sent: JSONObject = {"model": turn.model, "stream": turn.client.stream}
    sent["messages"] = list(messages)
    parameters: JSONObject = {"temperature": 0.2 if turn.tools else 0.7}
    if turn.client.kind == "analyst":
        parameters |= {"enable_thinking": True, "max_tokens": 4096}
    sent |= parameters
    if turn.tools:
        sent["tools"] = list(turn.tools)
    return Body(
        sent=sent,
        dialect="chat",
        messages=messages,
        model=turn.model,
        tools=sent.get("tools"),
        stream=turn.client.stream,
        parameters=parameters,
    )


def _sent(body: Body) -> Sent:
    text: JSONObject = {"messages": list(body.messages)}
    if body.tools:
        text["tools"] = body.tools
    request = {**body.parameters, "model": body.model, "stream": True, **dict.fromkeys(text)}
    return Sent(request, json.dumps_text(text))


def _blob(kind: str, value: object) -> BlobText:
    body = json.dumps(value)
    return BlobText(history.digest_of(kind.encode(), body), kind, body.decode())

"""Answers that ended, in numbers, and what they add up to by a count of its own."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from requests_app.models import Request, Response
from tests.factories import make_account, make_api_key, make_session

_numbers = itertools.count(1)
MODELS = ("qwen3-max", "qwen3-8b", "通义", "a'b%c")
OUTCOMES = (
    *[("completed", None, None)] * 6,
    ("failed", "upstream_error", "upstream_error"),
    ("failed", "api_error", None),
    ("cancelled", "client_error", "client_left"),
    ("interrupted", "server_error", "interrupted"),
)


def make_ended(sessions: Sequence[Any], moments: Sequence[datetime], **fields: Any) -> list[Any]:
    """One answer for each moment of end, on the sessions in turn; all in two statements."""
    requests, responses = [], []
    for index, moment in enumerate(moments):
        session, number = sessions[index % len(sessions)], next(_numbers)
        own = {
            name: value[index] if isinstance(value, list) else value
            for name, value in fields.items()
        }
        created_at = own.pop("created_at", moment - timedelta(seconds=2))
        request = Request(
            request_id=f"req_e{number:08d}",
            session=session,
            api_key_id=session.api_key_id,
            parameters="{}",
            dialect="chat",
            method="POST",
            path="/v1/chat/completions",
            model=own.pop("model", "qwen3-max"),
            account_id=own.pop("account_id", None),
            stream=False,
            user_agent="",
            match="new",
            upstream="whole",
            created_at=created_at,
        )
        requests.append(request)
        defaults = {"status": "completed", "prompt_tokens": 11, "completion_tokens": 7}
        defaults |= {"duration_ms": 1500, "ttft_ms": 300, "completed_at": moment}
        responses.append(
            Response(
                response_id=f"chatcmpl-e{number:08d}",
                request=request,
                session=session,
                api_key_id=session.api_key_id,
                created_at=created_at,
                **{**defaults, **own},
            )
        )
    Request.objects.bulk_create(requests)
    return Response.objects.bulk_create(responses)


def make_random(seed: int, count: int, start: datetime, span: timedelta) -> list[Any]:
    """Answers of three keys and two accounts, spread over a time, a part of them on its borders of slots."""
    chance = random.Random(seed)
    sessions = [make_session(make_api_key()) for _ in range(3)]
    accounts = [make_account().pk, make_account().pk, None]
    moments = []
    for _ in range(count):
        moment = start + span * chance.random()
        if chance.random() < 0.1:
            moment = moment.replace(minute=moment.minute // 15 * 15, second=0, microsecond=0)
            moment -= chance.choice([timedelta(0), timedelta(microseconds=1)])
        moments.append(moment)
    outcomes = [chance.choice(OUTCOMES) for _ in moments]
    chance.shuffle(sessions)
    return make_ended(
        sessions,
        moments,
        model=[chance.choice(MODELS) for _ in moments],
        account_id=[chance.choice(accounts) for _ in moments],
        status=[status for status, _, _ in outcomes],
        error_type=[kind for _, kind, _ in outcomes],
        error_code=[code for _, _, code in outcomes],
        prompt_tokens=[chance.randrange(10_000) for _ in moments],
        completion_tokens=[chance.randrange(5_000) for _ in moments],
        ttft_ms=[chance.choice([None, int(chance.lognormvariate(6, 1))]) for _ in moments],
        duration_ms=[
            None if status == "interrupted" else int(chance.lognormvariate(8, 1))
            for status, _, _ in outcomes
        ],
    )


def ended_rows() -> list[Any]:
    return list(Response.objects.filter(completed_at__isnull=False).select_related("request"))


def expected(
    rows: Sequence[Any], start: datetime, end: datetime, group: str | None = None
) -> dict[str, Counter[str]]:
    """Requests and tokens of a time, row by row in Python, by a group ("" for none)."""
    found: dict[str, Counter[str]] = {}
    for row in rows:
        ended = row.completed_at
        is_error = row.status in ("failed", "interrupted")
        if not start <= ended < end or (group == "error" and not is_error):
            continue
        ref = {
            None: "",
            "model": row.request.model,
            "key": str(row.api_key_id),
            "account": str(row.request.account_id or ""),
            "status": row.status,
            "error": row.error_code or row.error_type or "",
        }[group]
        counter = found.setdefault(ref, Counter())
        counter["requests"] += 1
        counter[row.status] += 1
        counter["prompt_tokens"] += row.prompt_tokens
        counter["completion_tokens"] += row.completion_tokens
        counter["duration_ms"] += row.duration_ms or 0
    return found


def seen(counts: Any) -> Counter[str]:
    """`Counts` in the same form."""
    names = ("requests", "completed", "failed", "cancelled", "interrupted", "prompt_tokens")
    names += ("completion_tokens", "duration_ms")
    return Counter({name: getattr(counts, name) for name in names if getattr(counts, name)})

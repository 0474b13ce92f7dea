"""What sessions amount to: branches, errors, tokens, models; for a page of them, or for one.

Counted from the record by the indexes of each session, in a fixed number of queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db import connection
from django.db.models import Count, Exists, Max, Min, OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.lookups import GreaterThan

from requests_app.models import Request, Response
from requests_app.rollups import ERRORS
from sessions_app.models import Message

_OF_MANY = """
SELECT sums.session_id, sums.n, sums.errors, sums.sent, sums.got, last.model, (
    SELECT COUNT(*) - COUNT(DISTINCT m.parent_id) FROM sessions_app_message m
    WHERE m.session_id = sums.session_id
) FROM (
    SELECT session_id, COUNT(*) AS n, SUM(CASE WHEN status IN (%s, %s) THEN 1 ELSE 0 END) AS errors,
        SUM(prompt_tokens) AS sent, SUM(completion_tokens) AS got, MAX(request_id) AS last_request
    FROM requests_app_response WHERE session_id IN ({}) GROUP BY session_id
) sums JOIN requests_app_request last ON last.id = sums.last_request
"""
_PLACE = ("request_id", "reply_id", "request__prompt_id")
# A leaf has no child, and each other message is the parent of some.
_BRANCHES = Count("id") - Count("parent", distinct=True)


@dataclass(slots=True)
class Facts:
    """Of one session; a session without requests has none of it."""

    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    branches: int = 0
    # Last used first.
    models: Sequence[str] = ()
    # Its request's primary key, and the message it answers.
    first_error: tuple[int, int | None] | None = None


def facts_of_many(session_ids: Sequence[str]) -> dict[str, Facts]:
    """The facts of the sessions of a page, with the last model alone; one query."""
    facts = {session_id: Facts() for session_id in session_ids}
    if not facts:
        return facts
    with connection.cursor() as cursor:
        cursor.execute(_OF_MANY.format(", ".join(["%s"] * len(facts))), [*ERRORS, *facts])
        for session_id, n, errors, sent, got, model, branches in cursor.fetchall():
            facts[session_id] = Facts(n, errors, sent, got, branches or 0, (model,))
    return facts


def facts_of(session_id: str) -> Facts:
    """The facts of one session but its branches, which its line knows; two queries at most."""
    facts = Facts()
    rows = _sums(Response.objects.filter(session=session_id).order_by().values("request__model"))
    newest_first = sorted(rows, key=lambda row: int(row["last_request"]), reverse=True)
    for row in newest_first:
        _add(facts, row)
    facts.models = [row["request__model"] for row in newest_first]
    first_errors = [row["first_error"] for row in newest_first if row["first_error"]]
    if first_errors:
        first = Response.objects.filter(pk=min(first_errors))
        for request_id, reply_id, prompt_id in first.values_list(*_PLACE):
            facts.first_error = (request_id, reply_id or prompt_id)
    return facts


def branched() -> Q:
    """Sessions of more than one line."""
    return Q(GreaterThan(_branches("pk"), 1))


def _branches(session: str) -> Subquery:
    """Of the session that a column names; null where it has no messages."""
    messages = Message.objects.filter(session=OuterRef(session)).order_by().values("session_id")
    return Subquery(messages.annotate(n=_BRANCHES).values("n"))


def failed() -> Q:
    """Sessions in which an answer failed."""
    return Q(Exists(Response.objects.filter(session=OuterRef("pk"), status__in=ERRORS)))


def using(model: str) -> Q:
    """Sessions in which a client named this model."""
    return Q(Exists(Request.objects.filter(session=OuterRef("pk"), model=model)))


def _add(facts: Facts, row: dict[str, Any]) -> None:
    facts.requests += row["n"]
    facts.errors += row["errors"]
    facts.prompt_tokens += row["tokens_in"]
    facts.completion_tokens += row["tokens_out"]


def _sums(rows: QuerySet[Any, Any]) -> list[dict[str, Any]]:
    has_failed = Q(status__in=ERRORS)
    return list(
        rows.annotate(
            n=Count("id"),
            errors=Count("id", filter=has_failed),
            tokens_in=Sum("prompt_tokens"),
            tokens_out=Sum("completion_tokens"),
            last_request=Max("request_id"),
            first_error=Min("id", filter=has_failed),
        )
    )

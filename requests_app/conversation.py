"""One line of a session's tree, a page of it: which messages, which answers, where it forks.

A line is named by any message on it (`leaf`) and goes down to the newest leaf below that. Pages are cut
by position, never between calls of tools and their results. What a page shows of it is in
`requests_app.conversation_blocks`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Case, Count, F, Q, TextField, Value, When, Window
from django.db.models.functions import RowNumber

from qwenproxy.wire import json
from qwenproxy.wire.history import text_of
from requests_app.arrived import load_arrived
from requests_app.conversation_blocks import NOT_RECORDED, Block, Cutter, Fold, Reader, pretty, size
from requests_app.models import Request, Response
from sessions_app.heads import load_heads
from sessions_app.models import Message, Session
from sessions_app.transcript import Place, Way, find_way, load_forks, load_places

# About 50 turns: a question and its answer, or calls of tools and their results.
PAGE_MESSAGES = 100
# Results of tools that a page shows beyond its end, so that they stand with their calls.
_MAX_RESULTS = 100
# Calls that ended alike in one place, and in all on a page.
_MAX_IN_PLACE = 20
_MAX_ANSWERS = 800
# Of a text of a message: the beginning, with the message's id (`conversation_blocks`).
_NAME = re.compile(r"m([0-9]{1,18})(?![0-9])", re.ASCII)
_ANSWER_FIELDS = (
    "id",
    "request_id",
    "reply_id",
    "status",
    "error_type",
    "error_code",
    "error_message",
    "http_status",
    "client_left",
    "prompt_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "ttft_ms",
    "duration_ms",
    "created_at",
    "reasoning",
    "request__prompt_id",
    "request__model",
    "request__recorded",
)


@dataclass(frozen=True, slots=True)
class Line:
    """A page of one line."""

    blocks: Sequence[Block]
    head: Sequence[Fold]
    # Null: nothing is recorded.
    leaf_id: int | None
    start: int
    length: int
    branches: int

    @property
    def first(self) -> int:
        return self.start + 1

    @property
    def last(self) -> int:
        return min(self.start + PAGE_MESSAGES, self.length)

    @property
    def earlier(self) -> int | None:
        return max(0, self.start - PAGE_MESSAGES) if self.start else None

    @property
    def later(self) -> int | None:
        return self.start + PAGE_MESSAGES if self.last < self.length else None


def load_conversation(
    session: Session, *, leaf_id: int | None = None, start: int | None = None, shown: str = ""
) -> Line:
    """Load a page of the line through `leaf_id`, or through the newest answer; ten queries at most.

    Without `start` it is the page that `leaf_id` is on, or the first. A leaf that is not the session's
    counts as none. Long texts are cut, but for those of the block named `shown`.
    """
    way = find_way(session.pk, leaf_id) if leaf_id else None
    page = start if way is None or start is not None else way.position
    way = way or _newest_way(session)
    cutter = Cutter(shown)
    missing = f"({session.removal})" if session.removal else NOT_RECORDED
    if way is None:
        blocks = Reader(cutter, _answers(session, []), {}, missing=missing).failures(None)
        return Line(blocks, _head(session, cutter), None, 0, 0, 0)
    # Beyond the end: the last page.
    start = min(page or 0, way.leaf_position) // PAGE_MESSAGES * PAGE_MESSAGES
    line = _page(way.leaf_id, start)
    forks = load_forks(session.pk, line) if way.branches > 1 else {}
    heads = load_heads(line, _asked_for(shown, line))
    blocks = Reader(cutter, _answers(session, line), forks, missing=missing).read(heads)
    # System and tools stand at the beginning.
    head = _head(session, cutter) if start == 0 else []
    return Line(blocks, head, way.leaf_id, start, way.leaf_position + 1, way.branches)


def _newest_way(session: Session) -> Way | None:
    way = find_way(session.pk, session.last_reply_id) if session.last_reply_id else None
    if way is not None:
        return way
    newest = Message.objects.filter(session=session).order_by("-id").values_list("id", flat=True)
    message_id = newest.first()
    return None if message_id is None else find_way(session.pk, message_id)


def _page(leaf_id: int, start: int) -> list[Place]:
    line = load_places(leaf_id, start, PAGE_MESSAGES + _MAX_RESULTS)
    # Those at the beginning are on the page before, up to as many as it takes in.
    first = _count_results(line) if start else 0
    end = PAGE_MESSAGES + _count_results(line[PAGE_MESSAGES:])
    return line[first:end]


def _count_results(line: Sequence[Place]) -> int:
    """How many results of tools it begins with."""
    results = itertools.takewhile(lambda row: row.role == "tool", line[:_MAX_RESULTS])
    return sum(1 for _ in results)


def _asked_for(shown: str, line: Sequence[Place]) -> set[int]:
    """The messages that the text named `shown` may be of: one, or the results of its calls."""
    named = _NAME.match(shown)
    if named is None:
        return set()
    pk = int(named[1])
    at = next((index for index, place in enumerate(line) if place.pk == pk), None)
    if at is None:
        return set()
    return {place.pk for place in line[at : at + 1 + _count_results(line[at + 1 :])]}


def _head(session: Session, cutter: Cutter) -> list[Fold]:
    """System text and tools of the newest request."""
    rows = Request.objects.filter(session=session).order_by("-id")
    row = rows.values("system__body", "tools__body").first()
    if row is None:
        return []
    folds = []
    if row["system__body"]:
        stored: Any = json.loads_text(row["system__body"])
        text = "\n\n".join(text_of(message) for message in stored)
        folds.append(cutter.fold("System", size(text), text, "system"))
    if row["tools__body"]:
        tools: Any = json.loads_text(row["tools__body"])
        text = pretty(tools)
        label = f"{len(tools)} tool{'' if len(tools) == 1 else 's'} offered"
        folds.append(cutter.fold(label, size(text), text, "tools"))
    return folds


def _answers(session: Session, line: Sequence[Place]) -> Mapping[int | None, list[dict[str, Any]]]:
    """The answers on a line, and the calls that brought none, by prompt; the first of each place."""
    places = _first_answers(session, line)
    # What the upstream said is read where it failed alone: it may hold a whole answer.
    said = Case(When(reply=None, then="upstream_response"), default=Value("", TextField()))
    rows = Response.objects.filter(id__in=list(places)).order_by("id")
    by_prompt: dict[int | None, list[dict[str, Any]]] = {}
    found = list(rows.values(*_ANSWER_FIELDS, said=said))
    arrived = load_arrived([row["id"] for row in found if row["status"] == "in_progress"])
    for row in found:
        row["arrived"] = arrived.get(row["id"])
        row["more"] = places[row["id"]]
        by_prompt.setdefault(row["request__prompt_id"], []).append(row)
    return by_prompt


def _first_answers(session: Session, line: Sequence[Place]) -> dict[int, int]:
    """The responses to show on a line; the last of its kind in a place with how many more there are.

    A client may have asked the same thing a thousand times.
    """
    pks = {place.pk for place in line}
    prompts = pks | {place.parent_id for place in line}
    failed = Q(request__prompt__in=prompts - {None})
    if not line or None in prompts:
        # Only system messages came.
        failed |= Q(request__prompt=None)
    # Of the conversation's other lines nothing is read.
    rows = Response.objects.filter(Q(reply__in=pks) | Q(reply=None) & failed, session=session)
    place = [F("request__prompt"), F("reply"), F("status")]
    numbered = rows.annotate(
        number=Window(RowNumber(), partition_by=place, order_by="id"),
        of_all=Window(Count("id"), partition_by=place),
    ).filter(number__lte=_MAX_IN_PLACE)
    found = numbered.order_by("id").values_list("id", "number", "of_all")[:_MAX_ANSWERS]
    return {pk: of_all - at if at == _MAX_IN_PLACE else 0 for pk, at, of_all in found}

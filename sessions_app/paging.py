"""How the records API reads its query strings and cuts its lists into pages.

Every bad value is refused with a code of its own, never replaced by a default. A list is cut by
`offset` (any depth, slower the deeper) or by `cursor` (the sort key of the row before: as fast on the
last page as on the first). Totals are counted up to `MAX_TOTAL` and no further.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec

from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse, QueryDict

from qwenproxy.database import read_in_db
from qwenproxy.errors import InvalidRequest
from qwenproxy.wire import json
from qwenproxy.wire.json import JSONObject

MAX_TOTAL = 10_000
MAX_LIMIT = 1000
MAX_INTEGER = 2**63 - 1

# ASCII digits alone: int() also takes "1_000", " 7 " and digits of other scripts.
_INTEGER = re.compile(r"-?[0-9]{1,40}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST = datetime.min.replace(tzinfo=UTC)
_LATEST = datetime.max.replace(tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_P = ParamSpec("_P")


@dataclass(frozen=True, slots=True)
class Sort:
    """What an `orderBy` name sorts by: ORM paths of the value (null: the id alone) and of the id."""

    value: str | None
    id: str = "id"
    # The value is a count, not a moment.
    is_count: bool = False
    # The id is a text (sessions), not an integer.
    has_text_id: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """The part of a list that a client asks for."""

    limit: int
    offset: int
    order_by: str
    sort: Sort
    descending: bool
    # Value and id of the row before the page; the value is null where the id alone is sorted by.
    after: tuple[datetime | int | None, int | str] | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """One page of rows, as `QuerySet.values` gives them."""

    rows: list[dict[str, Any]]
    total: int
    has_more: bool
    next_cursor: str | None


async def json_answer(
    function: Callable[_P, JSONObject], *args: _P.args, **kwargs: _P.kwargs
) -> HttpResponse:
    """Run a query function beside what chats wait for, and answer with its object, encoded there as well."""

    def encoded() -> bytes:
        return json.dumps(function(*args, **kwargs))

    return HttpResponse(await read_in_db(encoded), content_type="application/json")


def visible_key(request: HttpRequest) -> int | None:
    """The API key whose records the request may see; null where it may see all."""
    # The authentication of the API sets it on the request; Django's class does not know it.
    key = request.auth  # type: ignore[attr-defined]
    return None if "admin" in key.scopes else key.id


def milliseconds(moment: datetime) -> int:
    """Milliseconds since 1970, rounded down."""
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def read_integer(
    query: QueryDict,
    name: str,
    default: int,
    *,
    minimum: int,
    maximum: int = MAX_INTEGER,
    code: str | None = None,
) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not _INTEGER.fullmatch(text) or not minimum <= int(text) <= maximum:
        span = f"{minimum} to {maximum}" if maximum < MAX_INTEGER else f"{minimum} or more"
        raise InvalidRequest(
            f"{name} must be a whole number, {span}", param=name, code=code or f"invalid_{name}"
        )
    return int(text)


def read_text(query: QueryDict, name: str) -> str | None:
    text = query.get(name)
    if text is not None and "\0" in text:
        # PostgreSQL cannot even be asked for it.
        raise InvalidRequest(f"{name} holds a NUL character", param=name, code=f"invalid_{name}")
    return text


def read_choice(query: QueryDict, name: str, choices: Collection[str]) -> str | None:
    text = query.get(name)
    if text is not None and text not in choices:
        raise InvalidRequest(
            f"{name} must be one of {', '.join(choices)}", param=name, code=f"invalid_{name}"
        )
    return text


def read_boolean(query: QueryDict, name: str) -> bool | None:
    text = read_choice(query, name, ("true", "false"))
    return None if text is None else text == "true"


def read_dates(query: QueryDict, column: str) -> Q:
    """Read `start_date` and `end_date`, inclusive milliseconds, as a condition on `column`."""
    start, end = (_read_moment(query, name) for name in ("start_date", "end_date"))
    if start is not None and end is not None and start > end:
        raise InvalidRequest(
            "start_date is after end_date", param="start_date", code="invalid_date_range"
        )
    condition = Q()
    if start is not None:
        condition &= Q((f"{column}__gte", _moment(start)))
    if end is not None:
        # The whole millisecond belongs to the range, columns hold microseconds.
        condition &= Q((f"{column}__lt", _moment(end + 1)))
    return condition


def _read_moment(query: QueryDict, name: str) -> int | None:
    text = query.get(name)
    if text is None:
        return None
    if not _INTEGER.fullmatch(text):
        raise InvalidRequest(
            f"{name} must be milliseconds since 1970", param=name, code=f"invalid_{name}"
        )
    return int(text)


def _moment(epoch_ms: int) -> datetime:
    """The moment, or the end of what a datetime holds: nothing is recorded beyond it."""
    try:
        return _EPOCH + timedelta(milliseconds=epoch_ms)
    except OverflowError:
        return _LATEST if epoch_ms > 0 else _EARLIEST


def read_page(query: QueryDict, sorts: Mapping[str, Sort], *, default_limit: int = 50) -> Page:
    """Read `limit`, `offset`, `cursor`, `orderBy` and `order`; newest first by default.

    Raises:
        InvalidRequest: with the code `invalid_` and the parameter's name; `invalid_order` for both
            of the last two.
    """
    limit = read_integer(query, "limit", default_limit, minimum=1, maximum=MAX_LIMIT)
    offset = read_integer(query, "offset", 0, minimum=0)
    order_by = query.get("orderBy", "created_at")
    if order_by not in sorts:
        raise InvalidRequest(
            f"orderBy must be one of {', '.join(sorts)}", param="orderBy", code="invalid_order"
        )
    direction = query.get("order", "DESC")
    if direction not in ("ASC", "DESC"):
        raise InvalidRequest("order must be ASC or DESC", param="order", code="invalid_order")
    page = Page(limit, offset, order_by, sorts[order_by], direction == "DESC")
    cursor = query.get("cursor")
    if cursor is None:
        return page
    if offset:
        raise InvalidRequest(
            "cursor and offset exclude each other", param="cursor", code="invalid_cursor"
        )
    try:
        after = _decode_cursor(cursor, page)
    except (ValueError, OverflowError) as exc:
        raise InvalidRequest(
            "cursor must be a next_cursor of the same list in the same order",
            param="cursor",
            code="invalid_cursor",
        ) from exc
    return replace(page, after=after)


def _cursor_head(page: Page) -> str:
    return f"{page.order_by}~{'DESC' if page.descending else 'ASC'}~"


def _encode_cursor(page: Page, row: Mapping[str, Any]) -> str:
    value = row[page.sort.value] if page.sort.value else None
    return _cursor_head(page) + write_position(value, row[page.sort.id])


def _decode_cursor(cursor: str, page: Page) -> tuple[datetime | int | None, int | str]:
    head = _cursor_head(page)
    if not cursor.startswith(head):
        raise ValueError(cursor)
    return read_position(cursor.removeprefix(head), page.sort)


def write_position(value: datetime | int | None, row_id: int | str) -> str:
    """Write a row's place in a list, as part of a URL."""
    if isinstance(value, datetime):
        value = (value - _EPOCH) // _MICROSECOND
    return f"{'' if value is None else value}~{row_id}"


def read_position(text: str, sort: Sort) -> tuple[datetime | int | None, int | str]:
    """Read what `write_position` wrote.

    Raises:
        ValueError, OverflowError: it did not.
    """
    value_text, separator, id_text = text.partition("~")
    if not separator or not id_text or "\0" in id_text:
        raise ValueError(text)
    row_id = id_text if sort.has_text_id else _stored_integer(id_text)
    if sort.value is None:
        if value_text:
            raise ValueError(text)
        return None, row_id
    value = _stored_integer(value_text)
    return (value if sort.is_count else _EPOCH + value * _MICROSECOND), row_id


def _stored_integer(text: str) -> int:
    if not _INTEGER.fullmatch(text) or abs(int(text)) > MAX_INTEGER:
        raise ValueError(text)
    return int(text)


def fetch(queryset: QuerySet[Any], page: Page, fields: Sequence[str]) -> Fetched:
    """Read one page of `queryset` with two queries: the rows, and their number up to the limit."""
    total = queryset.order_by()[: MAX_TOTAL + 1].count()
    if page.offset > MAX_INTEGER - page.limit - 1:
        # Beyond what a database can be asked for, and beyond any row.
        return Fetched([], total, has_more=False, next_cursor=None)
    if page.after is not None:
        queryset = queryset.filter(beyond(page.sort, page.descending, *page.after))
    columns = [column for column in (page.sort.value, page.sort.id) if column]
    order = [f"-{column}" if page.descending else column for column in columns]
    stop = page.offset + page.limit + 1
    rows = list(
        queryset.order_by(*order).values(*dict.fromkeys((*fields, *columns)))[page.offset : stop]
    )
    has_more = len(rows) > page.limit
    rows = rows[: page.limit]
    return Fetched(rows, total, has_more, _encode_cursor(page, rows[-1]) if has_more else None)


def beyond(sort: Sort, descending: bool, value: datetime | int | None, row_id: int | str) -> Q:
    """The rows that come after a position in the given direction."""
    column, past = sort.value, "lt" if descending else "gt"
    by_id = Q((f"{sort.id}__{past}", row_id))
    if column is None:
        return by_id
    # The first term says nothing new, but keeps the index range: without it both databases scan.
    return Q((f"{column}__{past}e", value)) & (
        Q((f"{column}__{past}", value)) | (Q((column, value)) & by_id)
    )


def list_object(page: Page, fetched: Fetched, data: Sequence[JSONObject]) -> JSONObject:
    """The one form of all lists."""
    return {
        "object": "list",
        "data": list(data),
        "total": fetched.total,
        "limit": page.limit,
        "offset": page.offset,
        "has_more": fetched.has_more,
        "next_cursor": fetched.next_cursor,
    }

"""The filters of a list: chips over it, each a parameter of the address with a menu of its values.

An admin names its filters (`RecordAdmin.filters`); `Chips` reads them from the query string, says which
rows are meant, whether these are cheap to count, and gives the template what it shows. All state is in
the address. A value that no row can have leaves no row, and shows as it was written; parameters that are
not the list's are ignored. The time is every list's first filter: `span`, or `from` and `to` in
milliseconds since 1970.

    class SomethingAdmin(RecordAdmin):
        default_span = "24h"

        def filters(self, request: HttpRequest) -> Sequence[Filter]:
            return [key_filter(), Filter("errors", "Errors", {"1": "with errors"}.items, condition)]
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property

from django.db import connection
from django.db.models import Q
from django.http import QueryDict
from django.utils import timezone

from qwenproxy import display
from sessions_app.paging import MAX_INTEGER

# Longer menus end in a field to write into.
MAX_CHOICES = 50
_NAMED = """
SELECT CAST(id AS text), name, ROW_NUMBER() OVER (ORDER BY name, id) FROM (
    SELECT id, name FROM {table} ORDER BY name, id LIMIT {limit}
) named UNION ALL SELECT CAST(id AS text), name, {limit} + 1 FROM {table} WHERE id = %s
"""
_OF_MENU = "SELECT {at}, menu.* FROM ({menu}) menu"
# No row has it.
NOTHING = Q(pk__in=[])
SEARCH = "q"
SPAN, FROM, TO = "span", "from", "to"
ALL_TIME = "all"
SPANS = {
    "1h": ("1 h", "in the last hour", timedelta(hours=1)),
    "24h": ("24 h", "in the last 24 hours", timedelta(hours=24)),
    "7d": ("7 d", "in the last 7 days", timedelta(days=7)),
    "30d": ("30 d", "in the last 30 days", timedelta(days=30)),
}
# Within it every filter is cheap enough to be counted.
_SHORT = timedelta(hours=24)
_MAX_SHOWN_CHARS = 60
_ID = re.compile("[0-9]{1,18}")
_MS = re.compile("[0-9]{1,15}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Menu:
    """Values of a filter and what people call them, from the database; up to `MAX_CHOICES` are shown."""

    # Selects value, label and place: texts and a number. A value that comes again has its first place.
    sql: str
    # Of the SQL, for the value in use.
    params: Callable[[str], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Filter:
    """A parameter of a list besides the time, and its chip."""

    name: str
    label: str
    # Values and what people call them, most wanted first, with no query; it is given the value in use, or
    # "". Or where the database has them: the menus of all filters are read at once.
    choices: Callable[[str], Iterable[tuple[str, str]]] | Menu
    # The rows of a value, which may be any text without NUL.
    condition: Callable[[str], Q]
    # An index holds it with the list's order: such rows are cheap to find and to count.
    is_indexed: bool = False
    # It reads other tables for each row: such rows are not counted.
    is_dear: bool = False
    # There is no menu: it comes from links, and is shown where it is set.
    is_only_linked: bool = False
    # It leaves so few rows that the list begins with all time.
    is_narrow: bool = False
    # Any text may be written into the menu: what to write.
    placeholder: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    label: str
    url: str
    is_current: bool


@dataclass(frozen=True, slots=True)
class Chip:
    """A filter as the template shows it."""

    name: str
    label: str
    # What is chosen; empty: all.
    text: str
    choices: Sequence[Choice]
    # Empty: there is nothing to remove.
    remove_url: str = ""
    placeholder: str = ""
    # Other parameters, for the form of the field.
    hidden: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """From `start` on, before `end`; null: without a limit."""

    # Of `SPANS`, `ALL_TIME`, or empty where the address says from when to when.
    span: str
    start: datetime | None = None
    end: datetime | None = None

    def condition(self, column: str) -> Q:
        condition = Q()
        if self.start is not None:
            condition &= Q((f"{column}__gte", self.start))
        if self.end is not None:
            condition &= Q((f"{column}__lt", self.end))
        return condition

    def is_short(self, now: datetime) -> bool:
        # A moment more: a span's start was reckoned a moment ago.
        return self.start is not None and (self.end or now) - self.start <= _SHORT + timedelta(
            minutes=1
        )

    @property
    def text(self) -> str:
        """For the chip."""
        if self.span == ALL_TIME:
            return "all"
        if self.span:
            return SPANS[self.span][0]
        start, end = (
            display.local_text(at, "%Y-%m-%d %H:%M") if at else "" for at in (self.start, self.end)
        )
        return f"{start} – {end}".strip()

    @property
    def phrase(self) -> str:
        """For a sentence; empty for all time."""
        if self.span == ALL_TIME:
            return ""
        return SPANS[self.span][1] if self.span else "in this time"


class Chips:
    """The filters of one page of a list, as its address sets them."""

    def __init__(self, query: QueryDict, filters: Sequence[Filter], default_span: str) -> None:
        self._filters = filters
        self.now = timezone.now()
        # Each once and never empty; what the filters do not know is left out.
        self.values = {
            each.name: value for each in filters if (value := query.get(each.name, "").strip())
        }
        search = query.get(SEARCH, "").strip()
        # Django refuses it.
        self.search = "" if "\0" in search else search
        is_narrow = bool(self.search) or any(one.is_narrow for one in self._set)
        self._default_span = ALL_TIME if is_narrow else default_span
        self.window = _read_window(query, self._default_span, self.now)
        self._time: dict[str, str] = {
            name: query.get(name, "") for name in (SPAN, FROM, TO) if self._says(name, query)
        }

    def _says(self, name: str, query: QueryDict) -> bool:
        """Whether a parameter of the time is in use."""
        if name not in query:
            return False
        if name == SPAN:
            return bool(self.window.span) and self.window.span != self._default_span
        return not self.window.span

    @property
    def _set(self) -> list[Filter]:
        return [each for each in self._filters if each.name in self.values]

    def condition(self, time_column: str) -> Q:
        """The rows that are meant, apart from a search."""
        return self.window.condition(time_column) & self.condition_of_all_time()

    def condition_of_all_time(self) -> Q:
        condition = Q()
        for each in self._set:
            value = self.values[each.name]
            # PostgreSQL cannot even be asked for it.
            condition &= NOTHING if "\0" in value else each.condition(value)
        return condition

    @property
    def is_countable(self) -> bool:
        """Whether the rows are found without reading many others."""
        if any(each.is_dear for each in self._set):
            return False
        return bool(self.search) or self.window.is_short(self.now) or self.is_indexed

    @property
    def is_indexed(self) -> bool:
        """Whether one index holds all of the filters together with the order."""
        return len(self._set) <= 1 and all(each.is_indexed for each in self._set)

    # Addresses.

    @property
    def parameters(self) -> dict[str, str]:
        """All that the address says, without the place in the list."""
        search = {SEARCH: self.search} if self.search else {}
        return {**search, **self._time, **self.values}

    def url(self, *without: str, **changes: str) -> str:
        """The list's address with some parameters changed, on its first page."""
        kept = {
            name: value
            for name, value in self.parameters.items()
            if name not in without and name not in changes
        }
        return _url({**kept, **changes})

    def span_url(self, span: str) -> str:
        return self.url(FROM, TO, span=span)

    @property
    def clear_url(self) -> str:
        """Empty where nothing is set."""
        return "?" if self.parameters else ""

    @property
    def hidden(self) -> list[tuple[str, str]]:
        """For the form of the search."""
        return [pair for pair in self.parameters.items() if pair[0] != SEARCH]

    # What is shown.

    @cached_property
    def shown(self) -> list[Chip]:
        """The chips in their order; one query."""
        filters = [
            each for each in self._filters if each.name in self.values or not each.is_only_linked
        ]
        menus = _read_menus(
            [
                (each.name, each.choices, self.values.get(each.name, ""))
                for each in filters
                if isinstance(each.choices, Menu)
            ]
        )
        return [self._time_chip(), *(self._chip(each, menus) for each in filters)]

    def _time_chip(self) -> Chip:
        labels = {name: label for name, (label, _, _) in SPANS.items()} | {ALL_TIME: "all"}
        choices = [
            Choice(label, self.span_url(name), name == self.window.span)
            for name, label in labels.items()
        ]
        remove_url = self.url(SPAN, FROM, TO) if self._time else ""
        return Chip(SPAN, "Time", self.window.text, choices, remove_url)

    def _chip(self, each: Filter, menus: Mapping[str, Sequence[tuple[str, str]]]) -> Chip:
        value = self.values.get(each.name, "")
        found = each.choices
        pairs = list(menus[each.name] if isinstance(found, Menu) else found(value))
        names = dict(pairs)
        choices = [
            Choice(_cut(label), self.url(**{each.name: choice}), choice == value)
            for choice, label in pairs[:MAX_CHOICES]
            if not each.is_only_linked
        ]
        if value and not each.is_only_linked:
            choices.insert(0, Choice("all", self.url(each.name), is_current=False))
        return Chip(
            each.name,
            each.label,
            _cut(names.get(value, value)),
            choices,
            remove_url=self.url(each.name) if value else "",
            placeholder=each.placeholder,
            hidden=[pair for pair in self.parameters.items() if pair[0] != each.name],
        )


def _read_window(query: QueryDict, default_span: str, now: datetime) -> TimeWindow:
    start, end = (_read_ms(query.get(name, "")) for name in (FROM, TO))
    if start is not None or end is not None:
        return TimeWindow("", start, end)
    span = query.get(SPAN, "")
    if span not in SPANS and span != ALL_TIME:
        span = default_span
    return TimeWindow(span) if span == ALL_TIME else TimeWindow(span, now - SPANS[span][2])


def _read_ms(text: str) -> datetime | None:
    if not _MS.fullmatch(text):
        return None
    try:
        return _EPOCH + timedelta(milliseconds=int(text))
    except OverflowError:
        return None


def _url(parameters: dict[str, str]) -> str:
    query = QueryDict(mutable=True)
    for name, value in parameters.items():
        query[name] = value
    return f"?{query.urlencode()}"


def _cut(text: str) -> str:
    text = text.replace("\0", "\ufffd")
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[: _MAX_SHOWN_CHARS - 1]}…"


def _read_menus(menus: Sequence[tuple[str, Menu, str]]) -> dict[str, list[tuple[str, str]]]:
    """Values and labels by filter, for names, menus and the values in use; one query for all."""
    if not menus:
        return {}
    parts = [_OF_MENU.format(at=at, menu=menu.sql) for at, (_, menu, _) in enumerate(menus)]
    params = [param for _, menu, value in menus for param in menu.params(value)]
    with connection.cursor() as cursor:
        cursor.execute(" UNION ALL ".join(parts), params)
        rows = sorted(cursor.fetchall(), key=lambda row: (row[0], row[3]))
    found: dict[str, dict[str, str]] = {name: {} for name, _, _ in menus}
    for at, value, label, _ in rows:
        found[menus[at][0]].setdefault(value, label)
    return {name: list(labels.items()) for name, labels in found.items()}


# Filters that several lists have.


def named_menu(table: str) -> Menu:
    """The rows of a table with `id` and `name`, by name; one beyond the menu that is in use with its name."""
    return Menu(
        _NAMED.format(table=table, limit=MAX_CHOICES + 1),
        lambda value: [-1 if (pk := row_id(value)) is None else pk],
    )


def row_id(text: str) -> int | None:
    """The primary key that a parameter names; null where it cannot be one."""
    return int(text) if _ID.fullmatch(text) and int(text) <= MAX_INTEGER else None


def key_filter(*, is_indexed: bool = True) -> Filter:
    """The API key of a row with `api_key`, by its primary key or its name."""
    return Filter(
        "key",
        "API key",
        named_menu("access_apikey"),
        _of_key,
        is_indexed=is_indexed,
        placeholder="Name of a key",
    )


def _of_key(value: str) -> Q:
    pk = row_id(value)
    return Q(api_key__name=value) if pk is None else Q(api_key=pk)

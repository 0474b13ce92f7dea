"""What the admin pages of all records share: read-only, and lists that cost the same at any size.

A list is filtered by chips (`sessions_app.chips`) and read by keyset (`older`, `newer`) from an index in
its own order; its rows are counted up to 10,000 and no further, and only where that is cheap. What takes
longer than a second is stopped. Columns with texts are loaded by no list. The pages themselves are in
`requests_app.admin`: each of them shows sessions and requests together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, cast

from django.contrib import admin
from django.contrib.admin import ShowFacets
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db import connection
from django.db.models import Model, Q, QuerySet
from django.db.models.expressions import Combinable
from django.http import HttpRequest, HttpResponse
from django.utils.safestring import SafeString

from sessions_app import record_table
from sessions_app.chips import ALL_TIME, SPANS, Chips, Filter
from sessions_app.guard import Stopped, stopped_after
from sessions_app.paging import MAX_TOTAL, Sort, beyond, read_position, write_position

# Generic for the type checker alone.
if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
else:
    ModelAdmin = admin.ModelAdmin

_OLDER, _NEWER = "older", "newer"


class KeysetChangeList(ChangeList):
    """A change list that is filtered by chips, cut at a row, not at a number, and stopped in time."""

    chips: Chips
    newer_url: str | None = None
    older_url: str | None = None
    # Empty: too much would be read to count them.
    count_text = ""
    # What is to be said of rows that are not there.
    note = ""
    # The queries took too long: there are no rows to show.
    was_stopped = False
    # Where there are no rows: when the newest one outside of the time was, and how to see it.
    newest: datetime | None = None
    wider: tuple[str, str] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.title = str(self.opts.verbose_name_plural).capitalize()

    @property
    def _admin(self) -> RecordAdmin:
        # Only they ask for this list.
        return cast("RecordAdmin", self.model_admin)

    def get_filters_params(self, params: dict[str, Any] | None = None) -> dict[str, Any]:
        # Parameters are the chips', never lookups.
        return {}

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[str | Combinable]:
        sort = self._admin.sort(request)
        return [f"-{column}" for column in (sort.value, sort.id) if column]

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        self.chips = self._admin.chips(request)
        found = super().get_queryset(request, exclude_parameters).only(*self._admin.list_columns)
        self._of_all_time = found.filter(self.chips.condition_of_all_time())
        column = self._admin.time_column(request)
        return self._of_all_time.filter(self.chips.window.condition(column))

    def get_results(self, request: HttpRequest) -> None:
        rows = self._read(request, self._admin.sort(request))
        self.note = self._admin.note(self.chips)
        self.result_list = rows
        # Django's own pages: there is one. Equal counts keep it from telling them beside the search.
        self.result_count = self.full_result_count = len(rows)
        self.show_full_result_count = False
        self.show_admin_actions = bool(rows)
        self.can_show_all = False
        self.multi_page = False
        self.paginator = Paginator(rows, self.list_per_page)

    def _read(self, request: HttpRequest, sort: Sort) -> list[Any]:
        rows: list[Any] | None = None
        try:
            with stopped_after():
                rows, has_newer, has_older = self._cut(request, sort)
                self.newer_url = self._url(_NEWER, sort, rows[0]) if has_newer else None
                self.older_url = self._url(_OLDER, sort, rows[-1]) if has_older else None
                # After the rows: they are shown also where there is no time left for this.
                if rows and self.chips.is_countable:
                    self.count_text = self._count()
                elif not rows:
                    self._look_further(request)
        except Stopped:
            self.was_stopped = rows is None
        return rows or []

    def _count(self) -> str:
        total = self.queryset.order_by()[: MAX_TOTAL + 1].count()
        return f"{MAX_TOTAL:,}+" if total > MAX_TOTAL else f"{total:,}"

    def _look_further(self, request: HttpRequest) -> None:
        chips = self.chips
        if chips.window.span == ALL_TIME:
            return
        column = self._admin.time_column(request)
        self.newest = self._of_all_time.values_list(column, flat=True).first()
        if self.newest is None:
            return
        longer = [
            (label, chips.span_url(name))
            for name, (label, _, length) in SPANS.items()
            if self.newest > chips.now - length
        ]
        self.wider = longer[0] if longer else ("all", chips.span_url(ALL_TIME))

    def headers(self) -> list[dict[str, Any]]:
        return record_table.headers(self)

    def rows(self) -> Iterator[SafeString]:
        return record_table.rows(self)

    @property
    def narrower(self) -> list[tuple[str, str]]:
        """Shorter times, for a list that was stopped."""
        shorter = ("24h", "7d")
        return [(SPANS[name][0], self.chips.span_url(name)) for name in shorter]

    def _cut(self, request: HttpRequest, sort: Sort) -> tuple[list[Any], bool, bool]:
        """The rows of the page, newest first, and whether there are newer and older ones."""
        size = self.list_per_page
        before = _position(request, _NEWER, sort)
        if before is not None:
            above = self.queryset.filter(beyond(sort, False, *before))
            rows = list(above.reverse()[: size + 1])
            if len(rows) > size:
                return rows[:size][::-1], True, True
            # The top is reached: show it whole, with what came meanwhile.
            rows = list(self.queryset[: size + 1])
            return rows[:size], False, len(rows) > size
        after = _position(request, _OLDER, sort)
        below = self.queryset if after is None else self.queryset.filter(beyond(sort, True, *after))
        rows = list(below[: size + 1])
        return rows[:size], after is not None and bool(rows), len(rows) > size

    def _url(self, name: str, sort: Sort, row: Model) -> str:
        value = _value(row, sort.value) if sort.value else None
        return self.chips.url(**{name: write_position(value, _value(row, sort.id))})


def _position(request: HttpRequest, name: str, sort: Sort) -> Any:
    text = request.GET.get(name)
    if text is None:
        return None
    try:
        return read_position(text, sort)
    except (ValueError, OverflowError):
        # A link that somebody cut: the first page.
        return None


def _value(row: Any, path: str) -> Any:
    for name in path.split("__"):
        # By an ORM path, as `values` would.
        row = getattr(row, name)
    return row


class RecordAdmin(ModelAdmin):
    """Base of the records' admins."""

    show_full_result_count = False
    show_facets = ShowFacets.NEVER
    list_per_page = 50
    list_max_show_all = 0
    sortable_by = ()
    # What `list_display` names are methods here (`sessions_app.record_table`); the columns that they read:
    list_columns: ClassVar[Sequence[str]] = ()
    # What ids begin with: a search for no more than that would sort every row.
    id_prefixes: ClassVar[Sequence[str]] = ()
    # Texts that the pages of single rows load themselves.
    deferred: ClassVar[Sequence[str]] = ()
    # What the list shows where the address names no time.
    default_span = ALL_TIME
    # They would make every link of a list as long as its filters.
    preserve_filters = False

    def filters(self, request: HttpRequest) -> Sequence[Filter]:
        """The filters of the list besides the time, in the order of their chips."""
        return ()

    def links(self, request: HttpRequest, chips: Chips) -> Sequence[tuple[str, str]]:
        """Labels and addresses of what can be done with the whole list, such as its export."""
        return ()

    def note(self, chips: Chips) -> str:
        """A sentence on what the list lacks; empty: nothing."""
        return ""

    def chips(self, request: HttpRequest) -> Chips:
        return Chips(request.GET, self.filters(request), self.default_span)

    def time_column(self, request: HttpRequest) -> str:
        """The time that the list's filter goes by: the one of its order, so that its index serves."""
        return str(self.sort(request).value or "created_at")

    def sort(self, request: HttpRequest) -> Sort:
        """The order of the list: newest first by these columns, which an index has to hold."""
        return Sort("created_at")

    @admin.display(description="API key")
    def key_name(self, row: Any) -> str:
        return str(row.api_key.name)

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        links = self.links(request, self.chips(request))
        return super().changelist_view(request, {"list_links": links, **(extra_context or {})})

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return KeysetChangeList

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).defer(*self.deferred)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip()
        if not (term and self.search_fields) or any(
            prefix.startswith(term) for prefix in self.id_prefixes
        ):
            return queryset, False
        return queryset.filter(begins_with(self.searched(term), term)), False

    def searched(self, term: str) -> str:
        """The one column that a search looks at: an id, from its beginning on."""
        return str(self.search_fields[0])

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def begins_with(column: str, text: str) -> Q:
    """The texts that begin with `text`, found by the column's unique index."""
    if connection.vendor == "sqlite":
        # Its LIKE ignores case, and with that the index.
        return Q((f"{column}__gte", text), (f"{column}__lt", text + "\U0010ffff"))
    return Q((f"{column}__startswith", text))

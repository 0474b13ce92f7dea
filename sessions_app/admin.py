"""What the admin pages of all records share: read-only, and lists that cost the same at any size.

A list is read by keyset (`older`, `newer`) from an index in its own order; its rows are counted up to
10,000 and no further. Columns with texts are loaded by no list. The pages themselves are in
`requests_app.admin`: each of them shows sessions and requests together.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, cast

from django.contrib import admin
from django.contrib.admin import ShowFacets
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db import connection
from django.db.models import Model, Q, QuerySet
from django.db.models.expressions import Combinable
from django.http import HttpRequest
from django.utils import timezone

from sessions_app.paging import MAX_TOTAL, Sort, beyond, read_position, write_position

# Generic for the type checker alone.
if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
else:
    ModelAdmin = admin.ModelAdmin

_OLDER, _NEWER = "older", "newer"
_SPANS = {
    "1h": ("Last hour", timedelta(hours=1)),
    "24h": ("Last 24 hours", timedelta(hours=24)),
    "7d": ("Last 7 days", timedelta(days=7)),
    "30d": ("Last 30 days", timedelta(days=30)),
}


class KeysetChangeList(ChangeList):
    """A change list that is cut at a row, not at a number."""

    newer_url: str | None
    older_url: str | None
    count_text: str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.title = str(self.opts.verbose_name_plural).capitalize()

    def get_filters_params(self, params: dict[str, Any] | None = None) -> dict[str, Any]:
        filters: dict[str, Any] = super().get_filters_params(params)
        return {name: filters[name] for name in filters if name not in (_OLDER, _NEWER)}

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[str | Combinable]:
        sort = self._sort(request)
        return [f"-{sort.value}", f"-{sort.id}"]

    def _sort(self, request: HttpRequest) -> Sort:
        # Only they ask for this list.
        return cast("RecordAdmin", self.model_admin).sort(request)

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        rows = super().get_queryset(request, exclude_parameters)
        return rows.only(*cast("RecordAdmin", self.model_admin).list_columns)

    def get_results(self, request: HttpRequest) -> None:
        sort = self._sort(request)
        total = self.queryset.order_by()[: MAX_TOTAL + 1].count()
        self.count_text = f"{MAX_TOTAL:,}+" if total > MAX_TOTAL else f"{total:,}"
        rows, has_newer, has_older = self._cut(request, sort)
        self.newer_url = self._url(_NEWER, sort, rows[0]) if has_newer else None
        self.older_url = self._url(_OLDER, sort, rows[-1]) if has_older else None
        self.result_list = rows
        # Django's own pages: there is one. Equal counts keep it from telling them beside the search.
        self.result_count = self.full_result_count = len(rows)
        self.show_full_result_count = False
        self.show_admin_actions = bool(rows)
        self.can_show_all = False
        self.multi_page = False
        self.paginator = Paginator(rows, self.list_per_page)

    def _cut(self, request: HttpRequest, sort: Sort) -> tuple[list[Any], bool, bool]:
        """The rows of the page, newest first, and whether there are newer and older ones."""
        size = self.list_per_page
        before = _position(request, _NEWER, sort)
        if before is not None:
            above = self.queryset.filter(beyond(sort, False, *before))
            rows = list(above.order_by(str(sort.value), sort.id)[: size + 1])
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
        value = _value(row, str(sort.value))
        position = write_position(value, _value(row, sort.id))
        return self.get_query_string({name: position}, remove=[_OLDER, _NEWER])


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


class SpanFilter(admin.SimpleListFilter):
    """The time of a list's order, up to now."""

    title = "time"
    parameter_name = "span"

    def lookups(self, request: HttpRequest, model_admin: ModelAdmin) -> list[tuple[str, str]]:
        return [(name, label) for name, (label, _) in _SPANS.items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any] | None:
        span = _SPANS.get(self.value() or "")
        if span is None:
            return None
        column = self.column_of(request)
        return queryset.filter(Q((f"{column}__gte", timezone.now() - span[1])))

    def column_of(self, request: HttpRequest) -> str:
        return "created_at"


class RecordAdmin(ModelAdmin):
    """Base of the records' admins."""

    show_full_result_count = False
    show_facets = ShowFacets.NEVER
    list_per_page = 50
    list_max_show_all = 0
    sortable_by = ()
    # The columns that a list loads.
    list_columns: ClassVar[Sequence[str]] = ()
    # What ids begin with: a search for no more than that would sort every row.
    id_prefixes: ClassVar[Sequence[str]] = ()
    # Texts that the pages of single rows load themselves.
    deferred: ClassVar[Sequence[str]] = ()

    def sort(self, request: HttpRequest) -> Sort:
        """The order of the list: newest first by these columns, which an index has to hold."""
        return Sort("created_at")

    @admin.display(description="API key")
    def key_name(self, row: Any) -> str:
        return str(row.api_key.name)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return KeysetChangeList

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).defer(*self.deferred)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip()
        if not term or any(prefix.startswith(term) for prefix in self.id_prefixes):
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

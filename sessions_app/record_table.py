"""The table of a list of records: what Django's `result_list` makes of columns that are methods of the admin.

Django looks every column up anew for each cell and renders a widget for each row, which was most of a
list's time. Here it is done once for each column. Values are text, or HTML that says so; the rest is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from django.contrib.admin.templatetags.admin_list import result_headers
from django.contrib.admin.utils import quote
from django.urls import reverse
from django.utils.html import conditional_escape, escape
from django.utils.safestring import SafeString, mark_safe

if TYPE_CHECKING:
    from sessions_app.admin import KeysetChangeList

_CHECKBOX = "action_checkbox"
# Any primary key: its place in the address is what is wanted.
_ANY = "0"

Cell = Callable[[Any, str], str]


def headers(changelist: KeysetChangeList) -> list[dict[str, Any]]:
    return list(result_headers(changelist))


def rows(changelist: KeysetChangeList) -> Iterator[SafeString]:
    """The rows of `<tbody>`."""
    opts = changelist.opts
    url = reverse(f"admin:{opts.app_label}_{opts.model_name}_change", args=[_ANY])
    before, after = url.rsplit(_ANY, 1)
    cells = _cells(changelist)
    for row in changelist.result_list:
        address = escape(f"{before}{quote(row.pk)}{after}")
        # Every cell escapes what it holds.
        yield mark_safe(f"<tr>{''.join([cell(row, address) for cell in cells])}</tr>")  # noqa: S308


def _cells(changelist: KeysetChangeList) -> list[Cell]:
    links, has_heading = changelist.list_display_links or (), False
    cells: list[Cell] = []
    for name in changelist.list_display:
        if name == _CHECKBOX:
            cells.append(_checkbox)
            continue
        is_link = name in links
        # The first one that leads to its row is the row's heading.
        tag = "th" if is_link and not has_heading else "td"
        has_heading = has_heading or is_link
        value = getattr(changelist.model_admin, str(name))
        cells.append(_cell(tag, str(name), value, is_link=is_link))
    return cells


def _cell(tag: str, name: str, value: Callable[[Any], str], *, is_link: bool) -> Cell:
    scope = ' scope="row"' if tag == "th" else ""
    before, after = f'<{tag}{scope} class="field-{name}">', f"</{tag}>"
    if not is_link:
        return lambda row, url: f"{before}{conditional_escape(value(row))}{after}"
    return lambda row, url: f'{before}<a href="{url}">{conditional_escape(value(row))}</a>{after}'


def _checkbox(row: Any, url: str) -> str:
    pk = escape(row.pk)
    return (
        '<td class="action-checkbox"><input type="checkbox" name="_selected_action"'
        f' value="{pk}" class="action-select" aria-label="Select {escape(row)}"></td>'
    )

"""A record in the browser whose page is our own, not a form."""

from __future__ import annotations

from typing import Any

from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from sessions_app.admin import RecordAdmin


class PageAdmin(RecordAdmin):
    """Base of the admins of sessions and requests."""

    page_template = ""

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        # PostgreSQL cannot even be asked for a text with NUL.
        row = self.get_object(request, unquote(object_id.replace("\0", "\ufffd")))
        if not self.has_view_permission(request, row):
            raise PermissionDenied
        if row is None:
            raise Http404(f"No {self.opts.verbose_name} has this id.")
        return self.show(request, row)

    def show(self, request: HttpRequest, row: Any) -> HttpResponse:
        raise NotImplementedError

    def page(self, request: HttpRequest, row: Model, context: dict[str, Any]) -> HttpResponse:
        return TemplateResponse(
            request,
            self.page_template,
            {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "original": row,
                "has_delete_permission": self.has_delete_permission(request, row),
                "is_whole": "full" in request.GET,
                **context,
            },
        )

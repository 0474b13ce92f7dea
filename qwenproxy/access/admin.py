"""Accounts in the browser: their health, and their credentials, which go in and never come out (`forms`).

Keys: `admin_keys`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import ChangeList
from django.db import transaction
from django.db.models import Q, QuerySet
from django.forms import Media
from django.http import (
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseNotAllowed,
    HttpResponseRedirect,
)
from django.urls import URLPattern, path, reverse

from qwenproxy.access import accounts, staff
from qwenproxy.access.account_rows import AccountRow, read_rows
from qwenproxy.access.account_states import PAUSED
from qwenproxy.access.admin_keys import MEDIA, ApiKeyAdmin, StatesList
from qwenproxy.access.forms import UpstreamAccountForm
from qwenproxy.access.models import ApiKey, UpstreamAccount

# Generic for the type checker alone.
if TYPE_CHECKING:
    UpstreamAccountModelAdmin = admin.ModelAdmin[UpstreamAccount]
else:
    UpstreamAccountModelAdmin = admin.ModelAdmin

admin.site.register(ApiKey, ApiKeyAdmin)

_SECRETS_TEXT = "Encrypted in the database and never shown again."


class AccountStateFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"
    template = "admin/access/states.html"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        states = [name for name, _ in UpstreamAccount.STATES]
        return [(state, state.capitalize()) for state in (*states, PAUSED)]

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[UpstreamAccount]
    ) -> QuerySet[UpstreamAccount]:
        state = self.value()
        if state not in dict(self.lookup_choices):
            return queryset
        is_paused = Q(enabled=False)
        return queryset.filter(is_paused if state == PAUSED else ~is_paused & Q(state=state))


class AccountChangeList(StatesList):
    account_rows: list[AccountRow]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.title = "Upstream accounts"

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.result_list = list(self.result_list)
        self.account_rows = read_rows(self.model_admin.admin_site, request, self.result_list)


@admin.register(UpstreamAccount)
class UpstreamAccountAdmin(UpstreamAccountModelAdmin):
    form = UpstreamAccountForm
    list_filter = (AccountStateFilter,)
    ordering = ("priority", "id")
    actions = ("test_now", "pause", "resume")
    list_per_page = 50
    show_full_result_count = False
    change_list_template = "admin/access/upstreamaccount/change_list.html"
    change_form_template = "admin/access/upstreamaccount/change_form.html"

    @property
    def media(self) -> Media:
        return super().media + MEDIA

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return AccountChangeList

    def get_urls(self) -> list[URLPattern]:
        guard = staff.gateway_view(staff.CHANGE_ACCOUNTS)
        own = [
            path(
                "<path:object_id>/pause/",
                guard(self.pause_view),
                name="access_upstreamaccount_pause",
            ),
            path(
                "<path:object_id>/resume/",
                guard(self.resume_view),
                name="access_upstreamaccount_resume",
            ),
        ]
        return own + super().get_urls()

    def get_fieldsets(self, request: HttpRequest, obj: UpstreamAccount | None = None) -> list[Any]:
        is_demo = obj is not None and obj.kind == "demo"
        address = () if is_demo else ("base_url",)
        plain = ("kind", "name", *address, "enabled")
        traffic = ("priority", "weight", "max_concurrent", "min_interval_ms")
        kinds = list(accounts.DEFAULT_BASE_URLS | {"openai_compatible": ""})
        return [
            (None, {"fields": plain}),
            *_credentials([obj.kind] if obj else kinds, is_new=obj is None),
            ("Traffic", {"fields": traffic, "classes": ("limits",)}),
        ]

    def get_readonly_fields(
        self, request: HttpRequest, obj: UpstreamAccount | None = None
    ) -> tuple[str, ...]:
        # Another kind would take other secrets: that is another account.
        return () if obj is None else ("kind",)

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, str | list[str]]:
        # Named one by one: a secret in an address must not come back in the page.
        return {
            name: request.GET[name] for name in ("name", "kind", "base_url") if name in request.GET
        }

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> UpstreamAccount | None:
        account = super().get_object(request, object_id, from_field)
        if account is None or request.method != "POST":
            return account
        # A session that is renewed meanwhile must not be overwritten by what was read before.
        return UpstreamAccount.objects.select_for_update().filter(pk=account.pk).first()

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        context = {"title": "Add an upstream account", **(extra_context or {})}
        return super().add_view(request, form_url, context)

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        context = {"show_save_and_add_another": False, **(extra_context or {})}
        # Whoever may not see it gets no figures of it either.
        if self.has_view_or_change_permission(request):
            # Without a lock: what is shown is not saved.
            obj = super().get_object(request, unquote(object_id))
            if obj is not None:
                (row,) = read_rows(self.admin_site, request, [obj], ("24h", "7d", "today"))
                context |= {"row": row, "title": obj.name, "subtitle": ""}
        return super().change_view(request, object_id, form_url, context)

    def save_model(
        self, request: HttpRequest, obj: UpstreamAccount, form: Any, change: bool
    ) -> None:
        super().save_model(request, obj, form, change)
        if isinstance(form, UpstreamAccountForm):
            form.store_secrets()
            if form.found:
                self.message_user(request, form.found, messages.SUCCESS)
            for warning in form.warnings:
                self.message_user(request, warning, messages.WARNING)

    def pause_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self._switch(request, object_id, self._pause)

    def resume_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        return self._switch(request, object_id, self._resume)

    def _switch(
        self,
        request: HttpRequest,
        object_id: str,
        switch: Callable[[HttpRequest, UpstreamAccount], str],
    ) -> HttpResponse:
        """Pause or resume one account, for a button; back to where that is."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        with transaction.atomic():
            account = self.get_object(request, unquote(object_id))
            if account is None:
                raise Http404
            said = switch(request, account)
        self.message_user(request, said, messages.SUCCESS)
        if request.POST.get("back") == "account":
            return HttpResponseRedirect(
                reverse("admin:access_upstreamaccount_change", args=[account.pk])
            )
        return HttpResponseRedirect(reverse("admin:access_upstreamaccount_changelist"))

    def _pause(self, request: HttpRequest, account: UpstreamAccount) -> str:
        accounts.pause(account)
        self.log_change(request, account, "Paused.")
        return f"{account} is paused until it is resumed."

    def _resume(self, request: HttpRequest, account: UpstreamAccount) -> str:
        accounts.resume(account)
        self.log_change(request, account, "Resumed.")
        return f"{account} is ready: it may be asked again, at once."

    @admin.action(description="Pause the selected accounts", permissions=["change"])
    def pause(self, request: HttpRequest, queryset: QuerySet[UpstreamAccount]) -> None:
        for account in queryset:
            self.message_user(request, self._pause(request, account), messages.SUCCESS)

    @admin.action(
        description="Resume the selected accounts: they may be asked again, at once",
        permissions=["change"],
    )
    def resume(self, request: HttpRequest, queryset: QuerySet[UpstreamAccount]) -> None:
        for account in queryset:
            self.message_user(request, self._resume(request, account), messages.SUCCESS)

    @admin.action(description="Test the selected accounts now", permissions=["change"])
    def test_now(
        self, request: HttpRequest, queryset: QuerySet[UpstreamAccount]
    ) -> HttpResponseRedirect:
        # The page that calls upstreams gets this very form.
        return HttpResponseRedirect(reverse("admin:test_accounts"), preserve_request=True)


def _credentials(kinds: list[str], *, is_new: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """The groups of fields of these kinds' secrets; what only few need is folded."""
    forget = () if is_new else ("forget",)
    groups: tuple[tuple[str, tuple[str, ...], tuple[str, ...], bool], ...] = (
        ("Session of chat.qwen.ai", ("browser_request",), ("qwen_web",), False),
        ("The session, field by field", ("cookies", "token", "user_agent"), ("qwen_web",), True),
        ("API key", ("api_key",), ("dashscope", "openai_compatible"), False),
        (
            "Headers and removal" if forget else "Headers",
            ("headers", *forget),
            ("qwen_web", "dashscope", "openai_compatible"),
            True,
        ),
    )
    for name, fields, takers, is_folded in groups:
        if set(kinds) & set(takers):
            classes = [f"kind-{kind}" for kind in takers] + ["collapse"] * is_folded
            yield name, {"fields": fields, "classes": classes, "description": _SECRETS_TEXT}

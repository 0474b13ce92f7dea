"""Accounts in the browser: their health, and their credentials, which go in and never come out (`forms`).

Keys: `admin_keys`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html

from qwenproxy.access import accounts
from qwenproxy.access.account_states import PAUSED, expiry_warning, way_out
from qwenproxy.access.admin_keys import ApiKeyAdmin
from qwenproxy.access.forms import UpstreamAccountForm
from qwenproxy.access.models import ApiKey, UpstreamAccount

# Generic for the type checker alone.
if TYPE_CHECKING:
    UpstreamAccountModelAdmin = admin.ModelAdmin[UpstreamAccount]
else:
    UpstreamAccountModelAdmin = admin.ModelAdmin

admin.site.register(ApiKey, ApiKeyAdmin)

_LIMITS = ("weight", "max_concurrent", "min_interval_ms")
_HEALTH = ("health", "why", "until", "what_to_do", "failures", "last_ok_at", "last_error_at")


@admin.register(UpstreamAccount)
class UpstreamAccountAdmin(UpstreamAccountModelAdmin):
    form = UpstreamAccountForm
    list_display = (
        "name",
        "kind",
        "health",
        "why",
        "until",
        "what_to_do",
        "credentials_brief",
        "priority",
        "weight",
    )
    ordering = ("priority", "id")
    actions = ("pause", "resume", "test_now")
    show_full_result_count = False

    def get_fieldsets(self, request: HttpRequest, obj: UpstreamAccount | None = None) -> list[Any]:
        secrets = accounts.SECRETS_OF_KIND[obj.kind] if obj else accounts.SECRET_NAMES
        pasted = ("browser_request",) if obj is None or obj.kind == "qwen_web" else ()
        address = () if obj is not None and obj.kind == "demo" else ("base_url",)
        plain = ("name", "kind", *address, "enabled", "priority")
        limits = ("Limits", {"fields": _LIMITS})
        health = ("Health", {"fields": _HEALTH})
        text = "Encrypted in the database and never shown again."
        stored, forget = (("credentials",), ("forget",)) if obj else ((), ())
        credentials = (
            "Credentials",
            {"fields": (*stored, *pasted, *secrets, *forget), "description": text},
        )
        groups = [(None, {"fields": plain}), *([credentials] if secrets else []), limits]
        return groups if obj is None else [*groups, health]

    def get_readonly_fields(
        self, request: HttpRequest, obj: UpstreamAccount | None = None
    ) -> tuple[str, ...]:
        # Another kind would take other secrets: that is another account.
        return () if obj is None else ("kind", "credentials", *_HEALTH)

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

    def save_model(
        self, request: HttpRequest, obj: UpstreamAccount, form: Any, change: bool
    ) -> None:
        super().save_model(request, obj, form, change)
        if isinstance(form, UpstreamAccountForm):
            form.store_secrets()
            for warning in form.warnings:
                self.message_user(request, warning, messages.WARNING)

    @admin.action(description="Pause the selected accounts", permissions=["change"])
    def pause(self, request: HttpRequest, queryset: QuerySet[UpstreamAccount]) -> None:
        for account in queryset:
            accounts.pause(account)
            self.log_change(request, account, "Paused.")
        self.message_user(request, "Paused until they are resumed.", messages.SUCCESS)

    @admin.action(
        description="Resume the selected accounts: they may be asked again, at once",
        permissions=["change"],
    )
    def resume(self, request: HttpRequest, queryset: QuerySet[UpstreamAccount]) -> None:
        for account in queryset:
            accounts.resume(account)
            self.log_change(request, account, "Resumed.")
        self.message_user(request, "Ready.", messages.SUCCESS)

    @admin.action(description="Test the selected accounts now", permissions=["change"])
    def test_now(
        self, request: HttpRequest, queryset: QuerySet[UpstreamAccount]
    ) -> HttpResponseRedirect:
        # The page that calls upstreams gets this very form.
        return HttpResponseRedirect(reverse("admin:test_accounts"), preserve_request=True)

    @admin.display(description="state", ordering="state")
    def health(self, obj: UpstreamAccount) -> str:
        state = _state(obj)
        return format_html('<span class="pill pill-{}">{}</span>', state, state)

    @admin.display(description="why")
    def why(self, obj: UpstreamAccount) -> str:
        return obj.state_reason or "-"

    @admin.display(description="until", ordering="state_until")
    def until(self, obj: UpstreamAccount) -> str:
        is_waiting = obj.enabled and obj.state_until is not None
        return f"{obj.state_until:%Y-%m-%d %H:%M:%S} UTC" if is_waiting else "-"

    @admin.display(description="what to do")
    def what_to_do(self, obj: UpstreamAccount) -> str:
        return way_out(obj.kind, _state(obj), obj.state_until) or "-"

    @admin.display(description="credentials", ordering="secrets_expire_at")
    def credentials_brief(self, obj: UpstreamAccount) -> str:
        stored, expires = accounts.stored_names(obj), obj.secrets_expire_at
        if stored is None:
            return format_html('<span class="pill pill-expired">{}</span>', "unreadable")
        if expires is None:
            return "set" if stored else "none"
        now = timezone.now()
        text = f"{'ended' if expires < now else 'ends'} {expires:%Y-%m-%d %H:%M} UTC"
        if not expiry_warning(obj.kind, expires, now):
            return text
        return format_html('<span class="pill pill-cooling">soon</span> {}', text)

    @admin.display(description="stored")
    def credentials(self, obj: UpstreamAccount) -> str:
        """Name what is stored, never its value."""
        stored = accounts.stored_names(obj)
        if stored is None:
            return f"unreadable: {accounts.UNREADABLE}"
        names = ", ".join(name.replace("_", " ") for name in stored) or "nothing"
        warning = expiry_warning(obj.kind, obj.secrets_expire_at, timezone.now())
        if warning:
            return format_html('{}<p class="banner banner-warning">{}</p>', names, warning)
        if obj.secrets_expire_at is None:
            return names
        return f"{names}; the session ends {obj.secrets_expire_at:%Y-%m-%d %H:%M} UTC"


def _state(account: UpstreamAccount) -> str:
    return account.state if account.enabled else PAUSED

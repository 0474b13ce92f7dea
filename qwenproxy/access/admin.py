"""Accounts in the browser: their credentials go in and never come out (`forms`). Keys: `admin_keys`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.http import HttpRequest
from django.utils import timezone

from qwenproxy.access import accounts, encryption
from qwenproxy.access.admin_keys import ApiKeyAdmin
from qwenproxy.access.forms import UpstreamAccountForm
from qwenproxy.access.models import ApiKey, UpstreamAccount

# Generic for the type checker alone.
if TYPE_CHECKING:
    UpstreamAccountModelAdmin = admin.ModelAdmin[UpstreamAccount]
else:
    UpstreamAccountModelAdmin = admin.ModelAdmin

admin.site.register(ApiKey, ApiKeyAdmin)

_ALL_SECRET_FIELDS = ("browser_request", "api_key", "cookies", "token", "user_agent")
_SECRET_FIELDS = {
    "qwen_web": ("browser_request", "cookies", "token", "user_agent", "forget"),
    "dashscope": ("api_key", "forget"),
    "openai_compatible": ("api_key", "forget"),
}


@admin.register(UpstreamAccount)
class UpstreamAccountAdmin(UpstreamAccountModelAdmin):
    form = UpstreamAccountForm
    list_display = ("name", "kind", "base_url", "enabled", "priority", "credentials")
    ordering = ("priority", "id")
    show_full_result_count = False

    def get_fieldsets(self, request: HttpRequest, obj: UpstreamAccount | None = None) -> list[Any]:
        plain = ("name", "kind", "base_url", "enabled", "priority")
        if obj is None:
            secret: tuple[str, ...] = _ALL_SECRET_FIELDS
        elif obj.kind == "demo":
            return [(None, {"fields": ("name", "kind", "enabled", "priority")})]
        else:
            secret = ("credentials", *_SECRET_FIELDS[obj.kind])
        text = "Encrypted in the database and never shown again."
        return [
            (None, {"fields": plain}),
            ("Credentials", {"fields": secret, "description": text}),
        ]

    def get_readonly_fields(
        self, request: HttpRequest, obj: UpstreamAccount | None = None
    ) -> tuple[str, ...]:
        # Another kind would take other secrets: that is another account.
        return () if obj is None else ("kind", "credentials")

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, str | list[str]]:
        # Named one by one: a secret in an address must not come back in the page.
        return {
            name: request.GET[name] for name in ("name", "kind", "base_url") if name in request.GET
        }

    def save_model(
        self, request: HttpRequest, obj: UpstreamAccount, form: Any, change: bool
    ) -> None:
        super().save_model(request, obj, form, change)
        if isinstance(form, UpstreamAccountForm) and obj.kind != "demo":
            accounts.set_secrets(obj, form.new_secrets)
            for warning in form.warnings:
                self.message_user(request, warning, messages.WARNING)

    @admin.display(description="stored")
    def credentials(self, obj: UpstreamAccount) -> str:
        """Name what is stored, never its value."""
        try:
            secrets = accounts.get_secrets(obj)
        except encryption.EncryptionError as exc:
            return f"unreadable: {exc}"
        names = ", ".join(name.replace("_", " ") for name in secrets) or "nothing"
        expires = obj.secrets_expire_at
        if expires is None:
            return names
        verb = "expired" if expires < timezone.now() else "expires"
        return f"{names}; the session {verb} {expires:%Y-%m-%d %H:%M} UTC"

"""Keys and accounts in the browser: secrets go in, and come out once or never.

A new key's secret is on the page that answers its creation and nowhere else: Django's messages would keep
it in a cookie or in the session table. Credentials of accounts are write-only (`forms`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone

from qwenproxy.access import accounts, encryption, keys
from qwenproxy.access.browser_request import token_expiry
from qwenproxy.access.forms import ApiKeyForm, UpstreamAccountForm
from qwenproxy.access.models import ApiKey, UpstreamAccount

# Generic for the type checker alone.
if TYPE_CHECKING:
    ApiKeyModelAdmin = admin.ModelAdmin[ApiKey]
    UpstreamAccountModelAdmin = admin.ModelAdmin[UpstreamAccount]
else:
    ApiKeyModelAdmin = UpstreamAccountModelAdmin = admin.ModelAdmin

# From saving a new key to answering the same request; nothing else sees it.
_new_secrets: WeakKeyDictionary[HttpRequest, str] = WeakKeyDictionary()


@admin.register(ApiKey)
class ApiKeyAdmin(ApiKeyModelAdmin):
    form = ApiKeyForm
    list_display = ("name", "prefix", "scopes", "created_at", "revoked_at")
    search_fields = ("name", "prefix")
    ordering = ("-id",)
    readonly_fields = ("prefix", "created_at", "previous_expires_at", "revoked_at")
    actions = ("revoke", "rotate")
    show_full_result_count = False

    def get_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> tuple[str, ...]:
        return ("name", "scopes") if obj is None else ("name", "scopes", *self.readonly_fields)

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, str | list[str]]:
        return {"name": request.GET["name"]} if "name" in request.GET else {}

    def has_delete_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        # Records belong to their key for good; a key that is not wanted any more is revoked.
        return False

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        if not change:
            _new_secrets[request] = secret = keys.new_api_key()
            keys.assign_secret(obj, secret)
        super().save_model(request, obj, form, change)

    def response_add(
        self, request: HttpRequest, obj: ApiKey, post_url_continue: str | None = None
    ) -> HttpResponse:
        return self._show_secret(request, obj, _new_secrets.pop(request))

    def _show_secret(self, request: HttpRequest, api_key: ApiKey, secret: str) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": "API key",
            "api_key": api_key,
            "secret": secret,
        }
        return TemplateResponse(request, "admin/access/apikey/secret.html", context)

    @admin.action(description="Revoke the selected keys, for good", permissions=["change"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        revoked = list(queryset.filter(revoked_at=None))
        for api_key in revoked:
            keys.revoke_api_key(api_key)
            self.log_change(request, api_key, "Revoked.")
        self.message_user(request, f"{len(revoked)} revoked.", messages.SUCCESS)

    @admin.action(
        description="Rotate the selected key: a new secret, the old one works for 24 hours more",
        permissions=["change"],
    )
    def rotate(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> HttpResponse | None:
        try:
            api_key = queryset.get()
            secret = keys.rotate_api_key(api_key)
        except (ApiKey.DoesNotExist, ApiKey.MultipleObjectsReturned):
            self.message_user(request, "Select one key to rotate.", messages.WARNING)
            return None
        except keys.InvalidKey as exc:
            self.message_user(request, str(exc), messages.ERROR)
            return None
        self.log_change(request, api_key, "Rotated.")
        return self._show_secret(request, api_key, secret)


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
        expires = token_expiry(str(secrets.get("cookies", "")))
        if expires is None:
            return names
        verb = "expired" if expires < timezone.now() else "expires"
        return f"{names}; the session {verb} {expires:%Y-%m-%d %H:%M} UTC"

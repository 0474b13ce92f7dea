"""Keys in the browser: a secret comes out once.

A new key's secret is on the page that answers its creation and nowhere else: Django's messages would keep
it in a cookie or in the session table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from qwenproxy.access import keys
from qwenproxy.access.key_fields import InvalidKey, clean_scopes
from qwenproxy.access.models import SCOPES, ApiKey

# Generic for the type checker alone.
if TYPE_CHECKING:
    ApiKeyModelAdmin = admin.ModelAdmin[ApiKey]
    ApiKeyModelForm = forms.ModelForm[ApiKey]
else:
    ApiKeyModelAdmin, ApiKeyModelForm = admin.ModelAdmin, forms.ModelForm

_SCOPE_TEXTS = {
    "chat": "chat: ask models",
    "records": "records: read the records of this key",
    "admin": "admin: everything, the records of all keys too",
}


class ApiKeyForm(ApiKeyModelForm):
    scopes = forms.MultipleChoiceField(
        choices=[(scope, _SCOPE_TEXTS[scope]) for scope in SCOPES],
        widget=forms.CheckboxSelectMultiple,
    )

    class Meta:
        model = ApiKey
        fields: ClassVar = ["name", "scopes"]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial["scopes"] = self.instance.scopes.split()

    def clean_scopes(self) -> str:
        return clean_scopes(self.cleaned_data["scopes"])


# From saving a new key to answering the same request; nothing else sees it.
_new_secrets: WeakKeyDictionary[HttpRequest, str] = WeakKeyDictionary()


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
        except InvalidKey as exc:
            self.message_user(request, str(exc), messages.ERROR)
            return None
        self.log_change(request, api_key, "Rotated.")
        return self._show_secret(request, api_key, secret)

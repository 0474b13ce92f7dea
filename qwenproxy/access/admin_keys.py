"""Keys in the browser: a secret comes out once.

A new key's secret is on the page that answers its creation and nowhere else: Django's messages would keep
it in a cookie or in the session table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone

from qwenproxy.access import keys
from qwenproxy.access.key_fields import (
    MAX_LIMITS,
    InvalidKey,
    clean_field,
    limits_text,
    read_span,
    state_of,
    state_text,
)
from qwenproxy.access.models import SCOPES, ApiKey
from qwenproxy.access.usage import read_usage

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
_OVERLAPS = {
    "0h": "stops at once",
    "1h": "works 1 hour more",
    "24h": "works 24 hours more",
    "7d": "works 7 days more",
    "30d": "works 30 days more",
}


class ApiKeyForm(ApiKeyModelForm):
    """Takes an end and models as the commands do; what they may be is decided in `key_fields`."""

    scopes = forms.MultipleChoiceField(
        choices=[(scope, _SCOPE_TEXTS[scope]) for scope in SCOPES],
        widget=forms.CheckboxSelectMultiple,
    )
    expires_at = forms.CharField(
        required=False,
        label="Expires",
        widget=forms.TextInput(attrs={"class": "vTextField", "autocomplete": "off"}),
        help_text="Refused from then on: 2027-01-31, 2027-01-31 12:00 (UTC), or a span from now such as "
        "30d. Empty: never.",
    )
    allowed_models = forms.CharField(
        required=False,
        widget=forms.Textarea(attrs={"rows": 4, "cols": 60, "spellcheck": "false"}),
        help_text="One pattern a line, such as qwen3-*. Empty: every model. What counts is the model that "
        "is really asked, not its alias.",
    )

    class Meta:
        model = ApiKey
        fields: ClassVar = [
            "name", "scopes", "expires_at", "allowed_models", *MAX_LIMITS, "recorded",
        ]  # fmt: skip

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.initial["scopes"] = self.instance.scopes.split()
        if self.instance.expires_at is not None:
            self.initial["expires_at"] = f"{self.instance.expires_at:%Y-%m-%d %H:%M}"

    def clean_expires_at(self) -> object:
        # An end in the past may stay, and seconds are not shown.
        if "expires_at" not in self.changed_data:
            return self.instance.expires_at
        return self._clean("expires_at", self.cleaned_data["expires_at"] or None)

    def clean_allowed_models(self) -> object:
        lines = self.cleaned_data["allowed_models"].splitlines()
        return self._clean("allowed_models", [line for line in lines if line.strip()])

    def clean(self) -> dict[str, Any]:
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        for name in ("name", "scopes", *MAX_LIMITS):
            if name in cleaned:
                try:
                    cleaned[name] = clean_field(name, cleaned[name])
                except InvalidKey as exc:
                    self.add_error(name, str(exc))
        return cleaned

    def _clean(self, name: str, value: object) -> object:
        try:
            return clean_field(name, value)
        except InvalidKey as exc:
            raise forms.ValidationError(str(exc)) from exc


class StateFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(state, state) for state in ("active", "expired", "revoked")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> QuerySet[ApiKey]:
        is_over = Q(expires_at__lte=timezone.now())
        conditions = {
            "active": Q(revoked_at=None) & ~is_over,
            "expired": Q(revoked_at=None) & is_over,
            "revoked": Q(revoked_at__isnull=False),
        }
        return queryset.filter(conditions.get(self.value() or "", Q()))


# From saving a new key to answering the same request; nothing else sees it.
_new_secrets: WeakKeyDictionary[HttpRequest, str] = WeakKeyDictionary()


class ApiKeyAdmin(ApiKeyModelAdmin):
    form = ApiKeyForm
    list_display = ("name", "prefix", "state", "scopes", "limits", "created_at")
    list_filter = (StateFilter,)
    search_fields = ("name", "prefix")
    ordering = ("-id",)
    readonly_fields = ("prefix", "state", "used", "created_at", "previous_expires_at", "revoked_at")
    actions = ("revoke", "rotate")
    show_full_result_count = False
    change_form_template = "admin/access/apikey/change_form.html"

    def get_fieldsets(self, request: HttpRequest, obj: ApiKey | None = None) -> list[Any]:
        sets = [
            (None, {"fields": ("name", "scopes", "expires_at")}),
            ("Models", {"fields": ("allowed_models",)}),
            (
                "Limits",
                {
                    "fields": tuple(MAX_LIMITS),
                    "description": "Empty: no limit. 0: nothing passes. Tokens are those of both "
                    "directions; days and months are UTC's.",
                },
            ),
            ("Record", {"fields": ("recorded",)}),
        ]
        if obj is not None:
            sets.insert(0, ("Now", {"fields": self.readonly_fields}))
        return sets

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, str | list[str]]:
        return {"name": request.GET["name"]} if "name" in request.GET else {}

    def has_delete_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        # Records belong to their key for good; a key that is not wanted any more is revoked.
        return False

    @admin.display(description="state")
    def state(self, obj: ApiKey) -> str:
        return state_text(obj, timezone.now())

    @admin.display(description="limits")
    def limits(self, obj: ApiKey) -> str:
        return limits_text(obj) or "none"

    @admin.display(description="used")
    def used(self, obj: ApiKey) -> str:
        usage = read_usage([obj], timezone.now()).get(obj.pk)
        if usage is None:
            return "not counted: the key has no limits"
        return _usage_text(usage)

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        if change:
            # The others stay as they are by now: the key may have been revoked while the form was open.
            obj.save(update_fields=form.changed_data)
            return
        _new_secrets[request] = secret = keys.new_api_key()
        keys.assign_secret(obj, secret)
        obj.save(force_insert=True)

    def response_add(
        self, request: HttpRequest, obj: ApiKey, post_url_continue: str | None = None
    ) -> HttpResponse:
        return self._show_secret(request, obj, _new_secrets.pop(request))

    def get_urls(self) -> list[URLPattern]:
        def wrap(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
            return self.admin_site.admin_view(view)

        own = [
            path("<path:object_id>/rotate/", wrap(self.rotate_view), name="access_apikey_rotate"),
            path("<path:object_id>/revoke/", wrap(self.revoke_view), name="access_apikey_revoke"),
        ]
        return own + super().get_urls()

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        obj = self.get_object(request, unquote(object_id))
        context = {
            "can_rotate": obj is not None and state_of(obj, timezone.now()) == "active",
            "can_revoke": obj is not None and obj.revoked_at is None,
            **(extra_context or {}),
        }
        return super().change_view(request, object_id, form_url, context)

    def rotate_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask how long the present secret works on; then show the new one."""
        api_key = self._changeable(request, object_id)
        if request.method != "POST":
            return self._confirm(request, api_key, "Rotate", _OVERLAPS)
        try:
            span = read_span(request.POST.get("overlap", ""))
            secret = keys.rotate_api_key(api_key, overlap=span)
        except (ValueError, OverflowError) as exc:
            self.message_user(request, str(exc), messages.ERROR)
            return HttpResponseRedirect(_change_url(api_key))
        self.log_change(request, api_key, "Rotated.")
        return self._show_secret(request, api_key, secret)

    def revoke_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then refuse the key for good."""
        api_key = self._changeable(request, object_id)
        if request.method != "POST":
            return self._confirm(request, api_key, "Revoke", {})
        if keys.revoke_api_key(api_key):
            self.log_change(request, api_key, "Revoked.")
        self.message_user(request, f"{api_key} is revoked.", messages.SUCCESS)
        return HttpResponseRedirect(_change_url(api_key))

    def _changeable(self, request: HttpRequest, object_id: str) -> ApiKey:
        api_key = self.get_object(request, unquote(object_id))
        if api_key is None:
            raise Http404
        if not self.has_change_permission(request, api_key):
            raise PermissionDenied
        return api_key

    def _confirm(
        self, request: HttpRequest, api_key: ApiKey, verb: str, overlaps: dict[str, str]
    ) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": f"{verb} {api_key.name}",
            "verb": verb,
            "api_key": api_key,
            "overlaps": overlaps,
        }
        return TemplateResponse(request, "admin/access/apikey/confirm.html", context)

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


def _usage_text(usage: Mapping[str, Any]) -> str:
    """Usage for a person's eyes, as `read_usage` gives it."""
    spans = {"the last minute": "minute", "this day": "day", "this month": "month"}
    counts = [
        f"{count['requests']:,} requests and {count['tokens']:,} tokens in {text}"
        for text, span in spans.items()
        if (count := usage[span]) is not None
    ]
    return "; ".join([*counts, f"{usage['running']} running"])


def _change_url(api_key: ApiKey) -> str:
    return reverse("admin:access_apikey_change", args=[api_key.pk])

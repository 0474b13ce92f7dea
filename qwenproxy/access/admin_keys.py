"""Keys in the browser: a secret comes out once.

A new secret is on the page that answers the form and nowhere else: Django's messages would keep it in a
cookie or in the session table. That page loaded anew makes nothing and shows nothing (`once`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Q, QuerySet
from django.forms import Media, Script
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone

from qwenproxy.access import keys, once, staff
from qwenproxy.access.key_fields import DAYS, MAX_LIMITS, read_span
from qwenproxy.access.key_form import ApiKeyForm
from qwenproxy.access.key_rows import EXPIRING, KeyRow, is_in_use, read_rows
from qwenproxy.access.key_secret import secret_context
from qwenproxy.access.models import ApiKey

# Generic for the type checker alone.
if TYPE_CHECKING:
    ApiKeyModelAdmin = admin.ModelAdmin[ApiKey]
else:
    ApiKeyModelAdmin = admin.ModelAdmin

# Of all pages of this package.
_SCRIPTS: list[Any] = [Script("qwenproxy/access.js", defer=True)]
MEDIA = Media(css={"all": ["qwenproxy/access.css"]}, js=_SCRIPTS)
_OVERLAPS = {
    "0h": "stops at once",
    "1h": "works 1 hour more",
    "24h": "works 24 hours more",
    "7d": "works 7 days more",
    "30d": "works 30 days more",
}
_SENT_BEFORE = (
    "This form was sent before, and nothing was made again. A secret is shown once; where it is lost, "
    "rotate the key for another one."
)


class StateFilter(admin.SimpleListFilter):
    """By state; keys that are revoked are shown where they are asked for."""

    title = "state"
    parameter_name = "state"
    template = "admin/access/states.html"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        states = ("active", "expiring", "expired", "revoked", "all")
        return [(state, state.capitalize()) for state in states]

    def choices(self, changelist: Any) -> Iterator[Any]:
        default, *others = super().choices(changelist)
        yield {**default, "display": "Not revoked"}
        yield from others

    def queryset(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> QuerySet[ApiKey]:
        now = timezone.now()
        in_use, is_over = Q(revoked_at=None), Q(expires_at__lte=now)
        conditions = {
            "active": in_use & ~is_over,
            "expiring": in_use & ~is_over & Q(expires_at__lte=now + EXPIRING),
            "expired": in_use & is_over,
            "revoked": ~in_use,
            "all": Q(),
        }
        return queryset.filter(conditions.get(self.value() or "", in_use))


class StatesList(ChangeList):
    """A list whose one filter is the state; other parameters are no lookups into columns."""

    def get_filters_params(self, params: dict[str, Any] | None = None) -> dict[str, Any]:
        filters: dict[str, Any] = super().get_filters_params(params)
        return {name: filters[name] for name in filters if name == "state"}


class KeyChangeList(StatesList):
    key_rows: list[KeyRow]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.title = "API keys"

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.result_list = list(self.result_list)
        self.key_rows = read_rows(self.model_admin.admin_site, self.result_list)


# From saving a new key to answering the same request; nothing else sees it.
_new_secrets: WeakKeyDictionary[HttpRequest, str] = WeakKeyDictionary()


class ApiKeyAdmin(ApiKeyModelAdmin):
    form = ApiKeyForm
    list_filter = (StateFilter,)
    search_fields = ("name", "prefix")
    search_help_text = "A part of a key's name or of its visible beginning."
    ordering = ("-id",)
    list_per_page = 50
    actions = ("expire", "revoke", "rotate")
    show_full_result_count = False
    change_list_template = "admin/access/apikey/change_list.html"
    change_form_template = "admin/access/apikey/change_form.html"

    @property
    def media(self) -> Media:
        return super().media + MEDIA

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return KeyChangeList

    def get_form(
        self, request: HttpRequest, obj: ApiKey | None = None, change: bool = False, **kwargs: Any
    ) -> type[ApiKeyForm]:
        # A class of this request's own.
        form = cast(type[ApiKeyForm], super().get_form(request, obj, change, **kwargs))
        form.may_give_admin = _is_superuser(request)
        return form

    def get_fieldsets(self, request: HttpRequest, obj: ApiKey | None = None) -> list[Any]:
        return [
            (None, {"fields": ("name", "scopes", "expires_at", "allowed_models")}),
            (
                "Limits",
                {
                    "fields": tuple(MAX_LIMITS),
                    "description": "Empty: no limit. 0: nothing passes.",
                    "classes": ("limits",),
                },
            ),
            ("Record", {"fields": ("recorded", *DAYS)}),
        ]

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, str | list[str]]:
        return {"name": request.GET["name"]} if "name" in request.GET else {}

    def has_delete_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        # Records belong to their key for good; a key that is not wanted any more is revoked.
        return False

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        if change:
            # The others stay as they are by now: the key may have been revoked while the form was open.
            obj.save(update_fields=form.changed_data)
            return
        _new_secrets[request] = secret = keys.new_api_key()
        keys.assign_secret(obj, secret)
        obj.save(force_insert=True)
        once.note(request, obj.pk)

    def add_view(
        self, request: HttpRequest, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        # Each of Django's buttons leads to the page of the secret: one is enough.
        context = {
            "title": "Create an API key",
            "once": request.POST.get(once.FIELD) or once.new_token(),
            "show_save_and_add_another": False,
            "show_save_and_continue": False,
            **(extra_context or {}),
        }
        try:
            return super().add_view(request, form_url, context)
        except once.SentBefore as exc:
            return self._sent_before(request, exc)

    def response_add(
        self, request: HttpRequest, obj: ApiKey, post_url_continue: str | None = None
    ) -> HttpResponse:
        return self._show_secret(request, obj, _new_secrets.pop(request))

    def get_urls(self) -> list[URLPattern]:
        guard = staff.gateway_view(staff.CHANGE_KEYS)
        own = [
            path("<path:object_id>/rotate/", guard(self.rotate_view), name="access_apikey_rotate"),
            path("<path:object_id>/revoke/", guard(self.revoke_view), name="access_apikey_revoke"),
        ]
        return own + super().get_urls()

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
            obj = self.get_object(request, unquote(object_id))
            if obj is not None:
                (row,) = read_rows(self.admin_site, [obj], ("24h", "7d"))
                can_rotate = is_in_use(row.state) and _may_have_secret(request, obj)
                context |= {"row": row, "can_rotate": can_rotate}
                context |= {"title": obj.name, "subtitle": ""}
        return super().change_view(request, object_id, form_url, context)

    def rotate_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask how long the present secret works on; then show the new one."""
        api_key = self._found(request, object_id)
        if not _may_have_secret(request, api_key):
            raise PermissionDenied
        if request.method != "POST":
            return self._confirm(request, [api_key], "Rotate", overlaps=_OVERLAPS)
        try:
            with transaction.atomic():
                span = read_span(request.POST.get("overlap", ""))
                secret = keys.rotate_api_key(api_key, overlap=span)
                once.note(request, api_key.pk)
                self.log_change(request, api_key, "Rotated.")
        except once.SentBefore as exc:
            return self._sent_before(request, exc)
        except (ValueError, OverflowError) as exc:
            self.message_user(request, str(exc), messages.ERROR)
            return HttpResponseRedirect(_change_url(api_key.pk))
        return self._show_secret(request, api_key, secret)

    def revoke_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Ask, then refuse the key for good."""
        api_key = self._found(request, object_id)
        if request.method != "POST":
            return self._confirm(request, [api_key], "Revoke")
        if keys.revoke_api_key(api_key):
            self.log_change(request, api_key, "Revoked.")
        self.message_user(request, f"{api_key} is revoked.", messages.SUCCESS)
        return HttpResponseRedirect(_change_url(api_key.pk))

    def _found(self, request: HttpRequest, object_id: str) -> ApiKey:
        api_key = self.get_object(request, unquote(object_id))
        if api_key is None:
            raise Http404
        return api_key

    def _sent_before(self, request: HttpRequest, exc: once.SentBefore) -> HttpResponse:
        self.message_user(request, _SENT_BEFORE, messages.WARNING)
        return HttpResponseRedirect(_change_url(exc.pk))

    def _confirm(
        self, request: HttpRequest, api_keys: list[ApiKey], verb: str, **more: object
    ) -> HttpResponse:
        """Ask before something that cannot be undone; `more` goes to the template."""
        names = api_keys[0].name if len(api_keys) == 1 else f"{len(api_keys)} keys"
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "media": MEDIA,
            "title": f"{verb} {names}",
            "verb": verb,
            "rows": read_rows(self.admin_site, api_keys),
            "once": once.new_token(),
            **more,
        }
        return TemplateResponse(request, "admin/access/apikey/confirm.html", context)

    def _show_secret(self, request: HttpRequest, api_key: ApiKey, secret: str) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "media": MEDIA,
            **secret_context(request, api_key, secret),
        }
        return TemplateResponse(request, "admin/access/apikey/secret.html", context)

    @admin.action(
        description="Disable the selected keys: expired from now on, until another end is set",
        permissions=["change"],
    )
    def expire(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> None:
        expired = [api_key for api_key in queryset if keys.expire_api_key(api_key)]
        for api_key in expired:
            self.log_change(request, api_key, "Disabled: expired at once.")
        self.message_user(request, f"{len(expired)} disabled.", messages.SUCCESS)

    @admin.action(description="Revoke the selected keys, for good", permissions=["change"])
    def revoke(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> HttpResponse | None:
        chosen = list(queryset.filter(revoked_at=None))
        if chosen and "confirmed" not in request.POST:
            return self._confirm(request, chosen, "Revoke", action="revoke")
        for api_key in chosen:
            keys.revoke_api_key(api_key)
            self.log_change(request, api_key, "Revoked.")
        self.message_user(request, f"{len(chosen)} revoked.", messages.SUCCESS)
        return None

    @admin.action(
        description="Rotate the selected key: a new secret, the old one works on for a while",
        permissions=["change"],
    )
    def rotate(self, request: HttpRequest, queryset: QuerySet[ApiKey]) -> HttpResponse | None:
        chosen = list(queryset.values_list("pk", flat=True)[:2])
        if len(chosen) != 1:
            self.message_user(request, "Select one key to rotate.", messages.WARNING)
            return None
        return HttpResponseRedirect(reverse("admin:access_apikey_rotate", args=chosen))


def _is_superuser(request: HttpRequest) -> bool:
    return request.user.is_superuser


def _may_have_secret(request: HttpRequest, api_key: ApiKey) -> bool:
    """Whoever has the secret of a key with the scope admin may all that a superuser does with records."""
    return _is_superuser(request) or "admin" not in api_key.scopes.split()


def _change_url(pk: int) -> str:
    return reverse("admin:access_apikey_change", args=[pk])

"""The admin site: what is on its first page, how its pages are grouped, and the migration status.

A composition root: it shows what other parts know, and keeps nothing itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.contrib import messages
from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver, path, reverse

from qwenproxy.proxy.discovery import Found, found
from qwenproxy.schema.status import read_brief, read_overview

if TYPE_CHECKING:
    from qwenproxy.proxy.account_test import Tested

# Of a row.
_ID = re.compile("[0-9]{1,18}")
# Headings and their models, by label; models that nobody listed come under the last one.
_GROUPS = (
    ("Traffic", ("sessions_app.session", "requests_app.request", "requests_app.response")),
    ("Access", ("access.apikey", "access.upstreamaccount", "auth.user", "auth.group")),
    ("System", ()),
)


class GatewayAdminSite(AdminSite):
    site_header = "Qwen Proxy"
    site_title = "Qwen Proxy"
    index_title = "Overview"
    # There is no site besides it.
    site_url = None

    def get_urls(self) -> list[URLPattern | URLResolver]:
        own: list[URLPattern | URLResolver] = [
            path("migrations/", self.admin_view(self.migrations), name="migrations"),
            path("test-accounts/", self.admin_view(self.test_accounts), name="test_accounts"),
        ]
        return own + super().get_urls()

    def get_app_list(self, request: HttpRequest, app_label: str | None = None) -> list[Any]:
        apps = super().get_app_list(request, app_label)
        if app_label is not None:
            return apps
        models = {
            f"{app['app_label']}.{model['object_name'].lower()}": model
            for app in apps
            for model in app["models"]
        }
        groups = [
            _group(name, [models.pop(label) for label in labels if label in models])
            for name, labels in _GROUPS
        ]
        groups[-1]["models"] += [_page("Migrations", "admin:migrations"), *models.values()]
        return [group for group in groups if group["models"]]

    def index(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> TemplateResponse:
        schema = read_brief()
        # While migrations wait, tables of ours may not be there.
        discovered = discovered_upstreams() if schema.is_clean else []
        context = {"schema": schema, "discovered": discovered, **(extra_context or {})}
        return super().index(request, context)

    def migrations(self, request: HttpRequest) -> HttpResponse:
        """Show where the schema stands and how it came there; changes nothing.

        It works where tables of ours are missing.
        """
        context = {
            **self.each_context(request),
            "title": "Migrations",
            "schema": read_overview(),
            # Errors quote data, and paths of backups are not for everyone.
            "may_see_history": request.user.has_perm("schema.view_migrationevent"),
        }
        return TemplateResponse(request, "admin/migrations.html", context)

    def test_accounts(self, request: HttpRequest) -> HttpResponse:
        """Call the upstreams of the accounts that a form of theirs names, and say what came of it."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        if not request.user.has_perm("access.change_upstreamaccount"):
            raise PermissionDenied
        # Not at the top: this module is loaded before the models are.
        from qwenproxy.access.models import UpstreamAccount

        # As above.
        from qwenproxy.proxy.account_test import test_accounts

        ids = [int(pk) for pk in request.POST.getlist("_selected_action") if _ID.fullmatch(pk)]
        names = dict(UpstreamAccount.objects.filter(pk__in=ids).values_list("pk", "name"))
        for pk, tested in test_accounts(list(names)).items():
            level = messages.SUCCESS if tested.is_ok else messages.ERROR
            messages.add_message(request, level, f"Account {names[pk]}: {_outcome(tested)}")
        return HttpResponseRedirect(reverse("admin:access_upstreamaccount_changelist"))


def _outcome(tested: Tested) -> str:
    if not tested.is_ok:
        return f"{tested.code} after {tested.ms:,} ms. {tested.message} Way out: {tested.way_out}."
    listed = "it has no model list" if tested.models is None else f"models: {tested.models}"
    session = f", session: {tested.session.replace('_', ' ')}" if tested.session else ""
    return f"answered in {tested.ms:,} ms, {listed}{session}."


def discovered_upstreams() -> Sequence[Found]:
    """Servers found on this machine that no account uses yet."""
    offers = found()
    if not offers:
        return []
    # Not at the top: this module is loaded before the models are.
    from qwenproxy.access.models import UpstreamAccount

    used = {url.rstrip("/") for url in UpstreamAccount.objects.values_list("base_url", flat=True)}
    return [offer for offer in offers if offer.base_url.rstrip("/") not in used]


def _group(name: str, models: list[Any]) -> dict[str, Any]:
    return {
        "name": name,
        "app_label": name.lower(),
        "app_url": reverse("admin:index"),
        "has_module_perms": True,
        "models": models,
    }


def _page(name: str, view_name: str) -> dict[str, Any]:
    """A page of the site in the form in which Django lists models."""
    return {
        "name": name,
        "object_name": name,
        "admin_url": reverse(view_name),
        "add_url": None,
        "view_only": True,
        "perms": {"view": True},
    }

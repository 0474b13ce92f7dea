"""The admin site: what is on its first page, how its pages are grouped, and the migration status.

A composition root: it shows what other parts know, and keeps nothing itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.contrib import messages
from django.contrib.admin import AdminSite
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver, path, reverse

from qwenproxy.access import staff
from qwenproxy.access.traffic import Group, Span, Traffic
from qwenproxy.schema.status import read_brief, read_overview

if TYPE_CHECKING:
    from qwenproxy.proxy.account_test import Tested
    from qwenproxy.proxy.gateway import Gateway

# Of a row.
_ID = re.compile("[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Page:
    """An entry of the navigation: whoever has one of the permissions sees it; with none, all staff."""

    label: str
    view_name: str
    permissions: tuple[str, ...] = ()
    # What its own pages' addresses begin with, where that is not its own.
    also: tuple[str, ...] = ()


NAVIGATION: tuple[tuple[str, tuple[Page, ...]], ...] = (
    ("", (Page("Overview", "admin:index"),)),
    (
        "Traffic",
        (
            Page("Sessions", "admin:sessions_app_session_changelist", (staff.VIEW_SESSIONS,)),
            Page("Requests", "admin:requests_app_request_changelist", (staff.VIEW_REQUESTS,)),
            Page("Errors", "admin:errors", (staff.VIEW_REQUESTS,)),
            Page("Live tail", "admin:live", (staff.VIEW_REQUESTS,)),
            Page("Playground", "admin:playground", (staff.USE_PLAYGROUND,)),
        ),
    ),
    (
        "Access",
        (
            Page("API keys", "admin:access_apikey_changelist", (staff.VIEW_KEYS,)),
            Page(
                "Upstream accounts",
                "admin:access_upstreamaccount_changelist",
                (staff.VIEW_ACCOUNTS,),
            ),
            Page(
                "Users & groups",
                "admin:auth_user_changelist",
                ("auth.view_user",),
                also=("admin:auth_group_changelist",),
            ),
        ),
    ),
    (
        "System",
        (
            Page(
                "Migrations", "admin:migrations", also=("admin:schema_migrationevent_changelist",)
            ),
            Page("Health", "admin:health", (staff.VIEW_HEALTH,)),
            Page("Audit", "admin:admin_logentry_changelist", (staff.VIEW_AUDIT,)),
        ),
    ),
)


class GatewayAdminSite(AdminSite):
    site_header = "Qwen Proxy"
    site_title = "Qwen Proxy"
    index_title = "Overview"
    # There is no site besides it.
    site_url = None

    def login(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        # Not at the top: this module is loaded before the models are.
        from qwenproxy.access.sign_in import SignInForm

        self.login_form = SignInForm
        response = super().login(request, extra_context)
        form = (getattr(response, "context_data", None) or {}).get("form")
        if isinstance(form, SignInForm) and form.wait_s:
            response.status_code = 429
            response.headers["Retry-After"] = str(form.wait_s)
        return response

    def get_urls(self) -> list[URLPattern | URLResolver]:
        # Not at the top: this module is loaded before the models are.
        from qwenproxy.dashboard import playground

        # As above.
        from qwenproxy.dashboard.health_page import health

        # As above.
        from qwenproxy.dashboard.key_usage import export_usage

        # As above.
        from requests_app.error_groups import errors

        # As above.
        from requests_app.exports import export_requests, export_sessions

        # As above.
        from requests_app.live import live, live_rows

        # As above.
        from requests_app.pictures import picture

        own: list[URLPattern | URLResolver] = [
            path("errors/", errors, name="errors"),
            path("export/requests/", export_requests, name="export_requests"),
            path("export/sessions/", export_sessions, name="export_sessions"),
            path("export/usage/<int:key_id>/", export_usage, name="export_usage"),
            path("live/", live, name="live"),
            path("live/rows/", live_rows, name="live_rows"),
            path("picture/<str:message_id>/<str:digest>/", picture, name="picture"),
            path("playground/", playground.playground, name="playground"),
            path("playground/key/", playground.playground_key, name="playground_key"),
            path(
                "playground/record/<str:request_id>/",
                playground.playground_record,
                name="playground_record",
            ),
            path("health/", health, name="health"),
            path("migrations/", staff.gateway_view()(self.migrations), name="migrations"),
            path(
                "test-accounts/",
                staff.gateway_view(staff.CHANGE_ACCOUNTS)(self.test_accounts),
                name="test_accounts",
            ),
        ]
        return own + super().get_urls()

    def each_context(self, request: HttpRequest) -> dict[str, Any]:
        return {
            **super().each_context(request),
            "navigation": _navigation(request),
            "reporting_zone": str(settings.REPORTING_ZONE),
        }

    def get_app_list(
        self, request: HttpRequest, app_label: str | None = None
    ) -> list[dict[str, Any]]:
        # Of all models: every page would ask for it, and shows `NAVIGATION` instead.
        return [] if app_label is None else super().get_app_list(request, app_label)

    def index(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> TemplateResponse:
        # Not at the top: this module is loaded before the models are.
        from qwenproxy.dashboard.front import front_context

        schema = read_brief()
        context: dict[str, Any] = {"schema": schema}
        # While migrations wait, tables of ours may not be there.
        if schema.is_clean:
            context |= front_context(request)
        return super().index(request, {**context, **(extra_context or {})})

    def traffic(self, group: Group, ids: Sequence[int], spans: Sequence[Span]) -> Traffic:
        """What keys or accounts did of late, for their pages (`access.traffic.TrafficSite`)."""
        # Not at the top: this module is loaded before the models are.
        from qwenproxy.dashboard.traffic import read_traffic

        return read_traffic(group, ids, spans)

    def in_flight(self, request: HttpRequest) -> Mapping[int, int] | None:
        """Calls that run now by account (`access.traffic.TrafficSite`)."""
        # A test's request comes without a server.
        gateway: Gateway | None = getattr(request, "scope", {}).get("gateway")
        return None if gateway is None else gateway.routing.running()

    def migrations(self, request: HttpRequest) -> HttpResponse:
        """Show where the schema stands and how it came there; changes nothing.

        It works where tables of ours are missing.
        """
        context = {
            **self.each_context(request),
            "title": "Migrations",
            "schema": read_overview(),
            # Errors quote data, and paths of backups are not for everyone.
            "may_see_history": request.user.has_perm(staff.VIEW_MIGRATION_EVENTS),
        }
        return TemplateResponse(request, "admin/migrations.html", context)

    def test_accounts(self, request: HttpRequest) -> HttpResponse:
        """Call the upstreams of the accounts that a form of theirs names, and say what came of it."""
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        # Not at the top: this module is loaded before the models are.
        from qwenproxy.access.models import UpstreamAccount

        # As above.
        from qwenproxy.proxy.account_test import test_accounts

        ids = [int(pk) for pk in request.POST.getlist("_selected_action") if _ID.fullmatch(pk)]
        names = dict(UpstreamAccount.objects.filter(pk__in=ids).values_list("pk", "name"))
        for pk, tested in test_accounts(list(names)).items():
            level = messages.SUCCESS if tested.is_ok else messages.ERROR
            messages.add_message(request, level, f"Account {names[pk]}: {_outcome(tested)}")
        if len(names) == 1 and request.POST.get("back") == "account":
            return HttpResponseRedirect(
                reverse("admin:access_upstreamaccount_change", args=list(names))
            )
        return HttpResponseRedirect(reverse("admin:access_upstreamaccount_changelist"))


def _outcome(tested: Tested) -> str:
    if not tested.is_ok:
        return f"{tested.code} after {tested.ms:,} ms. {tested.message} Way out: {tested.way_out}."
    listed = "it has no model list" if tested.models is None else f"models: {tested.models}"
    session = f", session: {tested.session.replace('_', ' ')}" if tested.session else ""
    return f"answered in {tested.ms:,} ms, {listed}{session}."


def _navigation(request: HttpRequest) -> list[tuple[str, list[dict[str, Any]]]]:
    """Headings with the entries that this user may follow."""
    groups = []
    for heading, pages in NAVIGATION:
        entries = [_entry(page, request) for page in pages if _may_see(page, request)]
        if entries:
            groups.append((heading, entries))
    return groups


def _may_see(page: Page, request: HttpRequest) -> bool:
    return not page.permissions or any(map(request.user.has_perm, page.permissions))


def _entry(page: Page, request: HttpRequest) -> dict[str, Any]:
    urls = [reverse(name) for name in (page.view_name, *page.also)]
    if page.view_name == "admin:index":
        is_current = request.path == urls[0]
    else:
        is_current = request.path.startswith(tuple(urls))
    return {"label": page.label, "url": urls[0], "is_current": is_current}

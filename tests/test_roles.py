"""Every address below /admin/ and every role: what each may see is written down here, and nothing else passes.

The roles are nested, so one word says who may: the lowest role that gets an answer; those below it get 403.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import Group, User
from django.contrib.contenttypes.models import ContentType
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver

from qwenproxy.access import staff
from qwenproxy.schema.models import MigrationEvent
from tests.access.test_staff import make_groups
from tests.factories import make_account, make_api_key, make_session, make_turn

pytestmark = pytest.mark.django_db

# From the lowest to the highest; each may what the one before may.
ROLES = ("staff", "viewer", "auditor", "operator", "superuser")
NOBODY = ""

# Route -> the lowest role that is answered, and the status it gets (200 where nothing is said).
EXPECTED: dict[str, str | tuple[str, int]] = {
    "": "staff",
    "errors/": "viewer",
    "live/": "viewer",
    "live/rows/": "viewer",
    "playground/": "operator",
    "playground/key/": ("operator", 405),
    # To the page of the request.
    "playground/record/<str:request_id>/": ("operator", 302),
    "health/": "operator",
    "export/requests/": "auditor",
    "export/sessions/": "auditor",
    "export/usage/<int:key_id>/": "operator",
    # Of no message.
    "picture/<str:message_id>/<str:digest>/": ("auditor", 404),
    # Whoever signs in may know whether the database is well; what was run and who did is the auditor's.
    "migrations/": "staff",
    "test-accounts/": ("operator", 405),
    # Django's own.
    "login/": ("staff", 302),
    "logout/": ("staff", 405),
    "password_change/": "staff",
    "password_change/done/": "staff",
    "jsi18n/": "staff",
    "autocomplete/": NOBODY,
    # No row of ours has a page outside of the admin.
    "r/<path:content_type_id>/<path:object_id>/": ("staff", 404),
    "(?P<url>.*)$": ("staff", 404),
    "access/apikey/": "operator",
    "access/apikey/add/": "operator",
    "access/apikey/<path:object_id>/": ("staff", 302),
    "access/apikey/<path:object_id>/change/": "operator",
    "access/apikey/<path:object_id>/history/": "operator",
    # A key is revoked, never deleted.
    "access/apikey/<path:object_id>/delete/": NOBODY,
    "access/apikey/<path:object_id>/rotate/": "operator",
    "access/apikey/<path:object_id>/revoke/": "operator",
    "access/upstreamaccount/": "operator",
    "access/upstreamaccount/add/": "operator",
    "access/upstreamaccount/<path:object_id>/": ("staff", 302),
    "access/upstreamaccount/<path:object_id>/change/": "operator",
    "access/upstreamaccount/<path:object_id>/history/": "operator",
    "access/upstreamaccount/<path:object_id>/delete/": "superuser",
    "access/upstreamaccount/<path:object_id>/pause/": ("operator", 405),
    "access/upstreamaccount/<path:object_id>/resume/": ("operator", 405),
    "schema/migrationevent/": "auditor",
    "schema/migrationevent/add/": NOBODY,
    "schema/migrationevent/<path:object_id>/": ("staff", 302),
    "schema/migrationevent/<path:object_id>/change/": "auditor",
    "schema/migrationevent/<path:object_id>/history/": "auditor",
    "schema/migrationevent/<path:object_id>/delete/": NOBODY,
    "sessions_app/session/": "viewer",
    "sessions_app/session/add/": NOBODY,
    "sessions_app/session/<path:object_id>/": ("staff", 302),
    "sessions_app/session/<path:object_id>/change/": "viewer",
    "sessions_app/session/<path:object_id>/history/": "viewer",
    "sessions_app/session/<path:object_id>/delete/": "superuser",
    "requests_app/request/": "viewer",
    "requests_app/request/add/": NOBODY,
    "requests_app/request/<path:object_id>/": ("staff", 302),
    "requests_app/request/<path:object_id>/change/": "viewer",
    "requests_app/request/<path:object_id>/history/": "viewer",
    "requests_app/request/<path:object_id>/delete/": NOBODY,
    # Responses are shown with their requests.
    "requests_app/response/": ("viewer", 302),
    "requests_app/response/add/": NOBODY,
    "requests_app/response/<path:object_id>/": ("staff", 302),
    "requests_app/response/<path:object_id>/change/": ("viewer", 302),
    "requests_app/response/<path:object_id>/history/": "viewer",
    "requests_app/response/<path:object_id>/delete/": NOBODY,
    "auth/user/": "superuser",
    "auth/user/add/": "superuser",
    "auth/user/<path:object_id>/": ("staff", 302),
    "auth/user/<path:object_id>/change/": "superuser",
    "auth/user/<path:object_id>/history/": "superuser",
    "auth/user/<path:object_id>/delete/": "superuser",
    "auth/user/<id>/password/": "superuser",
    "auth/group/": "superuser",
    "auth/group/add/": "superuser",
    "auth/group/<path:object_id>/": ("staff", 302),
    "auth/group/<path:object_id>/change/": "superuser",
    "auth/group/<path:object_id>/history/": "superuser",
    "auth/group/<path:object_id>/delete/": "superuser",
    "admin/logentry/": "auditor",
    "admin/logentry/add/": NOBODY,
    "admin/logentry/<path:object_id>/": ("staff", 302),
    "admin/logentry/<path:object_id>/change/": ("auditor", 302),
    "admin/logentry/<path:object_id>/history/": "auditor",
    "admin/logentry/<path:object_id>/delete/": NOBODY,
}
# Lists of an app's models: those with no model to see are not found, as Django has it.
APP_LISTS = {
    "access": "operator",
    "schema": "auditor",
    "sessions_app": "viewer",
    "requests_app": "viewer",
    "auth": "superuser",
    "admin": "auditor",
}
# Their guards ask for less than what they show by default: the figures alone, as CSV, are the viewer's, and
# of sessions it depends on QWENPROXY_PAYLOADS as well.
ASK_FURTHER = {
    "export/requests/": "viewer",
    "export/sessions/": "viewer",
    "picture/<str:message_id>/<str:digest>/": "viewer",
}
# They answer whoever is not signed in; all others send to the login.
OPEN = {"login/": 200}
# What Django adds for a site and for each of its models; each asks for permissions itself.
DJANGOS_OWN = {
    *("index", "login", "logout", "password_change", "password_change_done", "jsi18n"),
    *("autocomplete", "view_on_site", "app_list"),
}
DJANGOS_PAGES = ("_changelist", "_add", "_history", "_delete", "_change", "_password_change")


def routes() -> Iterator[tuple[str, URLPattern]]:
    def walk(resolver: URLResolver, prefix: str) -> Iterator[tuple[str, URLPattern]]:
        for entry in resolver.url_patterns:
            route = prefix + str(entry.pattern)
            if isinstance(entry, URLResolver):
                yield from walk(entry, route)
            else:
                yield route, entry

    for route, entry in walk(get_resolver(), ""):
        if route.startswith("admin/") and entry.name != "app_list":
            yield route.removeprefix("admin/"), entry


def expected(route: str) -> tuple[str, int]:
    entry = EXPECTED[route]
    return (entry, 200) if isinstance(entry, str) else entry


def is_djangos(entry: URLPattern) -> bool:
    name = entry.name or ""
    return not name or name in DJANGOS_OWN or name.endswith(DJANGOS_PAGES)


def make_user(role: str) -> User:
    make_groups()
    user = User.objects.create_user(
        f"the {role}", password="x", is_staff=True, is_superuser=role == "superuser"
    )
    if role in ("viewer", "auditor", "operator"):
        user.groups.add(Group.objects.get(name=role.capitalize()))
    return user


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Each refusal is logged with its stack, and there are hundreds."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def rows() -> dict[str, Any]:
    """Something that each route with an id means."""
    key = make_api_key()
    response = make_turn(make_session(key, title="first"))
    other = User.objects.create_user("somebody else")
    entry = LogEntry.objects.create(
        user=other,
        content_type=ContentType.objects.get_for_model(key),
        object_id=str(key.pk),
        object_repr=str(key),
        action_flag=CHANGE,
    )
    return {
        "access/apikey/": key.pk,
        "access/upstreamaccount/": make_account().pk,
        "schema/migrationevent/": MigrationEvent.objects.latest("id").pk,
        "sessions_app/session/": response.session_id,
        "requests_app/request/": response.request_id,
        "requests_app/response/": response.pk,
        "auth/user/": other.pk,
        "auth/group/": Group.objects.create(name="another").pk,
        "admin/logentry/": entry.pk,
        "export/usage/": key.pk,
        "playground/record/": response.request.request_id,
        "r/": 1,
    }


def url_of(route: str, rows: dict[str, Any]) -> str:
    pk = next((str(rows[name]) for name in rows if route.startswith(name)), "")
    for part in (
        "<path:object_id>",
        "<path:content_type_id>",
        "<id>",
        "<str:request_id>",
        "<int:key_id>",
    ):
        route = route.replace(part, pk)
    return "/admin/" + route.replace("(?P<url>.*)$", "no/such/page/")


def test_every_address_is_written_down_and_none_that_is_gone():
    assert sorted({route for route, _ in routes()}) == sorted(EXPECTED)


def test_every_view_of_ours_is_guarded():
    unguarded = [
        route
        for route, entry in routes()
        if not is_djangos(entry) and not hasattr(entry.callback, "gateway_permissions")
    ]
    assert unguarded == []


def test_the_guards_ask_for_what_the_lowest_role_has():
    make_groups()
    may = {"staff": set(), "viewer": set(staff.GROUPS["Viewer"])}
    may |= {"auditor": set(staff.GROUPS["Auditor"]), "operator": set(staff.GROUPS["Operator"])}
    for route, entry in routes():
        asked = getattr(entry.callback, "gateway_permissions", None)
        if asked is not None:
            lowest = ASK_FURTHER.get(route) or expected(route)[0]
            allowed = [role for role in may if may[role].issuperset(asked)]
            assert allowed == list(ROLES[ROLES.index(lowest) : -1]), route


@pytest.mark.parametrize("role", ROLES)
def test_each_role_sees_what_is_written_down(client, rows, role):
    client.force_login(make_user(role))
    wrong = {}
    for route, _ in routes():
        lowest, answered = expected(route)
        is_allowed = lowest != NOBODY and ROLES.index(role) >= ROLES.index(lowest)
        status = client.get(url_of(route, rows)).status_code
        if status != (answered if is_allowed else 403):
            wrong[route] = status
    # Without what was said.
    may_list = ROLES.index(role) >= ROLES.index("viewer")
    status = client.get("/admin/export/requests/?format=csv").status_code
    if status != (200 if may_list else 403):
        wrong["export/requests/?format=csv"] = status
    for app, lowest in APP_LISTS.items():
        status = client.get(f"/admin/{app}/").status_code
        if status != (200 if ROLES.index(role) >= ROLES.index(lowest) else 404):
            wrong[app] = status
    assert wrong == {}


@pytest.mark.parametrize("is_signed_in", [False, True])
def test_whoever_is_no_staff_is_sent_to_the_login(client, rows, is_signed_in):
    if is_signed_in:
        client.force_login(User.objects.create_user("customer", password="x"))
    wrong = {}
    for route, entry in routes():
        response = client.get(url_of(route, rows))
        # Django's redirect of an old form of addresses; it says nothing.
        is_old = entry.name is None and response.status_code == 302
        to = response.headers.get("Location", "")
        if route in OPEN:
            is_right = response.status_code == OPEN[route]
        else:
            is_right = response.status_code == 302 and (is_old or to.startswith("/admin/login/"))
        # Signed out already, there is nothing to do but to go to the first page.
        if not is_right and not (route == "logout/" and to == "/admin/"):
            wrong[route] = (response.status_code, to)
    assert wrong == {}


def test_nothing_is_posted_without_a_token(rows):
    client = Client(enforce_csrf_checks=True)
    client.force_login(make_user("superuser"))
    answered = {
        route: response.status_code
        for route, _ in routes()
        if (response := client.post(url_of(route, rows))).status_code != 403
    }
    assert answered == {}

"""Every page of the admin, once: the tests go through this table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    name: str
    # Filled from what `tests.browser.seed` printed.
    path: str
    # What is seen when it works: a selector.
    shows: str = "#content"
    # Who opens it: a user of the seeded database; empty: nobody who signed in.
    user: str = "admin"
    status: int = 200


PAGES = (
    Page("login", "/admin/login/", user=""),
    Page("overview", "/admin/"),
    Page("overview of a month", "/admin/?range=30d"),
    Page("overview of a viewer", "/admin/", user="viewer"),
    Page("sessions", "/admin/sessions_app/session/?span=all"),
    Page("sessions with errors", "/admin/sessions_app/session/?span=all&errors=1"),
    Page("session", "/admin/sessions_app/session/{session}/change/"),
    Page("hostile session", "/admin/sessions_app/session/{hostile_session}/change/"),
    Page("session with branches", "/admin/sessions_app/session/{branches}/change/"),
    Page("requests", "/admin/requests_app/request/?span=all"),
    Page("no requests", "/admin/requests_app/request/?span=1h&model=none"),
    Page("request", "/admin/requests_app/request/{request}/change/"),
    Page("failed request", "/admin/requests_app/request/{failed}/change/"),
    Page("hostile request", "/admin/requests_app/request/{hostile_request}/change/"),
    Page("hostile failed request", "/admin/requests_app/request/{hostile_failed}/change/"),
    Page("errors", "/admin/errors/?range=7d"),
    Page("errors of a month", "/admin/errors/?range=30d"),
    Page("live tail", "/admin/live/"),
    Page("playground", "/admin/playground/"),
    Page("filled playground", "/admin/playground/?request={request}"),
    Page("keys", "/admin/access/apikey/"),
    Page("key", "/admin/access/apikey/{key}/change/"),
    Page("hostile key", "/admin/access/apikey/{hostile_key}/change/"),
    Page("new key", "/admin/access/apikey/add/"),
    Page("rotate a key", "/admin/access/apikey/{key}/rotate/"),
    Page("revoke a key", "/admin/access/apikey/{key}/revoke/"),
    Page("history of a key", "/admin/access/apikey/{key}/history/"),
    Page("accounts", "/admin/access/upstreamaccount/"),
    Page("account", "/admin/access/upstreamaccount/{account}/change/"),
    Page("hostile account", "/admin/access/upstreamaccount/{hostile_account}/change/"),
    Page("new account", "/admin/access/upstreamaccount/add/"),
    Page("delete an account", "/admin/access/upstreamaccount/{account}/delete/"),
    Page("users", "/admin/auth/user/"),
    Page("user", "/admin/auth/user/{user}/change/"),
    Page("new user", "/admin/auth/user/add/"),
    Page("password of a user", "/admin/auth/user/{user}/password/"),
    Page("groups", "/admin/auth/group/"),
    Page("group", "/admin/auth/group/{group}/change/"),
    Page("new group", "/admin/auth/group/add/"),
    Page("password", "/admin/password_change/"),
    Page("password changed", "/admin/password_change/done/"),
    Page("migrations", "/admin/migrations/"),
    Page("history of migrations", "/admin/schema/migrationevent/"),
    Page("health", "/admin/health/"),
    Page("audit", "/admin/admin/logentry/"),
    Page("not found", "/admin/no-such-page/", status=404),
    Page("not found for a stranger", "/no-such-page", user="", status=404),
    Page("not allowed", "/admin/health/", user="viewer", status=403),
)

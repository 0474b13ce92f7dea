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


PAGES = (
    Page("overview", "/admin/"),
    Page("sessions", "/admin/sessions_app/session/?span=all"),
    Page("session", "/admin/sessions_app/session/{session}/change/"),
    Page("hostile session", "/admin/sessions_app/session/{hostile_session}/change/"),
    Page("session with branches", "/admin/sessions_app/session/{branches}/change/"),
    Page("requests", "/admin/requests_app/request/?span=all"),
    Page("request", "/admin/requests_app/request/{request}/change/"),
    Page("failed request", "/admin/requests_app/request/{failed}/change/"),
    Page("hostile request", "/admin/requests_app/request/{hostile_request}/change/"),
    Page("hostile failed request", "/admin/requests_app/request/{hostile_failed}/change/"),
    Page("errors", "/admin/errors/?range=7d"),
    Page("live tail", "/admin/live/"),
    Page("playground", "/admin/playground/"),
    Page("filled playground", "/admin/playground/?request={request}"),
    Page("keys", "/admin/access/apikey/"),
    Page("key", "/admin/access/apikey/{key}/change/"),
    Page("hostile key", "/admin/access/apikey/{hostile_key}/change/"),
    Page("new key", "/admin/access/apikey/add/"),
    Page("accounts", "/admin/access/upstreamaccount/"),
    Page("account", "/admin/access/upstreamaccount/{account}/change/"),
    Page("hostile account", "/admin/access/upstreamaccount/{hostile_account}/change/"),
    Page("new account", "/admin/access/upstreamaccount/add/"),
    Page("users", "/admin/auth/user/"),
    Page("user", "/admin/auth/user/{user}/change/"),
    Page("new user", "/admin/auth/user/add/"),
    Page("groups", "/admin/auth/group/"),
    Page("group", "/admin/auth/group/{group}/change/"),
    Page("password", "/admin/password_change/"),
    Page("migrations", "/admin/migrations/"),
    Page("history of migrations", "/admin/schema/migrationevent/"),
    Page("health", "/admin/health/"),
    Page("audit", "/admin/admin/logentry/"),
)

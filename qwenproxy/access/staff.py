"""What people who sign in to the admin may do: permissions, groups, the guard of its pages, the audit log.

| group | may |
| --- | --- |
| Viewer | see lists, counters and statistics, none of what was said |
| Auditor | besides: read conversations and bodies, export them, read the audit log |
| Operator | besides: keys, upstream accounts, playground, health, pinning sessions |

Users, groups, deletion and keys with the scope admin are a superuser's. A group that exists is never changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import wraps
from typing import Any

from django.apps import AppConfig
from django.apps import apps as global_apps
from django.conf import settings
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.db.models import Model, Q
from django.db.models.signals import post_migrate
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils import timezone

VIEW_REQUESTS = "requests_app.view_request"
VIEW_SESSIONS = "sessions_app.view_session"
# To pin them; nothing else of them can be changed.
CHANGE_SESSIONS = "sessions_app.change_session"
# What was said: transcripts, bodies, titles, exports of them.
VIEW_PAYLOAD = "requests_app.view_payload"
VIEW_KEYS = "access.view_apikey"
CHANGE_KEYS = "access.change_apikey"
VIEW_ACCOUNTS = "access.view_upstreamaccount"
CHANGE_ACCOUNTS = "access.change_upstreamaccount"
USE_PLAYGROUND = "access.use_playground"
VIEW_HEALTH = "access.view_health"
VIEW_MIGRATION_EVENTS = "schema.view_migrationevent"
VIEW_AUDIT = "admin.view_logentry"

_VIEWER = (VIEW_SESSIONS, VIEW_REQUESTS, "requests_app.view_response")
_AUDITOR = (*_VIEWER, VIEW_PAYLOAD, VIEW_AUDIT, VIEW_MIGRATION_EVENTS)
GROUPS: Mapping[str, tuple[str, ...]] = {
    "Viewer": _VIEWER,
    "Auditor": _AUDITOR,
    "Operator": (
        *_AUDITOR,
        *(f"access.{verb}_apikey" for verb in ("view", "add", "change")),
        *(f"access.{verb}_upstreamaccount" for verb in ("view", "add", "change")),
        CHANGE_SESSIONS,
        USE_PLAYGROUND,
        VIEW_HEALTH,
    ),
}

# Of log entries, beside Django's own 1 to 3.
VIEWED, EXPORTED = 4, 5
_SAME_VIEW = timedelta(minutes=10)
_RECENT_ENTRIES = 50

View = Callable[..., HttpResponseBase]


def gateway_view(*permissions: str) -> Callable[[View], View]:
    """Guard a page of the admin: signed-in staff, and of them those who have all `permissions`.

    Others are sent to the login, or get 403. Every view of ours that is no `ModelAdmin`'s carries it, as
    `tests/test_roles.py` checks; a `ModelAdmin`'s own methods ask for permissions themselves.
    """

    def decorate(view: View) -> View:
        def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if not request.user.has_perms(permissions):
                raise PermissionDenied
            return view(request, *args, **kwargs)

        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            # The site is not there yet when views are defined.
            return admin.site.admin_view(checked)(request, *args, **kwargs)

        guarded.gateway_permissions = permissions  # type: ignore[attr-defined]  # for the test
        return guarded

    return decorate


def may_read(request: HttpRequest, *, has_failed: bool = False) -> bool:
    """Whether this user may see what was said; QWENPROXY_PAYLOADS can hide it from everyone."""
    shown = settings.PAYLOADS
    is_shown = shown == "all" or (shown == "errors" and has_failed)
    return is_shown and request.user.has_perm(VIEW_PAYLOAD)


def audit(
    request: HttpRequest, action: int, target: Model | type[Model], **details: object
) -> LogEntry:
    """Note that this user has seen or taken content: VIEWED a row, or EXPORTED rows of a model.

    `details` are JSON values, such as the filter and the number of rows; never content.
    """
    # `admin_view` lets nobody else come here.
    assert request.user.pk is not None
    row = target if isinstance(target, Model) else None
    return LogEntry.objects.create(
        user_id=request.user.pk,
        content_type=ContentType.objects.get_for_model(target),
        object_id=None if row is None else str(row.pk),
        object_repr=(str(row) if row is not None else "")[:200],
        action_flag=action,
        change_message=json.dumps(details) if details else "",
    )


def audit_view(request: HttpRequest, row: Model) -> None:
    """Note that this user has seen what a row says; once in ten minutes, however often it is opened.

    To be called by every page that shows content, before it does. After `_RECENT_ENTRIES` other entries of
    theirs a view is noted again.
    """
    # The user's newest entries, by their index: the log has none of its times.
    entries = LogEntry.objects.filter(user=request.user.pk).order_by("-pk")
    seen = (ContentType.objects.get_for_model(row).pk, str(row.pk), VIEWED)
    since = timezone.now() - _SAME_VIEW
    columns = ("content_type", "object_id", "action_flag", "action_time")
    for *what, at in entries.values_list(*columns)[:_RECENT_ENTRIES]:
        if tuple(what) == seen and at > since:
            return
    audit(request, VIEWED, row)


def connect_groups(last_app: AppConfig) -> None:
    """Make the groups when `last_app` is migrated: by then all permissions exist."""
    post_migrate.connect(_make_groups, sender=last_app, dispatch_uid="qwenproxy.groups")


def _make_groups(*, using: str, apps: Any = global_apps, **_: Any) -> None:
    try:
        group_model = apps.get_model("auth", "Group")
        permission_model = apps.get_model("auth", "Permission")
    except LookupError:
        # Migrated back to before them.
        return
    names = {name for permissions in GROUPS.values() for name in permissions}
    wanted = Q()
    for name in names:
        app, codename = name.split(".")
        wanted |= Q(content_type__app_label=app, codename=codename)
    found = {
        f"{row.content_type.app_label}.{row.codename}": row
        for row in permission_model.objects.using(using).filter(wanted).select_related()
    }
    if len(found) < len(names):
        # Not all apps are migrated; a later run finds them.
        return
    existing = set(group_model.objects.using(using).values_list("name", flat=True))
    for name, permissions in GROUPS.items():
        if name not in existing:
            group = group_model.objects.using(using).create(name=name)
            group.permissions.set([found[permission] for permission in permissions])

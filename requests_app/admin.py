"""Registers the records' pages; what every list has in common is in `sessions_app.admin`."""

from __future__ import annotations

from django.contrib import admin

from requests_app.admin_requests import RequestAdmin, ResponseAdmin
from requests_app.admin_sessions import SessionAdmin
from requests_app.models import Request, Response
from sessions_app.models import Session

admin.site.register(Session, SessionAdmin)
admin.site.register(Request, RequestAdmin)
admin.site.register(Response, ResponseAdmin)
